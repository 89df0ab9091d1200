"""Who controls by the page, and which of the packets of their hands count: all of it without I/O.

A packet proves its own age. Each names the newest beat of this process that the page had heard
(``echo``) and how long ago by the page's clock (``since``), so it was made at ``echo + since`` or
later, and the two clocks need not agree. What a stalled network delivers in one burst is thus
known to be old, and only its letting go of the dead-man switch counts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.browser_records import INPUT
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError
from robot_stack.shared_memory import RingWriter

__all__ = ["IDLE_S", "Control", "Hands", "Page", "PageClock", "read_message"]

IDLE_S = 10.0  # after which control may be taken from a page that does not hold the switch
# Browsers blur their clocks, some by 100 ms: so much may a packet seem to come before its beat.
BLUR_MS = 200.0


def read_message(text: str) -> tuple[str, dict[str, Any]]:
    """``kind`` and the other values of a page's message; ConfigError for what is none."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError("a message is a JSON object") from None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ConfigError("a message is a JSON object with a `kind`")
    return message.pop("kind"), message


@dataclass(frozen=True)
class Hands:
    """One packet: what a person's hands do, as fractions of full speed in the base frame.

    ``gripper`` is the wanted opening (0 closed, 1 open), None to leave it.
    """

    seq: int = within(0, 2**53)
    echo: float = within(0.0, 1e13, "ms")
    since: float = within(0.0, 1e9, "ms")
    deadman: bool = False
    twist: tuple[float, ...] = (0.0,) * 6
    gripper: float | None = within(0.0, 1.0, default=None)
    speed: float = within(0.0, 1.0, default=0.0)

    def __post_init__(self) -> None:
        if len(self.twist) != 6 or any(abs(value) > 1.0 for value in self.twist):
            raise ValueError("twist is 6 numbers in -1..1: along x, y, z and about x, y, z")

    @classmethod
    def from_message(cls, values: Mapping[str, Any]) -> Hands:
        """ConfigError says what is wrong with it."""
        try:
            return parse(cls, values, "hands")
        except OverflowError:  # a whole number that no float holds
            raise ConfigError("hands: a number is out of all range") from None


class PageClock:
    """Milliseconds since this process began to serve: what beats and frames are stamped with."""

    def __init__(self) -> None:
        self._origin_ns = time.monotonic_ns()

    def ms(self, t_ns: int) -> float:
        return (t_ns - self._origin_ns) / 1e6


@dataclass(slots=True, eq=False)
class Page:
    """One open page: what is known of its connection."""

    name: str  # the address it is at, for people
    seq: int = -1
    echo_ms: float = -math.inf  # the newest beat that it has heard
    round_trip_s: float = math.nan
    late: int = 0
    doubled: int = 0


@dataclass(slots=True)
class Control:
    """One page at a time controls; ``ring`` gets what its hands do, others are heard only to tell
    them their round trip. A ring that says so has control free: its newest ``grant`` is -1."""

    config: BrowserConfig
    ring: RingWriter
    clock: PageClock
    holder: Page | None = None
    grants: int = 0
    _held_ns: int = 0
    _blank: Any = field(default_factory=lambda: np.zeros((), INPUT))

    def take(self, page: Page, now_ns: int) -> str | None:
        """Give ``page`` control; the reason in words when it can't have it."""
        if self.holder is page:
            return None
        if (reason := self.refusal(page, now_ns)) is not None:
            return reason
        self.grants += 1
        self.holder, self._held_ns = page, now_ns
        self._tell(now_ns, self.grants)
        return None

    def refusal(self, page: Page, now_ns: int) -> str | None:
        """Why ``page`` could not take control now, None when it could."""
        if self.holder is None or self.holder is page:
            return None
        left_s = IDLE_S - (now_ns - self._held_ns) / 1e9
        if left_s <= 0:
            return None
        return (
            f"{self.holder.name} controls; it is free when that page lets go, or has not held the "
            f"dead-man switch for {IDLE_S:g} s"
        )

    def leave(self, page: Page, now_ns: int) -> None:
        """``page`` gives control up or is gone; the robot stops at once if it was the one."""
        if self.holder is page:
            self.holder = None
            self._tell(now_ns, -1)

    def hear(self, page: Page, hands: Hands, now_ns: int) -> bool:
        """Take one packet in; True when it went to the ring.

        ConfigError for a packet that answers a beat which was never sent.
        """
        if hands.seq <= page.seq:
            page.doubled += 1
            return False
        trip_ms = self.clock.ms(now_ns) - hands.echo - hands.since
        if trip_ms < -BLUR_MS:
            raise ConfigError("hands: echo and since lie in the future")
        page.seq, page.echo_ms = hands.seq, hands.echo
        page.round_trip_s = max(0.0, trip_ms / 1e3)
        late = page.round_trip_s > self.config.max_round_trip_s
        page.late += late
        if self.holder is not page or (late and hands.deadman):
            return False
        if hands.deadman:
            self._held_ns = now_ns
        self.ring.publish(
            (
                now_ns,
                self.grants,
                hands.seq,
                hands.deadman,
                hands.twist,
                math.nan if hands.gripper is None else hands.gripper,
                hands.speed,
                page.round_trip_s,
            )
        )
        return True

    def _tell(self, now_ns: int, grant: int) -> None:
        """Control came or went: a record with everything let go."""
        record = self._blank
        record["t_ns"], record["grant"], record["seq"] = now_ns, grant, -1
        record["gripper"], record["round_trip_s"] = math.nan, math.nan
        self.ring.publish(record)
