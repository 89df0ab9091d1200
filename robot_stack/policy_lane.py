"""The lane: observations to a policy server on this computer through shared memory.

A ZeroMQ message passes two threads and two sockets on each side, and its header is text; both cost
more than the work when a request comes after a pause. So beside an ``ipc://`` endpoint a server
listens at ``<path>.lane``, a Unix socket of packets: a client hands it a sealed memory file, writes
arrays there and sends numbers and where the arrays are. Everything but ``infer``, and what the lane
cannot take, goes by ZeroMQ.

A request's packet: ``REQUEST``; its capture times (i64 each); where the arrays lie: a count n
(u32), n times offset and size (u64), and frame 0 of a message (``robot_stack.messages``) that
describes them. A reply's: ``CHUNK`` and the rows (float64), or ``OTHER`` and frame 0 of a message
without arrays. All little-endian.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import socket
import struct
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import MessageError
from robot_stack.messages import Message, decode, encode

__all__ = [
    "MAX_PACKET",
    "SLOTS",
    "VERSION",
    "Lane",
    "pack_reply",
    "unpack_places",
    "unpack_request",
]

VERSION = 2
SLOTS = 4  # one being computed, one that waits, and room for the next
ALIGNMENT = 64
MAX_PACKET = 128 * 1024  # well below what the kernel takes in one packet
# A small model answers sooner than a sleeping processor wakes up: so long a reply is looked for.
LOOK_NS = 400_000
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# number, sent_ns, session, epoch, dt_ns, previous_chunk, consumed, delay, deadline_ms (NaN: none),
# how many capture times follow
REQUEST = struct.Struct("<2q32s5qdI")
# 1, number, sent_ns, chunk_id, observation_t_ns, generation, received_ns, started_ns, done_ns,
# replied_ns, rows, columns
CHUNK = struct.Struct("<B7x9q2I")
OTHER = b"\0"


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Layout(NamedTuple):
    """Where arrays of certain names, dtypes and shapes lie in one slot, as packed, and the arrays
    there."""

    packed: bytes
    arrays: list[NDArray[Any]]


class Lane:
    """A client's end. OSError when the server's is not there."""

    def __init__(self, path: str, identity: bytes, arrays: Sequence[int]) -> None:
        """``identity`` is the client's routing id, ``arrays`` the sizes of one observation's."""
        self._slot = max(_aligned(sum(map(_aligned, arrays))), mmap.PAGESIZE)
        self._slots = [-1] * SLOTS  # the request in each
        self._alike: tuple[Any, ...] | None = None  # the arrays that the layouts are for
        self._layouts: list[_Layout] | None = None
        self._look_until = 0
        self.closed = False
        memory = os.memfd_create("robot-stack-lane", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            size = self._slot * SLOTS
            os.posix_fallocate(memory, 0, size)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
            self._memory = np.frombuffer(mmap.mmap(memory, size), np.uint8)
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
            try:
                self._socket.connect(path)
                about = {"version": VERSION, "identity": identity.hex()}
                socket.send_fds(self._socket, [json.dumps(about).encode()], [memory])
            except BaseException:
                self._socket.close()
                raise
        finally:
            os.close(memory)

    def fileno(self) -> int:
        """Readable when a reply waits."""
        return self._socket.fileno()

    def send(
        self,
        number: int,
        body: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        pending: Container[int],
    ) -> bool:
        """Send an ``infer`` request, its arrays by way of the memory; False when they do not fit,
        no slot is free of ``pending`` requests, or the server reads no more."""
        free = next((i for i, one in enumerate(self._slots) if one not in pending), None)
        if free is None or self.closed:
            return False
        alike = tuple((name, array.dtype, array.shape) for name, array in arrays.items())
        if alike != self._alike:
            self._alike, self._layouts = alike, self._lay_out(arrays)
        if self._layouts is None:
            return False
        layout = self._layouts[free]
        try:
            packet = _pack_request(number, body) + layout.packed
        except struct.error:  # ZeroMQ takes it, and the server says what is wrong with it
            return False
        if len(packet) > MAX_PACKET:
            return False
        for place, array in zip(layout.arrays, arrays.values(), strict=True):
            np.copyto(place, array)
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        self._slots[free] = number
        self._look_until = time.monotonic_ns() + LOOK_NS
        return True

    def _lay_out(self, arrays: Mapping[str, NDArray[Any]]) -> list[_Layout] | None:
        """The layout of arrays like these in each slot; None when they do not fit."""
        described = bytes(encode(Message("arrays", {}, dict(arrays)))[0])
        layouts = []
        for slot in range(0, SLOTS * self._slot, self._slot):
            at, places, there = slot, [], []
            for array in arrays.values():
                if at + array.nbytes > slot + self._slot:
                    return None
                memory = self._memory[at : at + array.nbytes]
                there.append(memory.view(array.dtype).reshape(array.shape))
                places += [at, array.nbytes]
                at += _aligned(array.nbytes)
            packed = struct.pack(f"<I{len(places)}Q", len(there), *places)
            layouts.append(_Layout(packed + described, there))
        return layouts

    def look_for(self, wait_s: float) -> Message | None:
        """A reply that comes within ``wait_s`` and soon after the last request, without sleeping
        meanwhile; None when there is none."""
        until = min(self._look_until, time.monotonic_ns() + int(wait_s * 1e9))
        while not self.closed and time.monotonic_ns() < until:
            message = self.receive()
            if message is not None:
                return message
        return None

    def receive(self) -> Message | None:
        """A reply, None when there is none. ``closed`` is set when the server went away."""
        try:
            packet = self._socket.recv(MAX_PACKET)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return None
        return _unpack_reply(packet)

    def close(self) -> None:
        self.closed = True
        self._socket.close()


def _pack_request(number: int, body: Mapping[str, Any]) -> bytes:
    times, deadline_ms = body["t_ns"], body["deadline_ms"]
    return REQUEST.pack(
        number,
        body["sent_ns"],
        body["session"].encode(),
        body["epoch"],
        body["dt_ns"],
        body["previous_chunk"],
        body["consumed"],
        body["delay"],
        math.nan if deadline_ms is None else deadline_ms,
        len(times),
    ) + struct.pack(f"<{len(times)}q", *times)


def unpack_request(packet: bytes) -> tuple[int, dict[str, Any], bytes]:
    """Number and body of a request, and the part of its packet that says where the arrays are
    (``unpack_places``). MessageError when it is cut off."""
    try:
        (
            number,
            sent_ns,
            session,
            epoch,
            dt_ns,
            previous_chunk,
            consumed,
            delay,
            deadline_ms,
            moments,
        ) = REQUEST.unpack_from(packet)
        times = struct.unpack_from(f"<{moments}q", packet, REQUEST.size)
    except struct.error as error:
        raise MessageError(f"a lane packet of {len(packet)} bytes is cut off") from error
    body = {
        "sent_ns": sent_ns,
        "session": session.decode("latin-1"),
        "epoch": epoch,
        "t_ns": list(times),
        "dt_ns": dt_ns,
        "previous_chunk": previous_chunk,
        "consumed": consumed,
        "delay": delay,
        "deadline_ms": None if math.isnan(deadline_ms) else deadline_ms,
    }
    return number, body, packet[REQUEST.size + 8 * moments :]


def unpack_places(packed: bytes, memory: memoryview, *, max_bytes: int) -> dict[str, NDArray[Any]]:
    """A request's arrays as views of ``memory``; MessageError when they are not in it."""
    count = struct.unpack_from("<I", packed)[0] if len(packed) >= 4 else -1
    start = 4 + 16 * count
    if count < 0 or start > len(packed):
        raise MessageError("a lane packet is cut off where it says where its arrays are")
    frames: list[bytes | memoryview] = [packed[start:]]
    for at, size in struct.iter_unpack("<2Q", packed[4:start]):
        if at + size > len(memory):
            raise MessageError(
                f"an array at {at} of {size} bytes is not in the memory of {len(memory)}"
            )
        frames.append(memory[at : at + size])
    return decode(frames, max_bytes=max_bytes).arrays


