"""What passes between the teleoperation page's process and the Teleoperator: two small rings.

| file | writer | content |
|---|---|---|
| ``teleop.browser`` | page process | what the hands of the one who controls do, a record a packet |
| ``teleop.browser-state`` | Teleoperator | why the robot does not follow, for the page to show |
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robot_stack.records import ring_path

__all__ = ["INPUT", "INPUT_SLOTS", "STATE", "STATE_SLOTS", "input_path", "state_path"]

INPUT = np.dtype(
    [
        ("t_ns", "<i8"),  # when the packet was here
        ("grant", "<i8"),  # grows whenever control goes to a page; -1: nobody has it
        ("seq", "<i8"),  # the page's own number of the packet; -1: control came or went
        ("deadman", "u1"),  # 1 while the dead-man switch is held
        ("twist", "<f8", (6,)),  # fractions of full speed: x y z, about x y z, base frame
        ("gripper", "<f8"),  # wanted opening, 0 closed..1 open; NaN: as it is
        ("speed", "<f8"),  # the page's speed scale, 0..1
        ("round_trip_s", "<f4"),  # of this packet: its age is at most that
    ]
)
INPUT_SLOTS = 256  # seconds of packets: the Teleoperator looks thousands of times a second

STATE = np.dtype(
    [
        ("t_ns", "<i8"),
        ("following", "u1"),  # 1 while targets go out
        ("gripper", "<f8"),  # the opening it asks for, NaN unknown
        ("waiting", "S320"),  # what the operator must do first; empty when nothing
    ]
)
STATE_SLOTS = 16


def input_path(station: str) -> Path:
    return ring_path(station, "teleop", "browser")


def state_path(station: str) -> Path:
    return ring_path(station, "teleop", "browser-state")
