"""The Franka Control Interface on the wire: every structure of server versions 10 and 5.

Version 10 is the FR3's (libfranka 0.18 and later), version 5 the FER's (libfranka 0.9). All
structures are packed and little-endian. Requests and replies travel over TCP behind a header; the
robot sends its state by UDP every millisecond, and the client answers with a command. A state's
numbers are float32 in version 10 and float64 in version 5. Sizes in bytes, header included, are
the ones that libfranka sends and expects.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COMMAND",
    "COMMAND_IDS",
    "COMMAND_STRUCT",
    "CONNECT_REPLY",
    "ERROR_INDEX",
    "ERROR_NAMES",
    "GRIPPER_HEADER",
    "GRIPPER_PORT",
    "GRIPPER_REQUESTS",
    "GRIPPER_STATE",
    "GRIPPER_VERSION",
    "HEADER",
    "REPLIES",
    "REQUESTS",
    "ROBOT_PORT",
    "STATE",
    "STATE_NUMBERS",
    "STATUS",
    "VERSIONS",
    "Command",
    "Controller",
    "Generator",
    "GripperCommand",
    "GripperStatus",
    "MotionCommand",
    "RobotMode",
    "StateBuffer",
    "Status",
    "Version",
    "error_flags",
    "errors_named",
]

Version = Literal[5, 10]
VERSIONS: tuple[Version, ...] = (5, 10)

# Compile-time constants of libfranka: several robots on one computer need several addresses.
ROBOT_PORT = 1337
GRIPPER_PORT = 1338
GRIPPER_VERSION = 3

Array = NDArray[np.float64]

# -- names ---------------------------------------------------------------------------------------

# In the order of the flags on the wire, which is not that of libfranka's `Errors`.
ERROR_NAMES = (
    "joint_position_limits_violation",
    "cartesian_position_limits_violation",
    "self_collision_avoidance_violation",
    "joint_velocity_violation",
    "cartesian_velocity_violation",
    "force_control_safety_violation",
    "joint_reflex",
    "cartesian_reflex",
    "max_goal_pose_deviation_violation",
    "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation",
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid",
    "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation",
    "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity",
    "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid",
    "force_controller_desired_force_tolerance_violation",
    "start_elbow_sign_inconsistent",
    "communication_constraints_violation",
    "power_limit_violation",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame",
    "controller_torque_discontinuity",
    "joint_p2p_insufficient_torque_for_planning",
    "tau_j_range_violation",
    "instability_detected",
    "joint_move_in_wrong_direction",
    "cartesian_spline_motion_generator_violation",
    "joint_via_motion_generator_planning_joint_limit_violation",
    "base_acceleration_initialization_timeout",
    "base_acceleration_invalid_reading",
)
ERROR_INDEX: Mapping[str, int] = MappingProxyType({n: i for i, n in enumerate(ERROR_NAMES)})


def error_flags(names: Sequence[str]) -> bytes:
    """The 41 flags of a state for error names; KeyError for a name that no robot raises."""
    flags = bytearray(len(ERROR_NAMES))
    for name in names:
        flags[ERROR_INDEX[name]] = 1
    return bytes(flags)


def errors_named(flags: bytes | Sequence[int]) -> tuple[str, ...]:
    """Names of the flags that are set."""
    return tuple(name for name, flag in zip(ERROR_NAMES, flags, strict=True) if flag)


class RobotMode(IntEnum):
    """What the robot does, as its state says it."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    RECOVERY = 6


class Generator(IntEnum):
    """Motion generator of a state. A Move request has the same numbers less one."""

    IDLE = 0
    JOINT_POSITION = 1
    JOINT_VELOCITY = 2
    POSE = 3
    TWIST = 4
    NONE = 5  # torque control alone; not before version 7


class Controller(IntEnum):
    """Controller of a state; OTHER while nothing moves. A Move request has the same numbers."""

    JOINT_IMPEDANCE = 0
    CARTESIAN_IMPEDANCE = 1
    EXTERNAL = 2
    OTHER = 3


