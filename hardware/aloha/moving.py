"""What set-up moves on an ALOHA arm: the wiggle that shows which one it is, a gripper's ends.

Both go through an arm process (``OneRobot``), slowly, and put only the joint that moves under
torque: the rest of the arm stays as it is, held by its servos, by a hand, or by the table.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.configuration import AlohaArmConfig, ArmCalibration
from hardware.aloha.gripper import GripperCalibration
from hardware.aloha.rig import GRIPPER, JOINTS, JointLimits
from robot_stack.config import Station
from robot_stack.errors import DeviceError
from robot_stack.one_robot import OneRobot

__all__ = ["gripper_end", "gripper_station", "measure_stroke", "wiggle", "wiggle_station"]

Array = NDArray[np.float64]

RATE_HZ = 100.0
WRIST_ROTATE = 5
WRIST = [joint == WRIST_ROTATE for joint in range(len(JOINTS))]
FINGERS = [joint == GRIPPER for joint in range(len(JOINTS))]

WIGGLE_RAD = math.radians(3.0)
WIGGLE_PERIOD_S = 2.0
WIGGLE_S = 4.0
# The swing itself needs 0.08 rad/s and 0.26 rad/s^2.
WIGGLE_LIMITS = JointLimits(velocity=0.2, acceleration=2.0, max_step=0.1)

# 0.16 A: fingers close on a finger without hurting it. The servo's own limit stays above: one that
# stalls at its limit shuts down with an overload.
SMALL_CURRENT = 60
DRIVE_RAD_S = 0.6
DRIVE_RAD_S2 = 3.0
AHEAD_RAD = 0.1  # where the target is, before what was sent: far enough for full speed
FARTHEST_RAD = 0.2  # and before the joint: a goal does not run away from one that is at its end
STALL_RAD = 0.12  # goal this far ahead of the joint, and the joint not moving: at its end
STALL_S = 0.4
STILL_RAD = 0.012
DRIVE_RANGE_RAD = 3.3
SPAN_RAD = 2 * DRIVE_RANGE_RAD
# A slow goal stands at most a few degrees ahead of its joint, so a computer that stalls costs
# nothing; what matters is that a busy one does not end the measurement.
BUS_WATCHDOG_MS = 2540


def wiggle_station(
    config: AlohaArmConfig,
    *,
    falls: bool,
    confirm: Callable[[str], object],
    stop_devices: Mapping[str, Mapping[str, Any]] | None = None,
) -> OneRobot:
    """The arm ``config``, of which nothing else is known, as station ``identify``.

    ``falls``: it holds itself (some joint is under torque now), and would fall without.
    """
    slow = dataclasses.replace(
        config,
        limits=dict.fromkeys(JOINTS, WIGGLE_LIMITS),
        bus_watchdog_ms=BUS_WATCHDOG_MS,
    )
    section = {
        "driver": "aloha",
        "rate_hz": RATE_HZ,
        "falls": falls,
        "options": dataclasses.asdict(slow),
    }
    return OneRobot(
        "identify", "arm", section, group="arm", confirm=confirm, stop_devices=stop_devices
    )


def wiggle(robot: OneRobot, seconds: float = WIGGLE_S) -> float:
    """Swing wrist_rotate by 3 degrees and back; returns how far it moved, in rad.

    The joint has torque afterwards if the arm had any before. DeviceError when it did not follow,
    or was stopped on the way (it holds then).
    """
    held_itself = bool(robot.tick()["torque"].any())
    center = robot.take(WRIST, "identify")
    # The joint turns half a turn to either side of 0; near its end it swings away from it.
    sign = -1.0 if center[WRIST_ROTATE] > 0.0 else 1.0
    began = time.monotonic()
    angles = []
    while (elapsed := time.monotonic() - began) < seconds:
        target = center.copy()
        phase = math.sin(math.pi * elapsed / WIGGLE_PERIOD_S) ** 2
        target[WRIST_ROTATE] += sign * WIGGLE_RAD * phase
        angles.append(float(robot.step(target)["q"][WRIST_ROTATE]))
    robot.settle(center)
    robot.let_go()
    if not held_itself:
        robot.free(WRIST)  # the hand turns about its own axis: nothing falls
    moved = float(np.ptp(angles))
    if not moved >= WIGGLE_RAD / 2:
        raise DeviceError(
            f"wrist_rotate moved {math.degrees(moved):.1f} degrees where 3 were asked: is it "
            "blocked, or its horn loose?"
        )
    return moved


def gripper_station(
    station: Station,
    name: str,
    config: AlohaArmConfig,
    angle: float,
    confirm: Callable[[str], object],
) -> OneRobot:
    """The arm ``name`` of ``station`` with a gripper of which only ``angle`` (rad) is known now.

    Its fraction is a provisional scale: 0.5 is where it stands, and 0 and 1 are 3.3 rad away. The
    current is 0.16 A, which the driver reads back before there is torque. Stop devices, workspace
    and the limits of all other joints are the station's own.
    """
    robot = station.robots[name]
    provisional = ArmCalibration(
        gripper=GripperCalibration(angle - DRIVE_RANGE_RAD, angle + DRIVE_RANGE_RAD),
        offsets=config.offsets,
    )
    slow = JointLimits(
        lower=0.0,
        upper=1.0,
        velocity=DRIVE_RAD_S / SPAN_RAD,
        acceleration=DRIVE_RAD_S2 / SPAN_RAD,
        max_step=2 * FARTHEST_RAD / SPAN_RAD,
    )
    options = dataclasses.replace(
        config,
        calibration=provisional,
        grip_current=min(SMALL_CURRENT, config.current_limit),
        limits={**config.limits, JOINTS[GRIPPER]: slow},
        gripper_state="joint",
        bus_watchdog_ms=BUS_WATCHDOG_MS,
    )
    section = {
        "driver": "aloha",
        "rate_hz": RATE_HZ,
        "falls": False,  # no joint that carries weight is under torque
        "workspace": None if robot.workspace is None else dataclasses.asdict(robot.workspace),
        "options": dataclasses.asdict(options),
    }
    devices = {key: dataclasses.asdict(row) for key, row in station.stop_devices.items()}
    for row in devices.values():
        del row["name"]
    return OneRobot(
        station.station,
        name,
        section,
        group=station.group_of(name).name,
        confirm=confirm,
        stop_devices=devices,
    )


def measure_stroke(robot: OneRobot, angle: float) -> tuple[float, float]:
    """(closed, open) in rad of a gripper that stood at ``angle`` when its station was made.

    The gripper is free afterwards. DeviceError when it finds no end, or is stopped (it holds).
    """
    held = robot.take(FINGERS, "calibrate")
    ends = []
    for direction in (-1, +1):
        held[GRIPPER] = gripper_end(robot, held, direction)
        ends.append(angle + (float(held[GRIPPER]) - 0.5) * SPAN_RAD)
    robot.let_go()
    # Empty fingers do not fall; they hung free before.
    robot.free(FINGERS)
    return ends[0], ends[1]


def gripper_end(robot: OneRobot, held: Array, direction: int) -> float:
    """Drive the gripper towards closed (-1) or open (+1) until it stalls, and let it rest there.

    ``held`` (7,) are the targets to keep in all other joints. Returns the fraction at the end.
    DeviceError when no end is found in 3.3 rad.
    """
    target = held.copy()
    tick = robot.tick()
    start = sent = float(tick["sent"][GRIPPER])
    last = here = float(tick["q"][GRIPPER])
    still_since = time.monotonic()
    while abs(sent - start) * SPAN_RAD < DRIVE_RANGE_RAD - AHEAD_RAD:
        ahead = min(
            direction * sent + AHEAD_RAD / SPAN_RAD, direction * here + FARTHEST_RAD / SPAN_RAD
        )
        target[GRIPPER] = direction * ahead
        tick = robot.step(target)
        sent, here, now = float(tick["sent"][GRIPPER]), float(tick["q"][GRIPPER]), time.monotonic()
        if not abs(here - last) * SPAN_RAD <= STILL_RAD:
            last, still_since = here, now
        if abs(sent - here) * SPAN_RAD > STALL_RAD and now - still_since > STALL_S:
            target[GRIPPER] = here
            robot.settle(target)
            return here
    robot.let_go()
    robot.free(FINGERS)
    raise DeviceError(
        f"the gripper of {robot.robot} turned {DRIVE_RANGE_RAD} rad without meeting an end: is the "
        "horn loose, or are the fingers off?"
    )
