"""What a robot, camera and teleoperator must offer. Constructors neither connect nor move."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot_stack.safety.limits import ForwardKinematics
from robot_stack.spec import CameraSpec, RobotSpec
from robot_stack.types import CommandMode, Frame, RobotState

__all__ = [
    "Camera",
    "CollisionGuard",
    "Device",
    "InverseKinematics",
    "PoseRobot",
    "Robot",
    "Teleoperator",
]


class Device(Protocol):
    """Something to connect to: ``with device:`` connects and disconnects."""

    def connect(self) -> None:
        """Open the device and check that it is what the station file says; DeviceError if not."""

    def disconnect(self) -> None:
        """Close it. Never moves, never takes torque away; safe to call twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Robot(Device, Protocol):
    """A joint-position robot, driven by one arm process; a ``PoseRobot`` takes poses as well.

    All vectors have shape (spec.dof,), in the order and units of ``spec.joints``. Only the
    arm process calls ``write``, after its SafetyFilter.
    """

    @property
    def spec(self) -> RobotSpec: ...

    @property
    def rate_hz(self) -> float:
        """The fastest loop that the device's bus affords."""

    def read(self, deadline_s: float) -> RobotState:
        """Measured state. Joints that did not answer keep their value and grow ``age_s``;
        DeviceError when nothing at all answered within ``deadline_s``."""

    def request(self) -> None:
        """Ask the device for the state that the next ``read`` brings, so that its bus works while
        the loop sleeps. Never raises: a failure shows in that ``read``."""

    def write(self, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Send one position target; returns what was sent after the device's own quantisation.
        Joints without torque are skipped. DeviceError when the bus is gone."""

    def halt(self) -> NDArray[np.float64] | None:
        """Called before each ``write`` of a turn in which the robot follows nobody (a stop,
        disarmed, no lease, nothing new, a target that is refused), in which ``write`` only brings
        the joints to rest. A part that travels to its target by itself, as a Franka's hand does,
        stops where it is, but keeps hold of what it has gripped. Returns (dof,) what those parts
        hold now, which is then written and is where their next motion starts, and NaN for all
        other joints; None where every joint is where ``write`` last put it."""

    def path(
        self, pose: Literal["home", "sleep"], start: NDArray[np.float64], dt_s: float
    ) -> NDArray[np.float64]:
        """Targets (H, dof), ``dt_s`` apart, that move from ``start`` to a named pose of the spec
        without hitting the robot's own cell. Works before ``connect``."""

    def forward_kinematics(self) -> ForwardKinematics:
        """A function of joints (dof,) to the fingertips' position (3,) in m in the base frame."""

    def held(self) -> NDArray[np.float64]:
        """The target that the device itself now holds (its goal registers), for a restart that
        must not move; measured positions for joints without torque."""

    def torque(self) -> NDArray[np.bool_]:
        """Which joints are under torque."""

    def set_torque(self, joints: Sequence[bool], on: bool) -> None:
        """Switch torque of the named joints; on: the goal becomes the present position first."""

    def faults(self) -> str | None:
        """The device's own latched fault in words, None when healthy. Cheap: called every tick."""

    def recover(self) -> None:
        """Clear what ``faults`` reports where the device can (reboot, reapply settings), holding
        all other joints; DeviceError names what could not be cleared."""


class InverseKinematics(Protocol):
    """Joints for poses of the end effector: x y z in m and a quaternion w x y z, in the base frame.

    Used in every tick of the control loop: each call takes well under a millisecond.
    """

    @property
    def residual(self) -> tuple[float, float]:
        """What the last solution leaves to its pose: metres and radians, NaN when unknown."""

    def pose(self, q: NDArray[np.float64]) -> NDArray[np.float64]:
        """The end effector's pose (7,) at joints ``q``, of which the first seven count."""

    def solve(
        self, pose: NDArray[np.float64], q_ref: NDArray[np.float64], dt_s: float
    ) -> NDArray[np.float64]:
        """Joints (7,) within the limits, as near to ``pose`` (7,) as it gets from ``q_ref`` (7,),
        what was last sent; ``dt_s`` is the time until the solution is to be there. Finite for
        whatever ``pose`` is, and never farther from ``q_ref`` than the robot can stop in."""


@runtime_checkable
class PoseRobot(Protocol):
    """A robot that takes ``CommandMode.EE_POSE``: seven joints first, then a gripper or nothing."""

    def inverse_kinematics(self) -> InverseKinematics:
        """Of its end effector, within the limits of its spec. Works before ``connect``."""


@runtime_checkable
class Camera(Device, Protocol):
    """A source of frames, driven by one camera process."""

    @property
    def spec(self) -> CameraSpec: ...

    @property
    def meta(self) -> dict[str, Any]:
        """JSON that readers of the frames find in the ring: driver, serial, intrinsics, clock."""

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, stamped at capture; None when none came in time."""


class Teleoperator(Device, Protocol):
    """Turns what a person does into targets of a follower group, shape (D,), in one mode.

    ``from_config(TeleopConfig, Station)`` makes one. The session around it calls ``read`` all the
    time, and ``engage`` at the start, after a stop, and over and over while ``read`` gives nothing
    because of what ``waiting`` says: targets therefore start where the robots are.
    """

    @property
    def mode(self) -> CommandMode:
        """What the targets of ``read`` are."""

    def engage(self, held: NDArray[np.float64], t_ns: int) -> None:
        """The robots hold ``held`` (D,), in ``mode``: the next target starts there, without a
        jump. A person who holds the dead-man switch already must let go of it first."""

    def waiting(self) -> str | None:
        """What the operator must do before anything moves ("hold the right bumper", "bring joint3
        by +0.40 rad"), or why the device gives nothing (unplugged); None when it is live."""

    def read(self) -> tuple[int, NDArray[np.float64]] | None:
        """The newest (t_ns of the person's motion, target (D,)); None when nothing is new, and
        always while ``waiting`` says something: commands go stale and the robots hold. Never
        blocks."""


class CollisionGuard(Protocol):
    """Predicts collisions of a target among all arms of a cell."""

    def check(
        self, current: NDArray[np.float64], target: NDArray[np.float64], other: NDArray[np.float64]
    ) -> tuple[float, float]:
        """(fraction of the way from ``current`` to ``target`` that is free, nearest distance in m
        at the target). ``current`` and ``target`` are this arm's joints (dof,), ``other`` the last
        goals of the other arms of the cell, concatenated."""
