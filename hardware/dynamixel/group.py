"""Sync reads and writes whose packets are built once and whose answers are parsed as one array.

Not `GroupSyncRead`: that throws every error byte away (so an alert is never seen), fails as a
whole when one servo is silent, and spends a Python loop on each byte. Only packets that recur at
the loop's rate come from here; the bytes go through the SDK's port, and every other register access
through its packet handler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hardware.dynamixel.packet import (
    BROADCAST_ID,
    HEADER,
    CrcTable,
    Decoder,
    Instruction,
    StatusError,
    crc16,
    encode,
)

__all__ = ["SyncRead", "SyncWrite"]


class SyncRead:
    """One sync (or fast sync) read of `length` bytes at `address` from `ids`, in that order.

    After `parse` has said that it needs no more bytes, rows `got` (bool (n,)) of `data`
    (uint8 (n, length)) and `errors` (uint8 (n,), error bytes with the alert bit) are valid.
    """

    def __init__(self, ids: Sequence[int], address: int, length: int, *, fast: bool) -> None:
        self.ids = tuple(ids)
        self.fast = fast
        n = len(self.ids)
        self._length = length
        self._row_of = {servo_id: row for row, servo_id in enumerate(self.ids)}
        parameters = bytes((address & 0xFF, address >> 8, length & 0xFF, length >> 8, *self.ids))
        instruction = Instruction.FAST_SYNC_READ if fast else Instruction.SYNC_READ
        self.request = encode(BROADCAST_ID, instruction, parameters)
        self.data = np.zeros((n, length), dtype=np.uint8)
        self.errors = np.zeros(n, dtype=np.uint8)
        self.got = np.zeros(n, dtype=np.bool_)
        if fast:
            total = 1 + n * (length + 4)
            self._head = np.frombuffer(
                HEADER + bytes((BROADCAST_ID, total & 0xFF, total >> 8, Instruction.STATUS)),
                np.uint8,
            )
            self.expected = 7 + total
            self._crc = CrcTable(self.expected - 2)
        else:
            wire = length + 4
            self._heads = np.empty((n, 8), dtype=np.uint8)
            self._heads[:] = (*HEADER, 0, wire & 0xFF, wire >> 8, Instruction.STATUS)
            self._heads[:, 4] = self.ids
            self.expected = n * (11 + length)
            self._crc = CrcTable(9 + length)
        self._ids = np.array(self.ids, dtype=np.uint8)
        self._buffer = bytearray()

    def start(self) -> None:
        """Before the request is sent."""
        self._buffer.clear()
        self.got[:] = False

    def parse(self, data: bytes) -> bool:
        """Take bytes in; True when every servo has answered (or the packet is spoilt)."""
        self._buffer += data
        if len(self._buffer) < self.expected:
            return False
        if len(self._buffer) == self.expected and self._parse_whole():
            return True
        return self.finish() or (self.fast and len(self._buffer) >= self.expected)

    def _parse_whole(self) -> bool:
        raw = np.frombuffer(bytes(self._buffer), np.uint8)
        if self.fast:
            if not np.array_equal(raw[:8], self._head):
                return False
            if int(self._crc(raw[:-2])) != int(raw[-2]) | int(raw[-1]) << 8:
                return False
            rows = raw[8:].reshape(len(self.ids), self._length + 4)
            if not np.array_equal(rows[:, 1], self._ids):
                return False
            self.errors[:] = rows[:, 0]
            self.data[:] = rows[:, 2:-2]
        else:
            rows = raw.reshape(len(self.ids), 11 + self._length)
            if not np.array_equal(rows[:, :8], self._heads):
                return False
            crcs = rows[:, -2:].copy().view("<u2")[:, 0]
            if not np.array_equal(self._crc(rows[:, :-2]), crcs):
                return False
            self.errors[:] = rows[:, 8]
            self.data[:] = rows[:, 9:-2]
        self.got[:] = (self.errors & 0x7F) == StatusError.NONE
        return True

    def finish(self) -> bool:
        """Make what there is of damaged, stuffed or incomplete answers; True when all are there."""
        if self.fast:
            self._finish_fast()
        else:
            for packet in Decoder().feed(bytes(self._buffer)):
                row = self._row_of.get(packet.servo_id)
                if row is None or not packet.crc_ok or packet.instruction != Instruction.STATUS:
                    continue
                self._take(row, packet.parameters[0], packet.parameters[1:])
        return bool(self.got.all())

    def _finish_fast(self) -> None:
        raw = bytes(self._buffer)
        start = raw.find(self._head.tobytes())
        if start < 0:
            return
        step = self._length + 4
        at = start + 8
        crc = crc16(raw[start:at])
        # Each servo's CRC covers all bytes before it: damage spoils its own segment and the rest.
        while at + step <= len(raw):
            segment = raw[at : at + step]
            crc = crc16(segment[:-2], crc)
            if crc != segment[-2] | segment[-1] << 8:
                return
            crc = crc16(segment[-2:], crc)
            row = self._row_of.get(segment[1])
            if row is not None:
                self._take(row, segment[0], segment[2:-2])
            at += step

    def _take(self, row: int, error: int, data: bytes) -> None:
        if error & 0x7F == StatusError.NONE and len(data) == self._length:
            self.errors[row] = error
            self.data[row] = np.frombuffer(data, np.uint8)
            self.got[row] = True


class SyncWrite:
    """A sync write of one register whose packet is patched rather than built."""

    def __init__(self, ids: Sequence[int], address: int, size: int) -> None:
        n = len(ids)
        parameters = bytes((address & 0xFF, address >> 8, size, 0)) + b"".join(
            bytes((servo_id,)) + bytes(size) for servo_id in ids
        )
        self._packet = np.frombuffer(
            encode(BROADCAST_ID, Instruction.SYNC_WRITE, parameters), np.uint8
        ).copy()
        self._body = self._packet[12:-2].reshape(n, size + 1)
        self._crc = CrcTable(len(self._packet) - 2)
        self._dtype = {1: "<i1", 2: "<i2", 4: "<i4"}[size]
        self._size = size

    def packet(self, values: npt.NDArray[np.integer]) -> bytes:
        """The packet that writes `values` (n,) to the servos in order."""
        self._body[:, 1:] = values.astype(self._dtype).view(np.uint8).reshape(-1, self._size)
        whole = self._packet[:-2]
        if b"\xff\xff\xfd" in whole[7:].tobytes():
            return encode(BROADCAST_ID, Instruction.SYNC_WRITE, whole[8:].tobytes())
        self._packet[-2:] = np.frombuffer(int(self._crc(whole)).to_bytes(2, "little"), np.uint8)
        return self._packet.tobytes()
