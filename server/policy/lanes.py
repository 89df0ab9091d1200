"""The server's ends of lanes: see ``robot_stack.policy_lane``."""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import select
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from robot_stack.errors import MessageError
from robot_stack.messages import Message
from robot_stack.policy_lane import (
    MAX_PACKET,
    SLOTS,
    VERSION,
    pack_reply,
    unpack_places,
    unpack_request,
)

from .endpoints import UNIX_PATH_MAX
from .worker import Worker

__all__ = ["LaneEnd", "Lanes", "lane_path"]

MAX_LANES = 256
BURST = 16  # packets of one lane before the others get their turn
REMEMBERED = 64  # places whose arrays are remembered; a client's are its slots

log = logging.getLogger(__name__)


def lane_path(endpoint: str) -> Path | None:
    """Where the lane beside an ``ipc://`` endpoint listens; None when that path is too long."""
    path = Path(endpoint.removeprefix("ipc://") + ".lane")
    return path if len(os.fsencode(path)) <= UNIX_PATH_MAX else None


class LaneEnd:
    """One client's lane: its routing id and its memory once it has said them, and the worker that
    listens to it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.identity = b""
        self.memory: memoryview | None = None
        self.listener: Worker | None = None
        self._known: dict[bytes, dict[str, NDArray[Any]]] = {}

    def message(self, packet: bytes, max_bytes: int) -> Message:
        """The request in a packet, its arrays views of the memory; MessageError names the fault.

        A client has few places and writes alike arrays there time and again: their views are made
        once.
        """
        number, body, places = unpack_request(packet)
        arrays = self._known.get(places)
        if arrays is None:
            assert self.memory is not None
            arrays = unpack_places(places, self.memory, max_bytes=max_bytes)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[places] = arrays
        return Message("infer", body, arrays, number)

    def send(self, reply: Message) -> bool:
        """Send a reply; False when it is too long for the lane, or the client reads no more."""
        packet = pack_reply(reply)
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
        self._named: dict[bytes, LaneEnd] = {}
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        """Readable when something waits in any lane."""
        return self._epoll.fileno()

    def receive(self) -> Iterator[tuple[LaneEnd, Message | MessageError]]:
        """Every request that the loop was told of, or what is wrong with it; of lanes that begin
        just now too."""
        for number, _ in self._epoll.poll(0):
            if number == self._listener.fileno():
                while (end := self._accept()) is not None:
                    yield from self._read(end)
            else:
                yield from self.read([number])

    def read(self, numbers: Iterable[int]) -> Iterator[tuple[LaneEnd, Message | MessageError]]:
        """The requests that wait in the lanes of these descriptors."""
        for number in numbers:
            if number in self._ends:
                yield from self._read(self._ends[number])

    def read_of(self, identity: bytes) -> Iterator[tuple[LaneEnd, Message | MessageError]]:
        """The requests that wait in a client's lane."""
        if identity in self._named:
            yield from self._read(self._named[identity])

    def share(self, end: LaneEnd, worker: Worker) -> None:
        """From now on ``worker`` listens to a lane while it is idle, the loop when it is not."""
        end.listener = worker
        self._epoll.unregister(end.connection)
        worker.listen(end.connection.fileno())
        self._listen(end)  # behind the worker: Linux asks in this order who waits

    def _listen(self, end: LaneEnd) -> None:
        self._epoll.register(end.connection, select.EPOLLIN | select.EPOLLEXCLUSIVE)

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
        self._listen(end)
        return end

    def _read(self, end: LaneEnd) -> Iterator[tuple[LaneEnd, Message | MessageError]]:
        if end.memory is None:
            try:
                end.begin(self._max_bytes)
            except BlockingIOError:
                return
            except (MessageError, OSError) as error:
                log.warning("a lane is refused: %s", error)
                self._drop(end)
                return
            self._named[end.identity] = end
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
                yield end, end.message(packet, self._max_bytes)
            except MessageError as error:
                yield end, error

    def _drop(self, end: LaneEnd) -> None:
        """Forget a lane; its memory goes when nothing reads it any more."""
        del self._ends[end.connection.fileno()]
        if self._named.get(end.identity) is end:
            del self._named[end.identity]
        self._epoll.unregister(end.connection)
        end.connection.close()

    def close(self) -> None:
        """Stop listening and end every lane."""
        for end in list(self._ends.values()):
            self._drop(end)
        self._epoll.close()
        self._listener.close()
        self.path.unlink(missing_ok=True)
