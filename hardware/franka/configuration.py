"""What a station file says of one Franka arm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware.franka.kinematics import HAND_TCP, HOME
from hardware.franka.limits import Model, joint_limits, limits_of
from robot_stack.config import RobotConfig, Station, parse, within
from robot_stack.rotation import to_matrix
from robot_stack.spec import JointSpec, RobotSpec

__all__ = ["Collision", "Controller", "FrankaConfig", "GripperConfig", "Load", "RecoveryConfig"]

Array = NDArray[np.float64]
Controller = Literal["joint_impedance", "cartesian_impedance", "joint_position", "torque"]

ARM_JOINTS = 7
# panda-python has no other whose arm comes to rest when this program stalls.
PANDA_CONTROLLERS = ("joint_impedance", "cartesian_impedance")
MAX_STEP_RAD = 0.3
# How late values may be is the driver's to judge: it tells the network from the hand.
SILENCE_S = np.inf
# A full stroke in 0.2 s: faster than the hand, so that the filter never slows it down.
GRIPPER_SPEED, GRIPPER_ACCELERATION = 5.0, 100.0

# libfranka's own example of joint impedance; damping is critical (2 sqrt(K)) unless it is given.
JOINT_STIFFNESS = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
# Of the end effector, and of the joints beside it, which hold the elbow (as in polymetis).
CARTESIAN_STIFFNESS = (750.0, 750.0, 750.0, 15.0, 15.0, 15.0)
POSTURE_STIFFNESS = (40.0, 30.0, 50.0, 25.0, 35.0, 25.0, 10.0)
# The robot's own joint controller, as it boots.
INTERNAL_STIFFNESS = (3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0)

# Torques that stand for a whole turn of the arm process: at 200 Hz, stiffer ones swing.
TORQUE_STIFFNESS = (100.0, 100.0, 100.0, 100.0, 30.0, 20.0, 10.0)
TORQUE_DAMPING = (10.0, 10.0, 10.0, 10.0, 2.0, 1.5, 0.8)

STIFFNESS: dict[str, tuple[float, ...]] = {
    "joint_impedance": JOINT_STIFFNESS,
    "cartesian_impedance": CARTESIAN_STIFFNESS,
    "joint_position": INTERNAL_STIFFNESS,
    "torque": TORQUE_STIFFNESS,
}
LARGEST_STIFFNESS = {
    "joint_impedance": (1500.0,) * 7,
    "cartesian_impedance": (3000.0,) * 3 + (300.0,) * 3,
    "joint_position": (14250.0,) * 7,
    "torque": (1500.0,) * 7,
}


@dataclass(frozen=True)
class Collision:
    """From which external torque (Nm, a joint each) and force (N, N, N, Nm, Nm, Nm at the end
    effector) on the robot reports contact (``lower``) and stops in a reflex (``upper``)."""

    lower_torque: tuple[float, ...] = (20.0, 20.0, 18.0, 18.0, 16.0, 14.0, 12.0)
    upper_torque: tuple[float, ...] = (40.0, 40.0, 36.0, 36.0, 32.0, 28.0, 24.0)
    lower_force: tuple[float, ...] = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0)
    upper_force: tuple[float, ...] = (40.0, 40.0, 40.0, 40.0, 40.0, 40.0)

    def __post_init__(self) -> None:
        for kind, count in (("torque", 7), ("force", 6)):
            lower, upper = getattr(self, f"lower_{kind}"), getattr(self, f"upper_{kind}")
            _check_length(f"collision.lower_{kind}", lower, count)
            _check_length(f"collision.upper_{kind}", upper, count)
            for index, (low, high) in enumerate(zip(lower, upper, strict=True)):
                if not 0.0 < low <= high <= 200.0:
                    raise ValueError(
                        f"collision: lower_{kind}[{index}] {low:g} and upper_{kind}[{index}] "
                        f"{high:g} must be above 0, the lower not above the upper, and at most 200"
                    )


@dataclass(frozen=True)
class Load:
    """What hangs on the flange beside the configured hand: kg, m from the flange, kg m^2."""

    mass: float = within(0.0, 7.0, "kg", default=0.0)
    com: tuple[float, ...] = (0.0, 0.0, 0.0)
    inertia: tuple[float, ...] = (0.0,) * 9

    def __post_init__(self) -> None:
        _check_length("load.com", self.com, 3)
        _check_length("load.inertia", self.inertia, 9)
        if max(map(abs, self.com)) > 1.0:
            raise ValueError(f"load.com: {self.com} is in metres from the flange, at most 1 away")
        inertia = np.reshape(self.inertia, (3, 3))
        if not np.allclose(inertia, inertia.T) or np.linalg.eigvalsh(inertia).min() < -1e-9:
            raise ValueError(
                "load.inertia: nine numbers of a symmetric matrix without negative axes"
            )


@dataclass(frozen=True)
class GripperConfig:
    """The Franka hand. ``force`` is what it holds objects with; ``deadline_s`` how long a move may
    take beyond its way at ``speed`` before it counts as hanging."""

    speed: float = within(0.01, 0.2, "m/s", default=0.1)
    force: float = within(1.0, 70.0, "N", default=20.0)
    deadline_s: float = within(0.5, 60.0, "s", default=3.0)


@dataclass(frozen=True)
class RecoveryConfig:
    """How reflexes are recovered from without being asked: ``count`` times within ``window_s``,
    each after ``backoff_s``; the next one stays until somebody resets it. 0: every one stays."""

    count: int = within(0, 20, default=3)
    backoff_s: float = within(0.1, 10.0, "s", default=1.0)
    window_s: float = within(1.0, 3600.0, "s", default=60.0)


@dataclass(frozen=True)
class FrankaConfig:
    """Options of driver ``franka``.

    address       IP address or name of the robot's control box, for a virtual arm 127.0.0.2 or so
    model         fr3 (server version 10, franky-control) or fer (Panda, version 5, panda-python)
    controller    what tracks the targets, see ``hardware.franka.backend_franky`` and ``..._panda``
    stiffness     of that controller: seven joints in Nm/rad; for cartesian_impedance x y z in N/m
                  and their rotations in Nm/rad. null: the controller's own
    damping       likewise in Nms/rad (Ns/m); null: critical, for torque TORQUE_DAMPING. The
                  robot's own joint controller (joint_position) damps by itself
    collision     thresholds of contact and reflex
    load          of what hangs on the flange beside the hand that is configured in Desk
    end_effector  flange to end effector: x y z in m and quaternion w x y z. null: the fingertips
                  of a Franka hand
    realtime      enforce: refuse to move without a PREEMPT_RT kernel; ignore: try as it is
    gripper       speed, force and deadline of the Franka hand; null: there is none, and the robot
                  has seven joints
    recovery      automatic recovery from reflexes
    speed         share of the model's joint velocity limits that may be used
    home          seven joints in rad; null: the usual ready pose
    """

    address: str
    model: Model = "fr3"
    controller: Controller = "joint_impedance"
    stiffness: tuple[float, ...] | None = None
    damping: tuple[float, ...] | None = None
    collision: Collision = field(default_factory=Collision)
    load: Load = field(default_factory=Load)
    end_effector: tuple[float, ...] | None = None
    realtime: Literal["enforce", "ignore"] = "ignore"
    gripper: GripperConfig | None = field(default_factory=GripperConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    speed: float = within(0.01, 1.0, default=0.5)
    home: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.address or any(c.isspace() or c == "/" for c in self.address):
            raise ValueError(f"address: {self.address!r} is no IP address or host name")
        if self.model == "fer" and self.controller not in PANDA_CONTROLLERS:
            raise ValueError(
                f"controller: {self.controller} needs an FR3; on a Panda (model fer) use "
                f"{' or '.join(PANDA_CONTROLLERS)}"
            )
        largest = LARGEST_STIFFNESS[self.controller]
        for name in ("stiffness", "damping"):
            values = getattr(self, name)
            if values is None:
                continue
            _check_length(name, values, len(largest))
            for index, (value, most) in enumerate(zip(values, largest, strict=True)):
                if not 0.0 <= value <= most:
                    raise ValueError(
                        f"{name}[{index}]: {value:g} is out of range, allowed 0..{most:g}"
                    )
        if self.damping is not None and self.controller == "joint_position":
            raise ValueError(
                "damping: the robot's own joint controller (joint_position) damps by itself"
            )
        if self.end_effector is not None:
            _check_length("end_effector", self.end_effector, 7)
            if abs(np.linalg.norm(self.end_effector[3:]) - 1.0) > 1e-3:
                raise ValueError(
                    "end_effector: its last four numbers are a unit quaternion w x y z"
                )
        if self.home is not None:
            _check_length("home", self.home, ARM_JOINTS)
        joints = self.spec.joints[:ARM_JOINTS]
        for joint, value in zip(joints, self.spec.home[:ARM_JOINTS], strict=True):
            if not joint.lower <= value <= joint.upper:
                raise ValueError(
                    f"home: {joint.name} {value:g} rad is out of range, allowed "
                    f"{joint.lower:.4f}..{joint.upper:.4f} at this speed"
                )

    @property
    def gains(self) -> tuple[float, ...]:
        """Stiffness of the chosen controller."""
        return STIFFNESS[self.controller] if self.stiffness is None else self.stiffness

    @property
    def F_T_EE(self) -> Array:  # noqa: N802  # libfranka's name
        """Flange to end effector as a homogeneous transform (4, 4)."""
        if self.end_effector is None:
            return HAND_TCP
        transform = np.eye(4)
        transform[:3, :3] = to_matrix(self.end_effector[3:])
        transform[:3, 3] = self.end_effector[:3]
        return transform

    @property
    def spec(self) -> RobotSpec:
        """Seven joints in rad, and the gripper as a fraction (0 closed, 1 open) if there is one."""
        velocity = self.speed * np.array(limits_of(self.model).velocity)
        lower, upper, velocity, acceleration = joint_limits(self.model, velocity)
        joints = tuple(
            JointSpec(f"joint{i + 1}", "rad", lo, up, v, a, MAX_STEP_RAD, SILENCE_S)
            for i, (lo, up, v, a) in enumerate(
                zip(
                    lower.tolist(),
                    upper.tolist(),
                    velocity.tolist(),
                    acceleration.tolist(),
                    strict=True,
                )
            )
        )
        home = HOME if self.home is None else self.home
        if self.gripper is not None:
            gripper = JointSpec(
                "gripper", "fraction", 0.0, 1.0, GRIPPER_SPEED, GRIPPER_ACCELERATION, 1.0, SILENCE_S
            )
            joints, home = (*joints, gripper), (*home, 1.0)
        # The brakes hold it anywhere: there is no pose to lie down in.
        return RobotSpec(self.model, joints, home=home, sleep=home, tracks=True)

    @classmethod
    def from_station(cls, config: RobotConfig, station: Station) -> FrankaConfig:
        """The options of one robot of a station; ConfigError names what is wrong with them."""
        return parse(cls, config.options, f"robots.{config.name}.options")


def _check_length(name: str, values: tuple[float, ...], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} numbers given, {count} are needed")
