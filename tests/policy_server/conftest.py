"""Policy servers, forked from a process that has imported torch already: 0.1 s each, not 3."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator

import pytest

from robot_stack.policy_client import PolicyClient
from tests.policy_server.served import HANG_S, Served, Wire


@pytest.fixture(scope="session")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["server.policy.server"])
    return context


@pytest.fixture
def serve(forks, tmp_path) -> Iterator[Callable[..., Served]]:
    """``serve(*arguments)``: a server that listens at ``tmp_path/s.ipc`` and is ready."""
    started: list[Served] = []

    def start(*arguments: object, ready: bool = True) -> Served:
        texts = ["--bind", f"ipc://{tmp_path}/s.ipc", *map(str, arguments)]
        server = Served(forks, tmp_path, texts)
        started.append(server)
        if ready:
            server.listening()
            client = PolicyClient(f"ipc://{tmp_path}/s.ipc", timeout_s=HANG_S)
            client.wait_ready(HANG_S)
            client.close()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def endpoint(tmp_path) -> str:
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
