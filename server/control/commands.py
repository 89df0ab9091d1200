"""`robot-stack status|arm|disarm|home|sleep|reset|shutdown`: one request each."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robot_stack.client import StationClient
from robot_stack.config import load_station

__all__ = ["add_arguments", "run", "station_name"]

DESCRIPTIONS = {
    "status": "What every process of a station is doing: lifecycle, faults, rates, leases.",
    "arm": "Torque on (nothing moves) and let the lease holder of a group move its robots.",
    "disarm": "Accept no commands; the robots hold their position under torque.",
    "home": (
        "Arm a group if need be and move it slowly to its home pose. Ctrl-C ends the move: the "
        "robots brake and hold, disarmed."
    ),
    "sleep": (
        "Move a group slowly to its sleep pose, where it may lose torque without falling. Ctrl-C "
        "ends the move: the robots brake and hold, disarmed."
    ),
    "reset": (
        "Clear a latched stop or fault, restarting servos that need it. Nothing moves, and the "
        "robots are left disarmed: `arm` is an act of its own."
    ),
    "shutdown": "Lower the arms to their sleep pose, take torque away there, end every process.",
}
TIMEOUT_S = {"status": 3.0, "shutdown": 120.0}


def station_name(text: str) -> str:
    """A station's name from a name or a station file."""
    return load_station(text).station if Path(text).suffix in (".yaml", ".yml") else text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command = parser.get_default("command")
    parser.description = DESCRIPTIONS[command]
    parser.epilog = f"example: robot-stack {command} aloha_virtual"
    parser.add_argument("station", help="station name or station file")
    if command not in ("status", "shutdown"):
        parser.add_argument("--group", help="only this group (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    command, name = args.command, station_name(args.station)
    body: dict[str, Any] = {}
    if getattr(args, "group", None):
        body["group"] = args.group
    with StationClient(name) as client:
        if command in ("home", "sleep"):
            return _move(client, args)
        reply = client.request(command, body, timeout_s=TIMEOUT_S.get(command, 30.0))
    if args.json:
        print(json.dumps({"ok": True, **reply}))
    elif command == "status":
        _print_status(reply)
    else:
        for line in reply.get("kept_torque", []):
            print(line)
        print(f"{command}: done")
    return 0


def _move(client: StationClient, args: argparse.Namespace) -> int:
    """The move ends with this command, however that ends."""
    try:
        with _interrupted():
            client.to_pose(args.command, args.group)
    except KeyboardInterrupt:
        print(f"{args.command}: given up; the robots brake and hold, disarmed", file=sys.stderr)
        return 130
    print(json.dumps({"ok": True}) if args.json else f"{args.command}: done")
    return 0


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that closes, end the block as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for kind, handler in before.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(kind, interrupt)
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _table(title: str, rows: list[list[str]], emit: Callable[[str], None] = print) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    emit(title)
    for row in rows:
        emit("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def _print_status(status: dict[str, Any]) -> None:
    print(f"station {status['station']}")
    if status["robots"]:
        rows = [["robot", "state", "torque", "rate", "note"]]
        for name, robot in status["robots"].items():
            note = robot["fault"] or robot.get("notice") or ", ".join(robot.get("difference", []))
            torque = "on" if robot.get("torque") else "off"
            rows.append([name, robot["lifecycle"], torque, f"{robot['rate_hz']:.0f} Hz", note])
        _table("robots", rows)
    if status["groups"]:
        rows = [["group", "held by", "stop"]]
        for name, group in status["groups"].items():
            rows.append([name, group["holder"] or "-", group["stop"] or "-"])
        _table("groups", rows)
    if status["cameras"]:
        rows = [["camera", "frames", "newest"]]
        for name, camera in status["cameras"].items():
            age = camera["age_s"]
            rows.append([name, str(camera["frames"]), "-" if age is None else f"{age:.2f} s ago"])
        _table("cameras", rows)
    rows = [["process", "pid", "state", "restarts"]]
    for name, process in status["processes"].items():
        state = "running" if process["alive"] else "dead"
        rows.append([name, str(process["pid"]), state, str(process["restarts"])])
    _table("processes", rows)
