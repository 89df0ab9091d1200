"""`robot-stack gello`: measure how a GELLO's servos stand to the joints of the robot it leads."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.measuring import still_counts
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.control_table import ticks_to_rad
from hardware.teleop.gello import followed_arm
from hardware.teleop.gello_config import (
    GelloCalibration,
    GelloConfig,
    calibration_path,
    gello_config,
    load_calibration,
    save_calibration,
)
from robot_stack.client import StationClient
from robot_stack.config import Station, TeleopConfig, load_station
from robot_stack.errors import BusError, ConfigError, DeviceError
from robot_stack.spec import RobotSpec

__all__ = ["GelloCalibrator", "add_arguments", "run"]

Array = NDArray[np.float64]

SLACK_S = 0.1
TRIES = 5
TURNED = math.radians(10.0)
QUARTER = math.pi / 2
HELD_BADLY = 0.25  # rad from a quarter turn: how badly a pose can be held
STEPS = ("signs", "offsets", "gripper")


class GelloCalibrator:
    """One leader. ``ask`` shows a line and waits for the operator, ``say`` only shows it."""

    def __init__(
        self,
        config: TeleopConfig,
        station: Station,
        *,
        say: Callable[[str], None],
        ask: Callable[[str], None],
    ) -> None:
        self.station = station
        self.config: GelloConfig = gello_config(config)
        self.robot, self.spec, _ = followed_arm(config, self.config, station)
        self.path = calibration_path(station.path, self.robot)
        self.say = say
        self.ask = ask

    def bus(self) -> DynamixelBus:
        port = str(self.config.path(self.station.station))
        return DynamixelBus(port, self.config.servos, self.config.baud, slack_s=SLACK_S)

    def measure_signs(self, bus: DynamixelBus) -> tuple[int, ...]:
        """Which way each servo counts, by the operator's turning one joint after the other.

        DeviceError when another servo moves than the one that should, or none.
        """
        signs = []
        joints = _turning(self.spec)
        before = _angles(bus)
        for index, servo in enumerate(self.config.ids):
            self.ask(
                f"Turn joint {index + 1} of the GELLO, counted from its base, by about a twelfth "
                f"of a turn, the way in which the robot's {joints[index]} grows (positive, "
                "right-handed about its axis), and leave it there"
            )
            after = _angles(bus)
            moved = np.array([math.remainder(a, 2 * math.pi) for a in after - before])
            most = int(np.abs(moved).argmax())
            if abs(moved[most]) < TURNED:
                raise DeviceError(
                    f"no servo of the GELLO turned by {math.degrees(TURNED):.0f} degrees or more: "
                    "is it this rig's port? Nothing was written"
                )
            if bus.ids[most] != servo:
                raise DeviceError(
                    f"servo {bus.ids[most]} turned, and joint {index + 1} is servo {servo} by "
                    "teleop.options.ids: write the ids there in the order of the joints, from the "
                    "base on. Nothing was written"
                )
            signs.append(1 if moved[most] > 0 else -1)
            before = after
        return tuple(signs)

    def measure_offsets(
        self, bus: DynamixelBus, signs: tuple[int, ...], pose: Array, *, exact: bool
    ) -> tuple[float, ...]:
        """What each servo reads at 0, from a pose (n,) of the robot in which the operator holds the
        leader. Horns are mounted in quarter turns: offsets are rounded to those unless ``exact``.
        """
        told = ", ".join(
            f"{name} {math.degrees(angle):+.0f}"
            for name, angle in zip(_turning(self.spec), pose, strict=True)
        )
        self.ask(
            f"Hold the GELLO as the robot stands with its joints (degrees) at {told}, and keep it "
            "so for a second"
        )
        angles = _angles(bus)[: len(self.config.ids)]
        offsets = angles - np.array(signs) * pose
        if exact:
            return tuple(float(offset) for offset in offsets)
        quarters = QUARTER * np.rint(offsets / QUARTER)
        far = np.flatnonzero(np.abs(offsets - quarters) > HELD_BADLY)
        if len(far):
            words = ", ".join(
                f"joint {i + 1} {math.degrees(offsets[i] - quarters[i]):+.0f} degrees" for i in far
            )
            raise DeviceError(
                f"this is not where quarter turns would be ({words} from one): hold it in the pose "
                "and measure again, or give --exact if its horns are mounted otherwise. Nothing "
                "was written"
            )
        return tuple(float(quarter) for quarter in quarters)

    def measure_gripper(self, bus: DynamixelBus) -> tuple[float, float]:
        """What the trigger's servo reads (let go, squeezed)."""
        self.ask("Let go of the trigger of the GELLO")
        opened = float(_angles(bus)[-1])
        self.ask("Squeeze the trigger fully and keep it so")
        closed = float(_angles(bus)[-1])
        return opened, opened + math.remainder(closed - opened, 2 * math.pi)

    def save(self, calibration: GelloCalibration) -> None:
        """Write the calibration file and read it back."""
        save_calibration(self.path, calibration)
        load_calibration(self.config, self.station, self.robot)

    def before(self) -> GelloCalibration | None:
        """The calibration so far, None when there is none."""
        try:
            return load_calibration(self.config, self.station, self.robot)
        except ConfigError:
            if self.path.exists():
                raise
            return None


