"""A client of our own that says exactly what a test wants to have on the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from hardware.franka.fci import (
    COMMAND,
    COMMAND_IDS,
    HEADER,
    REQUESTS,
    STATE,
    STATUS,
    Command,
    Status,
)

TIMEOUT_S = 20.0  # of a busy machine; nothing is measured by it

# Thresholds that a moving arm does not reach.
CALM = {"torque": np.full((4, 7), 80.0), "force": np.full((4, 6), 80.0)}


class Client:
    """One connection to a robot. Requests are answered before the call returns, but for Move's
    second reply: see `outcome`."""

    def __init__(self, address: str, version: int = 10, *, claim: int | None = None) -> None:
        self.version = version
        self.tcp = socket.create_connection((address, 1337), timeout=TIMEOUT_S)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("", 0))
        self.udp.settimeout(TIMEOUT_S)
        self.robot: tuple[str, int] | None = None
        self._next = 1
        self._replies: dict[int, list[bytes]] = {}
        claimed = version if claim is None else claim
        port = self.udp.getsockname()[1]
        self.hello = self.ask(Command.CONNECT, version=claimed, udp_port=port)
        self.state: Any = None

    def post(self, command: Command, **fields: Any) -> int:
        """Send a request; its id."""
        request = np.zeros((), REQUESTS[self.version][command])
        for name, value in fields.items():
            request[name] = value
        number, self._next = self._next, self._next + 1
        size = HEADER.size + request.nbytes
        header = HEADER.pack(COMMAND_IDS[self.version][command], number, size)
        self.tcp.sendall(header + request.tobytes())
        return number

    def reply(self, number: int) -> bytes:
        """The next reply to request `number`: everything behind the header."""
        while not self._replies.get(number):
            header = self._exactly(HEADER.size)
            _, answered, size = HEADER.unpack(header)
            self._replies.setdefault(answered, []).append(self._exactly(size - HEADER.size))
        return self._replies[number].pop(0)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.tcp.recv(size - len(data))
            if not part:
                raise ConnectionResetError("the robot hung up")
            data += part
        return data

    def ask(self, command: Command, **fields: Any) -> bytes:
        """Request and reply."""
        return self.reply(self.post(command, **fields))

    def status(self, command: Command, **fields: Any) -> Status:
        """Request, and the status of the reply."""
        return self.meaning(command, self.ask(command, **fields))

    def meaning(self, command: Command, reply: bytes) -> Status:
        """The status that a reply begins with."""
        numbers = STATUS[self.version][command]
        return next(status for status, number in numbers.items() if number == reply[0])

    def one(self) -> Any:
        """The next state."""
        datagram, self.robot = self.udp.recvfrom(4096)
        self.state = np.frombuffer(datagram, STATE[self.version])[0]
        return self.state

    def read(self) -> Any:
        """The next state, or the newest if there are more: as libfranka reads."""
        self.one()
        self._drain()
        return self.state

    def arrived(self) -> Any:
        """The newest state that is here already."""
        self._drain()
        return self.state

    def newest(self) -> Any:
        """A state that was sent after now."""
        self._drain()
        return self.one()

    def _drain(self) -> None:
        self.udp.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.one()
        self.udp.settimeout(TIMEOUT_S)

    def send(
        self, message_id: int | None = None, by: socket.socket | None = None, **fields: Any
    ) -> None:
        """A command, in answer to the last state; `by` another socket than ours."""
        command = np.zeros((), COMMAND[self.version])
        command["message_id"] = self.state["message_id"] if message_id is None else message_id
        for name, value in fields.items():
            command[name] = value
        assert self.robot is not None
        (by or self.udp).sendto(command.tobytes(), self.robot)

    def start(self, generator: int, controller: int = 0, **fields: Any) -> int:
        """Begin a motion; the id of the Move request. `state` is the first one that shows it."""
        fields.setdefault("deviations", (10.0, 3.0, 3.0) * 2)
        number = self.post(Command.MOVE, generator=generator, controller=controller, **fields)
        status = self.meaning(Command.MOVE, self.reply(number))
        assert status == Status.MOTION_STARTED, status
        while self.read()["robot_mode"] != 2:
            pass
        return number

    def move(
        self, number: int, command: Callable[[Any, int], dict[str, Any]], steps: int
    ) -> Status:
        """Answer `steps` states with `command(state, step)`, or until the motion is over; then its
        outcome. The last command is the client's to finish with."""
        for step in range(steps):
            self.send(**command(self.state, step))
            if self.read()["robot_mode"] != 2:
                break
        return self.outcome(number)

    def outcome(self, number: int) -> Status:
        """How the motion of Move request `number` ended."""
        return self.meaning(Command.MOVE, self.reply(number))

    def close(self) -> None:
        self.tcp.close()
        self.udp.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def garbage_header(command: int, size: int) -> bytes:
    """A header that no client sends."""
    return struct.pack("<III", command, 1, size)
