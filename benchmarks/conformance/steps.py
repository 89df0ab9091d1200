"""What every client of a virtual Franka is put through, in this order, and how it reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

__all__ = ["STEPS", "report"]

STEPS = (
    "connect",
    "read_1000_states",
    "joint_motion",
    "cartesian_motion",
    "torque_control_1s",
    "gripper_move",
    "gripper_grasp",
    "reflex",
    "recover",
)

JOINT_STEP_RAD = 0.2  # of joint 4 there and of joint 1 back
REACHED_RAD = 0.02
CARTESIAN_STEP_M = 0.05
REACHED_M = 0.005


def report(steps: Mapping[str, Callable[[], str]]) -> int:
    """Run the steps; one JSON line each: name, ok, and what was seen or went wrong.

    A step returns what it saw and raises what it missed. After a failed one the others go on:
    what they need stands in their own failure.
    """
    assert tuple(steps) == STEPS
    failed = 0
    for name, step in steps.items():
        try:
            seen, ok = step(), True
        except Exception as error:  # noqa: BLE001 - a library's own errors have no common base
            seen, ok = f"{type(error).__name__}: {error}", False
            failed += 1
        print(json.dumps({"step": name, "ok": ok, "seen": seen}), flush=True)
    return failed
