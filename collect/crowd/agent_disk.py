"""The disk of a station, as its agent sees it: full is told to kiosk and staff, and passes."""

from __future__ import annotations

import errno
import math
import time

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
        self.trouble = self._text(error)
        return self.trouble

    def _look(self) -> str | None:
        try:
            self._outbox.settle()
            return None if self._missing() <= 0 else self._text(None)
        except OSError as error:
            return self._text(error)

    def _missing(self) -> int:
        return self._needed - free_bytes(self._outbox.directory)

    def _text(self, error: OSError | None) -> str:
        directory = self._outbox.directory
        if error is not None and error.errno not in FULL:
            return f"the disk of the station takes nothing ({error.strerror}): look at {directory}"
        why = "" if error is None else f" ({error.strerror})"
        # A quota does not show in what is free. Hundreds: not another text with every file.
        missing = max(self._missing(), 0 if error is None else ROOM_BYTES)
        megabytes = 100 * math.ceil(missing / 1e8)
        return f"the disk of the station is full{why}: free {megabytes} MB at {directory}"
