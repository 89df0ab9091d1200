"""Edits of HDF5 metadata in place: what makes a killed SWMR recording readable without HDF5 tools.

Layouts are those of the HDF5 file format specification, version 3: the superblock of version 3 (an
``open for writing`` flag, the end-of-file address) and object headers of version 2 (whose dataspace
message holds the length of a dataset). Both end in a Jenkins lookup3 checksum. Every edit here is
one small write of a whole structure, so recovery itself may be killed and started again.
"""

from __future__ import annotations

import os
import struct

from robot_stack.errors import EpisodeError

__all__ = ["is_superblock", "lookup3", "mark_closed", "set_length"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_SIZE = 48
VERSION_AT, FLAGS_AT, EOF_AT, CHECKSUM_AT = 8, 11, 28, 44
MASK = 0xFFFFFFFF
DATASPACE = 1


def _rot(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & MASK


def lookup3(data: bytes, initial: int = 0) -> int:
    """Bob Jenkins' lookup3 ``hashlittle`` of ``data``, HDF5's metadata checksum."""
    a = b = c = (0xDEADBEEF + len(data) + initial) & MASK
    at = 0
    while len(data) - at > 12:
        x, y, z = struct.unpack_from("<3I", data, at)
        a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
        a = ((a - c) & MASK) ^ _rot(c, 4)
        c = (c + b) & MASK
        b = ((b - a) & MASK) ^ _rot(a, 6)
        a = (a + c) & MASK
        c = ((c - b) & MASK) ^ _rot(b, 8)
        b = (b + a) & MASK
        a = ((a - c) & MASK) ^ _rot(c, 16)
        c = (c + b) & MASK
        b = ((b - a) & MASK) ^ _rot(a, 19)
        a = (a + c) & MASK
        c = ((c - b) & MASK) ^ _rot(b, 4)
        b = (b + a) & MASK
        at += 12
    if at == len(data):
        return c
    x, y, z = map(int, struct.unpack("<3I", data[at:].ljust(12, b"\0")))
    a, b, c = (a + x) & MASK, (b + y) & MASK, (c + z) & MASK
    c = ((c ^ b) - _rot(b, 14)) & MASK
    a = ((a ^ c) - _rot(c, 11)) & MASK
    b = ((b ^ a) - _rot(a, 25)) & MASK
    c = ((c ^ b) - _rot(b, 16)) & MASK
    a = ((a ^ c) - _rot(c, 4)) & MASK
    b = ((b ^ a) - _rot(a, 14)) & MASK
    return ((c ^ b) - _rot(b, 24)) & MASK


def is_superblock(block: bytes) -> bool:
    """Whether the first 48 bytes of a file are a superblock that these edits understand."""
    return (
        len(block) >= SUPERBLOCK_SIZE
        and block[:8] == SIGNATURE
        and block[VERSION_AT] == 3
        and block[VERSION_AT + 1] == 8
    )


def mark_closed(fd: int) -> None:
    """Clear the flag of a writer that is gone and set the end of file to the file's real size.

    EpisodeError when the file does not begin with a superblock of version 3.
    """
    block = bytearray(os.pread(fd, SUPERBLOCK_SIZE, 0))
    if not is_superblock(bytes(block)):
        raise EpisodeError("the file does not begin with an HDF5 superblock of version 3")
    block[FLAGS_AT] = 0
    struct.pack_into("<Q", block, EOF_AT, os.fstat(fd).st_size)
    struct.pack_into("<I", block, CHECKSUM_AT, lookup3(bytes(block[:CHECKSUM_AT])))
    os.pwrite(fd, block, 0)


def set_length(fd: int, header_at: int, axis: int, length: int) -> None:
    """Set one dimension of the dataset whose object header begins at ``header_at``.

    Only for shrinking: what lies behind the new end stays in the file, unreachable. EpisodeError
    when the header is not of version 2, damaged, or keeps its dataspace elsewhere.
    """
    head = os.pread(fd, 64, header_at)
    if head[:4] != b"OHDR" or head[4] != 2:
        raise EpisodeError(f"no object header of version 2 at byte {header_at}")
    flags = head[5]
    at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    size = int.from_bytes(head[at : at + width], "little")
    at += width
    end = at + size
    header = bytearray(os.pread(fd, end + 4, header_at))
    if len(header) != end + 4 or lookup3(bytes(header[:end])) != int.from_bytes(
        header[end:], "little"
    ):
        raise EpisodeError(f"the object header at byte {header_at} is damaged")
    prefix = 6 if flags & 4 else 4
    while at + prefix <= end:
        kind = header[at]
        message = int.from_bytes(header[at + 1 : at + 3], "little")
        if kind == DATASPACE:
            rank = header[at + prefix + 1]
            if header[at + prefix] != 2 or not axis < rank:
                raise EpisodeError(
                    f"dataspace of the header at byte {header_at} is of another kind"
                )
            struct.pack_into("<Q", header, at + prefix + 4 + 8 * axis, length)
            struct.pack_into("<I", header, end, lookup3(bytes(header[:end])))
            os.pwrite(fd, header, header_at)
            return
        at += prefix + message
    raise EpisodeError(f"the object header at byte {header_at} keeps its dataspace elsewhere")
