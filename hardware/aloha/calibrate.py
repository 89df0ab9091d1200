"""`robot-stack calibrate`: check and mend a rig's servo registers, measure grippers and offsets."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hardware.aloha import measuring, moving, registers
from hardware.aloha.configuration import (
    AlohaArmConfig,
    ArmCalibration,
    calibration_path,
    load_calibration,
    save_calibration,
)
from hardware.aloha.gripper import GripperCalibration
from hardware.aloha.rig import GRIPPER, Servo
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.control_table import BAUD_CODES, CENTER_TICKS, RAD_PER_TICK
from robot_stack.config import Station, load_station
from robot_stack.errors import BusError, ConfigError, DeviceError

__all__ = ["Calibrator", "add_arguments", "run"]

SLACK_S = 0.1
# Where between closed and open ALOHA starts an episode: -0.3 of -0.6842..0.3083 rad.
START_SHARE = 0.387
OTHER_BAUDS = tuple(sorted(BAUD_CODES.values(), reverse=True))


class Calibrator:
    """One arm of a station. ``say`` shows a line; ``ask`` shows one and waits for the operator."""

    def __init__(
        self,
        station: Station,
        name: str,
        *,
        say: Callable[[str], None],
        ask: Callable[[str], None],
    ) -> None:
        robot = station.robots.get(name)
        if robot is None or robot.driver != "aloha":
            arms = [n for n, r in station.robots.items() if r.driver == "aloha"]
            raise ConfigError(
                f"{station.path} has no ALOHA arm {name!r} (its arms: {', '.join(arms) or 'none'})"
            )
        self.station = station
        self.name = name
        self.config = AlohaArmConfig.from_station(robot, station)
        self.arm = self.config.arm
        self.path = calibration_path(station.path, name)
        self.say = say
        self.ask = ask

    def bus(self, config: AlohaArmConfig | None = None) -> DynamixelBus:
        """A bus to this arm, or to another one."""
        config = config or self.config
        ids = [servo.id for servo in config.arm.servos]
        return DynamixelBus(config.port, ids, config.baud, slack_s=SLACK_S)

    # -- registers ---------------------------------------------------------------------------

    def check_registers(self, bus: DynamixelBus, apply: bool) -> list[str]:
        """What EEPROM holds and should not; with ``apply`` it is mended first, and read again."""
        missing = [servo for servo in self.arm.servos if servo.id not in bus.found]
        if missing:
            self._find_lost(bus, missing, apply)
        complaints = registers.check_models(bus, self.config)
        if complaints:
            raise DeviceError(
                f"{self.name}: {'; '.join(complaints)}. Nothing was changed. Is `port` another "
                "arm's (`robot-stack identify`)? Replaced servos belong into servo_models"
            )
        mismatches = registers.check_eeprom(bus, self.config)
        if mismatches and apply:
            for mismatch in mismatches:
                self.say(f"setting {mismatch}")
            registers.mend_eeprom(bus, mismatches)
            mismatches = registers.check_eeprom(bus, self.config)
        return [str(mismatch) for mismatch in mismatches]

    def _find_lost(self, bus: DynamixelBus, missing: list[Servo], apply: bool) -> None:
        """Servos that speak at another baud rate, told and, with ``apply``, brought back."""
        lost = [servo.id for servo in missing]
        others = [baud for baud in OTHER_BAUDS if baud != self.config.baud]
        found = bus.scan(lost, others)
        if set(lost) - {servo_id for _, servo_id in found}:
            silent = [str(servo) for servo in missing if servo.id not in {i for _, i in found}]
            raise DeviceError(
                f"{self.name}: {', '.join(silent)} on {bus.port_name} answers at no baud rate: "
                f"check cable and power. Ids that answered: {sorted(bus.found)}"
            )
        told = ", ".join(f"servo {servo_id} at {baud}" for baud, servo_id in found)
        if not apply:
            raise DeviceError(
                f"{self.name}: {told} baud, the station says {self.config.baud}: mend it with "
                "--apply"
            )
        code = next(c for c, baud in BAUD_CODES.items() if baud == self.config.baud)
        for baud, servo_id in found:
            self.say(f"moving servo {servo_id} from {baud} to {self.config.baud} baud")
            with_ids = DynamixelBus(self.config.port, [servo_id], baud, slack_s=SLACK_S)
            bus.close()
            with with_ids:
                if with_ids.read(servo_id, "torque_enable"):
                    raise DeviceError(
                        f"servo {servo_id} is under torque: support the arm, switch its power off "
                        "and on, and try again"
                    )
                # It may answer at the new speed already, which is not heard here.
                with contextlib.suppress(BusError):
                    with_ids.write(servo_id, "baud_rate", code)
        bus.connect()
        left = [str(servo) for servo in missing if servo.id not in bus.found]
        if left:
            raise DeviceError(
                f"{self.name}: {', '.join(left)} did not follow to {self.config.baud} baud: switch "
                "the arm's power off and on, and try again"
            )

    # -- measuring ---------------------------------------------------------------------------

    def check_identity(self) -> None:
        """The operator turns this arm's waist by hand; DeviceError if another one moved.

        Ports of left and right are easily swapped, and everything after would calibrate the
        wrong arm.
        """
        role = self.config.role
        rivals = {
            name: AlohaArmConfig.from_station(robot, self.station)
            for name, robot in self.station.robots.items()
            if robot.driver == "aloha" and robot.options.get("role") == role
        }
        with ExitStack() as stack:
            buses = {name: stack.enter_context(self.bus(config)) for name, config in rivals.items()}
            for name, bus in buses.items():
                if any(bus.sync_read("torque_enable").values()):
                    raise DeviceError(
                        f"{name} is under torque: lower it to its rest and switch its torque off "
                        "before calibrating"
                    )
            before = {name: bus.read_state(0.5).position_ticks for name, bus in buses.items()}
            self.ask(
                f"Turn the waist of {self.name} by hand to ITS left (counter-clockwise seen from "
                "above), by about a quarter turn, and leave it there"
            )
            after = {name: bus.read_state(0.5).position_ticks for name, bus in buses.items()}
        moved = measuring.identify_moved(before, after)
        others = [name for name in moved if name != self.name]
        if others and self.name not in moved:
            raise DeviceError(
                f"the arm that moved is on the port of {others[0]}, not of {self.name}: their "
                f"ports are swapped in {self.station.path} (left and right?)"
            )
        if self.name not in moved:
            raise DeviceError(
                f"{self.name} did not move: was it another arm? `robot-stack identify` shows which "
                "port is which"
            )
        if moved[self.name] < 0:
            raise DeviceError(
                f"{self.name} counts downwards when it turns left: the drive_mode of servo 1 is "
                "wrong, or it was turned to its right; check with --apply and try again"
            )

    def measure_offsets(self, bus: DynamixelBus) -> dict[str, int]:
        """Offsets in ticks, from the zero pose held by the operator."""
        self.ask(
            "Hold the arm in its zero pose: upper arm upright, forearm and hand straight forward "
            "and level, the gripper's motor on top, waist straight ahead"
        )
        counts = measuring.still_counts(bus)
        offsets, complaints = measuring.judge_offsets(self.arm, counts)
        if complaints:
            raise DeviceError(f"{self.name}: {'; '.join(complaints)}. Nothing was written")
        return offsets

    def measure_gripper(self, bus: DynamixelBus) -> GripperCalibration:
        """Closed and open readings: by the operator's hand, or driven with a small current.

        A follower's ``bus`` is closed then: its arm process has opened the port meanwhile.
        """
        servo = self.arm.masters[GRIPPER]
        row = bus.ids.index(servo.id)

        def reading() -> float:
            return float(measuring.still_counts(bus)[row] - CENTER_TICKS) * RAD_PER_TICK

        if self.config.role == "leader":
            self.ask("Close the gripper of this arm fully by hand and keep it closed")
            closed = reading()
            self.ask("Open it fully and keep it open")
            opened = reading()
        else:
            self.ask(
                "The gripper will close and open slowly: keep fingers and objects out of it. "
                f"Ctrl-C, a stop button or `robot-stack stop {self.station.station}` stop it"
            )
            angle = reading()
            bus.close()
            with moving.gripper_station(
                self.station, self.name, self.config, angle, self.ask
            ) as robot:
                closed, opened = moving.measure_stroke(robot, angle)
        # One count is one turn further for both ends when the servo has wrapped since.
        turn = round((closed + opened) / 2 / (2 * np.pi)) * 2 * np.pi
        try:
            measured = GripperCalibration(round(closed - turn, 4), round(opened - turn, 4))
        except ValueError as error:
            raise DeviceError(f"{self.name}: {error}") from error
        if self.config.role == "leader":
            span = measured.joint_open - measured.joint_closed
            start = round(measured.joint_closed + START_SHARE * span, 4)
            measured = dataclasses.replace(measured, start_joint=start)
        return measured

    def save(
        self, gripper: GripperCalibration | None, offsets: dict[str, int] | None
    ) -> ArmCalibration:
        """Write the calibration file, keeping what was not measured now, and read it back."""
        before = load_calibration(self.path) if self.path.exists() else ArmCalibration()
        try:
            calibration = ArmCalibration(
                gripper=gripper or before.gripper,
                offsets=before.offsets if offsets is None else offsets,
                robot=self.name,
                calibrated=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            )
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from error
        # Would the arm still be one? Its poses must be reachable with these offsets.
        _ = dataclasses.replace(self.config, calibration=calibration).spec
        save_calibration(self.path, calibration)
        written = load_calibration(self.path)
        if written != calibration:
            raise ConfigError(f"{self.path} reads back differently: {written} for {calibration}")
        return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calibrate one ALOHA arm: checks the EEPROM of its servos (ids, models, drive modes, "
        "shadows, limits), then measures joint offsets and the gripper's stroke, and writes "
        "calibration/ROBOT.yaml beside the station file. The arm must lie at rest, without torque, "
        "and the station must not be served meanwhile. A follower's gripper is driven by an arm "
        "process of its own: the station's stop buttons and `robot-stack stop` stop it. Ask for "
        "the whole with no further options, or for a part."
    )
    parser.epilog = """examples:
  robot-stack calibrate lab.yaml --robot leader_left             guided, all steps
  robot-stack calibrate lab.yaml --robot follower_left --check   compare registers, change nothing
  robot-stack calibrate lab.yaml --robot follower_left --apply   mend the registers
  robot-stack calibrate lab.yaml --robot follower_left --steps gripper
  robot-stack calibrate lab.yaml --robot leader_left \\
      --set gripper_closed=-0.68 gripper_open=0.31 wrist_rotate=12   from a log book
