"""Fast inference: the samples of the policy itself, from any engine, whatever fails."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from policies.checkpoint import load_hosted, save_checkpoint
from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.decoding.table import make_decoder
from policies.diffusion import DiffusionPolicy
from policies.hosted import Hosted
from policies.inference.choices import EngineName
from policies.inference.engines import BATCHED, EngineMaker, OpenVino, Torch
from policies.inference.fast import FastPolicy, accelerate
from policies.inference.networks import take_apart
from policies.inference.products import Grow, Toom, convolution, toom_cook
from policies.inference.program import program
from policies.trainable import TrainablePolicy
from robot_stack.errors import PolicyError
from tests.policies import small

DEEP = {"name": "unet1d", "down_dims": [8, 16, 24], "groups": 4, "step_width": 16, "kernel": 3}
MANY = 4 * BATCHED
OBSERVED = torch.linspace(0, 512, 16).reshape(2, 2, 4)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(policy: Any, of: list[int], noise: torch.Tensor, **how: Any) -> torch.Tensor:
    """A sample for each row of noise, under the observation that ``of`` names, in [-1, 1]."""
    condition = policy.encode(OBSERVED, {})[of]
    if "start" in how:
        how["start"] = 300 + 100 * how["start"]
    chunk: torch.Tensor = policy.sample(condition, noise, **how)
    return (chunk - 256) / 236


def fast(policy: TrainablePolicy, engine: EngineName = "torch") -> FastPolicy:
    made = accelerate(policy, engine)
    assert isinstance(made, FastPolicy)
    assert made.engine == engine
    return made


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("outputs", "taps"), [(4, 5), (4, 3), (2, 5), (4, 4), (1, 1)])
def test_toom_cook_filters(outputs: int, taps: int) -> None:
    after, weigh, before = toom_cook(outputs, taps)
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(taps, generator=generator, dtype=torch.float64)
    d = torch.randn(outputs + taps - 1, generator=generator, dtype=torch.float64)
    plain = torch.stack([(g * d[i : i + taps]).sum() for i in range(outputs)])
    torch.testing.assert_close(after @ ((weigh @ g) * (before @ d)), plain)


def test_toom_cook_has_points_for_so_many() -> None:
    with pytest.raises(ValueError, match="points"):
        toom_cook(4, 7)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("length", [4, 6, 16])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (7, 1), (3, 2)])
def test_products_are_convolutions(length: int, kernel: int, stride: int, batched: bool) -> None:
    torch.manual_seed(1)
    conv = nn.Conv1d(6, 10, kernel, stride, padding=kernel // 2)
    x = torch.randn(3, 6, length)
    made = convolution(conv, length, batched)
    assert isinstance(made, Toom) == (batched and stride == 1 and kernel in (3, 5) and length != 6)
    with torch.no_grad():
        close(made(x.permute(2, 0, 1)).permute(1, 2, 0), conv(x))


def test_growing_is_a_transposed_convolution() -> None:
    torch.manual_seed(1)
    conv, x = nn.ConvTranspose1d(6, 6, 4, 2, 1), torch.randn(3, 6, 5)
    with torch.no_grad():
        close(Grow(conv, 5)(x.permute(2, 0, 1)).permute(1, 2, 0), conv(x))


@pytest.mark.parametrize(
    ("kind", "network", "engine"),
    [
        ("diffusion", small.UNET, "torch"),
        ("diffusion", small.UNET, "openvino"),
        ("diffusion", small.MLP, "torch"),
        ("diffusion", small.MLP, "openvino"),
        ("flow", DEEP, "torch"),
        ("flow", small.MLP, "openvino"),
    ],
)
def test_the_same_samples(kind: str, network: dict[str, Any], engine: EngineName) -> None:
    policy = small.policy({"policy": kind, "network": network})
    made = fast(policy, engine)
    noise = small.noise(MANY, policy.contract)
    start = noise.roll(1, dims=0)
    for of in ([1], [0, 1], [0, 1, 1], [0, 1] * (MANY // 2)):
        rows = noise[: len(of)]
        theirs = drawn(policy, of, rows)
        close(drawn(made, of, rows), theirs)
        for level in (0.05, 0.4, 1.0):
            begun = {"start": start[: len(of)], "level": level}
            close(drawn(made, of, rows, **begun), drawn(policy, of, rows, **begun))
        assert theirs.std() > 0.1
    assert made.engine == engine
    with pytest.raises(PolicyError, match="level"):
        drawn(made, [0], noise[:1], level=0.4)


@pytest.mark.parametrize("kind", ["minmax", "gaussian"])
def test_clipped_as_the_data_ends(kind: Any) -> None:
    torch.manual_seed(3)
    policy = DiffusionPolicy(
        small.diffusion(small.UNET), small.contract(), small.normalizer(kind)
    ).eval()
    noise = small.noise(MANY, policy.contract)
    with torch.no_grad():
        policy.network.get_parameter("leave.1.weight").mul_(8)  # far from what the data has
    theirs = drawn(policy, [0] * MANY, noise)
    torch.testing.assert_close(drawn(fast(policy), [0] * MANY, noise), theirs, rtol=1e-4, atol=1e-4)
    assert (theirs.abs().max() < 1.2) == (kind == "minmax")


def test_a_chunk_does_not_depend_on_its_batch() -> None:
    """The form for many and the form for one draw the same."""
    policy = small.policy(small.diffusion(small.UNET))
    made, noise = fast(policy), small.noise(MANY, policy.contract)
    of = [0, 1] * (MANY // 2)
    together = drawn(made, of, noise)
    for i in (0, 1, MANY - 1):
        close(drawn(made, of[i : i + 1], noise[i : i + 1]), together[i : i + 1])


def test_images_are_encoded_once_and_repeated() -> None:
    policy = small.policy(
        {**small.diffusion(small.UNET), "encoder": small.ENCODER}, cameras=small.CAMERAS
    )
    made, batch = fast(policy), small.batch(2, policy.contract)
    noise = small.noise(6, policy.contract)
    ours = made.encode(batch.state, batch.images).repeat_interleave(3, dim=0)
    theirs = policy.encode(batch.state, batch.images).repeat_interleave(3, dim=0)
    close(made.sample(ours, noise) / 236, policy.sample(theirs, noise) / 236)


def test_guided_samples_are_the_policys_own() -> None:
    policy = small.policy(small.diffusion(small.UNET))
    made, noise = fast(policy), small.noise(2, policy.contract)
    guide = (torch.full((2, 8, 2), 300.0), torch.ones(2, 8), 5.0)
    with torch.inference_mode():
        guided = drawn(made, [0, 1], noise, guide=guide)
    assert torch.equal(guided, drawn(policy, [0, 1], noise, guide=guide))
    assert (guided - drawn(made, [0, 1], noise)).abs().max() > 0.01
    assert made.engine == "torch"


@pytest.mark.parametrize(
    "architecture",
    [
        small.diffusion(small.TRANSFORMER),
        small.diffusion(small.MLP, sampler={"name": "ddpm", "steps": 10}),
    ],
    ids=["transformer", "ddpm"],
)
def test_what_has_no_faster_form_stays(
    architecture: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy = small.policy(architecture)
    with caplog.at_level(logging.INFO):
        assert accelerate(policy) is policy
    assert "engine eager" in caplog.text
    assert accelerate(small_unet := small.policy(small.diffusion()), "eager") is small_unet


# -- falling back ----------------------------------------------------------------------------


def with_engines(policy: TrainablePolicy, engines: dict[str, EngineMaker]) -> FastPolicy:
    assert isinstance(policy, DiffusionPolicy)
    steps = program(policy)
    assert steps is not None
    parts = take_apart(policy.network, steps.times, policy.contract.horizon)
    assert parts is not None
    return FastPolicy(policy, parts, steps, engines)


def test_without_openvino(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails, as where it is not
    policy = small.policy(small.diffusion())
    with caplog.at_level(logging.INFO):
        made = accelerate(policy)
    assert isinstance(made, FastPolicy)
    assert made.engine == "torch"
    assert "robot-stack[openvino]" in caplog.text
    assert "policy small: engine torch" in caplog.text
    noise = small.noise(2, policy.contract)
    close(drawn(made, [0, 1], noise), drawn(policy, [0, 1], noise))


def test_a_device_that_openvino_does_not_have(caplog: pytest.LogCaptureFixture) -> None:
    policy = small.policy(small.diffusion())
    nowhere = functools.partial(OpenVino, device="ABACUS")
    assert with_engines(policy, {"openvino": nowhere, "torch": Torch}).engine == "torch"
    assert "ABACUS" in caplog.text
    alone = with_engines(policy, {"openvino": nowhere})
    assert alone.engine == "eager"
    noise = small.noise(2, policy.contract)
    close(drawn(alone, [0, 1], noise), drawn(policy, [0, 1], noise))


def test_an_engine_that_fails_while_it_serves(caplog: pytest.LogCaptureFixture) -> None:
    """The form for many is compiled when many are first drawn: here it can't be."""
    policy = small.policy(small.diffusion(small.UNET))
    made = accelerate(policy, "openvino")
    assert isinstance(made, FastPolicy)
    made._engine._device = "ABACUS"  # type: ignore[union-attr]
    noise = small.noise(MANY, policy.contract)
    theirs = drawn(policy, [0] * MANY, noise)
    with caplog.at_level(logging.INFO):
        close(drawn(made, [0] * MANY, noise), theirs)
    assert made.engine == "torch"
    assert "not with engine openvino" in caplog.text
    assert "engine torch" in caplog.text
    close(drawn(made, [0] * MANY, noise), theirs)


