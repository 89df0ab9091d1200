"""Twists from a program: a script in the place of a SpaceMouse, through the same mapper.

A script writes what hands would ask for, with :class:`TwistWriter`, into a ring of the station's
shared memory (``twists.<name>``); the teleoperator ``twists`` reads it there:

    with TwistWriter("franka_virtual") as hands:
        hands.push(Stick((0.2, 0, 0, 0, 0, 0), held=True))   # again at least every max_age_s
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from hardware.teleop.cartesian import CartesianTeleoperator, Clutch, Grasp, grasp
from hardware.teleop.mapper import MotionConfig, Stick
from robot_stack.config import Station, TeleopConfig, parse, within
from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring, RingWriter

__all__ = ["STICK", "TwistWriter", "Twists", "TwistsConfig", "twists_path"]

STICK = np.dtype(
    [
        ("t_ns", "<i8"),  # when the hands did this
        ("twist", "<f8", (6,)),  # the fields of mapper.Stick
        ("held", "u1"),
        ("gripper_rate", "<f8"),
        ("gripper_goal", "<f8"),
        ("speed", "<f8"),
    ]
)
SLOTS = 64
RETRY_NS = 100_000_000


def twists_path(station: str, name: str = "twists") -> Path:
    return ring_path(station, "twists", name)


class TwistWriter:
    """The script's end. One writer a name at a time."""

    def __init__(self, station: str, name: str = "twists") -> None:
        self._ring = RingWriter(twists_path(station, name), STICK, SLOTS)

    def push(self, stick: Stick, t_ns: int | None = None) -> None:
        """What the hands ask for from now on (or since ``t_ns``)."""
        with self._ring.writing() as record:
            record["t_ns"] = time.monotonic_ns() if t_ns is None else t_ns
            record["twist"] = stick.twist
            record["held"] = stick.held
            record["gripper_rate"] = stick.gripper_rate
            record["gripper_goal"] = stick.gripper_goal
            record["speed"] = stick.speed

    def close(self) -> None:
        self._ring.close(unlink=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _PlainMotion(MotionConfig):
    """A script means what it says."""

    dead_zone: float = within(0.0, 0.9, default=0.0)
    expo: float = within(0.0, 1.0, default=0.0)


@dataclass(frozen=True)
class TwistsConfig:
    """``teleop.options`` of driver ``twists``.

    name        of the ring that the script writes
    robot       which arm of the group; not needed where there is one
    max_age_s   a script that has said nothing for so long has let go
    motion      without dead zone and expo unless they are given
    """

    name: str = "twists"
    robot: str = ""
    max_age_s: float = within(0.02, 2.0, "s", default=0.2)
    motion: _PlainMotion = field(default_factory=_PlainMotion)


class Twists(CartesianTeleoperator):
    """Reads what a script asks for; ``held`` is its dead-man switch."""

    def __init__(self, config: TwistsConfig, grasp: Grasp) -> None:
        super().__init__(
            grasp, config.motion, Clutch("hold"), invitation="the script must hold the switch"
        )
        self._path = twists_path(grasp.station, config.name)
        self._max_age_ns = round(config.max_age_s * 1e9)
        self._ring: Ring | None = None
        self._retry_ns = 0
        self._last: np.void | None = None

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> Twists:
        options = parse(TwistsConfig, config.options, "teleop.options")
        return cls(options, grasp(config, station, options.robot))

    def _close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = self._last = None

    def _poll(self, now_ns: int) -> Stick | None:
        record = self._newest(now_ns)
        self.trouble = "" if record is not None else f"no script writes {self._path}"
        if record is None:
            return None
        if now_ns - int(record["t_ns"]) > self._max_age_ns:
            return Stick()
        return Stick(
            tuple(record["twist"].tolist()),
            bool(record["held"]),
            float(record["gripper_rate"]),
            float(record["gripper_goal"]),
            float(record["speed"]),
        )

    def _newest(self, now_ns: int) -> np.void | None:
        if self._ring is None or self._ring.closed:
            if now_ns < self._retry_ns:
                return None
            self._retry_ns = now_ns + RETRY_NS
            self._close()
            try:
                self._ring = Ring(self._path)
            except SharedMemoryError:
                return None
            if self._ring.closed or self._ring.dtype != STICK:
                self._close()
                return None
        with contextlib.suppress(SharedMemoryError):  # it writes faster than we read: next turn
            latest = self._ring.latest()
            self._last = None if latest is None else latest[1]
        return self._last
