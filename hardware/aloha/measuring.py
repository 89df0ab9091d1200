"""Measures an ALOHA arm for its calibration: still readings, offsets, which arm was moved.

Everything works on raw servo counts of an open bus, without torque, in the operator's hands, and
moves nothing. A follower's gripper, which no hand can turn, is driven: see ``moving``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.rig import GRIPPER, ArmModel
from hardware.dynamixel.bus import UNKNOWN_TICKS, DynamixelBus
from hardware.dynamixel.control_table import CENTER_TICKS, TICKS_PER_REV
from robot_stack.errors import DeviceError

__all__ = [
    "identify_moved",
    "judge_offsets",
    "still_counts",
]

STILL_SAMPLES = 20
STILL_TICKS = 8
STILL_TIMEOUT_S = 15.0
PAUSE_S = 0.02

SMALL_OFFSET = 160  # 14 degrees: how badly a pose can be held, or a horn be fitted
QUARTER = TICKS_PER_REV // 4
PAIR_TICKS = 60  # the two servos of a joint that differ by more fight each other
MOVED_TICKS = 120


def still_counts(bus: DynamixelBus) -> NDArray[np.int32]:
    """Counts (n,) of all servos once nothing has moved for 20 readings.

    DeviceError when the arm does not come to rest within 15 s, or a servo is silent.
    """
    deadline = time.monotonic() + STILL_TIMEOUT_S
    window: list[NDArray[np.int32]] = []
    while time.monotonic() < deadline:
        state = bus.read_state(0.2)
        if (state.position_ticks == UNKNOWN_TICKS).any() or state.missing:
            window.clear()
        else:
            window = [*window[-(STILL_SAMPLES - 1) :], state.position_ticks]
        if len(window) == STILL_SAMPLES:
            samples = np.array(window)
            if (np.ptp(samples, axis=0) <= STILL_TICKS).all():
                still: NDArray[np.int32] = np.rint(samples.mean(axis=0)).astype(np.int32)
                return still
        time.sleep(PAUSE_S)
    raise DeviceError(
        f"the arm on {bus.port_name} did not stand still for {STILL_SAMPLES * PAUSE_S:.1f} s "
        f"within {STILL_TIMEOUT_S:g} s: hold it steady (or rest it on something) and try again"
    )


def judge_offsets(arm: ArmModel, counts: NDArray[np.int32]) -> tuple[dict[str, int], list[str]]:
    """(offsets in ticks by joint, complaints) from counts (9,) read with every joint at 0 rad.

    A whole turn is a wrapped count and is taken out. What is left beyond 14 degrees is no offset
    but a mistake, and the complaint says which: a horn mounted a quarter turn off, a joint in
    another pose, a pair of servos that disagree.
    """
    offsets: dict[str, int] = {}
    complaints: list[str] = []
    rows = {servo.id: row for row, servo in enumerate(arm.servos)}
    for servo in arm.masters:
        if servo.joint == GRIPPER:
            continue
        offset = _within_a_turn(int(counts[rows[servo.id]]) - CENTER_TICKS)
        for pair in arm.of_joint(servo.joint)[1:]:
            other = _within_a_turn(int(counts[rows[pair.id]]) - CENTER_TICKS)
            if abs(other - offset) > PAIR_TICKS:
                complaints.append(
                    f"{servo} and {pair} turn one joint and read {offset} and {other} ticks: they "
                    "would fight; check drive_mode of both and how the second is mounted"
                )
        degrees = offset * 360 / TICKS_PER_REV
        quarters = round(offset / QUARTER)
        if quarters and abs(offset - quarters * QUARTER) <= SMALL_OFFSET:
            turn = {1: "a quarter turn", 2: "half a turn"}[abs(quarters)]
            complaints.append(
                f"{servo} reads {degrees:+.0f} degrees: {turn} away from the zero pose; either "
                "the joint is not in that pose, or its horn is mounted that far off: remount it"
            )
        elif abs(offset) > SMALL_OFFSET:
            complaints.append(
                f"{servo} reads {degrees:+.0f} degrees in the zero pose, more than "
                f"{SMALL_OFFSET * 360 / TICKS_PER_REV:.0f}: move it to zero and read again"
            )
        else:
            offsets[servo.name] = offset
    return offsets, complaints


def _within_a_turn(ticks: int) -> int:
    """The same angle in [-2048, 2048)."""
    return (ticks + TICKS_PER_REV // 2) % TICKS_PER_REV - TICKS_PER_REV // 2


def identify_moved(
    before: Mapping[str, NDArray[np.int32]], after: Mapping[str, NDArray[np.int32]]
) -> dict[str, int]:
    """By arm, how far (ticks, signed) the waist was turned; arms that stayed are left out."""
    moved = {name: int(after[name][0] - before[name][0]) for name in before}
    return {name: ticks for name, ticks in moved.items() if abs(ticks) > MOVED_TICKS}
