"""A Move request, judged: the motion that runs for it, or why none does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.fci import Controller, Generator, Status, Version
from hardware.franka.limits import Limits
from hardware.franka.virtual.enforcement import Enforcement
from hardware.franka.virtual.generators import (
    AsynchronousPosition,
    JointPosition,
    JointVelocity,
    MotionGenerator,
    Pose,
    Setpoint,
    TorqueOnly,
    Twist,
)
from hardware.franka.virtual.servo import PoseFollower
from hardware.franka.virtual.settings import Settings

__all__ = ["Running", "requested"]

Array = NDArray[np.float64]


@dataclass(slots=True)
class Running:
    """The motion under way; `generator` is None until the first command has come."""

    controller: Controller
    code: Generator
    speed: Array | None  # of asynchronous positions
    path_deviation: float
    generator: MotionGenerator | None = None
    stopping: bool = False
    waited: int = 0

    @property
    def asynchronous(self) -> bool:
        return self.speed is not None

    def begin(
        self,
        point: Setpoint,
        guard: Enforcement,
        kinematics: PoseFollower,
        settings: Settings,
        torque: Array,
        acceleration: Array,
    ) -> MotionGenerator:
        """Make the generator, at the first command: before it the robot may still have braked."""
        guard.begin(point.q, point.dq, kinematics.pose(point.q, settings.F_T_EE), torque)
        made: MotionGenerator
        if self.speed is not None:
            made = AsynchronousPosition(point, guard, self.speed, acceleration)
        elif self.code == Generator.JOINT_POSITION:
            made = JointPosition(point, guard)
        elif self.code == Generator.JOINT_VELOCITY:
            made = JointVelocity(point, guard)
        elif self.code == Generator.POSE:
            made = Pose(point, guard, kinematics, settings)
        elif self.code == Generator.TWIST:
            made = Twist(point, guard, kinematics, settings)
        else:
            made = TorqueOnly()
        self.generator = made
        return made


def requested(request: Any, version: Version, limits: Limits) -> Running | Status:
    """The motion of a Move request (a record of fci.REQUESTS), or INVALID_ARGUMENT."""
    controller, number = int(request["controller"]), int(request["generator"]) + 1
    deviations = np.array(request["deviations"])
    last = Generator.NONE if version == 10 else Generator.TWIST
    if (
        controller > Controller.EXTERNAL
        or number > last
        or not ((deviations >= 0.0) & np.isfinite(deviations)).all()
    ):
        return Status.INVALID_ARGUMENT
    code = Generator(number)
    external = controller == Controller.EXTERNAL
    if code == Generator.NONE and not external:
        return Status.INVALID_ARGUMENT
    speed: Array | None = None
    if version == 10 and bool(request["asynchronous"]):
        speed = np.array(request["max_velocity"])
        possible = ((speed > 0.0) & (speed <= limits.velocity)).all()
        if code != Generator.JOINT_POSITION or external or not possible:
            return Status.INVALID_ARGUMENT
    return Running(Controller(controller), code, speed, float(deviations[0]))
