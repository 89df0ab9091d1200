"""Policy servers, forked from a process that has imported torch already: 0.1 s each, not 3."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robot_stack.policy_client import PolicyClient
from robot_stack.registry import REGISTRY
from tests.policy_server.served import HANG_S, Served, Wire

DECODERS = sorted({row.partition(":")[0] for row in REGISTRY["decoder"].values()})


@pytest.fixture(scope="session")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["server.policy.server", *DECODERS])
    return context


@contextlib.contextmanager
def serving(forks, directory: Path) -> Iterator[Callable[..., Served]]:
    """A function that starts a server listening at ``directory/s.ipc``, and waits for it."""
    started: list[Served] = []

    def start(*arguments: object, ready: bool = True) -> Served:
        texts = ["--bind", f"ipc://{directory}/s.ipc", *map(str, arguments)]
        server = Served(forks, directory, texts)
        started.append(server)
        if ready:
            server.listening()
            client = PolicyClient(f"ipc://{directory}/s.ipc", timeout_s=HANG_S)
            client.wait_ready(HANG_S)
            client.close()
        return server

    try:
        yield start
    finally:
        for server in started:
            server.kill()


@pytest.fixture
def serve(forks, tmp_path) -> Iterator[Callable[..., Served]]:
    """``serve(*arguments)``: a server of this test's own, ready."""
    with serving(forks, tmp_path) as start:
        yield start


@pytest.fixture
def endpoint(tmp_path) -> str:
    """Where ``serve`` listens."""
    return f"ipc://{tmp_path}/s.ipc"


@pytest.fixture
def wire(endpoint) -> Iterator[Callable[..., Wire]]:
    opened: list[Wire] = []

    def connect(to: str = endpoint, **options) -> Wire:
        opened.append(Wire(to, **options))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()
