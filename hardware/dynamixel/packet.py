"""Dynamixel Protocol 2.0 packets: stuffing, CRC-16, building, and a decoder that resynchronises.

Source: the ROBOTIS e-manual, "DYNAMIXEL Protocol 2.0". A packet is
`FF FF FD 00 | id | length (2, little endian) | instruction, parameters (stuffed) | crc (2)`;
`length` counts everything behind itself. In a status packet the first parameter is the error byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = [
    "BROADCAST_ID",
    "HEADER",
    "MAX_ID",
    "CrcTable",
    "Decoder",
    "Instruction",
    "Packet",
    "StatusError",
    "crc16",
    "encode",
    "encode_status",
    "stuff",
    "unstuff",
]

HEADER = b"\xff\xff\xfd\x00"
BROADCAST_ID = 0xFE
MAX_ID = 0xFC
OVERHEAD = 10  # header 4, id 1, length 2, instruction 1, crc 2
_LENGTH_MAX = 1024
_MARK = b"\xff\xff\xfd"
_STUFFED_MARK = b"\xff\xff\xfd\xfd"


class Instruction(IntEnum):
    """What a packet asks of a servo; STATUS is the answer."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93
    FAST_BULK_READ = 0x9A


class StatusError(IntEnum):
    """The low seven bits of a status packet's error byte. Bit 7 (ALERT) may be set beside any."""

    NONE = 0
    RESULT_FAIL = 1
    INSTRUCTION = 2
    CRC = 3
    DATA_RANGE = 4
    DATA_LENGTH = 5
    DATA_LIMIT = 6
    ACCESS = 7
    ALERT = 0x80


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x8005 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """CRC-16 of `data` (polynomial 0x8005, not reflected), going on from `crc`."""
    table = _CRC
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ table[(crc >> 8) ^ byte]
    return crc


class CrcTable:
    """CRC-16 of many packets of one fixed length at once.

    A CRC that starts at 0 is linear over GF(2): that of a packet is the XOR of what each byte adds
    at its position. With those contributions tabulated, nine packets cost three numpy calls
    rather than 200 turns of a Python loop.
    """

    def __init__(self, length: int) -> None:
        column = np.array(_CRC, dtype=np.uint16)
        table = np.empty((length, 256), dtype=np.uint16)
        for position in range(length - 1, -1, -1):
            table[position] = column
            # One more zero byte behind it moves every contribution one step further.
            column = (column << np.uint16(8)) ^ np.array(_CRC, np.uint16)[column >> np.uint16(8)]
        self._flat = table.ravel()
        self._offset = np.arange(length, dtype=np.intp) * 256

    def __call__(self, packets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        """CRCs over the last axis: uint8 (..., length) -> uint16 (...)."""
        crcs: npt.NDArray[np.uint16] = np.bitwise_xor.reduce(
            self._flat.take(packets + self._offset), axis=-1
        )
        return crcs


def stuff(body: bytes) -> bytes:
    """Instruction and parameters made safe: an FD follows every FF FF FD."""
    return body.replace(_MARK, _STUFFED_MARK)


def unstuff(body: bytes) -> bytes:
    """The inverse of `stuff`."""
    return body.replace(_STUFFED_MARK, _MARK)


def encode(servo_id: int, instruction: int, parameters: bytes = b"") -> bytes:
    """A whole packet, stuffed and with its CRC.

    Raises ValueError for an id that is neither 0..252 nor 254, or a packet above 1024 bytes.
    """
    if not (0 <= servo_id <= MAX_ID or servo_id == BROADCAST_ID):
        raise ValueError(f"servo id {servo_id} is not 0..252 or 254 (broadcast)")
    body = stuff(bytes((instruction,)) + parameters)
    length = len(body) + 2
    if length > _LENGTH_MAX:
        raise ValueError(f"a packet of {length} bytes is longer than {_LENGTH_MAX}: split it")
    head = HEADER + bytes((servo_id, length & 0xFF, length >> 8)) + body
    return head + crc16(head).to_bytes(2, "little")


def encode_status(servo_id: int, error: int, data: bytes = b"") -> bytes:
    """A status packet with its error byte (StatusError, bit 7 = hardware alert) and data."""
    return encode(servo_id, Instruction.STATUS, bytes((error,)) + data)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet out of a stream. `wire_bytes` counts it as sent, header and stuffing included.

    `crc_ok` False: everything but the framing is doubtful.
    """

    servo_id: int
    instruction: int
    parameters: bytes
    wire_bytes: int
    crc_ok: bool = True


class Decoder:
    """Cuts a byte stream into packets; skips noise and finds the next header after damage."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.noise_bytes = 0

    def __len__(self) -> int:
        """Bytes that wait for the rest of their packet."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget an unfinished packet."""
        self._buffer.clear()

    def skip(self) -> None:
        """Give up the packet now at the front: the search goes on behind its first byte."""
        if self._buffer:
            self._drop(1)

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Take `data` in, yield every packet it completes, those with a wrong CRC too."""
        self._buffer += data
        while True:
            packet = self._next()
            if packet is None:
                return
            yield packet

    def _drop(self, count: int) -> None:
        self.noise_bytes += count
        del self._buffer[:count]

    def _next(self) -> Packet | None:
        buffer = self._buffer
        while True:
            start = buffer.find(HEADER)
            if start < 0:
                # Up to three bytes may be the beginning of a header.
                keep = next((n for n in (3, 2, 1) if buffer.endswith(HEADER[:n])), 0)
                self._drop(len(buffer) - keep)
                return None
            if start:
                self._drop(start)
            if len(buffer) < 7:
                return None
            length = buffer[5] | buffer[6] << 8
            if buffer[4] == 0xFF or buffer[4] == 0xFD or not 3 <= length <= _LENGTH_MAX:
                self._drop(1)
                continue
            end = 7 + length
            # An unstuffed header inside what claims to be one packet: its tail was lost, and the
            # next packet has begun.
            inner = buffer.find(HEADER, 7, min(end - 2, len(buffer)))
            if inner >= 0:
                self._drop(inner)
                continue
            if len(buffer) < end:
                return None
            raw = bytes(buffer[:end])
            crc_ok = crc16(raw[:-2]) == raw[-2] | raw[-1] << 8
            if not crc_ok and HEADER in raw[1:]:
                self._drop(raw.index(HEADER, 1))
                continue
            del buffer[:end]
            body = unstuff(raw[7:-2])
            return Packet(raw[4], body[0], body[1:], end, crc_ok)


def parameters_of(values: Sequence[tuple[int, int]]) -> bytes:
    """Join (value, size) pairs little endian; negative values as two's complement."""
    return b"".join((v & ((1 << 8 * s) - 1)).to_bytes(s, "little") for v, s in values)
