"""Stations on virtual buses that misbehave."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station, wait_until
from robot_stack.client import StationClient
from robot_stack.errors import RobotStackError
from robot_stack.realtime import Rate
from robot_stack.types import Lifecycle, Source

FOLLOWERS = {"follower_left": "vx300s", "follower_right": "vx300s"}


def command_rate() -> Rate:
    """The pace of a client's commands, 50 Hz; it sleeps all the way, the machine is busy enough."""
    return Rate(50.0, spin_ns=0)


@pytest.fixture
def station():
    """Two followers on virtual buses, served and disarmed."""
    with virtual_station(robots=FOLLOWERS, rate_hz=100.0) as running:
        yield running


class Streamer:
    """A client that sends sine motion to both followers at 50 Hz until told to end."""

    def __init__(self, station: VirtualStation, source: Source = Source.DEMO) -> None:
        self.station = station
        self.source = source
        self.error: Exception | None = None
        self.sent = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Streamer:
        self._thread.start()
        wait_until(lambda: self.sent > 10 or self.error is not None, "streaming")
        if self.error is not None:
            raise self.error
        wait_until(lambda: moving(self.station, "follower_left"), "motion")
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with (
                StationClient("v") as client,
                client.lease("followers", "streamer", source=self.source) as lease,
            ):
                start = np.concatenate([client.tick(name)["sent"] for name in FOLLOWERS])
                began = time.monotonic()
                rate = command_rate()
                while not self._ended.is_set():
                    phase = 2.0 * (time.monotonic() - began)
                    target = start.copy()
                    target[[0, 7]] += 0.4 * np.sin(phase)
                    target[[5, 12]] += 0.3 * np.sin(1.3 * phase)
                    lease.send(target)
                    self.sent += 1
                    rate.wait()
        except RobotStackError as error:
            self.error = error


def moving(station: VirtualStation, robot: str) -> bool:
    tick = station.client.tick(robot)
    return bool(tick["lifecycle"] == Lifecycle.ARMED and np.isfinite(tick["asked"]).all())


def commands_arrive(station: VirtualStation, count: int = 15) -> None:
    """Returns when both arms have taken up ``count`` further commands."""
    before = {robot: station.client.tick(robot)["command_seq"] for robot in FOLLOWERS}
    wait_until(
        lambda: all(station.client.tick(r)["command_seq"] > before[r] + count for r in FOLLOWERS),
        "commands reaching both arms",
    )


@pytest.fixture
def streaming(station):
    """The station, armed and moving by a client's commands."""
    station.client.arm("followers")
    with Streamer(station) as streamer:
        station.streamer = streamer
        yield station
