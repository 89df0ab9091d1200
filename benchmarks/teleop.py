"""Teleoperation latency: a leader servo steps, and the follower's goal packet answers it.

Both ends are stamped inside the virtual buses, which charge wire time and USB latency. In the same
run, on the same buses, the loop of the original ALOHA scripts: servo states at 100 Hz, and a 50 Hz
loop that reads the leader, writes the follower and then sleeps a whole period.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from typing import Any

import numpy as np

from benchmarks.virtual_station import VirtualStation, virtual_station, wait_until
from collect.leader_session import LeaderSession
from collect.teleop import PRIORITY
from hardware.aloha.rig import arm_model
from hardware.dynamixel.bus import DynamixelBus
from robot_stack.realtime import setup, sleep_until
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring, RingWriter

__all__ = ["add_arguments", "run"]

STEP_RAD = 0.08
STEP_HZ = 1000.0  # a hand's step shows within 1 ms
SERVO = 1  # the waist: no gravity, no shadow
SETTLE_S = 0.3
JOINT = 0
PAIR = {"leader_left": "wx250s", "follower_left": "vx300s"}
ALOHA_STATE_HZ = 100.0
ALOHA_DT_S = 0.02
STATE = np.dtype([("t_ns", "<i8"), ("ticks", "<i4", (9,))])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--seconds", type=float, default=30.0, help="measured time, both loops")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    each = args.seconds / 2
    ours = _ours(each)
    original = _original(each)
    latency, reference = _percentiles(ours), _percentiles(original)
    ratio = round(float(np.median(ours) / np.median(original)), 3)
    ok = latency["p50"] <= 10 and latency["p99"] <= 25 and ratio <= 0.5
    result = {
        "latency_ms": latency,
        "aloha_loop_ms": reference,
        "ratio_p50": ratio,
        "steps": [len(ours), len(original)],
        "ok": ok,
    }
    if not args.json:
        print("leader step to follower goal packet, ms (p50 / p99):")
        for name, figures in (("robot-stack", latency), ("ALOHA's loop", reference)):
            print(f"  {name:14} {figures['p50']:6.2f} / {figures['p99']:6.2f}")
    print(json.dumps(result))
    return 0 if ok else 1


def _percentiles(values: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def _measure(station: VirtualStation, seconds: float) -> list[float]:
    """Step the leader's waist at random phases; milliseconds to each answering goal packet."""
    stream = random.Random(0)
    latencies: list[float] = []
    deadline = time.monotonic() + seconds
    angle = STEP_RAD
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S + stream.random() * 0.05)
        counters = station.buses.control.call("counters", "follower_left")
        since = max(0, int(counters["goals"]) - 40)
        before = _waist(station, since)
        began_ns = time.monotonic_ns()
        station.hand("leader_left", {JOINT: angle})
        angle = -angle
        time.sleep(0.1)
        t_ns, servos, ticks = station.goals("follower_left", since)
        answers = t_ns[(servos == SERVO) & (ticks != before) & (t_ns > began_ns)]
        if len(answers) == 0:
            raise TimeoutError("the follower did not answer a step of the leader within 0.1 s")
        latencies.append((int(answers[0]) - began_ns) / 1e6)
    return latencies


def _waist(station: VirtualStation, since: int) -> int:
    _, servos, ticks = station.goals("follower_left", since)
    return int(ticks[servos == SERVO][-1])


# -- ours --------------------------------------------------------------------------------------


def _follow(station_file: str, ready: Any, ended: Any) -> None:
    """The teleoperation process of a station whose leaders are free already."""
    from robot_stack.client import StationClient
    from robot_stack.config import load_station

    station = load_station(station_file)
    with StationClient(station.station) as client, LeaderSession(station, client) as teleop:
        client.arm("followers")
        setup(PRIORITY)
        ready.set()
        while not ended.is_set():
            teleop.step()
            sleep_until(time.monotonic_ns() + teleop.poll_ns)


def _ours(seconds: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with virtual_station(robots=PAIR, rate_hz=None, step_hz=STEP_HZ) as station:
        station.hand("leader_left", dict(enumerate(arm_model("vx300s").sleep)))
        ready, ended = context.Event(), context.Event()
        process = context.Process(target=_follow, args=(str(station.file), ready, ended))
        process.start()
        try:
            if not ready.wait(30.0):
                raise TimeoutError("teleoperation did not start within 30 s")
            wait_until(
                lambda: bool(station.client.tick("follower_left")["command_seq"] > 10), "following"
            )
            return _measure(station, seconds)
        finally:
            ended.set()
            process.join(10.0)
            if process.is_alive():
                process.kill()
            process.join()


# -- the original's loop -----------------------------------------------------------------------


def _states(port: str, name: str, ended: Any) -> None:
    """The state publisher of one arm: reads all servos at 100 Hz."""
    ids = [servo.id for servo in arm_model("wx250s").servos]
    writer = RingWriter(ring_path("v", "original", name), STATE, 8)
    with DynamixelBus(port, ids, 1_000_000) as bus:
        while not ended.is_set():
            began = time.monotonic()
            state = bus.read_state(0.05)
            writer.publish((state.t_ns, state.position_ticks))
            time.sleep(max(0.0, 1 / ALOHA_STATE_HZ - (time.monotonic() - began)))
    writer.close()


def _original_loop(port: str, ended: Any) -> None:
    """record_episodes.py's loop: read the leader, command the follower, sleep DT."""
    ids = [servo.id for servo in arm_model("vx300s").servos]
    ring = Ring(ring_path("v", "original", "leader"), timeout_s=20.0)
    with DynamixelBus(port, ids, 1_000_000) as bus:
        wait_until(lambda: ring.count > 0, "a leader state")
        bus.torque(ids, True)
        while not ended.is_set():
            latest = ring.latest()
            assert latest is not None
            bus.write_goals(latest[1]["ticks"])
            time.sleep(ALOHA_DT_S)
            bus.read_state(0.05)


def _original(seconds: float) -> list[float]:
    context = multiprocessing.get_context("spawn")
    with virtual_station(robots=PAIR, serve=False, step_hz=STEP_HZ) as station:
        station.hand("leader_left", dict(enumerate(arm_model("vx300s").sleep)))
        ended = context.Event()
        ports = station.buses.ports
        processes = [
            context.Process(target=_states, args=(ports["leader_left"], "leader", ended)),
            context.Process(target=_original_loop, args=(ports["follower_left"], ended)),
        ]
        for process in processes:
            process.start()
        try:
            wait_until(
                lambda: station.buses.control.call("counters", "follower_left")["goals"] > 90,
                "the original loop following",
            )
            return _measure(station, seconds)
        finally:
            ended.set()
            for process in processes:
                process.join(10.0)
                if process.is_alive():
                    process.kill()
                process.join()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    add_arguments(options)
    sys.exit(run(options.parse_args()))