class Command(StrEnum):
    """What a client can ask over TCP."""

    CONNECT = "connect"
    MOVE = "move"
    STOP_MOVE = "stop_move"
    GET_CARTESIAN_LIMIT = "get_cartesian_limit"
    SET_COLLISION_BEHAVIOR = "set_collision_behavior"
    SET_JOINT_IMPEDANCE = "set_joint_impedance"
    SET_CARTESIAN_IMPEDANCE = "set_cartesian_impedance"
    SET_GUIDING_MODE = "set_guiding_mode"
    SET_EE_TO_K = "set_ee_to_k"
    SET_NE_TO_EE = "set_ne_to_ee"
    SET_LOAD = "set_load"
    SET_FILTERS = "set_filters"
    AUTOMATIC_ERROR_RECOVERY = "automatic_error_recovery"
    LOAD_MODEL_LIBRARY = "load_model_library"
    GET_ROBOT_MODEL = "get_robot_model"


class Status(StrEnum):
    """How the robot answers; the number of each differs between commands and versions."""

    SUCCESS = "success"
    MOTION_STARTED = "motion_started"
    PREEMPTED = "preempted"
    SAFETY_PREEMPTED = "preempted by a safety function"
    SAFETY_REJECTED = "rejected by a safety function"
    NOT_POSSIBLE = "not possible in this mode"
    SINGULAR = "start at a singular pose"
    INVALID_ARGUMENT = "invalid argument"
    REFLEX_ABORTED = "aborted by a reflex"
    EMERGENCY_ABORTED = "aborted by user stop"
    INPUT_ERROR_ABORTED = "aborted by invalid input"
    ABORTED = "aborted"
    MANUAL_RECOVERY = "manual error recovery required"
    INCOMPATIBLE = "incompatible library version"
    ERROR = "error"


COMMAND_IDS: Mapping[Version, Mapping[Command, int]] = MappingProxyType(
    {
        10: {
            Command.CONNECT: 0,
            Command.MOVE: 1,
            Command.STOP_MOVE: 2,
            Command.SET_COLLISION_BEHAVIOR: 3,
            Command.SET_JOINT_IMPEDANCE: 4,
            Command.SET_CARTESIAN_IMPEDANCE: 5,
            Command.SET_GUIDING_MODE: 6,
            Command.SET_EE_TO_K: 7,
            Command.SET_NE_TO_EE: 8,
            Command.SET_LOAD: 9,
            Command.AUTOMATIC_ERROR_RECOVERY: 10,
            Command.GET_ROBOT_MODEL: 11,
        },
        5: {
            Command.CONNECT: 0,
            Command.MOVE: 1,
            Command.STOP_MOVE: 2,
            Command.GET_CARTESIAN_LIMIT: 3,
            Command.SET_COLLISION_BEHAVIOR: 4,
            Command.SET_JOINT_IMPEDANCE: 5,
            Command.SET_CARTESIAN_IMPEDANCE: 6,
            Command.SET_GUIDING_MODE: 7,
            Command.SET_EE_TO_K: 8,
            Command.SET_NE_TO_EE: 9,
            Command.SET_LOAD: 10,
            Command.SET_FILTERS: 11,
            Command.AUTOMATIC_ERROR_RECOVERY: 12,
            Command.LOAD_MODEL_LIBRARY: 13,
        },
    }
)


def _numbered(*statuses: Status) -> Mapping[Status, int]:
    return MappingProxyType({status: number for number, status in enumerate(statuses)})


def _statuses(version: Version) -> Mapping[Command, Mapping[Status, int]]:
    safety = (Status.SAFETY_REJECTED,) if version == 10 else ()
    preempted = (Status.SAFETY_PREEMPTED, Status.SAFETY_REJECTED) if version == 10 else ()
    plain = _numbered(Status.SUCCESS, Status.NOT_POSSIBLE, *safety)
    setter = _numbered(Status.SUCCESS, Status.NOT_POSSIBLE, Status.INVALID_ARGUMENT, *safety)
    special = {
        Command.CONNECT: _numbered(Status.SUCCESS, Status.INCOMPATIBLE),
        Command.MOVE: _numbered(
            Status.SUCCESS,
            Status.MOTION_STARTED,
            Status.PREEMPTED,
            *preempted,
            Status.NOT_POSSIBLE,
            Status.SINGULAR,
            Status.INVALID_ARGUMENT,
            Status.REFLEX_ABORTED,
            Status.EMERGENCY_ABORTED,
            Status.INPUT_ERROR_ABORTED,
            Status.ABORTED,
        ),
        Command.STOP_MOVE: _numbered(
            Status.SUCCESS,
            Status.NOT_POSSIBLE,
            *safety,
            Status.EMERGENCY_ABORTED,
            Status.REFLEX_ABORTED,
            Status.ABORTED,
        ),
        Command.AUTOMATIC_ERROR_RECOVERY: _numbered(
            Status.SUCCESS,
            Status.NOT_POSSIBLE,
            *safety,
            Status.MANUAL_RECOVERY,
            Status.REFLEX_ABORTED,
            Status.EMERGENCY_ABORTED,
            Status.ABORTED,
        ),
        Command.LOAD_MODEL_LIBRARY: _numbered(Status.SUCCESS, Status.ERROR),
        Command.GET_ROBOT_MODEL: plain,
    }
    return MappingProxyType({c: special.get(c, setter) for c in COMMAND_IDS[version]})


