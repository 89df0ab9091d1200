"""The server's ends of lanes: see ``robot_stack.policy_lane``."""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from robot_stack.errors import MessageError
from robot_stack.policy_lane import MAX_PACKET, SLOTS, VERSION, pack_reply, unpack_request

from .endpoints import UNIX_PATH_MAX

__all__ = ["LaneEnd", "Lanes", "lane_path"]

MAX_LANES = 256
BURST = 16  # packets of one lane before the others get their turn

log = logging.getLogger(__name__)


def lane_path(endpoint: str) -> Path | None:
    """Where the lane beside an ``ipc://`` endpoint listens; None when that path is too long."""
    path = Path(endpoint.removeprefix("ipc://") + ".lane")
    return path if len(os.fsencode(path)) <= UNIX_PATH_MAX else None


class LaneEnd:
    """One client's lane: its routing id and its memory once it has said them."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.identity = b""
        self.memory: memoryview | None = None

    def send(self, frames: Sequence[bytes | memoryview]) -> bool:
        """Send a reply; False when it is too long for the lane, or the client reads no more."""
        packet = pack_reply(frames)
        if packet is None:
            return False
        try:
            self.connection.send(packet)
        except OSError:
            return False
        return True

    def begin(self, max_bytes: int) -> None:
        """Take the client's first packet: who it is, and the memory. MessageError names a fault.

        Only memory that cannot shrink is taken: reading beyond the end of a file kills a process.
        """
        data, files, _, _ = socket.recv_fds(
            self.connection, 4096, 4, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
        try:
            if not data:
                raise MessageError("it went away at once")
            try:
                about = json.loads(data)
                version, identity = about["version"], bytes.fromhex(about["identity"])
            except (ValueError, TypeError, KeyError) as error:
                raise MessageError(f"not the beginning of a lane: {error!r}") from error
            if version != VERSION:
                raise MessageError(f"a lane of version {version!r}, this server's is {VERSION}")
            if len(files) != 1 or not identity:
                raise MessageError("a lane begins with a routing id and one memory file")
            size = os.fstat(files[0]).st_size
            try:
                seals = fcntl.fcntl(files[0], fcntl.F_GET_SEALS)
            except OSError as error:
                raise MessageError("a lane's memory must be a memory file") from error
            if not seals & fcntl.F_SEAL_SHRINK or not 0 < size <= SLOTS * (max_bytes + 2**20):
                raise MessageError(f"a lane's memory of {size} bytes, unsealed or too large")
            self.memory = memoryview(mmap.mmap(files[0], size))
            self.identity = identity
        finally:
            for file in files:
                os.close(file)


class Lanes:
    """All lanes beside one endpoint, listening at ``path`` for programs of this user."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        path.unlink(missing_ok=True)  # whoever holds the endpoint's lock holds this too
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        mask = os.umask(0o177)  # only this user may connect
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen()
        self._ends: dict[int, LaneEnd] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when something waits in any lane."""
        return self._epoll.fileno()

    def receive(self) -> Iterator[tuple[LaneEnd, list[bytes | memoryview] | MessageError]]:
        """The frames of every request that waits, or what is wrong with it; of lanes that begin
        just now too, since what their clients send by ZeroMQ is read next."""
        for number, _ in self._epoll.poll(0):
            if number == self._listener.fileno():
                while (end := self._accept()) is not None:
                    yield from self._read(end)
            elif number in self._ends:
                yield from self._read(self._ends[number])

    def _accept(self) -> LaneEnd | None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # none waits, or it has gone already
            return None
        if len(self._ends) >= MAX_LANES:
            connection.close()
            return None
        connection.setblocking(False)
        end = self._ends[connection.fileno()] = LaneEnd(connection)
        self._epoll.register(connection, select.EPOLLIN)
        return end

    def _read(
        self, end: LaneEnd
    ) -> Iterator[tuple[LaneEnd, list[bytes | memoryview] | MessageError]]:
        if end.memory is None:
            try:
                end.begin(self._max_bytes)
            except BlockingIOError:
                return
            except (MessageError, OSError) as error:
                log.warning("a lane is refused: %s", error)
                self._drop(end)
                return
            assert end.memory is not None
        for _ in range(BURST):
            try:
                packet = end.connection.recv(MAX_PACKET)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._drop(end)
                return
            try:
                yield end, unpack_request(packet, end.memory)
            except MessageError as error:
                yield end, error

    def _drop(self, end: LaneEnd) -> None:
        """Forget a lane; its memory goes when nothing reads it any more."""
        del self._ends[end.connection.fileno()]
        self._epoll.unregister(end.connection)
        end.connection.close()

    def close(self) -> None:
        """Stop listening and end every lane."""
        for end in list(self._ends.values()):
            self._drop(end)
        self._epoll.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)
