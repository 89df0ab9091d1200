"""The content hash of an episode: SHA-256 of every dataset's rows, and one hash over them all.

A stream is the bytes of a dataset's rows in row order, little-endian: images as their pixels (raw)
or as their JPEG bytes without padding, depth as the SHA-256 of each row's pixels,
``/compress_len`` row by row (T, cameras). It can be kept up while recording, so that saving does
not read the file again. Metadata are left out: a new label does not make a new episode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["ContentHash", "combine"]


def combine(streams: Mapping[str, str]) -> str:
    """The hash of an episode from those of its streams, independent of their order."""
    lines = (f"{name} {digest}\n" for name, digest in sorted(streams.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


class ContentHash:
    """Grows with the rows of an episode."""

    def __init__(self, names: list[str]) -> None:
        self._streams = {name: hashlib.sha256() for name in names}

    def update(self, name: str, data: bytes | memoryview) -> None:
        self._streams[name].update(data)

    def streams(self) -> dict[str, str]:
        """Hexadecimal SHA-256 per dataset so far."""
        return {name: digest.hexdigest() for name, digest in self._streams.items()}
