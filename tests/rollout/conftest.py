"""A virtual station and a policy server beside it."""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station
from robot_stack.policy_client import PolicyClient
from tests.faults.conftest import FOLLOWERS

HANG_S = 60.0


class ReachServer:
    """``tests.rollout.reach`` as a process of its own."""

    def __init__(
        self, station: VirtualStation, forks: ForkServerContext, name: str = "reach"
    ) -> None:
        self.forks = forks
        self.endpoint = f"ipc://{station.directory}/{name}.ipc"
        self.takes = station.directory / f"{name}.takes"
        self.take(0.0)
        self.process: BaseProcess | None = None

    def take(self, seconds: float) -> None:
        part = self.takes.with_suffix(".part")
        part.write_text(str(seconds))
        part.replace(self.takes)

    def start(self, *options: str) -> None:
        command = ["--bind", self.endpoint, "--takes", str(self.takes), *options]
        self.process = self.forks.Process(target=_serve, args=(command,))
        self.process.start()
        with contextlib.closing(PolicyClient(self.endpoint, timeout_s=HANG_S)) as client:
            client.wait_ready(HANG_S)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()


def _serve(arguments: list[str]) -> None:
    from tests.rollout.reach import main

    main(arguments)


@pytest.fixture(scope="module")
def forks():
    """Forks of a process that has imported torch: that costs seconds of both cores, which the
    virtual buses of a moving station would miss."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rollout.reach"])
    warm = context.Process(target=str)
    warm.start()
    warm.join(HANG_S)
    return context


@pytest.fixture(scope="module")
def station(forks):
    """Two followers without cameras or world, served."""
    with virtual_station(robots=FOLLOWERS, rate_hz=100.0) as running:
        yield running


@pytest.fixture
def reach(station, forks):
    """A policy server for this test, running."""
    server = ReachServer(station, forks)
    server.start()
    yield server
    server.kill()