def test_an_engine_that_is_wrong_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    policy = small.policy(small.diffusion(small.UNET))
    made = fast(policy)
    with torch.no_grad():  # what was computed ahead is no longer so
        policy.network.get_parameter("middle.0.film.weight").mul_(3)
        policy.network.get_parameter("middle.0.film.bias").add_(1)
    noise = small.noise(MANY, policy.contract)
    assert torch.equal(drawn(made, [0] * MANY, noise), drawn(policy, [0] * MANY, noise))
    assert made.engine == "eager"
    assert "off, allowed is" in caplog.text


def test_a_wrong_request_costs_no_engine() -> None:
    policy = small.policy(small.diffusion(small.UNET))
    made = fast(policy)
    with pytest.raises(RuntimeError):
        drawn(made, [0], small.noise(1, policy.contract)[:, :, :1])
    assert made.engine == "torch"


# -- serving ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "engine", "threads"), [(small.UNET, "torch", 1), (small.MLP, "openvino", 2)]
)
def test_hosted_policies_decode_alike(
    network: dict[str, Any], engine: EngineName, threads: int, tmp_path: Path
) -> None:
    """Strong and weak together where each has threads of its own, one after the other else."""
    architecture = small.diffusion(network)
    save_checkpoint(tmp_path / "strong", small.policy(architecture), {})
    weak = small.policy(architecture)
    torch.manual_seed(9)
    for parameter in weak.parameters():
        nn.init.normal_(parameter, std=0.1)
    save_checkpoint(tmp_path / "weak", weak, {})

    def chunks(engine: EngineName) -> list[Any]:
        hosted = load_hosted(tmp_path / "strong", tmp_path / "weak", engine=engine)
        names = {getattr(p, "engine", "eager") for p in (hosted.strong, hosted.weak)}
        assert names == {engine}
        assert hosted.together == (engine == "openvino")
        noise = small.noise(1, hosted.contract)
        close(drawn(hosted.weak, [0], noise), drawn(weak, [0], noise))
        session = Session(make_decoder("bid_warm"), hosted, seed=4)
        previous, found = -1, []
        for _ in range(3):
            step = session.begin(previous, 2, 0)
            state = OBSERVED[0].numpy().astype(np.float32)
            ((previous, rows),) = decode(hosted, [Request(session, step, state)])
            found.append(rows)
        return found

    torch.set_num_threads(threads)
    try:
        for ours, theirs in zip(chunks(engine), chunks("eager"), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.01)  # px
    finally:
        torch.set_num_threads(1)


