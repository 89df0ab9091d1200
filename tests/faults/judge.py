"""Judges a follower from the goal registers on its wire, against limits restated here by hand."""

from __future__ import annotations

import numpy as np

# vx300s, per servo, from what the rig may do: 3.14 rad/s on arm joints; a gripper turns 2.11 rad
# from closed to open and may do 2.0 of that a second.
TICKS_PER_RAD = 4096 / (2 * np.pi)
ARM_SPEED = 3.14 * TICKS_PER_RAD
GRIPPER_SPEED = 2.0 * 2.1123 * TICKS_PER_RAD
ARM_STOP_S = 3.14 / 80.0
SERVOS = (1, 2, 4, 6, 7, 8, 9)

# A packet's time on the wire jitters against the tick that made it; the filter lets a tick that
# comes late move on for at most five periods.
JITTER_S = 0.03


def speed_limit(servo: int) -> float:
    """Ticks a second."""
    return GRIPPER_SPEED if servo == 9 else ARM_SPEED


def assert_continuous(t_ns, servos, ticks, *, since_ns: int = 0) -> int:
    """No packet jumps, and over any 50 ms no joint is faster than its limit; returns packets."""
    judged = 0
    for servo in SERVOS:
        mine = (servos == servo) & (t_ns >= since_ns)
        t, x = t_ns[mine] / 1e9, ticks[mine].astype(float)
        judged += len(x)
        if len(x) < 2:
            continue
        limit = speed_limit(servo)
        dt, dx = np.diff(t), np.abs(np.diff(x))
        worst = int(np.argmax(dx - limit * (dt + JITTER_S)))
        assert dx[worst] <= limit * (dt[worst] + JITTER_S) + 2, (
            f"servo {servo}: {dx[worst]:.0f} ticks in {dt[worst] * 1e3:.1f} ms"
        )
        later = np.searchsorted(t, t + 0.05)
        inside = later < len(t)
        span = t[later[inside]] - t[inside]
        moved = np.abs(x[later[inside]] - x[inside])
        assert (moved <= limit * (span + JITTER_S) + 2).all(), f"servo {servo} too fast"
    return judged


def last_motion_ns(t_ns, servos, ticks) -> int:
    """Time of the last packet that changed a goal, -1 when none did."""
    last = -1
    for servo in SERVOS:
        mine = servos == servo
        t, x = t_ns[mine], ticks[mine]
        changed = np.flatnonzero(np.diff(x))
        if len(changed):
            last = max(last, int(t[changed[-1] + 1]))
    return last