def pack_reply(reply: Message) -> bytes | None:
    """The packet of a reply; None when it is too long for one."""
    if reply.kind == "chunk":
        body, timing, actions = reply.body, reply.body["timing"], reply.arrays["actions"]
        numbers = CHUNK.pack(
            1,
            reply.id,
            body["sent_ns"],
            body["chunk_id"],
            body["observation_t_ns"],
            body["generation"],
            timing["received_ns"],
            timing["started_ns"],
            timing["done_ns"],
            timing["replied_ns"],
            *actions.shape,
        )
        packet = numbers + actions.astype("<f8", copy=False).tobytes()
    else:
        packet = OTHER + bytes(encode(reply)[0])
    return packet if len(packet) <= MAX_PACKET else None


def _unpack_reply(packet: bytes) -> Message:
    if packet[:1] == OTHER:
        return decode([packet[1:]])
    (
        _,
        number,
        sent_ns,
        chunk_id,
        observation_t_ns,
        generation,
        received_ns,
        started_ns,
        done_ns,
        replied_ns,
        rows,
        columns,
    ) = CHUNK.unpack_from(packet)
    body = {
        "sent_ns": sent_ns,
        "chunk_id": chunk_id,
        "observation_t_ns": observation_t_ns,
        "generation": generation,
        "timing": {
            "received_ns": received_ns,
            "started_ns": started_ns,
            "done_ns": done_ns,
            "replied_ns": replied_ns,
        },
    }
    actions = np.frombuffer(packet, "<f8", rows * columns, CHUNK.size).reshape(rows, columns)
    return Message("chunk", body, {"actions": actions}, number)
