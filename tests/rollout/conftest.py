"""A virtual station and a policy server beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station
from robot_stack.policy_client import PolicyClient
from tests.faults.conftest import FOLLOWERS

HANG_S = 60.0


class ReachServer:
    """``python -m tests.rollout.reach`` as a process of its own."""

    def __init__(self, station: VirtualStation) -> None:
        self.station = station
        self.endpoint = f"ipc://{station.directory}/reach.ipc"
        self.takes = station.directory / "takes"
        self.take(0.0)
        self.process: subprocess.Popen[bytes] | None = None

    def take(self, seconds: float) -> None:
        part = self.takes.with_suffix(".part")
        part.write_text(str(seconds))
        part.replace(self.takes)

    def start(self, *options: str) -> None:
        command = ["--bind", self.endpoint, "--takes", str(self.takes), *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.rollout.reach", *command],
            env=self.station.environment,
            cwd=Path(__file__).parents[2],
        )
        with contextlib.closing(PolicyClient(self.endpoint, timeout_s=HANG_S)) as client:
            deadline_s = HANG_S
            client.wait_ready(deadline_s)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def station():
    """Two followers without cameras or world, served."""
    with virtual_station(robots=FOLLOWERS, rate_hz=100.0) as running:
        yield running


@pytest.fixture
def reach(station):
    """A policy server for this test, running."""
    server = ReachServer(station)
    server.start()
    yield server
    server.kill()
