"""Moves of a whole group to a named pose, as one chunk through the ordinary command path."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import ControlPlaneError
from robot_stack.interfaces import Robot
from robot_stack.records import CHUNK_ROWS, command_record, mailbox_path
from robot_stack.shared_memory import RingWriter
from robot_stack.types import CommandMode, Lifecycle, Source

from .lease import LeaseTable
from .view import ArmView

__all__ = ["move_group"]

Pose = Literal["home", "sleep"]

ROW_S = 0.04
REACHED = 0.02
LEAD_NS = 20_000_000
SLACK_S = 5.0
LEASE_S = 1.0  # renewed while the supervisor lives: without it the arms stop on the way


def _paths(
    arms: Sequence[ArmView], robots: Sequence[Robot], pose: Pose
) -> tuple[NDArray[np.float64], float]:
    """Targets (H, D) of the whole group and the seconds between them; H fits one message."""
    starts = [arm.tick()["sent"] for arm in arms]
    dt_s = ROW_S
    while True:
        paths = [r.path(pose, start, dt_s) for r, start in zip(robots, starts, strict=True)]
        rows = max(len(path) for path in paths)
        if rows <= CHUNK_ROWS:
            break
        dt_s *= 1.1 * rows / CHUNK_ROWS
    held = [np.pad(path, ((0, rows - len(path)), (0, 0)), mode="edge") for path in paths]
    return np.concatenate(held, axis=1), dt_s


def move_group(
    leases: LeaseTable, group: str, arms: Sequence[ArmView], robots: Sequence[Robot], pose: Pose
) -> Generator[None, None, float]:
    """Move ``arms`` (in group order) to a named pose; yields until there, returns the duration.

    Takes the group's lease as the supervisor. ControlPlaneError when an arm leaves ``ARMED`` on
    the way or does not arrive in time.
    """
    why = f"{pose} of {group}"
    path, dt_s = _paths(arms, robots, pose)
    goal = path[-1]
    duration = dt_s * len(path)
    lease = leases.acquire(group, why, Source.SUPERVISOR, LEASE_S)
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
            record["mode"] = CommandMode.JOINT_POSITION
            record["rows"] = len(path)
            record["start_t_ns"] = time.monotonic_ns() + LEAD_NS
            record["dt_ns"] = int(dt_s * 1e9)
            record["observation_t_ns"] = -1
            record["chunk_id"] = -1
            record["target"][: len(path)] = path
        while True:
            yield
            leases.renew(group, lease.token)
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
