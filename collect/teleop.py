"""`robot-stack teleop`: the robots follow what an operator moves, whatever that is."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from collect.leader_session import LeaderSession
from collect.session import recorded_group
from collect.teleop_session import TeleopSession
from hardware.teleop.keyboard import Keyboard
from robot_stack import registry
from robot_stack.client import StationClient
from robot_stack.config import Station, TeleopConfig, load_station
from robot_stack.errors import CommandRefusedError, ConfigError, LeaseError, RobotStackError
from robot_stack.realtime import setup, sleep_until
from robot_stack.types import Source

__all__ = ["PRIORITY", "add_arguments", "open_session", "run", "teleop_config"]

PRIORITY = 40  # below the arm processes'
LOOK_S = 0.25  # between two looks for trouble
LEADERS = "leader_arms"


def teleop_config(station: Station, device: str | None = None) -> TeleopConfig:
    """The station's ``teleop`` section, or that of another device: of ``other_teleop``, or with
    its default options. ConfigError when there is none."""
    given = station.teleop
    if device is None or (given is not None and given.driver == device):
        if given is None:
            raise ConfigError(
                f"{station.path} has no `teleop` section: say which device moves which group, or "
                "name one with --device"
            )
        return given
    if device in station.other_teleop:
        return station.other_teleop[device]
    registry.load("teleop", device)  # an unknown name gets the nearest
    group = given.group if given is not None else recorded_group(station).name
    return TeleopConfig(device, group)


def open_session(
    station: Station,
    client: StationClient,
    teleop: TeleopConfig,
    *,
    source: Source = Source.DEMO,
    say: Callable[[str], None] = print,
) -> TeleopSession:
    """The session for a device; use it as a context manager."""
    kind = LeaderSession if teleop.driver == LEADERS else TeleopSession
    return kind(station, client, teleop, source=source, say=say)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Teleoperate with the station's device, or another one. Leader arms: performs the start "
        "ritual (all arms move to the start pose; close every leader gripper to begin), then the "
        "followers follow the leaders until Ctrl-C. SpaceMouse, gamepad, keyboard, browser, GELLO: "
        "the robots stay where they are, and follow once the operator takes hold (it says how). "
        "After a stop or fault press r and enter: the robots stay where they are; leader arms are "
        "driven to them. The station must be served already."
    )
    parser.epilog = (
        f"devices: {', '.join(registry.names('teleop'))}\n\n"
        "examples:\n"
        "  robot-stack teleop configs/aloha_virtual.yaml\n"
        "  robot-stack teleop configs/aloha_virtual.yaml --takeover     while a policy runs\n"
        "  robot-stack teleop configs/fr3.yaml --device gamepad         instead of the station's\n"
        "  robot-stack teleop configs/fr3.yaml --device spacemouse --takeover"
    )
    parser.add_argument("station", help="station file (YAML)")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="another device than the station's: one of its other_teleop, or any by its name",
    )
    parser.add_argument(
        "--wait", type=float, metavar="S", help="give up when nobody takes hold for S seconds"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="end after S seconds of motion")
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="take over from a running policy: no ritual; leader arms come to the followers",
    )
    parser.add_argument(
        "--auto-recover", action="store_true", help="after a fault, re-engage without being asked"
    )
    parser.add_argument(
        "--unattended",
        action="store_true",
        help="nobody can press r: once the followers were stopped, end instead of waiting for it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    station = load_station(args.station)
    teleop_section = teleop_config(station, args.device)
    ended = False

    def on_signal(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(f"teleop: {text}", file=out, flush=True)

    source = Source.HUMAN if args.takeover else Source.DEMO
    summary: dict[str, Any] = {
        "ok": True, "device": teleop_section.driver, "commands": 0, "recoveries": 0
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(StationClient(station.station))
        session = open_session(station, client, teleop_section, source=source, say=say)
        setup(PRIORITY)  # before there is a lease: a busy machine takes seconds to lock memory
        teleop = stack.enter_context(session)
        if args.takeover:
            teleop.meet(lambda: ended)
        else:
            teleop.engage(wait_s=args.wait, cancelled=lambda: ended)
        keyboard = teleop.device if isinstance(teleop.device, Keyboard) else None
        press = "press r" if keyboard is not None else "press r and enter"
        began = looked = time.monotonic()
        told = False
        say("following; r resets after a fault, Ctrl-C ends")
        while not ended and (args.seconds is None or time.monotonic() - began < args.seconds):
            teleop.step()
            sleep_until(time.monotonic_ns() + teleop.poll_ns)
            if time.monotonic() - looked < LOOK_S:
                continue
            looked = time.monotonic()
            trouble = teleop.trouble()
            if trouble is None:
                told = False
                continue
            if args.unattended and teleop.halted:
                raise CommandRefusedError(f"ended, as nobody can re-engage: {trouble}")
            if not told:  # an answer from before the question does not count
                _forget_typed(keyboard)
                told = True
            teleop.tell(f"not following: {trouble}; {press} to re-engage")
            # A stop that somebody asked for is never undone without being asked.
            asked = _pressed("r", keyboard)
            if asked or (args.auto_recover and teleop.faulted()):
                try:
                    teleop.reengage(cancelled=lambda: ended, automatic=not asked)
                    summary["recoveries"] += 1
                except LeaseError:
                    raise
                except RobotStackError as error:
                    teleop.tell(str(error))
        summary["commands"] = teleop.sent
    if args.json:
        print(json.dumps(summary))
    else:
        say(f"ended after {summary['commands']} commands; all arms hold")
    return 0


def _forget_typed(keyboard: Keyboard | None) -> None:
    """Throw away what was typed so far."""
    if keyboard is not None:
        keyboard.take("r")
    elif sys.stdin.isatty():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def _pressed(key: str, keyboard: Keyboard | None) -> bool:
    """Whether ``key`` was pressed: on the keyboard that teleoperates, else a line starting with it
    on a terminal's standard input."""
    if keyboard is not None:
        return keyboard.take(key)
    if not sys.stdin.isatty() or not select.select([sys.stdin], [], [], 0)[0]:
        return False
    return sys.stdin.readline().strip().lower().startswith(key)
