"""Inference: our samples of a published diffusion policy against the plain loop, one CPU thread.

The state U-Net of Diffusion Policy for Push-T (65.8 M parameters, chunks of 16, DDIM-10) with the
same weights and noise, in turns: ours as it is served, and diffusion_policy's loop (diffusers'
scheduler around the eager network). Beside them in the same run what this core can do: products of
large matrices, and reading memory. A single sample can't be faster than its weights are read; a
batch of 16 can't multiply faster than the core does, but it can multiply less.

Figures are of the process's CPU time, which other programs on the machine disturb least; wall
times stand beside them. Differences are in the network's range, where actions are in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.build import build
from policies.decoding.bid import BidWarm
from policies.diffusion import DiffusionPolicy
from policies.inference.choices import ENGINES
from policies.inference.fast import FastPolicy, accelerate
from policies.inference.networks import take_apart
from policies.inference.products import Grow, Taps, Toom
from policies.models.unet import Unet
from policies.normalizer import Normalizer, Scale
from robot_stack.contract import Feature, PolicyContract

__all__ = ["add_arguments", "run"]

BARS = {"speedup_single": 3.0, "speedup_bid16": 1.05, "speedup_bid16_warm": 3.0}
LARGEST_DIFFERENCE = 1e-4
MOST_THREADS = 1.15  # CPU time over wall time, beyond which one thread was not all
GPU_BAR = 5.0
BATCH = 16
STEPS = 10
FEATURES = 20
ARCHITECTURE = {
    "policy": "diffusion",
    "network": {"name": "unet1d"},
    "sampler": {"name": "ddim", "steps": STEPS},
}

Sample = Callable[[], torch.Tensor]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=12, help="turns of each (12)")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="ours (default: as `policy serve`)"
    )
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.epilog = "example:\n  robot-stack bench infer --rounds 12"


def _policy() -> DiffusionPolicy:
    """The published network with weights as training begins with them."""
    contract = PolicyContract(
        name="pusht",
        embodiment="pusht",
        task="pusht",
        state=tuple(Feature(f"env/{i}", "px") for i in range(FEATURES)),
        action=(Feature("agent/x", "px"), Feature("agent/y", "px")),
        cameras=(),
        control_dt_ns=100_000_000,
        observations=2,
        horizon=16,
        first_action=1,
        execute=8,
    )

    def pixels(count: int) -> Scale:
        return Scale("minmax", (256.0,) * count, (256.0,) * count)

    torch.manual_seed(0)
    policy = build(ARCHITECTURE, contract, Normalizer(pixels(FEATURES), pixels(2)))
    assert isinstance(policy, DiffusionPolicy)
    return policy.eval().requires_grad_(False)


class PlainLoop:
    """diffusion_policy's way to a sample: its scheduler's steps around the whole network."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        from diffusers import DDIMScheduler

        self._policy = policy
        self._scheduler = DDIMScheduler(
            num_train_timesteps=policy.schedule.steps,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            set_alpha_to_one=True,
        )

    @torch.no_grad()
    def sample(self, state: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Observations (M, To, S) and noise (M, Tp, D) -> actions (M, Tp, D)."""
        condition = self._policy.normalize_state(state)
        self._scheduler.set_timesteps(STEPS)
        x = noise
        for t in self._scheduler.timesteps:
            answer = self._policy.network(x, t.to(x.device).expand(len(x)), condition)
            x = self._scheduler.step(answer, t, x).prev_sample
        return self._policy.restore_action(x)


def _contest(policy: DiffusionPolicy, engine: Any) -> tuple[str, dict[str, Sample]]:
    """Our engine's name, and what is measured; ``X`` and ``their_X`` give the same."""
    fast, plain, device = accelerate(policy, engine), PlainLoop(policy), policy.device
    generator = torch.Generator().manual_seed(1)
    state = 512 * torch.rand(1, 2, FEATURES, generator=generator).to(device)
    noise = torch.randn(BATCH, 16, 2, generator=generator).to(device)
    level = BidWarm().level

    def ours(count: int, start: torch.Tensor | None = None) -> torch.Tensor:
        condition = fast.encode(state, {}).repeat_interleave(count, dim=0)
        warm = 1.0 if start is None else level
        return fast.sample(condition, noise[:count], start=start, level=warm)

    def eager_warm(start: torch.Tensor) -> torch.Tensor:
        condition = policy.encode(state, {}).repeat_interleave(BATCH, dim=0)
        return policy.sample(condition, noise, start=start, level=level)

    # As `bid_warm` has it: all samples begin at the selected chunk, four rows later.
    start = ours(1)[:, 4:]
    start = torch.cat((start, start[:, -1:].expand(-1, 4, -1)), dim=1).repeat(BATCH, 1, 1)
    return fast.engine if isinstance(fast, FastPolicy) else "eager", {
        "their_single": lambda: plain.sample(state, noise[:1]),
        "single": lambda: ours(1),
        "their_bid16": lambda: plain.sample(state.expand(BATCH, -1, -1), noise),
        "bid16": lambda: ours(BATCH),
        "bid16_warm": lambda: ours(BATCH, start),
        "their_bid16_warm": lambda: eager_warm(start),
    }


def _difference(policy: DiffusionPolicy, samples: dict[str, Sample]) -> float:
    """The largest between ours and theirs, in the network's range."""
    return max(
        float(((samples[name]() - samples[f"their_{name}"]()) / policy.action_width).abs().max())
        for name in ("single", "bid16", "bid16_warm")
    )


def _limits() -> tuple[dict[str, Callable[[], Any]], float, int]:
    """What measures the core, with the operations and the bytes of one call."""
    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    memory = torch.ones(64 << 20)
    return (
        {"gemm": lambda: left @ right, "read": memory.sum},
        2.0 * size**3,
        memory.nbytes,
    )


def _race(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """CPU and wall seconds of each, (rounds, 2), in turns and in an order that moves on."""
    names = list(contestants)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            cpu, wall = time.process_time(), time.perf_counter()
            contestants[name]()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: np.array(values) for name, values in taken.items()}


def _operations(policy: DiffusionPolicy, batched: bool) -> tuple[float, float]:
    """Multiplications and additions a step and sample: of the published layers, and ours."""
    published = 0.0
    lengths: dict[nn.Module, int] = {}
    network = policy.network
    assert isinstance(network, Unet)
    handles = [
        module.register_forward_hook(
            lambda module, given, result: lengths.update(
                {module: (given[0] if isinstance(module, nn.ConvTranspose1d) else result).shape[-1]}
            )
        )
        for module in network.modules()
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
    ]
    network(torch.zeros(1, 16, 2), torch.zeros(1), torch.zeros(1, 2, FEATURES))
    for handle in handles:
        handle.remove()
    for module, length in lengths.items():
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        published += 2.0 * weight.numel() * length
    parts = take_apart(network, [0.0], 16)
    assert parts is not None
    performed = 0.0
    for part in parts.body(batched).modules():
        if isinstance(part, Toom):
            performed += 2.0 * part.tiles * sum(weight.numel() for weight in part.weights)
            performed += 2.0 * part.before.numel() * part.inside
            performed += 2.0 * part.after.numel() * part.outside
        elif isinstance(part, Taps):
            performed += 2.0 * part.weight.numel() * part.shifted.outputs
        elif isinstance(part, Grow):
            performed += 2.0 * (part.even.numel() + part.odd.numel()) * part.before.outputs
    return published, performed


def measure(rounds: int, engine: str) -> dict[str, Any]:
    """Run the benchmark on one CPU thread."""
    torch.set_num_threads(1)
    policy = _policy()
    used, samples = _contest(policy, engine)
    difference = _difference(policy, samples)
    del samples["their_bid16_warm"]  # for the difference; nobody's rival
    limits, gemm_operations, read_bytes = _limits()
    race = _race({**samples, **limits}, rounds)
    cpu = {name: float(np.median(values[:, 0])) for name, values in race.items()}
    wall = {name: float(np.median(values[:, 1])) for name, values in race.items()}
    peak = gemm_operations / float(race["gemm"][:, 0].min())
    bandwidth = read_bytes / float(race["read"][:, 0].min())
    parameters = sum(parameter.numel() for parameter in policy.network.parameters())
    read = 4 * STEPS * parameters
    published, performed = (BATCH * STEPS * count for count in _operations(policy, True))

    def speedups(seconds: dict[str, float]) -> dict[str, float]:
        return {
            "speedup_single": round(seconds["their_single"] / seconds["single"], 2),
            "speedup_bid16": round(seconds["their_bid16"] / seconds["bid16"], 2),
            "speedup_bid16_warm": round(seconds["their_bid16"] / seconds["bid16_warm"], 2),
        }

    names = [name for name in race if name not in limits]
    return {
        **speedups(cpu),
        "max_abs_diff": difference,
        "fraction_of_peak": {
            "single_bandwidth": round(read / cpu["single"] / bandwidth, 3),
            "their_single_bandwidth": round(read / cpu["their_single"] / bandwidth, 3),
            "bid16_performed": round(performed / cpu["bid16"] / peak, 3),
            "bid16_as_published": round(published / cpu["bid16"] / peak, 3),
            "their_bid16_as_published": round(published / cpu["their_bid16"] / peak, 3),
        },
        "peak_gflops": round(peak / 1e9, 1),
        "read_gb_s": round(bandwidth / 1e9, 1),
        "cpu_ms": {name: round(1e3 * cpu[name], 1) for name in names},
        "wall_ms": {name: round(1e3 * wall[name], 1) for name in names},
        "wall": speedups(wall),
        "threads_used": round(max(float(np.median(v[:, 0] / v[:, 1])) for v in race.values()), 2),
        "engine": used,
        "parameters": parameters,
        "steps": STEPS,
        "warm_level": BidWarm().level,
        "rounds": rounds,
        "lerobot": None,
        "cuda": _measure_cuda(rounds) if torch.cuda.is_available() else None,
    }


def _measure_cuda(rounds: int) -> dict[str, Any]:
    """The same on a GPU, by wall time to the finished sample; float32."""
    policy = _policy().to("cuda")
    used, samples = _contest(policy, "auto")

    def finished(sample: Sample) -> Callable[[], None]:
        def call() -> None:
            sample()
            torch.cuda.synchronize()

        return call

    difference = _difference(policy, samples)
    race = _race({name: finished(sample) for name, sample in samples.items()}, 10 * rounds)
    wall = {name: float(np.median(values[:, 1])) for name, values in race.items()}
    return {
        "speedup_single": round(wall["their_single"] / wall["single"], 2),
        "speedup_bid16": round(wall["their_bid16"] / wall["bid16"], 2),
        "max_abs_diff": difference,
        "wall_ms": {name: round(1e3 * value, 2) for name, value in wall.items()},
        "engine": used,
        "device": torch.cuda.get_device_name(),
    }


def failures(results: dict[str, Any]) -> list[str]:
    """The bars that results miss, in words."""
    missed = [
        f"{name} is {results[name]}, at least {bar} is wanted"
        for name, bar in BARS.items()
        if not results[name] >= bar
    ]
    if not results["max_abs_diff"] <= LARGEST_DIFFERENCE:
        missed.append(
            f"samples differ by {results['max_abs_diff']:.2g}, allowed is {LARGEST_DIFFERENCE:g}"
        )
    if not results["threads_used"] <= MOST_THREADS:
        missed.append(f"{results['threads_used']} threads were busy; one is what is compared")
    cuda = results["cuda"]
    if cuda is not None and not cuda["speedup_single"] >= GPU_BAR:
        missed.append(f"on the GPU speedup_single is {cuda['speedup_single']}, wanted {GPU_BAR}")
    return missed


def run(args: argparse.Namespace) -> int:
    results = measure(args.rounds, args.engine)
    missed = failures(results)
    if not args.json:
        _print(results)
    for text in missed:
        print(text, file=sys.stderr)
    print(json.dumps({**results, "ok": not missed}))
    return 1 if missed else 0


def _print(results: dict[str, Any]) -> None:
    cpu, peak = results["cpu_ms"], results["fraction_of_peak"]
    print(f"ours: engine {results['engine']}; CPU ms a sample or batch, medians, one thread")
    for name in ("single", "bid16", "bid16_warm"):
        theirs = cpu["their_single" if name == "single" else "their_bid16"]
        print(
            f"  {name:11} {cpu[name]:8.1f}   plain loop {theirs:8.1f}   "
            f"{results[f'speedup_{name}']:5.2f}x"
        )
    print(
        f"this core: {results['peak_gflops']} GFLOP/s, reads {results['read_gb_s']} GB/s\n"
        f"  single: weights at {peak['single_bandwidth']:.0%} of what the core reads "
        f"(plain loop {peak['their_single_bandwidth']:.0%})\n"
        f"  bid16: {peak['bid16_performed']:.0%} of the core's arithmetic, which does the work of "
        f"{peak['bid16_as_published']:.0%} (plain loop {peak['their_bid16_as_published']:.0%})"
    )
    print(f"largest difference {results['max_abs_diff']:.1e}")
    print("lerobot: not compared")
    if results["cuda"] is None:
        print("no GPU: CUDA graphs not run")
