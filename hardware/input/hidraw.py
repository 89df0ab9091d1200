"""Linux HID devices, read as they send: one report (the device's own bytes) a read of /dev/hidrawN.

A node is named by its path, or found by what the kernel knows of the device; a packet pipe that
carries the same reports will do as well.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HidDevice", "HidInfo", "list_hid"]

LONGEST_REPORT = 4096  # HID_MAX_BUFFER_SIZE is 16 KiB; no input device comes near this
RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class HidInfo:
    """A hidraw node: path, the device's own name, USB ids, and its report descriptor."""

    path: Path
    name: str
    vendor: int
    product: int
    descriptor: bytes


def list_hid(sysfs: Path = Path("/sys/class/hidraw"), dev: Path = Path("/dev")) -> list[HidInfo]:
    """All hidraw nodes, readable without rights to the devices themselves."""
    nodes = []
    for entry in sorted(sysfs.glob("hidraw*"), key=lambda path: int(path.name[6:])):
        try:
            lines = (entry / "device" / "uevent").read_text().splitlines()
            descriptor = (entry / "device" / "report_descriptor").read_bytes()
        except OSError:  # unplugged while we looked
            continue
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        try:  # HID_ID=0003:0000256F:0000C635: bus, vendor, product
            _, vendor, product = (int(part, 16) for part in values["HID_ID"].split(":"))
        except (KeyError, ValueError):
            continue
        name = values.get("HID_NAME", "").strip()
        nodes.append(HidInfo(dev / entry.name, name, vendor, product, descriptor))
    return nodes


class HidDevice:
    """Reports of one HID device, which may be unplugged and plugged in again at any time.

    ``device`` is a path; empty: the first node that ``wanted`` takes. ``name`` is what messages
    call it, ``mend`` the command that grants the right to read it. ``read`` never blocks; while
    the device is away it looks for it every half second.
    """

    def __init__(
        self,
        device: str,
        wanted: Callable[[HidInfo], bool],
        *,
        name: str,
        mend: str,
        find: Callable[[], list[HidInfo]] = list_hid,
    ) -> None:
        self.device = device
        self.name = name
        self.trouble = f"{name} is not plugged in"
        """Why it is not connected, in words."""
        self._wanted = wanted
        self._mend = mend
        self._find = find
        self._fd = -1
        self._retry_at = 0.0

    @property
    def connected(self) -> bool:
        return self._fd >= 0

    def read(self) -> list[bytes]:
        """Reports since the last call, oldest first."""
        if self._fd < 0 and not self._open():
            return []
        reports: list[bytes] = []
        while True:
            try:
                data = os.read(self._fd, LONGEST_REPORT)
            except BlockingIOError:
                return reports
            except OSError:  # EIO, ENODEV
                data = b""
            if not data:
                self.trouble = f"{self.name} was unplugged"
                self.close()
                return reports
            reports.append(data)

    def _open(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        path = self._path()
        if path is None:
            self.trouble = f"{self.name} is not plugged in"
            return False
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            self.trouble = f"no right to read {path} ({self.name}): {self._mend}"
            return False
        except OSError as error:
            self.trouble = f"cannot open {path} ({self.name}): {error.strerror}"
            return False
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            os.close(fd)
            self.trouble = f"{path} is no HID device; they are called /dev/hidraw0 and so on"
            return False
        self._fd, self.trouble = fd, ""
        return True

    def _path(self) -> Path | None:
        if self.device:
            path = Path(self.device)
            return path if path.exists() else None
        return next((node.path for node in self._find() if self._wanted(node)), None)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
