"""An arm's ring, as far as Cartesian devices read it, and a session's turns around a device."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardware.teleop.cartesian import CartesianTeleoperator, Grasp
from robot_stack.records import ring_path
from robot_stack.shared_memory import RingWriter

STATION = "t"
ARM = "arm"
GRASP = Grasp(STATION, ARM, slice(0, 8))
TICK = np.dtype([("t_ns", "<i8"), ("ee_pose", "<f8", (7,))])
HELD = np.array([0.4, 0.1, 0.3, 0.0, 1.0, 0.0, 0.0, 0.5])
WAIT_S = 20.0


class Arm:
    """A robot that is at once where it is asked to be, unless it is ``stuck``."""

    def __init__(self) -> None:
        self.ring = RingWriter(ring_path(STATION, "arm", ARM), TICK, 16)
        self.target = HELD.copy()
        self.stuck = False
        self.silent = False
        self.pose = HELD[:7].copy()

    def tick(self) -> None:
        if not self.stuck:
            self.pose = self.target[:7].copy()
        if not self.silent:
            self.ring.publish((time.monotonic_ns(), self.pose))

    def close(self) -> None:
        self.ring.close()


class Session:
    """What ``collect.teleop_session`` does with a device: engages it while it waits, and obeys."""

    def __init__(self, device: CartesianTeleoperator, arm: Arm) -> None:
        self.device = device
        self.arm = arm
        self.targets: list[np.ndarray] = []
        self.jumps: list[float] = []
        arm.tick()
        device.connect()
        device.engage(arm.target, time.monotonic_ns())

    def turn(self) -> np.ndarray | None:
        self.arm.tick()
        reading = self.device.read()
        if reading is None:
            if self.device.waiting() is not None:
                self.device.engage(self.arm.target, time.monotonic_ns())
            time.sleep(0.001)
            return None
        t_ns, target = reading
        assert time.monotonic_ns() - t_ns < 1e9
        assert np.isfinite(target).all()
        self.jumps.append(float(np.linalg.norm(target[:3] - self.arm.target[:3])))
        self.arm.target = target.copy()
        self.targets.append(target)
        return target

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited {WAIT_S:g} s for {what}"
            self.turn()

    def live(self) -> None:
        self.until(lambda: self.turn() is not None, "the device to be live")

    def waits(self, text: str) -> None:
        """Turns until the device waits for something that begins so."""
        self.until(lambda: (self.device.waiting() or "").startswith(text), f"{text!r}")

    def run(self, seconds: float) -> np.ndarray:
        """Targets (n, 8) of so much time."""
        count = len(self.targets)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()
        return np.array(self.targets[count:]).reshape(-1, 8)

    def moved(self, seconds: float = 0.3) -> np.ndarray:
        """By how much position and gripper (4,) were moved in so much time."""
        before = self.arm.target.copy()
        self.run(seconds)
        return (self.arm.target - before)[[0, 1, 2, 7]]


class Node:
    """A device node made of a named pipe: each ``send`` is one read, as a report of a HID device
    (``packets``), or a stream as of an input device."""

    def __init__(self, path: Path, *, packets: bool = False) -> None:
        self.path = path
        self.packets = packets
        self.fd = -1

    def plug(self) -> None:
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR)
        if self.packets:
            fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_DIRECT)
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, 1 << 20)  # a page holds one packet

    def send(self, data: bytes) -> None:
        os.write(self.fd, data)

    def pull(self) -> None:
        self.path.unlink()
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
