"""Single key presses from a terminal, without waiting and without Enter; restores the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Any, Self

__all__ = ["Keys"]


class Keys:
    """``poll`` gives the keys pressed since the last call: lower-case characters and ``enter``.

    Use as a context manager. Without a terminal on ``fd`` (default: standard input) it never gives
    a key. Ctrl-C stays a signal. Sequences of arrow and function keys are left out, so that no
    letter inside one is taken for a command.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stdin.fileno() if fd is None else fd
        self.active = os.isatty(self._fd)
        self._saved: list[Any] | None = None

    def __enter__(self) -> Self:
        if self.active:
            self._saved = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSANOW)
        return self

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            self._saved = None

    def poll(self) -> list[str]:
        """Keys that wait now, oldest first; empty when there is none or the terminal has gone."""
        if self._saved is None or not select.select([self._fd], [], [], 0)[0]:
            return []
        try:
            data = os.read(self._fd, 256)
        except OSError:  # the terminal was closed: nobody can press anything any more
            return []
        if data.startswith(b"\x1b"):
            return []
        names = {"\r": "enter", "\n": "enter"}
        return [names.get(char, char.lower()) for char in data.decode(errors="ignore")]
