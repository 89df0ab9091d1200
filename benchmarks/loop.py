"""The arm loop's punctuality: lateness of the real arm process beside a busy one.

A follower arm on a virtual servo bus that charges wire time, with collision guard and filter,
following a slow sine that a lease holder sends at 50 Hz; first at the rate that 1 Mbaud affords,
then at 500 Hz on 4 Mbaud. The cell's other arm runs at 50 Hz: the guard needs its goals. Lateness
is what each tick's own record says, from its deadline to its waking up. Beside it, in the same run
and at the same rate, a plain ``time.sleep`` loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.virtual_station import VirtualStation, virtual_station
from robot_stack.realtime import Rate
from robot_stack.types import Difference, Lifecycle

__all__ = ["add_arguments", "busy", "run"]

ARM, OTHER = "follower_left", "follower_right"
ARMS = {ARM: "vx300s", OTHER: "vx300s"}
OTHER_HZ = 50.0
GROUP = "followers"
COMMAND_HZ = 50.0
AMPLITUDE_RAD = 0.15
SINE_HZ = 0.5
SETTLE_S = 1.0
BAR_US = 100.0

_spawn = multiprocessing.get_context("spawn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.epilog = "example: robot-stack bench loop --seconds 20 --load"
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time in all")
    parser.add_argument("--load", action="store_true", help="run a busy process beside the loops")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    each = args.seconds / 2
    result = _measure(1_000_000, None, each, load=args.load)
    result["rate_500hz"] = _measure(4_000_000, 500.0, each, load=args.load)
    configurations = (("1 Mbaud", result), ("4 Mbaud", result["rate_500hz"]))
    ok = all(
        row["scheduler"] != "FIFO" or row["lateness_us"]["p99"] < BAR_US
        for _, row in configurations
    )
    result["load"] = args.load
    result["ok"] = ok
    if not args.json:
        print("lateness of the loops in us: p50 / p99 / max")
        for name, row in configurations:
            for loop, late in (
                (f"arm process, {row['scheduler']}", row["lateness_us"]),
                ("time.sleep loop", row["sleep_loop_us"]),
            ):
                print(
                    f"  {name}, {row['rate_hz']:.0f} Hz  {loop:18} "
                    f"{late['p50']:7.0f} / {late['p99']:7.0f} / {late['max']:7.0f}"
                )
            print(f"  {name}: {row['overruns']} overruns in {row['ticks']} ticks")
        if not ok:
            print(f"missed: p99 must be below {BAR_US:g} us under SCHED_FIFO")
    print(json.dumps(result))
    return 0 if ok else 1


def _measure(baud: int, rate_hz: float | None, seconds: float, *, load: bool) -> dict[str, Any]:
    robots = {ARM: _robot(ARM, baud, rate_hz), OTHER: _robot(OTHER, baud, OTHER_HZ)}
    with virtual_station(robots=ARMS, baud=baud, guard=True, changes={"robots": robots}) as station:
        ring = station.client.ring("arm", ARM)
        nominal = float(ring.meta["rate_hz"])
        station.client.request("home", {"group": GROUP}, timeout_s=60.0)
        scheduler = os.sched_getscheduler(station.pid(f"arm.{ARM}"))
        fifo = scheduler & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
        with busy(load), _sleep_loop(nominal, SETTLE_S + seconds) as sleeper:
            _follow_sine(station, SETTLE_S)
            since = ring.count
            _follow_sine(station, seconds)
            first, records = ring.since(since)
            slept = sleeper.recv()
    if first != since:
        raise TimeoutError(f"{first - since} ticks had left the ring: use fewer --seconds")
    ticks = np.array(records)
    _check_followed(ticks)
    duration_s = (ticks["t_ns"][-1] - ticks["t_ns"][0]) / 1e9
    return {
        "scheduler": "FIFO" if fifo else "OTHER",
        "rate_hz": round((len(ticks) - 1) / duration_s, 1),
        "nominal_hz": round(nominal, 1),
        "lateness_us": _percentiles(ticks["lateness_ns"] / 1e3),
        "busy_us": _percentiles(ticks["busy_ns"] / 1e3),
        "overruns": int(ticks["overruns"][-1] - ticks["overruns"][0]),
        "ticks": len(ticks),
        "sleep_loop_us": _percentiles(np.array(slept) / 1e3),
    }


def _robot(name: str, baud: int, rate_hz: float | None) -> dict[str, Any]:
    options = {"role": "follower", "model": ARMS[name], "port": f"virtual:{name}", "baud": baud}
    return {"driver": "aloha", "options": options, "rate_hz": rate_hz}


def _percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {
        "p50": round(float(p50), 1),
        "p99": round(float(p99), 1),
        "max": round(float(values.max()), 1),
    }


def _follow_sine(station: VirtualStation, seconds: float) -> None:
    """Move both arms there and back for ``seconds``."""
    client = station.client
    start = np.concatenate([client.tick(name)["sent"] for name in ARMS])
    moved = np.arange(len(start)) % 7 < 6  # grippers stay
    with client.lease(GROUP, "bench loop") as lease:
        rate = Rate(COMMAND_HZ, spin_ns=0)
        for step in range(round(seconds * COMMAND_HZ)):
            rate.wait()
            phase = 2 * math.pi * SINE_HZ * step / COMMAND_HZ
            lease.send(start + moved * AMPLITUDE_RAD * (1 - math.cos(phase)) / 2)


def _check_followed(ticks: NDArray[Any]) -> None:
    """Lateness of a loop that did not do its work would be worth nothing."""
    for field, wanted in (("lifecycle", Lifecycle.ARMED), ("stop", 0)):
        if (ticks[field] != wanted).any():
            fault = ticks["fault"][-1].decode(errors="replace")
            raise TimeoutError(f"{ARM} did not stay armed: {fault or 'stopped'}")
    if np.isnan(ticks["distance"]).mean() > 0.01:
        raise TimeoutError(f"{ARM}: the collision guard did not run")
    if np.ptp(ticks["sent"][:, 0]) < AMPLITUDE_RAD / 2:
        reasons = Difference(int(np.bitwise_or.reduce(ticks["difference"])))
        raise TimeoutError(f"{ARM} did not follow the commands: {reasons!r}")


@contextlib.contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """A process that computes without pause."""
    if not wanted:
        yield
        return
    process = _spawn.Process(target=_compute, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _compute() -> None:
    """One thread, so that the kernel's own workers (they deliver serial bytes) find a core."""
    value = 1
    while True:
        value = value * 6364136223846793005 % 2**64


@contextlib.contextmanager
def _sleep_loop(hz: float, seconds: float) -> Iterator[Connection]:
    """A loop as it is usually written, in a process of its own; sends its lateness in ns."""
    here, there = _spawn.Pipe(duplex=False)
    process = _spawn.Process(target=_sleep, args=(there, hz, seconds), daemon=True)
    process.start()
    there.close()
    try:
        yield here
    finally:
        process.kill()
        process.join()
        here.close()


def _sleep(pipe: Connection, hz: float, seconds: float) -> None:
    period_ns = round(1e9 / hz)
    late: list[int] = []
    deadline = time.monotonic_ns()
    for _ in range(int(seconds * hz)):
        deadline += period_ns
        time.sleep(max(0.0, (deadline - time.monotonic_ns()) / 1e9))
        late.append(time.monotonic_ns() - deadline)
        deadline = max(deadline, time.monotonic_ns() - period_ns)
    pipe.send(late)
