"""The lane: observations to a policy server on this computer through shared memory.

A ZeroMQ message passes two threads and two sockets on each side, which costs more than the work
when a request comes after a pause. So beside an ``ipc://`` endpoint a server listens at
``<path>.lane``, a Unix socket of packets: a client hands it a sealed memory file, writes arrays
there and sends only where they are. Everything else, and what the lane cannot take, goes by
ZeroMQ. Requests and replies are the same messages (``robot_stack.messages``).

Packets, little-endian: a count n; n times where an array lies in the memory (offset, size: u64) in
a request, or its size (u64) in a reply; the header frame; in a reply the arrays' bytes.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Container, Sequence

import numpy as np

from robot_stack.errors import MessageError

__all__ = ["MAX_PACKET", "SLOTS", "VERSION", "Lane", "pack_reply", "unpack_request"]

VERSION = 1
SLOTS = 4  # one being computed, one that waits, and room for the next
ALIGNMENT = 64
MAX_PACKET = 128 * 1024  # well below what the kernel takes in one packet
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Lane:
    """A client's end. OSError when the server's is not there."""

    def __init__(self, path: str, identity: bytes, arrays: Sequence[int]) -> None:
        """``identity`` is the client's routing id, ``arrays`` the sizes of one observation's."""
        self._slot = max(_aligned(sum(map(_aligned, arrays))), mmap.PAGESIZE)
        self._slots = [-1] * SLOTS  # the request in each
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
        self, number: int, frames: Sequence[bytes | memoryview], pending: Container[int]
    ) -> bool:
        """Send a request's frames, its arrays by way of the memory; False when they do not fit,
        no slot is free of ``pending`` requests, or the server reads no more."""
        free = next((i for i, one in enumerate(self._slots) if one not in pending), None)
        if free is None or self.closed:
            return False
        at, end = free * self._slot, (free + 1) * self._slot
        places = []
        for frame in frames[1:]:
            size = len(frame)
            if at + size > end:
                return False
            self._memory[at : at + size] = np.frombuffer(frame, np.uint8)
            places += [at, size]
            at += _aligned(size)
        packet = struct.pack(f"<I{len(places)}Q", len(places) // 2, *places) + bytes(frames[0])
        if len(packet) > MAX_PACKET:
            return False
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except OSError:
            self.close()
            return False
        self._slots[free] = number
        return True

    def receive(self) -> list[bytes | memoryview] | None:
        """The frames of a reply, None when there is none. ``closed`` is set when the server went
        away."""
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


def unpack_request(packet: bytes, memory: memoryview) -> list[bytes | memoryview]:
    """The frames of a request, arrays as views of ``memory``; MessageError when they are not in
    it."""
    count = struct.unpack_from("<I", packet)[0] if len(packet) >= 4 else -1
    start = 4 + 16 * count
    if count < 0 or start > len(packet):
        raise MessageError(f"a lane packet of {len(packet)} bytes is cut off")
    places = struct.unpack_from(f"<{2 * count}Q", packet, 4)
    frames: list[bytes | memoryview] = [packet[start:]]
    for at, size in zip(places[::2], places[1::2], strict=True):
        if at + size > len(memory):
            raise MessageError(
                f"an array at {at} of {size} bytes is not in the memory of {len(memory)}"
            )
        frames.append(memory[at : at + size])
    return frames


def pack_reply(frames: Sequence[bytes | memoryview]) -> bytes | None:
    """The packet of a reply; None when it is too long for one."""
    sizes = [len(frame) for frame in frames[1:]]
    packet = b"".join([struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes), *frames])
    return packet if len(packet) <= MAX_PACKET else None


def _unpack_reply(packet: bytes) -> list[bytes | memoryview]:
    (count,) = struct.unpack_from("<I", packet)
    sizes = struct.unpack_from(f"<{count}Q", packet, 4)
    view = memoryview(packet)
    at = len(packet) - sum(sizes)
    frames: list[bytes | memoryview] = [packet[4 + 8 * count : at]]
    for size in sizes:
        frames.append(view[at : at + size])
        at += size
    return frames
