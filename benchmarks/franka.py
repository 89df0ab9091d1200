"""The Franka driver at 50 Hz: latency to the arm, what is lost, tracking; what limits refuse."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks._franka_driver import AMPLITUDE_RAD, JUMP_RAD, SETTLE_S, SINE_HZ, SINES
from benchmarks._franka_traces import EXPECTED, TIMED
from benchmarks.loop import busy
from hardware.franka.virtual.process import FrankaProcess

__all__ = ["add_arguments", "run"]

ADDRESS = "127.0.0.64"
READY_S, SPARE_S = 60.0, 60.0
ANSWERED_S = 0.02  # until the next target
SHARE_OF_JUMP = 0.15  # of the torque that a jump is worth, in the arm's first millisecond
WRIST_STIFFNESS = 50.0  # Nm/rad, of the driver's joint impedance
LOOP_S = 10.0
BARS_MS = {"p50": 2.5, "p99": 6.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The driver (franky-control's joint impedance at 1 kHz) follows targets at 50 Hz on a "
        "virtual arm that enforces limits and communication constraints, alone and beside a busy "
        "Python thread in its own process and a busy process. Latency is from write() to the "
        "millisecond in which the arm applies a torque that answers. Beside it, the 1 kHz Python "
        "loop of pylibfranka; and commands that must each raise their own reflex. --franka-sim "
        "names a Python that has PyPI's franka-sim: it judges the same commands."
    )
    parser.epilog = "example: robot-stack bench franka --seconds 60"
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time in all")
    parser.add_argument("--franka-sim", type=Path, metavar="PYTHON", help="compare verdicts with")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    each = args.seconds / 2
    with console.status("the driver alone"):
        result = _driver(each, busy_too=False)
    with console.status("the driver beside a busy thread and a busy process"):
        result["loaded"] = _driver(each, busy_too=True)
    with console.status("pylibfranka's loop in Python"):
        result["pylibfranka_loop"] = _python_loop(LOOP_S, busy_too=False)
        result["pylibfranka_loop"]["loaded"] = _python_loop(LOOP_S, busy_too=True)
    with console.status("commands that must be refused"):
        result["bad_traces"] = _traces(args.franka_sim)
    ok = all(
        row["reflexes"] == 0 and all(row["latency_ms"][p] <= bar for p, bar in BARS_MS.items())
        for row in (result, result["loaded"])
    ) and all(trace["ok"] for trace in result["bad_traces"].values())
    for name, row in (("alone", result), ("loaded", result["loaded"])):
        latency = row["latency_ms"]
        console.print(
            f"{name}: latency p50 {latency['p50']:.2f}, p99 {latency['p99']:.2f} ms; success rate "
            f"{row['success_rate']:.4f}; {row['unanswered']} targets unanswered; tracking "
            f"{row['tracking_rms_rad'] * 1e3:.1f} mrad rms; {row['reflexes']} reflexes"
        )
    loop = result["pylibfranka_loop"]
    console.print(
        f"pylibfranka in Python: {loop['missed_fraction']:.1%} of the milliseconds missed, beside "
        f"the same load {loop['loaded']['missed_fraction']:.1%}"
    )
    for name, trace in result["bad_traces"].items():
        console.print(f"{name}: {trace['reflexes'] or 'taken'}{'' if trace['ok'] else ' WRONG'}")
    print(json.dumps(result))
    return 0 if ok else 1


@contextlib.contextmanager
def _keeping_arm(log: str) -> Iterator[None]:
    """A virtual arm that keeps what it was told, up; it writes ``log`` when it is ended."""
    arm = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._franka_arm", log, ADDRESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert arm.stdin is not None
    assert arm.stdout is not None
    try:
        if not select.select([arm.stdout], (), (), READY_S)[0] or not arm.stdout.readline():
            raise RuntimeError("the virtual arm did not come up")
        yield
    finally:
        arm.stdin.close()
        try:
            arm.wait(SPARE_S)
        except subprocess.TimeoutExpired:
            arm.kill()
            arm.wait()


def _client(module: str, seconds: float, *arguments: str) -> list[Any]:
    """What a client of the arm printed, a JSON line each."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        timeout=seconds + SPARE_S,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def _driver(seconds: float, *, busy_too: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        log, kept = f"{directory}/driver.npz", f"{directory}/arm.npy"
        extra = ["busy"] if busy_too else []
        with _keeping_arm(kept), busy(busy_too):
            arguments = [ADDRESS, str(SETTLE_S + seconds), log, *extra]
            said = _client("benchmarks._franka_driver", seconds, *arguments)[-1]
        told = np.load(log)
        targets, measured, applied = told["targets"], told["measured"], np.load(kept)
    latency_ms, unanswered = _latency(targets, applied)
    return {
        "success_rate": said["success_rate"],
        "lowest_success_rate": said["lowest_success_rate"],
        "unanswered": unanswered,
        "targets": len(latency_ms) + unanswered,
        "latency_ms": {f"p{p}": float(np.percentile(latency_ms, p)) for p in (50, 99)},
        "tracking_rms_rad": _tracking(targets, measured),
        "reflexes": sum("reflex" in notice for notice in said["notices"]),
        "notices": said["notices"],
    }


