"""The disk of a station, as its agent sees it: full is told to kiosk and staff, and passes."""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path

from collect.crowd.outbox import Outbox
from collect.space import free_bytes

__all__ = ["ROOM_BYTES", "Disk"]

ROOM_BYTES = 256 << 20  # beyond the recorder's floor: it reserves half of that before its first row
LOOK_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Disk:
    """``trouble``: why no play can be recorded now, None when one can. ``look`` often: it looks
    once a second, and has what the disk did not take written as soon as there is room."""

    def __init__(self, outbox: Outbox, floor_bytes: int) -> None:
        self.trouble: str | None = None
        self._outbox = outbox
        self._needed = floor_bytes + ROOM_BYTES
        self._looked_s = -math.inf

    def look(self) -> str | None:
        """``trouble``, at most a second old."""
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._looked_s = now
            self.trouble = self._look()
        return self.trouble

    def failed(self, error: OSError) -> str:
        """Something could not be written just now; ``trouble`` until it can be."""
        self.trouble = _text(self._outbox.directory, error, ROOM_BYTES)
        return self.trouble

    def _look(self) -> str | None:
        directory = self._outbox.directory
        try:
            self._outbox.settle()
            missing = self._needed - free_bytes(directory)
        except OSError as error:
            return _text(directory, error, ROOM_BYTES)
        return None if missing <= 0 else _text(directory, None, missing)


def _text(directory: Path, error: OSError | None, missing: int) -> str:
    if error is not None and error.errno not in FULL:
        return f"the disk of the station takes nothing ({error.strerror}): look at {directory}"
    why = "" if error is None else f" ({error.strerror})"
    return (
        f"the disk of the station is full{why}: free {math.ceil(missing / 1e6)} MB at {directory}"
    )
