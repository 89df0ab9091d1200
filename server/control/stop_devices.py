"""What the heartbeats of emergency-stop devices say: missing, silent, unplugged, pressed."""

from __future__ import annotations

import time

from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring

__all__ = ["PRESSED", "trouble"]

SILENCE_S = 1.0
PRESSED = "is pressed"


def trouble(station: str, name: str) -> str | None:
    """Why a stop device does not allow motion, in words; None when it does."""
    try:
        with Ring(ring_path(station, "stopdevice", name)) as ring:
            latest = ring.latest()
    except SharedMemoryError:
        return f"required stop device {name} is not running"
    if latest is None or time.monotonic_ns() - int(latest[1]["t_ns"]) > SILENCE_S * 1e9:
        return f"required stop device {name} is silent"
    if not latest[1]["connected"]:
        return f"required stop device {name} is unplugged"
    return f"stop device {name} {PRESSED}" if latest[1]["pressed"] else None
