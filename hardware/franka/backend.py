"""What the driver needs of a client library: one small interface for both of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import DeviceError

__all__ = ["Backend", "Mode", "Reading", "connection_error"]

Array = NDArray[np.float64]

TESTED = {5: "panda-python==1.1.1", 10: "franky-control==2.0.0"}
MODELS = {5: "fer", 10: "fr3"}
WHEELS = "https://timschneider42.github.io/franky/whl/by-robot-server-version"


class Mode(IntEnum):
    """The robot's mode, in libfranka's order."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    RECOVERY = 6


@dataclass(frozen=True, slots=True)
class Reading:
    """One state of the robot. ``robot_ms`` is its own clock; arrays (7,) in rad, rad/s and Nm;
    ``pose`` (7,) of the end effector; ``success_rate`` NaN while nothing is commanded.
    ``errors`` are those that stand, or what ended the last motion, by libfranka's names where it
    names them; none in a robot that can be moved."""

    robot_ms: int
    q: Array
    dq: Array
    tau: Array
    q_d: Array
    pose: Array
    mode: Mode
    errors: tuple[str, ...]
    success_rate: float


class Backend(Protocol):
    """A connected arm whose library runs the 1 kHz loop in a thread of its own, in C++.

    The library tracks the last reference; how a reference that grows old comes to rest is told in
    each implementation. No call but ``open``, ``recover`` and ``close`` waits for the robot longer
    than one of its milliseconds. DeviceError when the connection is lost.
    """

    @property
    def tracking(self) -> bool:
        """Whether the library is in control of the robot (tracking, or coming to rest)."""

    @property
    def reference(self) -> Array | None:
        """The joints (7,) that are tracked now, None when nothing is tracked."""

    def open(self) -> None:
        """Connect, check the limits that the robot tells, and set what the station file says."""

    def read(self) -> Reading:
        """The newest state. A motion that has ended by itself is noticed here."""

    def start(self, reading: Reading) -> None:
        """Begin to track, at rest where ``reading`` says that the arm is."""

    def follow(self, q: Array, dq: Array, reading: Reading) -> None:
        """Track ``q`` (7,), which moves at ``dq`` (7,)."""

    def come_to_rest(self) -> None:
        """Stop tracking: the arm decelerates, then the robot holds it by itself."""

    def recover(self) -> None:
        """Automatic error recovery if the robot needs it, and forget what ended the last motion;
        DeviceError when errors stay."""

    def close(self) -> None:
        """End what runs, and the connection. Safe to call twice, and after a lost connection."""


def connection_error(address: str, error: Exception) -> DeviceError:
    """A failed connection in words: what to check, or which package speaks to this robot."""
    text = str(error).strip()
    versions = re.search(r"server version: (\d+), library version: (\d+)", text)
    if versions is None:  # panda-python's own words for the same
        versions = re.search(r"protocol version (\d+).*version\s+(\d+)", text, re.DOTALL)
    if versions is not None:
        return DeviceError(_mismatch(address, int(versions[1]), int(versions[2])))
    lower = text.lower()
    if "refused" in lower:
        return DeviceError(
            f"the robot at {address} refused the connection: activate FCI in Desk (the robot's "
            "web page: unlock the joints, then 'Activate FCI'), and see that no other program "
            "is connected"
        )
    if "timeout" in lower or "timed out" in lower or "unreachable" in lower or "no route" in lower:
        return DeviceError(
            f"no answer from {address}: check the network cable to the control box, this "
            f"computer's address in its network (`ping {address}`), the firewall (UDP too), and "
            "robots.<name>.options.address in the station file"
        )
    if "realtime" in lower or "scheduling" in lower or "sched_fifo" in lower:
        return DeviceError(
            f"{text}. Start a PREEMPT_RT kernel and permit real-time scheduling "
            "(`robot-stack doctor` tells how), or set realtime: ignore"
        )
    return DeviceError(f"robot at {address}: {text}")


def _mismatch(address: str, server: int, library: int) -> str:
    text = (
        f"the robot at {address} speaks version {server} of the interface, the installed library "
        f"version {library}: "
    )
    package = TESTED.get(server)
    if package is not None:
        return f"{text}pip install {package}, and set model: {MODELS[server]}"
    if server < 5 or server > 10:
        return f"{text}no released package speaks version {server}; update the robot's system"
    return (
        f"{text}update the robot's system to 5.9 or later (version 10), or, untested here, "
        f"pip install franky-control==2.0.0 --extra-index-url {WHEELS}/{server}/"
    )
