"""ALOHA's arms as data: servos, registers, limits, poses and gripper tables, with their units.

Sources: Interbotix' motor configurations and URDFs of vx300s and wx250s (ids, models, drive modes,
shadows, position limits, sleep poses), the constants of tonyzhaozh/aloha and Interbotix/aloha
(start pose, gripper tables).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hardware.aloha.gripper import GripperCalibration, Linkage
from hardware.dynamixel.control_table import CENTER_TICKS, RAD_PER_TICK
from robot_stack.errors import ConfigError
from robot_stack.spec import JointSpec, RobotSpec

__all__ = [
    "ARMS",
    "BAUD",
    "GRIPPER",
    "GRIPPERS",
    "JOINTS",
    "ArmModel",
    "JointLimits",
    "Servo",
    "arm_model",
    "build_spec",
]

JOINTS = (
    "waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper",
)  # fmt: skip
GRIPPER = 6

BAUD = 1_000_000
VELOCITY_LIMIT = 131  # 0.229 rpm: 3.14 rad/s
RETURN_DELAY = 0
PID = (800, 0, 0)  # Interbotix' standard gains; (100, 0, 0) is soft

ARM_VELOCITY = 3.14  # rad/s, what register 44 allows
ARM_ACCELERATION = 80.0  # rad/s^2: half a count of the goal register within one turn of the loop
ARM_MAX_STEP = 0.5  # rad
# 2.1 rad from closed to open; at 12 V the servo turns 4.8 rad/s without load, and its current limit
# of 0.5 A gives it some 18 rad/s^2: a goal that runs ahead of it only saturates it.
GRIPPER_VELOCITY = 2.0  # 1/s
GRIPPER_ACCELERATION = 8.0  # 1/s^2
GRIPPER_MAX_STEP = 1.2
GRIPPER_RANGE = (-0.1, 1.1)  # beyond closed is squeezing, beyond open is play in the linkage

HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)  # rad; ALOHA's start pose


@dataclass(frozen=True, slots=True)
class Servo:
    """One servo: its bus id, the servo that it shadows, and what its EEPROM must hold."""

    id: int
    name: str
    joint: int
    model: str
    reverse: bool
    min_ticks: int = 0
    max_ticks: int = 4095
    shadow_of: int | None = None

    def __str__(self) -> str:
        return f"servo {self.id} ({self.name})"


@dataclass(frozen=True, slots=True)
class ArmModel:
    """One kind of arm: servos in id order, poses of the six arm joints in rad."""

    name: str
    servos: tuple[Servo, ...]
    home: tuple[float, ...]
    sleep: tuple[float, ...]
    linkage: Linkage

    @property
    def masters(self) -> tuple[Servo, ...]:
        """The servo that stands for each joint, in joint order."""
        return tuple(servo for servo in self.servos if servo.shadow_of is None)

    def of_joint(self, joint: int) -> tuple[Servo, ...]:
        """All servos that move a joint, the master first."""
        return tuple(servo for servo in self.servos if servo.joint == joint)


def _servos(
    models: tuple[str, ...],
    reverse: frozenset[int],
    limits: Mapping[int, tuple[int, int]],
) -> tuple[Servo, ...]:
    """Nine servos on every ALOHA arm: 2/3 turn the shoulder and 4/5 the elbow, in pairs."""
    rows = (
        (1, "waist", 0, None),
        (2, "shoulder", 1, None),
        (3, "shoulder_shadow", 1, 2),
        (4, "elbow", 2, None),
        (5, "elbow_shadow", 2, 4),
        (6, "forearm_roll", 3, None),
        (7, "wrist_angle", 4, None),
        (8, "wrist_rotate", 5, None),
        (9, "gripper", 6, None),
    )
    return tuple(
        Servo(
            number, name, joint, models[number - 1], number in reverse,
            *limits.get(number, (0, 4095)), shadow_of=shadow,
        )
        for number, name, joint, shadow in rows
    )  # fmt: skip


ARMS: Mapping[str, ArmModel] = MappingProxyType(
    {
        "vx300s": ArmModel(
            "vx300s",
            _servos(
                ("XM540-W270",) * 7 + ("XM430-W350",) * 2,
                frozenset({2, 4, 7}),
                {2: (841, 2867), 3: (841, 2867), 4: (898, 3094), 5: (898, 3094), 7: (830, 3504)},
            ),
            home=HOME,
            sleep=(0.0, -1.85, 1.55, 0.0, 0.8, 0.0),
            linkage=Linkage(horn_m=0.022, rod_m=0.036),
        ),
        "wx250s": ArmModel(
            "wx250s",
            _servos(
                ("XM430-W350",) * 7 + ("XL430-W250", "XC430-W150"),
                frozenset({3, 5, 7}),
                {2: (819, 3345), 3: (819, 3345), 4: (648, 3094), 5: (648, 3094), 7: (910, 3447)},
            ),
            home=HOME,
            sleep=(0.0, -1.80, 1.55, 0.0, 0.8, 0.0),
            linkage=Linkage(horn_m=0.014, rod_m=0.024),
        ),
    }
)


# Published rigs, by arm model: starting points for `robot-stack calibrate`, which reads each
# gripper itself. Joint angles in rad, finger positions in m.
GRIPPERS: Mapping[str, Mapping[str, GripperCalibration]] = MappingProxyType(
    {
        "stanford": MappingProxyType(  # tonyzhaozh/aloha
            {
                "wx250s": GripperCalibration(-0.6842, 0.3083, 0.01244, 0.02417, start_joint=-0.3),
                "vx300s": GripperCalibration(-0.6213, 1.4910, 0.01844, 0.05800),
            }
        ),
        "interbotix": MappingProxyType(  # Interbotix/aloha
            {
                "wx250s": GripperCalibration(-0.0552, 0.8298, 0.0185, 0.0323, start_joint=0.0),
                "vx300s": GripperCalibration(0.6197, 1.6214, 0.0440, 0.0579),
            }
        ),
    }
)


@dataclass(frozen=True, slots=True)
class JointLimits:
    """A station's own limits of one joint, in the joint's unit; None keeps the device's."""

    lower: float | None = None
    upper: float | None = None
    velocity: float | None = None
    acceleration: float | None = None
    max_step: float | None = None


