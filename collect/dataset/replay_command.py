"""`robot-stack episode replay`: an episode's commands through the control server again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import sys

from collect.dataset.replay import Replay, ReplayResult, load_recording
from robot_stack.client import StationClient
from robot_stack.config import load_station
from robot_stack.episode import Episode

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send the commands of an episode to its robots again, through lease, guard and limits like "
        "any other command. The robots first move slowly to the first row; keep clear of them. "
        "Refused for other robots, joint orders or units. Ctrl-C gives the lease back: the robots "
        "decelerate and hold. Objects are not put back where they were."
    )
    parser.epilog = """examples:
  robot-stack episode replay episodes/episode_0.hdf5 configs/aloha_virtual.yaml
  robot-stack episode replay episodes/episode_0.hdf5 configs/aloha_virtual.yaml --speed 0.3
"""
    parser.add_argument("episode", help="episode file")
    parser.add_argument("station", help="station file (YAML); it must be served already")
    parser.add_argument(
        "--speed", type=float, default=1.0, help="0.1 to 1 times the recorded speed (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    station = load_station(args.station)
    with Episode.open(args.episode) as episode:
        recording = load_recording(episode)
    cancelled = False

    def on_signal(*_: object) -> None:
        nonlocal cancelled
        cancelled = True

    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(f"replay: {text}", file=out, flush=True)

    before = [(s, signal.signal(s, on_signal)) for s in (signal.SIGINT, signal.SIGTERM)]
    try:
        with StationClient(station.station) as client:
            replay = Replay(recording, client, speed=args.speed, say=say)
            result = replay.run(cancelled=lambda: cancelled)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if args.json:
        print(json.dumps(_plain({"ok": result.ended == "played", **dataclasses.asdict(result)})))
    else:
        _print(result)
    return 0 if result.ended == "played" else 130


def _plain(value: object) -> object:
    """``value`` with NaN as null, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(result: ReplayResult) -> None:
    print(
        f"{result.ended}: {result.rows} of {result.total} rows in {result.seconds:.1f} s at "
        f"{result.speed:g} times the recorded speed; the robots hold"
    )
    if result.joints:
        width = max(len(joint.joint) for joint in result.joints)
        print(f"{'joint':{width}}  unit      off the command (rms, max)   off the recording")
    for joint in result.joints:
        print(
            f"{joint.joint:{width}}  {joint.unit:8}  {joint.command_rms:9.4f} "
            f"{joint.command_max:9.4f}        {joint.recorded_rms:9.4f} {joint.recorded_max:9.4f}"
        )
    for reason, ticks in result.differences.items():
        print(f"the filter changed commands in {ticks} ticks: {reason}")