class Meeting:
    """A policy whose samples wait until the other one's are being drawn."""

    def __init__(self, policy: TrainablePolicy, meet: threading.Barrier) -> None:
        self.contract, self.gives, self.device = policy.contract, policy.gives, policy.device
        self.encode, self.normalized = policy.encode, policy.normalized
        self._policy, self._meet = policy, meet

    def sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._meet.wait(timeout=20)
        assert not torch.is_grad_enabled()
        return self._policy.sample(*args, **kwargs)


def test_strong_and_weak_sample_together() -> None:
    policy, meet = small.policy(small.diffusion()), threading.Barrier(2)
    hosted = Hosted(Meeting(policy, meet), Meeting(policy, meet), together=True)
    session = Session(make_decoder("bid"), hosted, seed=4)
    request = Request(session, session.begin(-1, 0, 0), OBSERVED[0].numpy())
    ((_, rows),) = decode(hosted, [request])
    assert np.isfinite(rows).all()


BUSY = """
import json, os, time, torch
from pathlib import Path
from tests.policies import small
from policies.inference.fast import accelerate

torch.set_num_threads(1)
network = {"name": "unet1d", "down_dims": [64, 128], "groups": 8, "step_width": 16}
policy = small.policy(small.diffusion(network))
made = accelerate(policy, "openvino")
condition = made.encode(torch.zeros(1, 2, 4), {}).repeat(64, 1)
noise = small.noise(64, policy.contract)
made.sample(condition, noise)

def busy():
    found = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = int(fields[11]) + int(fields[12])
    return found

before, end = busy(), time.process_time() + 1
while time.process_time() < end:
    made.sample(condition, noise)
took = {name: ticks - before.get(name, 0) for name, ticks in busy().items()}
print(json.dumps([made.engine, sorted(took.values())]))
"""


def test_threads_are_bounded_by_torchs() -> None:
    """In a process of its own: of all its threads one does the work."""
    done = subprocess.run(
        [sys.executable, "-c", BUSY],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    engine, ticks = json.loads(done.stdout.splitlines()[-1])
    assert engine == "openvino"
    assert sum(ticks) >= 50, "too little was done to tell"
    assert ticks[-1] >= 0.9 * sum(ticks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs() -> None:
    policy = small.policy(small.diffusion(small.UNET)).to("cuda")
    made = accelerate(policy)
    assert isinstance(made, FastPolicy)
    assert made.engine == "cuda-graphs"
    for samples in (1, MANY, 1):
        noise = small.noise(samples, policy.contract, seed=samples).to("cuda")
        for how in ({}, {"start": noise.flip(0), "level": 0.4}):
            chunk = [
                p.sample(p.encode(OBSERVED[:1].to("cuda"), {}).expand(samples, *_), noise, **how)
                for p, _ in ((made, (-1,)), (policy, (-1, -1)))
            ]
            torch.testing.assert_close(*(c / 236 for c in chunk), rtol=0, atol=1e-4)
