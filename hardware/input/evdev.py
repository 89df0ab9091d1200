"""Linux input devices, read as the kernel delivers them: ``struct input_event`` from a node.

A node is named by its path (``/dev/input/by-id/...`` survives replugging), by a pipe or terminal
that carries the same bytes, or by the name that the device gives itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from robot_stack.errors import DeviceError

__all__ = ["EVENT", "InputDevice", "KeyEvent", "NodeInfo", "find_nodes", "list_nodes"]

EVENT = struct.Struct("<qqHHi")  # seconds, microseconds, type, code, value: 24 bytes on x86-64
EV_SYN, EV_KEY, EV_ABS = 0, 1, 3
SYN_REPORT, SYN_DROPPED = 0, 3
KEY_BYTES = 96  # KEY_MAX is 0x2ff
AXES = 0x40  # ABS_MAX is 0x3f
ABSINFO = struct.Struct("<6i")  # value, minimum, maximum, fuzz, flat, resolution
EVIOCGABS = 2 << 30 | ABSINFO.size << 16 | ord("E") << 8 | 0x40
EVIOCGBIT_ABS = 2 << 30 | AXES // 8 << 16 | ord("E") << 8 | 0x20 + EV_ABS
EVIOCGKEY = 2 << 30 | KEY_BYTES << 16 | ord("E") << 8 | 0x18
EVIOCSCLOCKID = 1 << 30 | 4 << 16 | ord("E") << 8 | 0xA0
CLOCK_MONOTONIC = 1


@dataclass(frozen=True, slots=True)
class KeyEvent:
    """A key that went down or came up; ``t_ns`` is the kernel's monotonic time of it."""

    t_ns: int
    code: int
    down: bool


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """An input node: its path, the device's own name, and the codes of the keys that it has."""

    path: Path
    name: str
    keys: frozenset[int]


def _bitmap(text: str) -> frozenset[int]:
    """Set bits of a sysfs bitmap: hexadecimal words of 64 bits, the highest first."""
    codes: set[int] = set()
    for index, word in enumerate(reversed(text.split())):
        value = int(word, 16)
        codes.update(64 * index + bit for bit in range(64) if value >> bit & 1)
    return frozenset(codes)


def list_nodes(
    sysfs: Path = Path("/sys/class/input"), dev: Path = Path("/dev/input")
) -> list[NodeInfo]:
    """All input nodes that have keys, readable without rights to the devices themselves."""
    nodes = []
    for entry in sorted(sysfs.glob("event*"), key=lambda path: int(path.name[5:])):
        try:
            name = (entry / "device" / "name").read_text().strip()
            keys = _bitmap((entry / "device" / "capabilities" / "key").read_text())
        except OSError:  # unplugged while we looked
            continue
        if keys:
            nodes.append(NodeInfo(dev / entry.name, name, keys))
    return nodes


def find_nodes(
    device: str,
    keys: frozenset[int],
    sysfs: Path = Path("/sys/class/input"),
    dev: Path = Path("/dev/input"),
) -> list[Path]:
    """The nodes of ``device`` (a path or a device's name) that can send any of ``keys`` (empty:
    any key). One pedal often shows several nodes. Without a name: the first node of all that has
    every one of ``keys``. Empty when it is not plugged in."""
    if not device:
        return [n.path for n in list_nodes(sysfs, dev) if keys and keys <= n.keys][:1]
    if device.startswith("/"):
        path = Path(device)
        return [path] if path.exists() else []
    return [
        node.path
        for node in list_nodes(sysfs, dev)
        if node.name.lower() == device.lower() and (not keys or keys & node.keys)
    ]


