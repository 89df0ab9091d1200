"""The values that travel between devices, policies and the recorder: frozen, SI units, RGB.

Times are monotonic nanoseconds at the moment of capture (``time.monotonic_ns``). What is unknown
is None or NaN, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ActionChunk",
    "Command",
    "CommandMode",
    "Difference",
    "Frame",
    "Lifecycle",
    "Observation",
    "RobotState",
    "Source",
    "StopCategory",
]

Array = NDArray[np.float64]


class Source(IntEnum):
    """Who asked for a command; stored per tick and per episode row."""

    NONE = 0
    DEMO = 1
    POLICY = 2
    HUMAN = 3
    RESIDUAL = 4
    SCRIPTED = 5
    REPLAY = 6
    SUPERVISOR = 7


class CommandMode(IntEnum):
    """What the numbers of a command are.

    ``JOINT_POSITION``: joints (dof,) in the spec's units. ``EE_POSE``: of a seven-joint arm with
    gripper (x, y, z in m, unit quaternion w, x, y, z, gripper fraction): the pose of its end
    effector in its base frame.
    """

    JOINT_POSITION = 0
    EE_POSE = 1


class StopCategory(IntEnum):
    """Stop categories of IEC 60204-1: 0 power off, 1 controlled stop then off, 2 stop and hold."""

    POWER_OFF = 0
    STOP_THEN_OFF = 1
    HOLD = 2


class Lifecycle(IntEnum):
    """What an arm process is doing; only ``ARMED`` follows commands, all others hold."""

    STARTING = 0
    DISARMED = 1
    ARMED = 2
    STOPPED = 3
    FAULT = 4
    ENDED = 5


class Difference(IntFlag):
    """Why what was sent differs from what was asked, one bit a reason."""

    NONE = 0
    POSITION = 1 << 0
    VELOCITY = 1 << 1
    ACCELERATION = 1 << 2
    WORKSPACE = 1 << 3
    INVALID = 1 << 4
    STALE = 1 << 5
    OUT_OF_LEASE = 1 << 6
    REENGAGE = 1 << 7
    COLLISION = 1 << 8
    STOPPED = 1 << 9
    DISARMED = 1 << 10
    STARVED = 1 << 11
    TORQUE_OFF = 1 << 12
    NOT_WRITTEN = 1 << 13
    REACH = 1 << 14


@dataclass(frozen=True, slots=True)
class RobotState:
    """Measured state: ``q``, ``dq``, ``tau`` of shape (dof,) in the spec's units (tau in Nm or A).

    ``t_ns`` is when the positions were sampled. ``age_s`` (dof,) is how old each joint's value is
    when a device did not answer in time (0 when fresh).

    Of a robot that closes its own loop: ``applied`` (dof,) is what it tracks now, ``target_age_s``
    how old the last target that it took up is, ``success_rate`` the share in [0, 1] of its latest
    control cycles that had a command in time. ``notice`` is what the device says though it goes
    on: a reflex that it recovers from, a gripper that hangs; empty when there is nothing.
    """

    t_ns: int
    q: Array
    dq: Array
    tau: Array
    age_s: Array
    ee_pose: Array | None = None
    applied: Array | None = None
    success_rate: float = math.nan
    target_age_s: float = math.nan
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image, uint8 RGB (H, W, 3); ``seq`` counts what the camera produced."""

    t_ns: int
    seq: int
    image: NDArray[np.uint8]
    depth: NDArray[np.uint16] | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What a policy sees: one state per robot, one frame per camera, and the task in words."""

    t_ns: int
    state: Mapping[str, RobotState]
    frames: Mapping[str, Frame] = field(default_factory=dict)
    task: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One immediate joint-position target for a group, shape (D,), robots in group order."""

    t_ns: int
    target: Array
    source: Source
    token: int


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Targets ``actions`` (H, D), in ``mode``, for ``start_t_ns + i * dt_ns``.

    ``observation_t_ns`` is the capture time of the observation that the chunk answers.
    """

    observation_t_ns: int
    start_t_ns: int
    dt_ns: int
    actions: Array
    source: Source
    token: int
    chunk_id: int = -1
    mode: CommandMode = CommandMode.JOINT_POSITION