def arm_model(name: str) -> ArmModel:
    """The arm called ``name``; ConfigError with the known names."""
    try:
        return ARMS[name]
    except KeyError:
        raise ConfigError(f"no ALOHA arm is called {name!r} (known: {', '.join(ARMS)})") from None


def build_spec(
    model: ArmModel,
    offsets: Mapping[str, int] = MappingProxyType({}),
    limits: Mapping[str, JointLimits] = MappingProxyType({}),
) -> RobotSpec:
    """The arm as commands see it: six joints in rad and the gripper as a fraction.

    ``offsets`` are calibration offsets in ticks by joint name (a joint at 0 rad reads
    2048 + offset); they move what the servo's own position limits leave of the joint's range.
    ``limits`` may only tighten; ConfigError says which number does not.
    """
    for name in (*offsets, *limits):
        if name not in JOINTS:
            raise ConfigError(f"limits/offsets: no joint {name!r} (joints: {', '.join(JOINTS)})")
    joints = []
    for servo in model.masters:
        if servo.joint == GRIPPER:
            joint = JointSpec(
                servo.name, "fraction", *GRIPPER_RANGE,
                velocity=GRIPPER_VELOCITY, acceleration=GRIPPER_ACCELERATION,
                max_step=GRIPPER_MAX_STEP,
            )  # fmt: skip
        else:
            offset = offsets.get(servo.name, 0)
            lower = max(servo.min_ticks, servo.min_ticks - offset)
            upper = min(servo.max_ticks, servo.max_ticks - offset)
            joint = JointSpec(
                servo.name, "rad",
                (lower - CENTER_TICKS) * RAD_PER_TICK, (upper - CENTER_TICKS) * RAD_PER_TICK,
                velocity=ARM_VELOCITY, acceleration=ARM_ACCELERATION, max_step=ARM_MAX_STEP,
            )  # fmt: skip
        joints.append(_tightened(joint, limits.get(servo.name, JointLimits())))
    # Closed is where ALOHA's ritual leaves a follower's gripper, and a gripper at rest is closed.
    spec = RobotSpec(
        f"aloha_{model.name}", tuple(joints), home=(*model.home, 0.0), sleep=(*model.sleep, 0.0)
    )
    for pose in ("home", "sleep"):
        for joint, value in zip(spec.joints, getattr(spec, pose), strict=True):
            if not joint.lower <= value <= joint.upper:
                raise ConfigError(
                    f"limits: the {pose} pose needs {joint.name} at {value:g}, outside "
                    f"{joint.lower:.4g}..{joint.upper:.4g}; widen the station's limits or "
                    "re-calibrate the joint's offset"
                )
    return spec


def _tightened(joint: JointSpec, limits: JointLimits) -> JointSpec:
    values: dict[str, float] = {}
    for key in ("lower", "upper", "velocity", "acceleration", "max_step"):
        device, wanted = getattr(joint, key), getattr(limits, key)
        values[key] = device if wanted is None else wanted
        looser = wanted is not None and (wanted < device if key == "lower" else wanted > device)
        if looser:
            raise ConfigError(
                f"limits.{joint.name}.{key}: {wanted:g} is looser than the device's {device:.4g}; "
                "a station may only tighten limits"
            )
    return JointSpec(joint.name, joint.unit, **values)