"""
    parser.add_argument("station", help="station file (YAML)")
    parser.add_argument("--robot", required=True, help="which arm")
    parser.add_argument("--check", action="store_true", help="only compare registers")
    parser.add_argument("--apply", action="store_true", help="only mend registers (EEPROM)")
    parser.add_argument(
        "--steps",
        nargs="+",
        choices=("identity", "offsets", "gripper"),
        default=("identity", "offsets", "gripper"),
        help="which measurements to make",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="measure nothing, write these: gripper_closed, gripper_open (rad), joint=ticks",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def _given(pairs: list[str]) -> tuple[GripperCalibration | None, dict[str, int] | None]:
    numbers: dict[str, float] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        try:
            numbers[key] = float(text)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigError(f"--set {pair}: expected KEY=NUMBER, as gripper_open=0.31 or waist=4")
    closed, opened = numbers.pop("gripper_closed", None), numbers.pop("gripper_open", None)
    if (closed is None) != (opened is None):
        raise ConfigError("--set: give gripper_closed and gripper_open both, or neither")
    try:
        gripper = None if closed is None or opened is None else GripperCalibration(closed, opened)
    except ValueError as error:
        raise ConfigError(f"--set: {error}") from error
    return gripper, {name: round(value) for name, value in numbers.items()} or None


def _ask_operator(text: str) -> None:
    print(
        f"\n{text}.\n  [Enter] when done, Ctrl-C to give up ", end="", file=sys.stderr, flush=True
    )
    if not sys.stdin.readline():
        raise ConfigError("no terminal to ask on: run it in one, or give numbers with --set")


def run(args: argparse.Namespace, ask: Callable[[str], None] = _ask_operator) -> int:
    """``ask`` is how the operator is told what to do, and waited for."""
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    calibrator = Calibrator(load_station(args.station), args.robot, say=say, ask=ask)
    summary: dict[str, Any] = {"ok": True, "robot": args.robot, "mismatches": [], "file": None}
    if args.set:
        gripper, offsets = _given(args.set)
        _report(calibrator.save(gripper, offsets), calibrator.path, summary, say)
    else:
        with calibrator.bus() as bus:
            complaints = calibrator.check_registers(bus, args.apply)
            summary["mismatches"] = complaints
            summary["ok"] = not complaints
            for complaint in complaints:
                say(complaint)
            if complaints:
                say("mend this with --apply; nothing else was done")
            else:
                say(f"{args.robot}: {len(bus.ids)} servos, all registers as they must be")
        if not (args.check or args.apply or complaints):
            _report(_measure(calibrator, args.steps), calibrator.path, summary, say)
    if args.json:
        print(json.dumps(summary))
    return 0 if summary["ok"] else 1


def _measure(calibrator: Calibrator, steps: list[str]) -> ArmCalibration:
    gripper: GripperCalibration | None = None
    offsets: dict[str, int] | None = None
    if "identity" in steps:
        calibrator.check_identity()
    with calibrator.bus() as bus:
        holding = [s for s, on in registers.read_all(bus, "torque_enable").items() if on]
        if holding:
            raise DeviceError(
                f"{calibrator.name}: servos {holding} are under torque: lower the arm to its rest "
                "and switch its torque off before calibrating"
            )
        if "offsets" in steps:
            offsets = calibrator.measure_offsets(bus)
        if "gripper" in steps:
            gripper = calibrator.measure_gripper(bus)
    return calibrator.save(gripper, offsets)


def _report(
    calibration: ArmCalibration, path: Path, summary: dict[str, Any], say: Callable[[str], None]
) -> None:
    gripper = calibration.gripper
    summary["file"] = str(path)
    summary["offsets"] = calibration.offsets
    summary["gripper"] = None if gripper is None else [gripper.joint_closed, gripper.joint_open]
    if gripper is not None:
        say(f"gripper: closed {gripper.joint_closed:.4f} rad, open {gripper.joint_open:.4f} rad")
    for name, ticks in calibration.offsets.items():
        say(f"{name}: {ticks:+d} ticks ({ticks * RAD_PER_TICK * 180 / np.pi:+.1f} degrees)")
    say(f"written to {path}; restart the station to use it")
