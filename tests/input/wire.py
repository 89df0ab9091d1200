"""The far side of an input device: a named pipe or pty that carries the kernel's event bytes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

SPACE, KEY_B, KEY_C = 57, 48, 46


def event(kind: int, code: int, value: int) -> bytes:
    """``struct input_event`` on x86-64: two longs of time, u16 type, u16 code, s32 value."""
    return struct.pack("<qqHHi", 1, 500_000, kind, code, value)


def key(code: int, value: int) -> bytes:
    """A key event followed by the report that ends it; value 1 down, 0 up, 2 auto-repeat."""
    return event(1, code, value) + event(0, 0, 0)


class Button:
    """A named pipe at ``path`` that is plugged in, pressed, released and pulled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = -1

    def plug(self) -> None:
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR)

    def send(self, data: bytes) -> None:
        os.write(self.fd, data)

    def press(self, code: int = SPACE) -> None:
        self.send(key(code, 1))

    def release(self, code: int = SPACE) -> None:
        self.send(key(code, 0))

    def pull(self) -> None:
        self.path.unlink()
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
