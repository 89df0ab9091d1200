"""One server port of a robot: listen on TCP, one client at a time, datagrams to and from it.

A second client waits in the backlog until the first has gone: libfranka spins for ever when a
server hangs up on it instead of answering.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

from robot_stack.errors import DeviceError

__all__ = ["Port"]

_RECEIVE = 1 << 16
_MESSAGE_MAX = 1 << 16


class Port:
    """TCP for requests and replies, UDP for states and commands, of one client at a time.

    The client sends its datagrams to where the last state came from, so one UDP socket serves
    both directions.
    """

    def __init__(self, address: str, port: int, header: struct.Struct) -> None:
        self._header = header
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((address, port))
            self._listener.listen(8)
            self._udp.bind((address, 0))
        except OSError as error:
            self._listener.close()
            self._udp.close()
            raise DeviceError(
                f"cannot serve a virtual Franka at {address}:{port}: {error.strerror}; use a free "
                "loopback address (127.0.0.2, 127.0.0.3, ...), the port is fixed in libfranka"
            ) from error
        self._listener.setblocking(False)
        self._udp.setblocking(False)
        self._tcp: socket.socket | None = None
        self._input = bytearray()
        self._peer: tuple[str, int] | None = None
        self._host = ""

    @property
    def connected(self) -> bool:
        """Whether a client has a TCP connection."""
        return self._tcp is not None

    @property
    def subscribed(self) -> bool:
        """Whether a client has said where it wants its states."""
        return self._peer is not None

    def filenos(self) -> list[int]:
        """What to wait on."""
        return [
            self._listener.fileno() if self._tcp is None else self._tcp.fileno(),
            self._udp.fileno(),
        ]

    def owns(self, fd: int) -> bool:
        """Whether `fd` is the TCP side: `requests` is to be called for it."""
        return fd != self._udp.fileno() and fd in self.filenos()

    def requests(self) -> Iterator[tuple[int, int, bytes]]:
        """Take in what TCP has; yields (command, id, payload) of each whole request.

        Afterwards `connected` is False if the client has hung up.
        """
        if self._tcp is None:
            with contextlib.suppress(OSError):
                self._tcp, (self._host, _) = self._listener.accept()
                self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._tcp.settimeout(0.0)
            return
        try:
            data = self._tcp.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.hang_up()
            return
        self._input += data
        size = self._header.size
        while len(self._input) >= size:
            command, number, length = self._header.unpack_from(self._input)
            if not size <= length <= _MESSAGE_MAX:
                self.hang_up()
                return
            if len(self._input) < length:
                return
            payload = bytes(self._input[size:length])
            del self._input[:length]
            yield command, number, payload
            if self._tcp is None:
                return

    def subscribe(self, udp_port: int) -> None:
        """Send states to this port of the client from now on."""
        self._peer = (self._host, udp_port)

    def reply(self, command: int, number: int, payload: bytes) -> None:
        """Answer a request; a client that is gone, or takes nothing for a second, is hung up on."""
        if self._tcp is None:
            return
        try:
            self._tcp.settimeout(1.0)
            header = self._header.pack(command, number, self._header.size + len(payload))
            self._tcp.sendall(header + payload)
            self._tcp.settimeout(0.0)
        except OSError:
            self.hang_up()

    def send(self, datagram: bytes | bytearray) -> None:
        """One datagram to the client; the network may lose it."""
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._udp.sendto(datagram, self._peer)

    def datagrams(self) -> Iterator[bytes]:
        """The client's datagrams that have arrived, oldest first."""
        while True:
            try:
                data, source = self._udp.recvfrom(_RECEIVE)
            except OSError:  # nothing more, or the client's port is closed
                return
            if source == self._peer:
                yield data

    def half_close(self) -> None:
        """End our direction of the TCP connection and keep the rest, as a dying server does."""
        if self._tcp is not None:
            with contextlib.suppress(OSError):
                self._tcp.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Let the client go."""
        if self._tcp is not None:
            self._tcp.close()
        self._tcp = self._peer = None
        self._input.clear()

    def close(self) -> None:
        """Hang up and stop listening."""
        self.hang_up()
        self._listener.close()
        self._udp.close()