# The number of a status in the reply to a command: STATUS[version][command][status].
STATUS: Mapping[Version, Mapping[Command, Mapping[Status, int]]] = MappingProxyType(
    {version: _statuses(version) for version in VERSIONS}
)

# -- TCP -----------------------------------------------------------------------------------------

# command, command id (echoed in the reply), size with the header itself.
HEADER = struct.Struct("<III")
CONNECT_REPLY = struct.Struct("<BH")  # status, the server's version

_NOTHING: np.dtype[np.void] = np.dtype([])


def _requests(version: Version) -> Mapping[Command, np.dtype[np.void]]:
    move: list[Any] = [("controller", "<u4"), ("generator", "<u4"), ("deviations", "<f8", 6)]
    if version == 10:
        move += [("asynchronous", "?"), ("max_velocity", "<f8", 7)]
    layouts: dict[Command, np.dtype[np.void]] = {
        Command.CONNECT: np.dtype([("version", "<u2"), ("udp_port", "<u2")]),
        Command.MOVE: np.dtype(move),
        Command.GET_CARTESIAN_LIMIT: np.dtype([("id", "<i4")]),
        # Rows: lower acceleration, upper acceleration, lower nominal, upper nominal.
        Command.SET_COLLISION_BEHAVIOR: np.dtype(
            [("torque", "<f8", (4, 7)), ("force", "<f8", (4, 6))]
        ),
        Command.SET_JOINT_IMPEDANCE: np.dtype([("stiffness", "<f8", 7)]),
        Command.SET_CARTESIAN_IMPEDANCE: np.dtype([("stiffness", "<f8", 6)]),
        Command.SET_GUIDING_MODE: np.dtype([("axes", "?", 6), ("nullspace", "?")]),
        Command.SET_EE_TO_K: np.dtype([("transform", "<f8", 16)]),  # column-major
        Command.SET_NE_TO_EE: np.dtype([("transform", "<f8", 16)]),
        Command.SET_LOAD: np.dtype([("mass", "<f8"), ("com", "<f8", 3), ("inertia", "<f8", 9)]),
        Command.SET_FILTERS: np.dtype([("frequencies", "<f8", 5)]),
        Command.LOAD_MODEL_LIBRARY: np.dtype([("architecture", "u1"), ("system", "u1")]),
    }
    return MappingProxyType({c: layouts.get(c, _NOTHING) for c in COMMAND_IDS[version]})


# The payload behind the header of a request: REQUESTS[version][command].
REQUESTS: Mapping[Version, Mapping[Command, np.dtype[np.void]]] = MappingProxyType(
    {version: _requests(version) for version in VERSIONS}
)


def _replies(version: Version) -> Mapping[Command, np.dtype[np.void]]:
    status: list[Any] = [("status", "u1")]
    layouts = {
        Command.CONNECT: np.dtype([*status, ("version", "<u2")]),
        Command.GET_CARTESIAN_LIMIT: np.dtype(
            [*status, ("lower", "<f8", 3), ("upper", "<f8", 3), ("frame", "<f8", 16),
             ("active", "?")]
        ),
    }  # fmt: skip
    plain = np.dtype(status)
    return MappingProxyType({c: layouts.get(c, plain) for c in COMMAND_IDS[version]})


# The payload behind the header of a reply. A model follows its status as it is: a URDF in
# GET_ROBOT_MODEL, a shared library in LOAD_MODEL_LIBRARY.
REPLIES: Mapping[Version, Mapping[Command, np.dtype[np.void]]] = MappingProxyType(
    {version: _replies(version) for version in VERSIONS}
)

