"""Keys of a terminal, as they come: single characters, without waiting and without Enter.

A terminal tells of presses and repeats, never of a release; over ssh as well as here.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any

from robot_stack.errors import DeviceError

__all__ = ["Terminal"]


class Terminal:
    """``open`` takes the terminal on ``fd`` (default: standard input) out of line mode, ``close``
    puts it back. Ctrl-C stays a signal."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = fd
        self._saved: list[Any] | None = None
        self.gone = False

    def open(self) -> None:
        """DeviceError when there is no terminal."""
        if self._fd is None:
            self._fd = sys.stdin.fileno()
        if not os.isatty(self._fd):
            raise DeviceError(
                "there is no terminal to read keys from: run it in one (ssh -t does), or use "
                "another device"
            )
        self._saved = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSANOW)
        self.gone = False

    def read(self) -> str:
        """The characters that wait, oldest first, lower-case. Sequences of arrow and function keys
        are left out, so that no letter in them is taken for a key."""
        if self._saved is None or self.gone:
            return ""
        assert self._fd is not None
        text = ""
        while select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, 256)
            except OSError:  # the terminal was closed
                data = b""
            if not data:
                self.gone = True
                break
            text += "" if data.startswith(b"\x1b") else data.decode(errors="ignore").lower()
        return text

    def close(self) -> None:
        if self._saved is not None:
            assert self._fd is not None
            if not self.gone:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None
