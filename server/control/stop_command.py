"""`robot-stack stop`: raises the stop flags of a station, whatever else does not work.

An edited station file, a dead supervisor or a hung one are no reason for robots to go on: the flags
lie in shared memory, and their names are the groups'.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from pathlib import Path

from robot_stack.client import StationClient, stations, stop_all
from robot_stack.config import load_station
from robot_stack.errors import ControlPlaneError, RobotStackError
from robot_stack.processes import living_pid
from robot_stack.shared_memory import runtime_root

__all__ = ["add_arguments", "run"]

ANSWER_S = 1.0
SWITCH = "or cut the arms' power: its switch needs no software"

EPILOG = """examples:
  robot-stack stop aloha_virtual                     by its name
  robot-stack stop configs/aloha_virtual.yaml        by its file
  robot-stack stop aloha_virtual --group followers   these alone

A file that does not load (somebody is editing it) stops the station that its `station:` line
names, or every station on this computer.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Stop a group now: its robots decelerate and hold under torque. The stop latches until "
        "`robot-stack reset`. Works without a supervisor too: it is one flag in shared memory."
    )
    parser.epilog = EPILOG
    parser.add_argument("station", help="station name or station file")
    parser.add_argument("--group", help="only this group (default: all)")
    parser.add_argument("--reason", default="operator", help="kept with the stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    try:
        names, note = _named(args.station)
        stopped = _stop(names, args)
        refused = ""
        if len(names) == 1:  # it is told as well: it may know a group whose flag somebody removed
            refused = _tell(names[0], args)
    except (RobotStackError, OSError) as error:
        raise ControlPlaneError(f"NOT STOPPED: {error}. Try again, {SWITCH}") from error
    if note:
        print(note, file=sys.stderr)
    if not stopped and (refused or len(names) != 1):
        raise ControlPlaneError(f"NOT STOPPED: {_why(names, refused, args)}, {SWITCH}")
    names = list(stopped) or names
    if args.json:
        groups = [group for found in stopped.values() for group in found]
        answered = len(names) == 1 and not refused
        print(json.dumps({"ok": True, "stations": names, "groups": groups, "supervisor": answered}))
    else:
        print(f"stopped: {', '.join(names)}; `robot-stack reset` when it is safe")
    return 0


def _stop(names: list[str], args: argparse.Namespace) -> dict[str, list[str]]:
    """What was stopped, by station; ControlPlaneError, after the last, if one failed."""
    stopped = {}
    failed: Exception | None = None
    for name in names:
        try:
            if groups := stop_all(name, args.reason, group=args.group):
                stopped[name] = groups
        except (RobotStackError, OSError) as error:
            failed = error
    if failed is not None:
        raise ControlPlaneError(f"not everything could be stopped ({failed})") from failed
    return stopped


def _named(text: str) -> tuple[list[str], str]:
    """The stations that a name or a file means, and what is to be said of a file that does not
    load: its ``station:`` line is believed if there is such a station, else all are meant."""
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        return [text], ""
    try:
        return [load_station(path).station], ""
    except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the robots stop
        why = f"{text} does not load ({error})"
    here = stations()
    try:
        lines = path.read_text(errors="replace")
    except OSError:
        lines = ""
    line = re.search(r"^station:\s*[\"']?([\w-]+)", lines, re.MULTILINE)
    if line is not None and line[1] in here:
        return [line[1]], f"{why}; its `station:` line says {line[1]}"
    return here, f"{why} and names no station here: stopping every station on this computer"


def _tell(name: str, args: argparse.Namespace) -> str:
    """Ask the supervisor too; why it did not, empty when it did."""
    if not (runtime_root() / name).is_dir():
        return f"no station {name!r} on this computer"
    body = {"reason": args.reason, **({"group": args.group} if args.group else {})}
    try:
        with StationClient(name) as client:
            client.request("stop", body, timeout_s=ANSWER_S)
    except ControlPlaneError as error:
        return str(error)
    return ""


def _why(names: list[str], refused: str, args: argparse.Namespace) -> str:
    """Why nothing was stopped, and what could be."""
    here = stations()
    if not here:
        return f"{refused or 'no station here'}; you have started none on this computer"
    known = [name for name in names if name in here]
    if known:  # so it was the group
        groups = {flag.name.removeprefix("stop.") for n in known for flag in _flags(n)}
        return (
            f"{' and '.join(known)} {'has' if len(known) == 1 else 'have'} no group "
            f"{args.group!r} (groups: {', '.join(sorted(groups))}). Name one of them, or none"
        )
    close = difflib.get_close_matches(names[0], here, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(f"{each}{'' if _runs(each) else ' (not running)'}" for each in here)
    return f"{refused}{hint} Stations here: {listed}. Name one of them"


def _flags(name: str) -> list[Path]:
    return list((runtime_root() / name).glob("stop.*"))


def _runs(name: str) -> bool:
    return any(living_pid(path) is not None for path in (runtime_root() / name).glob("pid.*"))
