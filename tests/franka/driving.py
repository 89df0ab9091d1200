"""A driver in a loop as the arm process has it: read, follow where it cannot be moved, write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.arm import FrankaArm
from hardware.franka.configuration import FrankaConfig
from robot_stack.types import RobotState

__all__ = ["PERIOD_S", "Driven", "config_of"]

Array = NDArray[np.float64]

PERIOD_S = 0.005
HANG_S = 30.0


def config_of(address: str, **options: Any) -> FrankaConfig:
    """Options with recoveries that tests need not wait for."""
    options.setdefault("gripper", None)
    return FrankaConfig(address, **options)


class Driven:
    """``with Driven(config) as driven`` connects; the target starts where the arm holds."""

    def __init__(self, config: FrankaConfig) -> None:
        self.arm = FrankaArm(config)
        self.states: list[RobotState] = []
        self.notices: list[str] = []

    def __enter__(self) -> Driven:
        self.arm.connect()
        self.state = self.arm.read(0.1)
        self.target = self.arm.held()
        return self

    def __exit__(self, *_: object) -> None:
        self.arm.disconnect()

    def turn(self, speed: Array | float = 0.0) -> None:
        """One period with the target moving at ``speed`` (rad/s; of joint 1, or of each)."""
        began = time.monotonic()
        self.state = self.arm.read(0.1)
        self.states.append(self.state)
        if self.state.notice and self.state.notice not in self.notices[-1:]:
            self.notices.append(self.state.notice)
        if self.arm.torque().all():
            step = np.zeros(len(self.target))
            step[: np.size(speed)] = speed
            self.target = self.target + step * PERIOD_S
            self.arm.write(self.target)
        else:
            self.target = self.state.q.copy()
        time.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))

    def run(self, seconds: float, speed: Array | float = 0.0) -> None:
        for _ in range(round(seconds / PERIOD_S)):
            self.turn(speed)

    def until(self, condition: Callable[[], bool], what: str, speed: Array | float = 0.0) -> None:
        """Turn until ``condition``; TimeoutError names ``what`` did not happen."""
        deadline = time.monotonic() + HANG_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}; notices: {self.notices}, fault: {self.arm.faults()}")
            self.turn(speed)

    def go(self, goal: Array) -> None:
        """Turn until the target is at ``goal`` (dof,), at 0.5 rad/s."""
        deadline = time.monotonic() + HANG_S
        while np.abs(goal - self.target).max() > 1e-6:
            if time.monotonic() > deadline:
                raise TimeoutError(f"notices: {self.notices}, fault: {self.arm.faults()}")
            self.turn(np.clip(goal - self.target, -0.5 * PERIOD_S, 0.5 * PERIOD_S) / PERIOD_S)
