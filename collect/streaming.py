"""Sends a path to the arms a window at a time, so that they stand soon after its sender has died.

One command of the whole path would outlive a sender that is killed or hangs for as long as the
lease does. A window ends by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robot_stack.client import Lease
from robot_stack.records import CHUNK_ROWS
from robot_stack.trajectory import minimum_jerk

__all__ = ["LEAD_S", "approach", "approach_seconds", "stream"]

Array = NDArray[np.float64]

WINDOW_S = 0.4  # how far ahead the arms know the path: what they go on with if we are killed
RESEND_S = 0.1
LEAD_S = 0.1
SETTLE_S = 0.5
POLL_S = 0.004
APPROACH_SPEED = 0.4  # mean speed per second, in the joints' units; its peak is 1.875 times it
SHORTEST_APPROACH_S = 1.0
APPROACH_ROW_S = 0.02


def stream(
    lease: Lease,
    path: Array,
    start_ns: int,
    period_s: float,
    turn: Callable[[], bool],
    *,
    settle_s: float = SETTLE_S,
) -> int:
    """Send row i of ``path`` (H, D) for ``start_ns + i * period_s`` and hold the last for
    ``settle_s``.

    ``turn`` is called all the while, to renew the lease and to look after the arms; False ends it.
    Returns how many rows' times passed before it ended.
    """
    period_ns = int(period_s * 1e9)
    window = min(CHUNK_ROWS, int((WINDOW_S + LEAD_S) / period_s) + 3)
    settled_ns = start_ns + period_ns * (len(path) - 1) + int(settle_s * 1e9)
    next_send_ns = 0
    while (now_ns := time.monotonic_ns()) < settled_ns:
        if not turn():
            return int(np.clip((now_ns - start_ns) // period_ns + 1, 0, len(path)))
        if now_ns >= next_send_ns:
            # From the row before the one in force: the curve between two rows depends on their
            # neighbours. Beyond the end the last row is held until the arms have settled.
            first = max(0, (now_ns - start_ns) // period_ns - 1)
            rows = path[np.minimum(np.arange(first, first + window), len(path) - 1)]
            lease.send_chunk(rows, start_ns + first * period_ns, period_ns)
            next_send_ns = now_ns + int(RESEND_S * 1e9)
        time.sleep(POLL_S)
    return len(path)


def approach_seconds(begin: Array, goal: Array) -> float:
    """How long the slow way from ``begin`` to ``goal`` (D,) takes."""
    return max(SHORTEST_APPROACH_S, float(np.abs(goal - begin).max()) / APPROACH_SPEED)


def approach(
    lease: Lease,
    goal: Array,
    sent: Callable[[], Array],
    turn: Callable[[], bool],
    *,
    within: float,
    settle_s: float = SETTLE_S,
) -> Array:
    """Move slowly to ``goal`` (D,) by a minimum-jerk path (Flash and Hogan 1985, eq. 2).

    ``sent`` is what the arms were last sent. Returns how far from ``goal`` that is (D,) in the end:
    ``within`` it, or farther when ``turn`` ended it or the arms did not come along; a limit of the
    filter may make them take twice as long.
    """
    begin = sent()
    seconds = approach_seconds(begin, goal)
    path = minimum_jerk(begin, goal, seconds, APPROACH_ROW_S)
    start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
    stream(lease, path, start_ns, APPROACH_ROW_S, turn, settle_s=settle_s)
    deadline = time.monotonic() + seconds
    while (off := np.abs(sent() - goal)).max() >= within:
        if time.monotonic() > deadline or not turn():
            break
        lease.send(goal)
        time.sleep(APPROACH_ROW_S)
    return off
