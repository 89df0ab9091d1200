"""What stands in a station's shared memory: ring names and record layouts, in one table.

| file | writer | content |
|---|---|---|
| ``arm.<robot>`` | arm process | one tick: measured, asked, sent, why they differ, lateness |
| ``camera.<name>`` | camera process | one frame |
| ``lease.<group>`` | supervisor | who may command the group, and in which mailbox |
| ``mailbox.<group>.<token>`` | lease holder | commands and chunks |
| ``orders.<robot>`` | supervisor | arm, disarm, torque, reset, shutdown |
| ``stop.<group>`` | anyone | the stop flag (``shared_memory.Flag``): category + 1, reason |
| ``stopdevice.<name>`` | stop process | a heartbeat: is the button there, is it pressed |
| ``world.world`` | world process | simulation state of a virtual station |
| ``control.ipc`` | supervisor | the control plane's ZeroMQ socket |
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from robot_stack.shared_memory import runtime_dir

__all__ = [
    "CHUNK_ROWS",
    "LEASE",
    "ORDER",
    "STOP_DEVICE",
    "OrderKind",
    "command_record",
    "frame_record",
    "lease_path",
    "mailbox_path",
    "orders_path",
    "ring_path",
    "tick_record",
    "world_path",
    "world_record",
]

CHUNK_ROWS = 128  # longest trajectory of one message


class OrderKind(IntEnum):
    """What the supervisor may ask of an arm process."""

    ARM = 1
    DISARM = 2
    RESET = 3
    TORQUE = 4
    SHUTDOWN = 5


def tick_record(dof: int) -> np.dtype[Any]:
    """One turn of an arm process's loop; vectors have shape (dof,), in the robot's joint order."""
    return np.dtype(
        [
            ("t_ns", "<i8"),  # when positions were sampled
            ("tick", "<i8"),
            ("q", "<f8", (dof,)),  # measured, as dq and tau; NaN while there is no connection
            ("dq", "<f8", (dof,)),
            ("tau", "<f8", (dof,)),
            ("age_s", "<f4", (dof,)),
            ("asked", "<f8", (dof,)),  # NaN when nobody asked; joints, whatever the mode
            ("mode", "u1"),  # types.CommandMode of what was asked
            ("asked_pose", "<f8", (7,)),  # in EE_POSE: xyz in m, quaternion wxyz; NaN otherwise
            ("ee_pose", "<f8", (7,)),  # measured, NaN when the device does not say
            ("sent", "<f8", (dof,)),
            ("rest", "<f8", (dof,)),  # where braking from here would end: what peers must avoid
            ("sent_t_ns", "<i8"),  # when the write returned
            ("difference", "<u4"),  # types.Difference
            ("source", "u1"),  # types.Source
            ("lifecycle", "u1"),  # types.Lifecycle
            ("torque", "u1", (dof,)),  # 1 where the joint is under torque
            ("stop", "u1"),  # category + 1 of the stop that holds, 0 when none
            ("token", "<i8"),  # lease token of the command, -1 when none
            ("command_seq", "<i8"),
            ("command_t_ns", "<i8"),  # when the command was made, -1 when none
            ("chunk_id", "<i8"),
            ("chunk_index", "<i4"),
            ("observation_t_ns", "<i8"),  # of the chunk: capture of what it answers, -1 when none
            ("order_done", "<i8"),  # sequence number of the last order carried out
            ("distance", "<f4"),  # collision guard: nearest distance in metres, NaN when off
            ("lateness_ns", "<i8"),  # how late this tick woke up
            ("busy_ns", "<i8"),  # from waking up to publishing
            ("retries", "<u4"),  # bus retries so far
            ("overruns", "<u4"),  # ticks so far that ended after the next deadline
            ("applied", "<f8", (dof,)),  # what the device itself tracks now, NaN unknown
            ("target_age_s", "<f4"),  # of the last target that it took up, NaN unknown
            ("success_rate", "<f4"),  # of its latest control cycles, in [0, 1]; NaN unknown
            ("notice", "S160"),  # what the device says though it goes on, empty when nothing
            ("fault", "S320"),  # empty when none
        ]
    )


def command_record(dof: int) -> np.dtype[Any]:
    """A command for a group of ``dof`` joints in all; one row is an immediate target."""
    return np.dtype(
        [
            ("token", "<i8"),
            ("seq", "<i8"),
            ("t_ns", "<i8"),  # when it was made; staleness counts from here
            ("source", "u1"),
            ("mode", "u1"),  # types.CommandMode of the target
            ("rows", "<u2"),
            ("start_t_ns", "<i8"),  # time of row 0; rows are dt_ns apart
            ("dt_ns", "<i8"),
            ("observation_t_ns", "<i8"),
            ("chunk_id", "<i8"),
            ("target", "<f8", (CHUNK_ROWS, dof)),
        ]
    )


def frame_record(width: int, height: int, *, depth: bool = False) -> np.dtype[Any]:
    """One camera frame; ``image`` is RGB."""
    fields: list[Any] = [
        ("t_ns", "<i8"),
        ("seq", "<i8"),
        ("image", "u1", (height, width, 3)),
    ]
    if depth:
        fields.append(("depth", "<u2", (height, width)))
    return np.dtype(fields)


def world_record(nq: int, env_dim: int) -> np.dtype[Any]:
    """Simulation state: the full ``qpos`` for rendering, ``env_state`` for the episode."""
    return np.dtype(
        [
            ("t_ns", "<i8"),
            ("qpos", "<f8", (nq,)),
            ("env_state", "<f8", (env_dim,)),
            ("reward", "<f8"),
            ("success", "u1"),
        ]
    )


LEASE = np.dtype(
    [
        ("token", "<i8"),  # fencing token, grows with every grant; -1 when nobody holds it
        ("expires_t_ns", "<i8"),
        ("priority", "u1"),
        ("holder", "S64"),
    ]
)

STOP_DEVICE = np.dtype(
    [
        ("t_ns", "<i8"),
        ("connected", "u1"),
        ("pressed", "u1"),  # now, not latched
        ("presses", "<i8"),  # so far
    ]
)

ORDER = np.dtype(
    [
        ("seq", "<i8"),
        ("expires_t_ns", "<i8"),  # not carried out later than this: whoever asked has given up
        ("kind", "u1"),
        ("mask", "u1", (32,)),  # TORQUE: joints that it concerns
        ("value", "<i8"),  # TORQUE: 1 on, 0 off
    ]
)


def ring_path(station: str, kind: str, name: str) -> Path:
    return runtime_dir(station) / f"{kind}.{name}"


def lease_path(station: str, group: str) -> Path:
    return ring_path(station, "lease", group)


def orders_path(station: str, robot: str) -> Path:
    return ring_path(station, "orders", robot)


def mailbox_path(station: str, group: str, token: int) -> Path:
    return ring_path(station, "mailbox", f"{group}.{token}")


def world_path(station: str) -> Path:
    return ring_path(station, "world", "world")
