"""The back door of virtual buses: a unix socket with one JSON object a line, each way.

A request is `{"bus": "left", "op": "drop", "args": {"rate": 0.1}}`; the answer `{"result": ...}`
or `{"error": "..."}`. For tests, benchmarks and demos: a robot never sees it. The socket is made
for its owner only.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hardware.dynamixel.log import LogRows
from hardware.dynamixel.virtual import VirtualBus
from robot_stack.errors import DeviceError, RobotStackError

__all__ = ["ControlClient", "ControlServer"]

_ROWS = ("seq", "t_ns", "servo_id", "value", "kind")
_LINE_MAX = 1 << 20


def _pack_rows(rows: LogRows) -> dict[str, Any]:
    table = np.stack([getattr(rows, name) for name in _ROWS])
    return {"n": table.shape[1], "data": base64.b64encode(table.tobytes()).decode()}


def _unpack_rows(packed: Mapping[str, Any]) -> LogRows:
    table = np.frombuffer(base64.b64decode(packed["data"]), dtype=np.int64)
    return LogRows(*table.reshape(len(_ROWS), packed["n"]))


# A log of 65,536 rows would hold the bus up for milliseconds in one answer.
_ROWS_MAX = 1024


def _rows(rows: LogRows) -> dict[str, Any]:
    return _pack_rows(LogRows(*(getattr(rows, name)[:_ROWS_MAX] for name in _ROWS)))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "drop": VirtualBus.drop,
    "corrupt": VirtualBus.corrupt,
    "delay": VirtualBus.delay,
    "noise": VirtualBus.noise,
    "calm": VirtualBus.calm,
    "seed": lambda bus, seed: bus.faults.reseed(seed),
    "missing": VirtualBus.missing,
    "overload": VirtualBus.overload,
    "reboot": VirtualBus.reboot,
    "unplug": VirtualBus.unplug,
    "plug": VirtualBus.plug,
    "hand": VirtualBus.hand,
    "pull": lambda bus, servo_id, current_ma: bus.servo(servo_id).pull(current_ma),
    "measured": lambda bus, servo_id, **values: bus.servo(servo_id).set_measured(**values),
    "get": lambda bus, servo_id, name: bus.servo(servo_id).get(name),
    "set": lambda bus, servo_id, name, value: bus.servo(servo_id).set(name, value),
    "positions_rad": lambda bus: bus.positions_rad().tolist(),
    "goal_log": lambda bus, since=0: _rows(bus.goal_log(since)),
    "sample_log": lambda bus, since=0: _rows(bus.sample_log(since)),
    "counters": lambda bus: {
        "packets": bus.packets,
        "dropped": bus.faults.dropped,
        "corrupted": bus.faults.corrupted,
        "goals": bus.goals.count,
        "samples": bus.samples.count,
        "cpu_s": time.process_time(),
    },
}


class ControlServer:
    """Answers at the unix socket `path` inside the buses' own event loop.

    `extra` adds operations (name to callable of the request's args) that need no bus.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        buses: Mapping[str, VirtualBus],
        extra: Mapping[str, Callable[..., Any]] | None = None,
    ) -> None:
        self._path = Path(path)
        self._buses = dict(buses)
        self._extra = dict(extra or {})
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o600)
        self._socket.listen(8)
        self._socket.setblocking(False)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}

    def filenos(self) -> list[int]:
        """What to wait on."""
        return [self._socket.fileno(), *self._clients]

    def on_readable(self, fd: int) -> None:
        """Serve one ready descriptor out of `filenos()`."""
        if fd == self._socket.fileno():
            with contextlib.suppress(OSError):
                client = self._socket.accept()[0]
                client.settimeout(1.0)
                self._clients[client.fileno()] = (client, bytearray())
            return
        if fd not in self._clients:
            return
        client, buffer = self._clients[fd]
        try:
            data = client.recv(65536)
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                client.sendall(json.dumps(self._answer(line)).encode() + b"\n")
        except OSError:
            data = b""
        if not data or len(buffer) > _LINE_MAX:
            client.close()
            del self._clients[fd]

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            arguments = request.get("args", {})
            name = request["op"]
            if name in self._extra:
                return {"result": self._extra[name](**arguments)}
            operation = _OPERATIONS.get(name)
            bus = self._buses.get(request.get("bus", next(iter(self._buses))))
            if operation is None or bus is None:
                known = sorted([*_OPERATIONS, *self._extra])
                return {"error": f"op {name!r} of {known}, bus of {sorted(self._buses)}"}
            return {"result": operation(bus, **arguments)}
        except (RobotStackError, ValueError, TypeError, KeyError, OverflowError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def close(self) -> None:
        """Hang up and remove the socket."""
        for client, _ in self._clients.values():
            client.close()
        self._clients.clear()
        self._socket.close()
        self._path.unlink(missing_ok=True)


class ControlClient:
    """The other end. Connects on first use; every call answers or raises DeviceError."""

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 10.0) -> None:
        self.path = str(path)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = bytearray()

    def call(self, op: str, bus: str | None = None, **args: Any) -> Any:
        """Run one operation of `bus` (None: the first) and return its JSON result.

        Operations: drop(rate), corrupt(rate), delay(ms), noise(count), calm(), seed(seed),
        missing(servo_id, gone), overload(servo_id), reboot(servo_id), unplug(), plug(),
        hand(servo_id, position_rad), pull(servo_id, current_ma), measured(servo_id,
        position_rad, velocity_rad_s, current_ma), get(servo_id, name), set(servo_id, name,
        value), positions_rad(), counters().
        """
        request: dict[str, Any] = {"op": op, "args": args}
        if bus is not None:
            request["bus"] = bus
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(self._timeout_s)
                self._socket.connect(self.path)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while (end := self._buffer.find(b"\n")) < 0:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("the virtual bus hung up")
                self._buffer += data
        except OSError as error:
            self.close()
            raise DeviceError(f"virtual bus control at {self.path}: {error}") from error
        answer = json.loads(bytes(self._buffer[:end]))
        del self._buffer[: end + 1]
        if "error" in answer:
            raise DeviceError(f"virtual bus {op}: {answer['error']}")
        return answer["result"]

    def goal_log(self, since: int = 0, bus: str | None = None) -> LogRows:
        """All accepted goal writes from row `since` on."""
        return self._log("goal_log", since, bus)

    def sample_log(self, since: int = 0, bus: str | None = None) -> LogRows:
        """All readings of present positions from row `since` on."""
        return self._log("sample_log", since, bus)

    def _log(self, op: str, since: int, bus: str | None) -> LogRows:
        parts = []
        while True:
            part = _unpack_rows(self.call(op, bus, since=since))
            parts.append(part)
            if len(part.seq) < _ROWS_MAX:
                break
            since = int(part.seq[-1]) + 1
        return LogRows(*(np.concatenate([getattr(p, name) for p in parts]) for name in _ROWS))

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer.clear()