# -- UDP, robot to client --------------------------------------------------------------------------

# What a state holds between its id and its tail, in order. Matrices are column-major, a trailing
# `_d` is desired, `_c` commanded. SI units.
STATE_NUMBERS: tuple[tuple[str, int], ...] = (
    ("O_T_EE", 16), ("O_T_EE_d", 16), ("F_T_EE", 16), ("EE_T_K", 16), ("F_T_NE", 16),
    ("NE_T_EE", 16), ("m_ee", 1), ("I_ee", 9), ("F_x_Cee", 3), ("m_load", 1), ("I_load", 9),
    ("F_x_Cload", 3), ("elbow", 2), ("elbow_d", 2), ("tau_J", 7), ("tau_J_d", 7), ("dtau_J", 7),
    ("q", 7), ("q_d", 7), ("dq", 7), ("dq_d", 7), ("ddq_d", 7), ("joint_contact", 7),
    ("cartesian_contact", 6), ("joint_collision", 7), ("cartesian_collision", 6),
    ("tau_ext_hat_filtered", 7), ("O_F_ext_hat_K", 6), ("K_F_ext_hat_K", 6), ("O_dP_EE_d", 6),
    ("O_ddP_O", 3), ("elbow_c", 2), ("delbow_c", 2), ("ddelbow_c", 2), ("O_T_EE_c", 16),
    ("O_dP_EE_c", 6), ("O_ddP_EE_c", 6), ("theta", 7), ("dtheta", 7),
)  # fmt: skip
_NUMBERS = sum(count for _, count in STATE_NUMBERS)
_FLAGS = len(ERROR_NAMES)
_ACCELEROMETERS = 36  # six joints, top and bottom, x y z; version 10 only


def _state(version: Version) -> np.dtype[np.void]:
    number = "<f4" if version == 10 else "<f8"
    fields: list[Any] = [("message_id", "<u8")]
    fields += [(name, number, count) if count > 1 else (name, number)
               for name, count in STATE_NUMBERS]  # fmt: skip
    if version == 10:
        fields += [("accelerometer_top", "<f4", (6, 3)), ("accelerometer_bottom", "<f4", (6, 3))]
    return np.dtype(
        [*fields, ("generator", "u1"), ("controller", "u1"), ("errors", "u1", _FLAGS),
         ("reflex_reason", "u1", _FLAGS), ("robot_mode", "u1"), ("success_rate", number)]
    )  # fmt: skip


# The whole datagram: 1377 bytes in version 10, 2373 in version 5.
STATE: Mapping[Version, np.dtype[np.void]] = MappingProxyType({v: _state(v) for v in VERSIONS})


class StateBuffer:
    """One state that is filled in place every millisecond and packed for the wire.

    ``buffer["q"]`` is a float64 view of one field of STATE_NUMBERS. The rest are attributes:
    `generator`, `controller`, `errors` and `reflex_reason` (41 flags each), `mode`,
    `success_rate`. Packing costs a few microseconds, where filling a record array field by field
    costs more than the millisecond has.
    """

    def __init__(self, version: Version) -> None:
        self.version = version
        self.numbers: Array = np.zeros(_NUMBERS)
        self.generator = int(Generator.IDLE)
        self.controller = int(Controller.OTHER)
        self.errors = bytes(_FLAGS)
        self.reflex_reason = bytes(_FLAGS)
        self.mode = int(RobotMode.IDLE)
        self.success_rate = 0.0
        self._buffer = bytearray(STATE[version].itemsize)
        self._wire = np.frombuffer(
            self._buffer, "<f4" if version == 10 else "<f8", _NUMBERS, offset=8
        )
        self._tail_at = 8 + self._wire.nbytes
        if version == 10:
            # Not simulated, and unknown is not zero.
            sensors = np.frombuffer(self._buffer, "<f4", _ACCELEROMETERS, offset=self._tail_at)
            sensors[:] = np.nan
            self._tail_at += sensors.nbytes
        self._id = struct.Struct("<Q")
        self._tail = struct.Struct(f"<BB{_FLAGS}s{_FLAGS}sB{'f' if version == 10 else 'd'}")
        starts = np.cumsum([0, *(count for _, count in STATE_NUMBERS)])
        self._fields = {
            name: self.numbers[start : start + count]
            for (name, count), start in zip(STATE_NUMBERS, starts, strict=False)
        }

    def __getitem__(self, name: str) -> Array:
        return self._fields[name]

    def pack(self, message_id: int) -> bytearray:
        """The datagram. The same buffer every time: send it before the next call."""
        self._id.pack_into(self._buffer, 0, message_id)
        self._wire[:] = self.numbers
        self._tail.pack_into(
            self._buffer,
            self._tail_at,
            self.generator,
            self.controller,
            self.errors,
            self.reflex_reason,
            self.mode,
            self.success_rate,
        )
        return self._buffer