def _latency(targets: Any, applied: Any) -> tuple[Any, int]:
    """Milliseconds from each target (after settling) to the first torque of joint 7 that answers,
    and how many had no answer before the next target."""
    times, torque = applied[:, 0], applied[:, 7]
    jump = np.abs(np.diff(torque, prepend=torque[0]))
    answering = times[jump > SHARE_OF_JUMP * 2.0 * JUMP_RAD * WRIST_STIFFNESS]
    asked = targets[targets[:, 0] > targets[0, 0] + SETTLE_S * 1e9, 0]
    found = np.searchsorted(answering, asked, side="right")
    found = np.minimum(found, len(answering) - 1)
    late_s = (answering[found] - asked) / 1e9
    answered = (late_s > 0.0) & (late_s < ANSWERED_S)
    return late_s[answered] * 1e3, int((~answered).sum())


def _tracking(targets: Any, measured: Any) -> float:
    """RMS of joints 1 and 4 against the sines that the targets are samples of."""
    begin_ns = targets[0, 0]
    settled = measured[measured[:, 0] > begin_ns + SETTLE_S * 1e9]
    passed = (settled[:, 0] - begin_ns) / 1e9
    sine = AMPLITUDE_RAD * np.sin(2.0 * np.pi * SINE_HZ * passed)
    off = [settled[:, 1 + j] - targets[0, 1 + j] - sine for j in SINES]
    return float(np.sqrt(np.mean(np.square(off))))


def _python_loop(seconds: float, *, busy_too: bool) -> dict[str, Any]:
    extra = ["busy"] if busy_too else []
    with FrankaProcess() as arm, busy(busy_too):
        arguments = [arm.address, str(seconds), *extra]
        said: dict[str, Any] = _client("benchmarks._franka_loop", seconds, *arguments)[-1]
    return said


def _traces(franka_sim: Path | None) -> dict[str, Any]:
    """Which reflexes each trace raised, whether its own was among them, and what franka-sim says
    where it was asked (null where it judges no such thing)."""
    numbers = [name for name in EXPECTED if name not in TIMED]
    said = []
    for names, lock_step in ((numbers, True), (TIMED, False)):
        with FrankaProcess(lock_step=lock_step) as arm:
            said += _client("benchmarks._franka_traces", 0.0, arm.address, *names)
    judged: dict[str, str] = {}
    if franka_sim is not None:
        done = subprocess.run(
            [franka_sim, "-m", "benchmarks._franka_traces", "--judge"],
            stdout=subprocess.PIPE,
            timeout=SPARE_S,
            check=True,
        )
        judged = {row["trace"]: row["said"] for row in map(json.loads, done.stdout.splitlines())}
    result = {}
    for row in said:
        name, words = row["trace"], row["said"]
        wanted = EXPECTED[name]
        names = json.loads(words[words.index("[") : words.index("]") + 1]) if "[" in words else []
        ok = wanted in names if wanted else not words
        theirs = judged.get(name)
        agrees = None if theirs is None else (wanted in theirs if wanted else not theirs)
        result[name] = {
            "reflexes": names,
            "expected": wanted,
            "ok": ok and len(said) == len(EXPECTED),
            "franka_sim_agrees": agrees,
        }
    return result
