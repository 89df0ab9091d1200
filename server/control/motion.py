"""Moves of a whole group to a named pose, as one chunk through the ordinary command path."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import ControlPlaneError
from robot_stack.records import CHUNK_ROWS, command_record, mailbox_path
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Lifecycle, Source

from .lease import LeaseTable
from .view import ArmView

__all__ = ["minimum_jerk", "move_group"]

JOINT_SPEED = 0.8  # mean speed of a move, rad/s (or fraction/s); peak is 1.875 times it
SHORTEST_S = 1.0
REACHED = 0.02
LEAD_NS = 20_000_000
SLACK_S = 5.0


def minimum_jerk(
    start: NDArray[np.float64], goal: NDArray[np.float64], rows: int
) -> NDArray[np.float64]:
    """Minimum-jerk path (Flash and Hogan 1985, eq. 2), shape (rows, D), from start to goal."""
    s = np.linspace(0.0, 1.0, rows)[:, None]
    blend = s**3 * (10.0 - 15.0 * s + 6.0 * s**2)
    path: NDArray[np.float64] = start + (goal - start) * blend
    return path


def move_group(
    leases: LeaseTable, group: str, arms: Sequence[ArmView], goal: NDArray[np.float64], why: str
) -> Generator[None, None, float]:
    """Move ``arms`` (in group order) to ``goal`` (D,); yields until there, returns the duration.

    Takes the group's lease as the supervisor. ControlPlaneError when an arm leaves ``ARMED`` on
    the way or does not arrive in time.
    """
    lease = leases.acquire(group, why, Source.SUPERVISOR, 30.0)
    start = np.concatenate([arm.tick()["sent"] for arm in arms])
    distance = float(np.abs(goal - start).max())
    duration = max(SHORTEST_S, distance / JOINT_SPEED)
    dt_ns = int(duration * 1e9 / (CHUNK_ROWS - 1))
    mailbox = RingWriter(
        mailbox_path(leases.station, group, lease.token), command_record(len(goal)), 2
    )
    began = time.monotonic()
    try:
        with mailbox.writing() as record:
            record["token"] = lease.token
            record["seq"] = 0
            record["t_ns"] = time.monotonic_ns()
            record["source"] = Source.SUPERVISOR
            record["rows"] = CHUNK_ROWS
            record["start_t_ns"] = time.monotonic_ns() + LEAD_NS
            record["dt_ns"] = dt_ns
            record["observation_t_ns"] = -1
            record["chunk_id"] = -1
            record["target"][:] = minimum_jerk(start, goal, CHUNK_ROWS)
        while True:
            yield
            ticks = [arm.tick() for arm in arms]
            for arm, tick in zip(arms, ticks, strict=True):
                if tick["lifecycle"] != Lifecycle.ARMED:
                    state = Lifecycle(int(tick["lifecycle"])).name.lower()
                    raise ControlPlaneError(f"{why}: {arm.name} is {state}: {arm.trouble(tick)}")
            sent = np.concatenate([tick["sent"] for tick in ticks])
            elapsed = time.monotonic() - began
            if elapsed >= duration and float(np.abs(sent - goal).max()) < REACHED:
                return elapsed
            if elapsed > duration * 2 + SLACK_S or not math.isfinite(sent.sum()):
                joint = int(np.abs(sent - goal).argmax())
                raise ControlPlaneError(
                    f"{why}: not reached after {elapsed:.1f} s (value {joint} is at "
                    f"{sent[joint]:.3f}, wanted {goal[joint]:.3f}); something is in the way, see "
                    "`robot-stack status`"
                )
    finally:
        mailbox.close(unlink=True)
        leases.release(group, lease.token)