# -- UDP, client to robot --------------------------------------------------------------------------


def _command(version: Version) -> np.dtype[np.void]:
    fields: list[Any] = [
        ("message_id", "<u8"), ("q_c", "<f8", 7), ("dq_c", "<f8", 7), ("O_T_EE_c", "<f8", 16),
        ("O_dP_EE_c", "<f8", 6), ("elbow_c", "<f8", 2), ("valid_elbow", "?"),
        ("motion_finished", "?"), ("tau_J_d", "<f8", 7),
    ]  # fmt: skip
    if version == 10:
        fields.append(("torque_finished", "?"))
    return np.dtype(fields)


# The whole datagram: 371 bytes in version 10, 370 in version 5.
COMMAND: Mapping[Version, np.dtype[np.void]] = MappingProxyType({v: _command(v) for v in VERSIONS})
COMMAND_STRUCT: Mapping[Version, struct.Struct] = MappingProxyType(
    {5: struct.Struct("<Q7d7d16d6d2d??7d"), 10: struct.Struct("<Q7d7d16d6d2d??7d?")}
)


class MotionCommand:
    """One command of a client, unpacked: `message_id`, `q`, `dq`, `pose`, `twist`, `elbow`,
    `valid_elbow`, `motion_finished`, `tau`, `torque_finished`; the numbers as tuples of float."""

    __slots__ = (
        "dq", "elbow", "message_id", "motion_finished", "pose", "q", "tau", "torque_finished",
        "twist", "valid_elbow",
    )  # fmt: skip

    def __init__(self, version: Version, datagram: bytes) -> None:
        """ValueError for a datagram of another size."""
        layout = COMMAND_STRUCT[version]
        if len(datagram) != layout.size:
            raise ValueError(f"a command of version {version} has {layout.size} bytes")
        v = layout.unpack(datagram)
        self.message_id: int = v[0]
        self.q: tuple[float, ...] = v[1:8]
        self.dq: tuple[float, ...] = v[8:15]
        self.pose: tuple[float, ...] = v[15:31]
        self.twist: tuple[float, ...] = v[31:37]
        self.elbow: tuple[float, ...] = v[37:39]
        self.valid_elbow: bool = v[39]
        self.motion_finished: bool = v[40]
        self.tau: tuple[float, ...] = v[41:48]
        # Version 5 ends torque control by the motion generator's flag alone.
        self.torque_finished: bool = v[48] if version == 10 else False


# -- gripper ---------------------------------------------------------------------------------------


class GripperCommand(IntEnum):
    """Command ids of the gripper."""

    CONNECT = 0
    HOMING = 1
    GRASP = 2
    MOVE = 3
    STOP = 4


class GripperStatus(IntEnum):
    """How the gripper answers. To CONNECT, 1 means an incompatible version."""

    SUCCESS = 0
    FAIL = 1
    UNSUCCESSFUL = 2
    ABORTED = 3


GRIPPER_HEADER = struct.Struct("<HII")
# A reply is the header and a u16 status; CONNECT adds the server's version, u16.
GRIPPER_REQUESTS: Mapping[GripperCommand, struct.Struct] = MappingProxyType(
    {
        GripperCommand.CONNECT: struct.Struct("<HH"),  # version, UDP port
        GripperCommand.HOMING: struct.Struct("<"),
        GripperCommand.GRASP: struct.Struct("<5d"),  # width, inner, outer epsilon, speed, force
        GripperCommand.MOVE: struct.Struct("<2d"),  # width, speed
        GripperCommand.STOP: struct.Struct("<"),
    }
)
# id, width (m), width when open (m), grasped, temperature (degrees Celsius).
GRIPPER_STATE = struct.Struct("<Idd?H")
