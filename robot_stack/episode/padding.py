"""Zero-padded rows that cost no disk space: a zlib stream made without compressing anything.

The data go in as stored blocks and the zeros as ready-made runs (RFC 1950 and 1951), so a padded
JPEG row costs its own size on disk and a copy in time, and every HDF5 reader inflates it with its
gzip filter.
"""

from __future__ import annotations

import zlib

__all__ = ["pad_chunk"]


def _zero_runs() -> list[bytes]:
    """Deflate blocks that stand for 1, 2, 4, ... zeros; each ends on a byte and needs no other."""
    runs = []
    for power in range(24):
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        runs.append(packer.compress(bytes(1 << power)) + packer.flush(zlib.Z_FULL_FLUSH))
    return runs


_ZERO_RUNS = _zero_runs()
_EMPTY_BLOCK = b"\x03\x00"  # final deflate block with nothing in it


def pad_chunk(data: bytes, width: int) -> bytes:
    """``data`` padded with zeros to ``width`` bytes, as a zlib stream."""
    rest = width - len(data)
    parts = [b"\x78\x01"]
    for start in range(0, len(data), 65535):
        piece = data[start : start + 65535]
        parts += [b"\0", len(piece).to_bytes(2, "little")]
        parts += [(len(piece) ^ 0xFFFF).to_bytes(2, "little"), piece]
    parts += [run for power, run in enumerate(_ZERO_RUNS) if rest >> power & 1]
    adler = zlib.adler32(data)
    low, high = adler & 0xFFFF, adler >> 16
    high = (high + rest * low) % 65521  # Adler-32 of appended zeros: only the second sum moves
    parts += [_EMPTY_BLOCK, (high << 16 | low).to_bytes(4, "big")]
    return b"".join(parts)
