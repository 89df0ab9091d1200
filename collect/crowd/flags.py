"""What a reviewer should look at first: jerks, standing still, lost frames, collisions, faults.

Computed from the episode's own rows. A flag says where; whether it is bad is the reviewer's to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collect.crowd import savitzky_golay
from robot_stack.episode import Episode
from robot_stack.types import Difference

__all__ = ["KINDS", "Flag", "derivative", "find_flags"]

KINDS = ("short", "collision", "fault", "jerk", "drop", "idle")
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

WINDOW_S = 0.2
CUBIC = 3
# The smoothest reach of 0.6 rad in 0.4 s peaks at 60 A/T^3 = 560 rad/s^3 (Flash and Hogan, 1985);
# encoders of 4096 steps leave 4 rad/s^3 of noise after the fit below.
JERK = 600.0
STILL = 0.05  # rad/s, or of a gripper's travel a second
IDLE_S = 3.0
STALE_S = 0.25  # a picture this old shows something else
SHORT_S = 2.0
GAP_S = 0.5  # of two flags of a kind that are this near, one is made
MOST = 200
BAD_EVENTS = frozenset({"fault", "stop", "robot_silent", "robot_restarted"})


@dataclass(frozen=True, slots=True)
class Flag:
    """Rows ``first_row`` to ``last_row``. ``value``: rad/s^3 of a jerk, seconds of the others;
    ``about``: the joint, camera or event."""

    kind: str
    first_row: int
    last_row: int
    value: float
    about: str = ""


def find_flags(episode: Episode, least_s: float = 0.0) -> list[Flag]:
    """Flags in order of their rows, 200 at most. What takes less than ``least_s`` is short."""
    rows = len(episode)
    if rows == 0:
        return []
    rate = episode.schema.rate_hz
    gap = math.ceil(GAP_S * rate)
    found = [
        *_short(rows, rate, least_s),
        *_jerks(episode, rate, gap),
        *_idle(episode, rate),
        *_drops(episode, rate, gap),
        *_collisions(episode, rate, gap),
        *_faults(episode),
    ]
    return sorted(found, key=lambda flag: (flag.first_row, KINDS.index(flag.kind)))[:MOST]


def derivative(values: Array, rate: float, order: int) -> Array:
    """The ``order``-th derivative (T, D) of ``values`` (T, D) sampled ``rate`` times a second.

    Of a cubic fitted to 0.2 s around each row; NaN at the ends, where there are no 0.2 s around.
    """
    half = max(2, round(WINDOW_S * rate / 2))
    result = np.full(values.shape, np.nan)
    if len(values) > 2 * half:
        result[half:-half] = savitzky_golay.derivative(
            values, order, window=2 * half + 1, order=CUBIC, dt=1.0 / rate
        )
    return result


def _short(rows: int, rate: float, least_s: float) -> Iterator[Flag]:
    seconds = rows / rate
    if seconds < max(SHORT_S, least_s):
        yield Flag("short", 0, rows - 1, seconds)


def _jerks(episode: Episode, rate: float, gap: int) -> Iterator[Flag]:
    arms = _arms(episode)
    names = np.array(episode.schema.joint_names)[arms]
    if not len(names):
        return
    jerk = np.nan_to_num(np.abs(derivative(episode.qpos.astype(np.float64)[:, arms], rate, 3)))
    for first, last in _runs(jerk.max(axis=1) > JERK, gap):
        peaks = jerk[first : last + 1].max(axis=0)
        yield Flag("jerk", first, last, float(peaks.max()), str(names[int(peaks.argmax())]))


def _idle(episode: Episode, rate: float) -> Iterator[Flag]:
    speed = np.abs(derivative(episode.qpos.astype(np.float64), rate, 1))
    if not speed.size:
        return
    for first, last in _runs(speed.max(axis=1) < STILL, 1):
        seconds = (last - first + 1) / rate
        if seconds >= IDLE_S:
            yield Flag("idle", first, last, seconds)


def _drops(episode: Episode, rate: float, gap: int) -> Iterator[Flag]:
    t_ns = episode.t_ns
    for camera in episode.cameras:
        taken = episode.frame_t_ns(camera)
        missing = (taken < 0) | (t_ns - taken > STALE_S * 1e9)
        for first, last in _runs(missing, gap):
            yield Flag("drop", first, last, (last - first + 1) / rate, camera)


def _collisions(episode: Episode, rate: float, gap: int) -> Iterator[Flag]:
    near = (episode.difference & np.uint32(Difference.COLLISION)) != 0
    for first, last in _runs(near, gap):
        yield Flag("collision", first, last, (last - first + 1) / rate)


def _faults(episode: Episode) -> Iterator[Flag]:
    t_ns = episode.t_ns
    for event in episode.events:
        if event.kind in BAD_EVENTS:
            row = int(np.clip(np.searchsorted(t_ns, event.t_ns), 0, len(t_ns) - 1))
            yield Flag("fault", row, row, 0.0, f"{event.kind}: {event.text}"[:120])


def _arms(episode: Episode) -> Mask:
    """Which joints turn: grippers travel a fraction, as fast as they like."""
    units = list(episode.metadata.action.get("units", ()))
    names = episode.schema.joint_names
    if len(units) != len(names):
        return np.array(["gripper" not in name for name in names], bool)
    return np.array([unit == "rad" for unit in units], bool)


def _runs(mask: Mask, gap: int) -> Iterator[tuple[int, int]]:
    """First and last row of each stretch of ``mask``; holes shorter than ``gap`` rows don't end
    one."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) > max(1, gap))
    for first, last in zip(
        rows[np.r_[0, breaks + 1]], rows[np.r_[breaks, len(rows) - 1]], strict=True
    ):
        yield int(first), int(last)
