"""A 1 kHz torque loop in Python on pylibfranka: ``... ADDRESS SECONDS [busy]``.

What one would write without a C++ thread. ``busy`` adds a Python thread that never rests. Prints
one JSON line: the share of the robot's milliseconds for which its command did not come in time.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import pylibfranka

from benchmarks._franka_driver import _spin
from hardware.franka.virtual.process import control_name
from hardware.worlds.control import WorldClient

__all__ = ["main"]


def main(address: str, seconds: float, *, busy: bool) -> None:
    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    if busy:
        threading.Thread(target=_spin, daemon=True).start()
    reflexes = 0
    with WorldClient(control_name(address)) as arm:
        before = arm.call("status")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            reflexes += _loop(robot, until)
        after = arm.call("status")
    passed = after["milliseconds"] - before["milliseconds"]
    missed = (after["lost"] - before["lost"]) / passed
    print(json.dumps({"missed_fraction": missed, "reflexes": reflexes, "milliseconds": passed}))


def _loop(robot: pylibfranka.Robot, until: float) -> bool:
    """Command no torque, every millisecond; True when a reflex ended it early, and is recovered."""
    try:
        control = robot.start_torque_control()
        while True:
            control.readOnce()
            command = pylibfranka.Torques([0.0] * 7)
            command.motion_finished = time.monotonic() >= until
            control.writeOnce(command)
            if command.motion_finished:
                return False
    except pylibfranka.ControlException:
        robot.automatic_error_recovery()
        return True


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), busy=sys.argv[3:] == ["busy"])