class _Node:
    """One open node: assembles events, follows which keys are down and where axes are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.down: set[int] = set()
        self.axes: dict[int, int] = {}
        self.ranges: dict[int, tuple[int, int]] = {}
        self._rest = b""
        self._dropped = False
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except PermissionError:
            raise DeviceError(
                f"no right to read {path}: `sudo usermod -aG input $USER`, then log in again"
            ) from None
        except OSError as error:
            raise DeviceError(f"cannot open {path}: {error.strerror}; is it plugged in?") from error
        if stat.S_ISDIR(os.fstat(self.fd).st_mode) or stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise DeviceError(
                f"{path} is not an input device; see `robot-stack stop-device --list`"
            )
        self._kernel_time = self._ask_for_monotonic_time()
        self.down = self._keys_down()
        self._ask_axes()

    def _ask_for_monotonic_time(self) -> bool:
        try:
            fcntl.ioctl(self.fd, EVIOCSCLOCKID, struct.pack("<i", CLOCK_MONOTONIC))
        except OSError:  # a pipe or terminal: events are stamped when they arrive
            return False
        return True

    def _keys_down(self) -> set[int]:
        """Keys that are down now: a stop button may be latched before we open it."""
        state = bytearray(KEY_BYTES)
        try:
            fcntl.ioctl(self.fd, EVIOCGKEY, state)
        except OSError:  # a pipe or terminal cannot be asked
            return set()
        return {code for code in range(8 * KEY_BYTES) if state[code // 8] >> (code % 8) & 1}

    def _ask_axes(self) -> None:
        """Which absolute axes there are, how far they go, and where they are now."""
        bits = bytearray(AXES // 8)
        try:
            fcntl.ioctl(self.fd, EVIOCGBIT_ABS, bits)
            for code in range(AXES):
                if bits[code // 8] >> (code % 8) & 1:
                    info = bytearray(ABSINFO.size)
                    fcntl.ioctl(self.fd, EVIOCGABS + code, info)
                    value, lower, upper = ABSINFO.unpack(info)[:3]
                    self.axes[code], self.ranges[code] = value, (lower, upper)
        except OSError:  # a pipe or terminal cannot be asked
            return

    def read(self) -> list[KeyEvent] | None:
        """Key events that wait; None when the device has gone. Axes are followed on the way."""
        try:
            data = os.read(self.fd, 64 * EVENT.size)
        except BlockingIOError:
            return []
        except OSError:  # ENODEV
            return None
        if not data:
            return None
        arrived_ns = time.monotonic_ns()
        data = self._rest + data
        whole = len(data) - len(data) % EVENT.size
        self._rest = data[whole:]
        events: list[KeyEvent] = []
        for seconds, micros, kind, code, value in EVENT.iter_unpack(data[:whole]):
            t_ns = seconds * 1_000_000_000 + micros * 1000 if self._kernel_time else arrived_ns
            if kind == EV_SYN and code == SYN_DROPPED:
                self._dropped = True
            elif kind == EV_SYN and code == SYN_REPORT and self._dropped:
                self._dropped = False
                events += self._catch_up(t_ns)
            elif kind == EV_KEY and value != 2 and not self._dropped:  # 2 is auto-repeat
                events += self._change(t_ns, code, down=value == 1)
            elif kind == EV_ABS and not self._dropped:
                self.axes[code] = value
        return events

    def _change(self, t_ns: int, code: int, *, down: bool) -> list[KeyEvent]:
        if down == (code in self.down):
            return []
        (self.down.add if down else self.down.discard)(code)
        return [KeyEvent(t_ns, code, down)]

    def _catch_up(self, t_ns: int) -> list[KeyEvent]:
        """After the kernel dropped events: the difference to what is down now."""
        self._ask_axes()
        now = self._keys_down()
        changed = sorted(now ^ self.down)
        return [event for code in changed for event in self._change(t_ns, code, down=code in now)]


class InputDevice:
    """Key events and axes of one device, which may be unplugged and plugged in again at any time.

    ``keys`` (codes; empty: any) are those that matter. ``device`` is as for `find_nodes`, ``name``
    what messages call it. ``read`` never blocks; while the device is away it looks for it every
    ``RETRY_S``.
    """

    RETRY_S = 0.5

    def __init__(self, device: str, keys: frozenset[int] = frozenset(), name: str = "") -> None:
        self.device = device
        self.keys = keys
        self.name = name or device
        self.trouble = ""
        """Why it is not connected, in words."""
        self._nodes: list[_Node] = []
        self._retry_at = 0.0

    @property
    def connected(self) -> bool:
        return bool(self._nodes)

    @property
    def down(self) -> set[int]:
        """Which of ``keys`` are down."""
        return {code for code in self.pressed if self._matters(code)}

    @property
    def pressed(self) -> set[int]:
        """Which keys are down, also those that are none of ``keys``."""
        return {code for node in self._nodes for code in node.down}

    @property
    def axes(self) -> dict[int, int]:
        """Where its absolute axes are (code to raw value), as far as the device has told."""
        return {code: value for node in self._nodes for code, value in node.axes.items()}

    @property
    def ranges(self) -> dict[int, tuple[int, int]]:
        """How far its absolute axes go (code to lowest and highest raw value)."""
        return {code: span for node in self._nodes for code, span in node.ranges.items()}

    def _matters(self, code: int) -> bool:
        return not self.keys or code in self.keys

    def wait(self, timeout_s: float) -> None:
        """Block until an event waits or ``timeout_s`` has passed."""
        poller = select.poll()
        for node in self._nodes:
            poller.register(node.fd, select.POLLIN)
        poller.poll(timeout_s * 1000)

    def read(self) -> list[KeyEvent]:
        """Events of ``keys`` since the last call, oldest first. Keys that are already down when
        the device is found count as pressed then."""
        if not self._nodes:
            return self._find()
        events: list[KeyEvent] = []
        for node in self._nodes:
            read = node.read() if self._waiting(node) else []
            if read is None:
                self.trouble = f"{self.name} was unplugged"
                self.close()
                return [event for event in events if self._matters(event.code)]
            events += read
        return [event for event in events if self._matters(event.code)]

    @staticmethod
    def _waiting(node: _Node) -> bool:
        return bool(select.select([node.fd], [], [], 0)[0])

    def _find(self) -> list[KeyEvent]:
        now = time.monotonic()
        if now < self._retry_at:
            return []
        self._retry_at = now + self.RETRY_S
        paths = find_nodes(self.device, self.keys)
        if not paths:
            self.trouble = f"{self.name} is not plugged in"
            return []
        try:
            for path in paths:
                self._nodes.append(_Node(path))
        except DeviceError as error:
            self.trouble = str(error)
            self.close()
            return []
        self.trouble = ""
        t_ns = time.monotonic_ns()
        return [KeyEvent(t_ns, code, down=True) for code in sorted(self.down)]

    def close(self) -> None:
        for node in self._nodes:
            os.close(node.fd)
        self._nodes.clear()

    def __enter__(self) -> InputDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
