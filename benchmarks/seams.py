"""Chunk seams under injected inference delay: jump, jerk and tracking of each way to decode.

On a simulated clock, so that every run is the same: the real chunk buffer and SafetyFilter of an
ALOHA arm, the real decoders, samplers and guidance, and a policy in closed form for a task with
two ways past each obstacle. Between them stands a link that delays replies by 0-300 ms, or loses
them. ``sync`` waits for each chunk; the others ask ahead while the last chunk executes.
``naive_async`` takes each chunk as it comes. ``rtc_one_sample`` is RTC as its paper has it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._forks import distance_to_ways, hosted
from benchmarks._simulated_runner import MS, SPEC, TICK_S, Link, Log, roll_out
from policies.decoding.table import make_decoder
from policies.hosted import Hosted

__all__ = [
    "add_arguments",
    "constant",
    "held_when_starved",
    "limit_violations",
    "max_jerk",
    "max_jump",
    "measure",
    "run",
    "tracking_error",
]

Array = NDArray[np.float64]

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sync": ("receding_horizon", {}),
    "naive_async": ("receding_horizon", {}),
    "temporal_ensemble": ("temporal_ensemble", {}),
    "rtc": ("rtc", {}),
    "rtc_one_sample": ("rtc", {"samples": 1}),
    "bid": ("bid", {}),
}
MODELS = ("diffusion", "flow")
DELAYS_MS = (0, 100, 200, 300)
LOST = 0.15  # of replies, where the link is irregular
SILENT_S = (3.0, 5.0)  # no reply arrives in this time, where the link falls silent
BAR_MS = 200
BAR = 0.5

WARM_UP_S = 1.0  # from standing still to following; not judged
SEAM_S = 0.2  # for so long after a seam its jerk is judged
TICKS_A_ROW = 4
SETTLED_S = 0.1  # after the rows have run out
OVERSHOOT = 0.005  # rad or fraction: to brake from 0.9 rad/s at the acceleration limit
STILL = 1e-9

# The arm's limits, by hand (rad, the gripper as a fraction): what is sent is held against these.
LOWER = (-3.1416, -1.8516, -1.7641, -3.1416, -1.8684, -3.1416, -0.1)
UPPER = (3.1401, 1.2564, 1.6046, 3.1401, 2.2335, 3.1401, 1.1)
VELOCITY = (3.14, 3.14, 3.14, 3.14, 3.14, 3.14, 2.0)
ACCELERATION = (80.0, 80.0, 80.0, 80.0, 80.0, 80.0, 8.0)


# -- links -------------------------------------------------------------------------------------


def constant(delay_ms: int) -> Link:
    """Every reply takes as long."""
    return lambda number, now_ns: delay_ms * MS


def irregular(seed: int) -> Link:
    """Replies take 0-300 ms, and some are lost."""

    def link(number: int, now_ns: int) -> int | None:
        random = np.random.default_rng((seed, number))
        return None if random.random() < LOST else int(random.integers(0, 300 * MS))

    return link


def silent(number: int, now_ns: int) -> int | None:
    """No reply to what is asked between the two moments of ``SILENT_S``."""
    begin_s, end_s = SILENT_S
    return None if begin_s <= now_ns * 1e-9 < end_s else BAR_MS * MS


# -- what is judged ----------------------------------------------------------------------------


def _commanded(log: Log) -> Array:
    """The target of each tick (n, D): what was asked, or where the robot is held."""
    return np.where(np.isnan(log.asked), log.sent, log.asked)


def _seams(log: Log) -> NDArray[np.intp]:
    """The ticks in which another chunk came into force, after the warm-up."""
    changed = np.flatnonzero((log.chunk[1:] != log.chunk[:-1]) & (log.chunk[1:] >= 0)) + 1
    return changed[log.times[changed] >= WARM_UP_S]


def max_jump(log: Log) -> float:
    """rad: the largest change of the commanded target at a seam, from one tick to the next."""
    jumps = np.linalg.norm(np.diff(_commanded(log), axis=0), axis=1)
    return float(jumps[_seams(log) - 1].max(initial=0.0))


def max_jerk(log: Log, *, sent: bool = False) -> float:
    """rad/s^3 at a seam and shortly after: third differences over the policy's row time of what
    was commanded; or of what the filter made of it, where its acceleration limit caps all jerk."""
    jerk = log.sent if sent else _commanded(log)
    for _ in range(3):
        jerk = (jerk[TICKS_A_ROW:] - jerk[:-TICKS_A_ROW]) / (TICKS_A_ROW * TICK_S)
    size = np.linalg.norm(jerk, axis=1)
    window = range(round(SEAM_S / TICK_S))
    near = _seams(log)[:, None] + np.array(window) - 3 * TICKS_A_ROW
    return float(size[near[near < len(size)]].max(initial=0.0))


def tracking_error(log: Log) -> float:
    """rad, root mean square: from what was sent to the nearer way past the obstacles."""
    judged = log.times >= WARM_UP_S
    distance = distance_to_ways(log.times[judged], log.sent[judged])
    return float(np.sqrt((distance**2).mean()))


def limit_violations(log: Log) -> int:
    """In how many ticks what was sent exceeds a limit of the arm."""
    slack = 1e-6
    velocity = np.diff(log.sent, axis=0, prepend=log.sent[:1]) / TICK_S
    acceleration = np.diff(velocity, axis=0, prepend=0.0 * velocity[:1]) / TICK_S
    beyond = (
        (log.sent < np.array(LOWER) - slack)
        | (log.sent > np.array(UPPER) + slack)
        | (np.abs(velocity) > np.array(VELOCITY) + slack)
        | (np.abs(acceleration) > np.array(ACCELERATION) + slack)
    )
    return int(beyond.any(axis=1).sum())


def held_when_starved(log: Log) -> bool:
    """Whether, once its rows had run out, the robot stayed at the last of them until the next
    chunk: braked beyond it by no more than it must, then still; and then given up as stale."""
    edges = np.flatnonzero(np.diff(log.starved.astype(int), prepend=0, append=0))
    held = [
        (begin, end)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
        if log.times[begin] >= WARM_UP_S and (end - begin) * TICK_S > SETTLED_S
    ]
    for begin, end in held:
        moved = np.abs(log.sent[begin:end] - log.asked[begin])
        late = log.sent[begin + round(SETTLED_S / TICK_S) : end]
        if moved.max() > OVERSHOOT or np.ptp(late, axis=0).max(initial=0.0) > STILL:
            return False
    return bool(held) and bool(np.isnan(log.asked[log.times >= WARM_UP_S]).any())


# -- the runs ----------------------------------------------------------------------------------


def measure(
    policy: Hosted, name: str, links: Iterable[Link], seconds: float
) -> tuple[dict[str, float], list[Log]]:
    """The worst over runs of ``seconds``, one a link and seed; and the runs."""
    decoder, options = DECODERS[name]
    logs = [
        roll_out(
            policy,
            make_decoder(decoder, options),
            link,
            seed=seed,
            seconds=seconds,
            sync=name == "sync",
        )
        for seed, link in enumerate(links)
    ]
    figures = {
        "max_jump": max(max_jump(log) for log in logs),
        "max_jerk": max(max_jerk(log) for log in logs),
        "max_jerk_sent": max(max_jerk(log, sent=True) for log in logs),
        "tracking_error": max(tracking_error(log) for log in logs),
    }
    return figures, logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.epilog = "example: robot-stack bench seams --seeds 4"
    parser.add_argument("--seconds", type=float, default=10.0, help="simulated time of each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind; the worst counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    models: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    violations, held = 0, True
    for model in MODELS:
        policy = hosted(model, SPEC)
        links = {f"{ms} ms": [constant(ms)] * args.seeds for ms in DELAYS_MS}
        links["irregular"] = [irregular(seed) for seed in range(args.seeds)]
        table: dict[str, dict[str, dict[str, float]]] = {}
        for title, each in links.items():
            table[title] = {}
            for name in DECODERS:
                table[title][name], logs = measure(policy, name, each, args.seconds)
                violations += sum(map(limit_violations, logs))
        for name in DECODERS:
            _, logs = measure(policy, name, [silent], max(args.seconds, SILENT_S[1] + 1.0))
            violations += sum(map(limit_violations, logs))
            held = held and all(map(held_when_starved, logs))
        models[model] = table
        if not args.json:
            _say(model, table)
    decoders = {
        name: {
            key: max(models[model][f"{BAR_MS} ms"][name][key] for model in MODELS)
            for key in ("max_jump", "max_jerk", "max_jerk_sent")
        }
        for name in DECODERS
    }
    missed = [
        f"{model}: {name}'s {key}"
        for model in MODELS
        for name in ("rtc", "bid")
        for key, bar in (("max_jump", BAR), ("max_jerk", BAR), ("tracking_error", 1.0))
        if models[model][f"{BAR_MS} ms"][name][key]
        > bar * models[model][f"{BAR_MS} ms"]["naive_async"][key]
    ]
    result = {
        "decoders": _rounded(decoders),
        "limit_violations": violations,
        "held_when_starved": held,
        "tracking_error": {
            name: round(max(models[m][f"{BAR_MS} ms"][name]["tracking_error"] for m in MODELS), 4)
            for name in DECODERS
        },
        "models": _rounded(models),
        "missed": missed,
        "ok": not missed and not violations and held,
    }
    if not args.json:
        print(f"ticks beyond a limit: {violations}; held when starved: {held}")
        for text in missed:
            print(f"missed against naive_async at {BAR_MS} ms: {text}")
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    return round(values, 4)


def _say(model: str, table: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"{model}: jump in rad / jerk in rad/s^3 (as sent) / tracking error in rad")
    for title, rows in table.items():
        for name, row in rows.items():
            print(
                f"  {title:9}  {name:18} {row['max_jump']:.4f} / {row['max_jerk']:8.0f} "
                f"({row['max_jerk_sent']:6.0f}) / {row['tracking_error']:.4f}"
            )