def _turning(spec: RobotSpec) -> list[str]:
    return [joint.name for joint in spec.joints if joint.unit != "fraction"]


def _angles(bus: DynamixelBus) -> Array:
    """Angles (n,) in rad of all servos once nothing moves. One silence is no reason to give up
    what the operator holds."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(BusError):
            return ticks_to_rad(still_counts(bus))
    return ticks_to_rad(still_counts(bus))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calibrate a GELLO leader: which way each of its servos counts, what it reads where the "
        "robot's joint is at 0, and the ends of its trigger. Moves nothing; the leader has no "
        "torque and the operator's hands do it all. Writes calibration/gello_ROBOT.yaml beside the "
        "station file; what is not measured now stays as it was. Teleoperation must not run."
    )
    parser.epilog = """examples:
  robot-stack gello lab.yaml                        guided, all steps
  robot-stack gello lab.yaml --steps offsets --here    hold it as the served robot stands now
  robot-stack gello lab.yaml --steps gripper
"""
    parser.add_argument("station", help="station file (YAML) with a gello under (other_)teleop")
    parser.add_argument("--device", metavar="NAME", help="which of its other_teleop (default: all)")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="what to measure")
    parser.add_argument(
        "--here", action="store_true", help="the pose is where the robot stands now, not its home"
    )
    parser.add_argument(
        "--exact", action="store_true", help="offsets as measured, not rounded to quarter turns"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def _section(station: Station, device: str | None) -> TeleopConfig:
    """The station's GELLO; ConfigError when it has none, or several and none is named."""
    sections = {} if station.teleop is None else {"teleop": station.teleop}
    sections |= station.other_teleop
    found = {name: one for name, one in sections.items() if one.driver == "gello"}
    if device is not None:
        found = {name: one for name, one in found.items() if name == device}
    if len(found) != 1:
        known = ", ".join(found) or "none"
        raise ConfigError(
            f"{station.path}: which GELLO? It has {known} under teleop and other_teleop; name one "
            "with --device"
        )
    return next(iter(found.values()))


def _ask_operator(text: str) -> None:
    print(
        f"\n{text}.\n  [Enter] when done, Ctrl-C to give up ", end="", file=sys.stderr, flush=True
    )
    if not sys.stdin.readline():
        raise ConfigError("no terminal to ask on: run it in one")


def run(args: argparse.Namespace, ask: Callable[[str], None] = _ask_operator) -> int:
    """``ask`` is how the operator is told what to do, and waited for."""
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    station = load_station(args.station)
    calibrator = GelloCalibrator(_section(station, args.device), station, say=say, ask=ask)
    calibration = _measure(calibrator, args)
    calibrator.save(calibration)
    summary: dict[str, Any] = {
        "ok": True,
        "robot": calibrator.robot,
        "file": str(calibrator.path),
        "signs": list(calibration.signs),
        "offsets": [round(offset, 5) for offset in calibration.offsets],
        "gripper": None if calibration.open is None else [calibration.open, calibration.closed],
    }
    for name, sign, offset in zip(
        _turning(calibrator.spec), calibration.signs, calibration.offsets, strict=True
    ):
        say(f"{name}: {'+' if sign > 0 else '-'}, offset {math.degrees(offset):+.1f} degrees")
    say(f"written to {calibrator.path}")
    if args.json:
        print(json.dumps(summary))
    return 0


def _measure(calibrator: GelloCalibrator, args: argparse.Namespace) -> GelloCalibration:
    before = calibrator.before()
    steps = set(args.steps)
    needed = set() if before is not None else {"signs", "offsets"}
    if calibrator.config.gripper_id is not None and (before is None or before.open is None):
        needed.add("gripper")
    if "signs" in steps:
        needed.add("offsets")  # they count from the signs
    if needed - steps:
        raise ConfigError(
            f"the GELLO of {calibrator.robot} also needs --steps "
            f"{' '.join(step for step in STEPS if step in steps | needed)}"
        )
    pose = np.array(calibrator.spec.home)
    if args.here:
        with StationClient(calibrator.station.station) as client:
            pose = client.tick(calibrator.robot)["q"]
        if not np.isfinite(pose).all():
            raise DeviceError(
                f"{calibrator.robot} does not say where its joints are; see `robot-stack status`"
            )
    joint = np.array([joint.unit != "fraction" for joint in calibrator.spec.joints])
    with calibrator.bus() as bus:
        signs = calibrator.measure_signs(bus) if "signs" in steps else _kept(before).signs
        if "offsets" in steps:
            offsets = calibrator.measure_offsets(bus, signs, pose[joint], exact=args.exact)
        else:
            offsets = _kept(before).offsets
        ends: tuple[float | None, float | None] = (
            (None, None) if before is None else (before.open, before.closed)
        )
        if "gripper" in steps and calibrator.config.gripper_id is not None:
            ends = calibrator.measure_gripper(bus)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        return GelloCalibration(signs, offsets, *ends, calibrated=now)
    except ValueError as error:
        raise DeviceError(f"{error}; nothing was written") from error


def _kept(before: GelloCalibration | None) -> GelloCalibration:
    assert before is not None
    return before
