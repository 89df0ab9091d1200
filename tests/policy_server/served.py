"""A policy server as a process of its own, and a client that shows all that it sends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zmq

from robot_stack.messages import Message, decode, encode
from robot_stack.policy_client import PolicyObservation

HANG_S = 90.0
OBSERVATIONS, HORIZON, DT_NS = 2, 8, 20_000_000
TAKES_S, FAILS = 0, 1


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds; a hang is a failure."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {HANG_S:g} s: {what}"
        time.sleep(0.005)


def _serve(arguments: list[str]) -> None:
    from tests.policy_server.analytic import main

    main(arguments)


class Served:
    """A server process of ``analytic.py`` with these arguments."""

    def __init__(self, context, directory: Path, arguments: list[str]) -> None:
        self.bound = directory / "bound"
        self.bound.unlink(missing_ok=True)
        self.process = context.Process(
            target=_serve, args=([*arguments, "--bound", str(self.bound)],)
        )
        self.process.start()

    def listening(self) -> list[str]:
        """The endpoints, as bound, and the page with metrics."""
        until(lambda: self.bound.exists() or not self.process.is_alive(), "bound")
        assert self.bound.exists(), f"the server ended with {self.process.exitcode}"
        return self.bound.read_text().split("\n")

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self) -> int:
        self.process.join(HANG_S)
        assert self.process.exitcode is not None, "the server did not end"
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Wire:
    """A client that hides nothing: what the server sends, message by message."""

    def __init__(self, endpoint: str, identity: bytes | None = None, keys=None) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        if identity is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, identity)
        if keys is not None:
            self.socket.curve_publickey = keys.public.encode()
            self.socket.curve_secretkey = keys.secret.encode()
            self.socket.curve_serverkey = keys.server.encode()
        self.socket.connect(endpoint)
        self.number = 0

    def send(self, kind: str, body=None, arrays=None) -> int:
        self.number += 1
        body = {"sent_ns": time.monotonic_ns(), **(body or {})}
        self.socket.send_multipart(encode(Message(kind, body, arrays or {}, self.number)))
        return self.number

    def receive(self, timeout_s: float = HANG_S) -> Message:
        assert self.socket.poll(int(timeout_s * 1000)), "no answer"
        return decode(self.socket.recv_multipart())

    def ask(self, kind: str, body=None, arrays=None) -> Message:
        """The reply to this request, which must be the next message."""
        number = self.send(kind, body, arrays)
        reply = self.receive()
        assert reply.id == number
        return reply

    def open(self, **body) -> Message:
        reply = self.ask("open", {"decoder": {"name": "receding_horizon"}, **body})
        assert reply.kind == "opened", reply.body
        return reply

    def infer(self, opened: Message, state=None, *, images=None, **body) -> int:
        arrays = {"state": observed(0).state if state is None else state, **(images or {})}
        values = {
            "session": opened.body["session"],
            "epoch": opened.body["epoch"],
            "t_ns": [1, 2],
            "dt_ns": DT_NS,
        }
        return self.send("infer", {**values, **body}, arrays)

    def close(self) -> None:
        self.socket.close(linger=0)


def observed(
    tag: float, *, takes_s: float = 0.0, fails: float = 0.0, values: int = 6
) -> PolicyObservation:
    """An observation that an analytic policy answers with ``tag`` in rows 2 and on."""
    state = np.full((OBSERVATIONS, values), tag, np.float32)
    state[:, TAKES_S], state[:, FAILS] = takes_s, fails
    return PolicyObservation(np.array([100, 200], np.int64), state)
