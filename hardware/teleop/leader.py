"""Leader arms as a teleoperator: what the operator's hands do to them is what followers are asked.

Arm joints map one to one. The gripper's target is the leader gripper's joint angle between its
own closed and open ends, as a fraction (the ALOHA convention).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from robot_stack.config import Station, TeleopConfig, parse
from robot_stack.errors import ConfigError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import CommandMode, Lifecycle

__all__ = ["LeaderArms", "LeaderArmsConfig"]


@dataclass(frozen=True)
class LeaderArmsConfig:
    """``pairs`` maps each leader robot to the follower robot that it moves."""

    pairs: dict[str, str]
    max_age_s: float = 0.05


class LeaderArms:
    """Reads the leaders' arm processes through shared memory; it never moves them itself. They are
    engaged by their session, which drives them to the followers."""

    mode = CommandMode.JOINT_POSITION

    def __init__(self, config: LeaderArmsConfig, station: str, followers: tuple[str, ...]) -> None:
        self.config = config
        self.station = station
        self.leaders: list[str] = []
        for follower in followers:
            leaders = [lead for lead, follow in config.pairs.items() if follow == follower]
            if len(leaders) != 1:
                raise ConfigError(
                    f"teleop.options.pairs: follower {follower!r} needs exactly one leader, "
                    f"has {leaders or 'none'}"
                )
            self.leaders.append(leaders[0])
        self._rings: list[Ring] = []
        self._seen: list[int] = []
        self._waiting: str | None = None

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> LeaderArms:
        options = parse(LeaderArmsConfig, config.options, "teleop.options")
        for leader in options.pairs:
            if leader not in station.robots:
                raise ConfigError(
                    f"teleop.options.pairs: no robot {leader!r} (robots: "
                    f"{', '.join(station.robots)})"
                )
        return cls(options, station.station, station.groups[config.group].robots)

    def connect(self) -> None:
        self._rings = [
            Ring(ring_path(self.station, "arm", name), timeout_s=10.0) for name in self.leaders
        ]
        self._seen = [-1] * len(self._rings)

    def disconnect(self) -> None:
        for ring in self._rings:
            ring.close()
        self._rings = []

    def engage(self, held: NDArray[np.float64], t_ns: int) -> None:
        """Nothing to do: a leader that stands elsewhere is not followed (Difference.REENGAGE)."""

    def waiting(self) -> str | None:
        return self._waiting

    def read(self) -> tuple[int, NDArray[np.float64]] | None:
        """The newest (t_ns of the newest leader sample, target (D,)), None when nothing is new.

        None too while a leader is in fault, silent for ``max_age_s`` or has a joint that is not a
        number: the followers then see their commands go stale and hold.
        """
        counts = []
        for ring in self._rings:
            if ring.closed:
                ring.reopen()
            counts.append(ring.count)
        if counts == self._seen:
            return None
        self._seen = counts
        newest, target = -1, []
        now_ns = time.monotonic_ns()
        for name, ring in zip(self.leaders, self._rings, strict=True):
            self._waiting = f"{name} is in fault, silent or half read"
            latest = ring.latest()
            if latest is None:  # its process has just been started again
                return None
            tick = latest[1]
            t_ns = int(tick["t_ns"])
            if now_ns - t_ns > self.config.max_age_s * 1e9 or tick["lifecycle"] == Lifecycle.FAULT:
                return None
            if not np.isfinite(tick["q"]).all():
                return None
            newest = max(newest, t_ns)
            target.append(tick["q"])
        self._waiting = None
        return newest, np.concatenate(target)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
