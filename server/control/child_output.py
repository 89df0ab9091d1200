"""What a child of the supervisor prints, where its log must never end it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

__all__ = ["print_or_go_on"]


class _Output(io.RawIOBase):
    """A file descriptor whose writes always succeed."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        # The log lies in shared memory, which may be full; a terminal or a pipe may be gone.
        with contextlib.suppress(OSError):
            os.write(self._fd, data)
        return memoryview(data).nbytes


def print_or_go_on() -> None:
    """From here on a ``print`` that fails, in this program or a library, is lost, and raises
    nothing: a robot is held by a loop that also says something now and then."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedWriter(_Output(fd)), errors="replace", line_buffering=True)
        for fd in (1, 2)
    )
