"""The light client of a running world: JSON over its local ZeroMQ socket."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import zmq

from robot_stack.errors import ConfigError, ControlPlaneError
from robot_stack.shared_memory import runtime_dir

__all__ = ["WorldClient", "socket_path", "tell"]


def socket_path(station: str) -> Path:
    """Where a station's world listens."""
    return runtime_dir(station) / "world.ipc"


class WorldClient:
    """Talks to a world. ``call`` answers or raises ControlPlaneError with the world's reason."""

    def __init__(self, station: str, timeout_s: float = 2.0) -> None:
        self._path = socket_path(station)
        self._timeout_ms = round(timeout_s * 1000)
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Run one operation and return its answer, without ``ok``."""
        if self._socket is None:
            self._socket = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.connect(f"ipc://{self._path}")
        self._socket.send(json.dumps({"op": op, **arguments}).encode())
        if not self._socket.poll(self._timeout_ms):
            self._socket.close()
            self._socket = None
            raise ControlPlaneError(
                f"the world at {self._path} did not answer {op!r} within "
                f"{self._timeout_ms / 1000:g} s; start it with `robot-stack virtual`"
            )
        answer: dict[str, Any] = json.loads(self._socket.recv())
        if not answer.pop("ok"):
            raise ControlPlaneError(f"world {op}: {answer['error']}: {answer['message']}")
        return answer

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tell(station: str, op: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Call one operation of a station's world with arguments as typed: ``key=value``, the value
    JSON or else a text. ConfigError for an argument of another form."""
    body: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument!r} is not key=value")
        try:
            body[key] = json.loads(text)
        except ValueError:
            body[key] = text
    with WorldClient(station) as world:
        return world.call(op, **body)
