"""`robot-stack virtual`: the world behind a virtual station, and words to it: faults, resets."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys

from hardware.franka.virtual import command as franka
from hardware.worlds.control import tell
from hardware.worlds.scenes import scene_of
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]

FAULTS = "drop, corrupt, delay, unplug, plug, missing, overload, reboot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Without an action: run the world of a virtual station in the foreground (the far side of "
        "its devices' wires, with physics behind them), until Ctrl-C. With one: tell a running "
        "world something. With the word `franka` in place of a station file: one Franka arm alone, "
        "for any program that speaks FCI."
    )
    parser.epilog = f"""examples:
  robot-stack virtual configs/aloha_virtual.yaml                run the world
  robot-stack virtual configs/aloha_virtual.yaml --page         and its page, to move the leaders
  robot-stack virtual STATION status                            what it is doing
  robot-stack virtual STATION reset seed=3                      put the cube somewhere else
  robot-stack virtual STATION script name=transfer_cube         let the scripted operator work
  robot-stack virtual STATION fault robot=follower_left kind=unplug
  robot-stack virtual STATION fault robot=follower_left kind=drop rate=0.1
  robot-stack virtual configs/franka_virtual.yaml               a Franka, its table and devices
  robot-stack virtual STATION script hand=gello                 pick and place; or hand=twists
  robot-stack virtual STATION fault kind=reflex name=joint_reflex

fault kinds of servo buses: {FAULTS}

{franka.EPILOG}"""
    parser.add_argument("station", help="station file (YAML), or `franka`")
    parser.add_argument(
        "action", nargs="?", help="status, reset, hand, release, script, fault, shutdown"
    )
    parser.add_argument("arguments", nargs="*", metavar="key=value", help="the action's arguments")
    parser.add_argument("--page", action="store_true", help="serve the world's page (loopback)")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    franka.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.station == franka.WORD:
        return franka.run(args)
    station = load_station(args.station)
    scene = scene_of(station)
    if args.action is not None:
        return _tell(station, args.action, args.arguments, as_json=args.json)
    if args.page and scene.page is None:
        raise ConfigError(
            f"the world of {station.station} has no page: its scene has no leader arms to move; "
            "`robot-stack teleop` moves the robot"
        )
    page = None
    if args.page:
        page = subprocess.Popen([sys.executable, "-m", str(scene.page), station.path])
    world = subprocess.Popen([sys.executable, "-m", scene.process, station.path])
    for number in (signal.SIGTERM, signal.SIGINT):  # it must not outlive us
        signal.signal(number, lambda *_: world.terminate())
    try:
        return world.wait()
    finally:
        if page is not None:
            page.terminate()
            page.wait()


def _tell(station: Station, action: str, arguments: list[str], *, as_json: bool) -> int:
    reply = tell(station.station, action, arguments)
    print(json.dumps(reply, indent=None if as_json else 2))
    return 0
