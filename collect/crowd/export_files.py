"""One episode for an export: copied, checked against its hash, and told of anew who drove.

The copy is the recording as it is, but for the episode's metadata: ids that mean something to the
site (the play, the contributor, the station) become others that mean something in this export
alone. Both slots of the metadata are written, so that no earlier revision tells; then every byte is
searched for what must not be in it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from collect.crowd.apart import UnreadableError, rehearse
from collect.crowd.export_part import sync
from collect.crowd.segments import Labels
from collect.crowd.untrusted import open_untrusted
from robot_stack.episode import EpisodeMetadata
from robot_stack.episode.metadata import SLOT_BYTES, encode_slot
from robot_stack.errors import EpisodeError

__all__ = ["Copied", "Identity", "LeftOutError", "copy_episode", "digest_of", "write_labels"]

CHUNK = 4 << 20
LEAST_ID = 16  # shorter texts are words, and may stand anywhere


class LeftOutError(Exception):
    """This episode is left out; ``reason`` is one of `export_select.REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """What an episode is called in one export, and what it must not be called.

    ``salt`` makes the recording computer's boot id another one, equal for episodes of one boot
    (their ``t_ns`` are of one clock). ``secrets``: ids and hashes of the site, of which no byte may
    stay.
    """

    uuid: str
    salt: bytes
    contributor: str
    station: str
    consent: str
    secrets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Copied:
    """A copy that is ready: its hash and size, and what its metadata say."""

    sha256: str
    size: int
    metadata: EpisodeMetadata
    rows: int


def copy_episode(
    source: Path,
    target: Path,
    wanted: str,
    identity: Identity,
    advance: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy ``source``, whose SHA-256 must be ``wanted``, as ``identity`` to ``target``.

    ``advance`` is told of bytes as they are copied. LeftOutError when it may not leave; then there
    is nothing at ``target``.
    """
    try:
        places = _copy(source, target, wanted, advance)
        old = _rename(target, identity, places)
        rehearse(lambda: _read(target), target)  # what was written may have changed what it is
        with open_untrusted(target) as episode:
            if episode.file.attrs["uuid"] != identity.uuid:
                raise LeftOutError("file_unreadable")
            metadata, rows = episode.metadata, len(episode)
        digest = _searched(target, {*identity.secrets, *old})
        sync(target)
    except (EpisodeError, UnreadableError, KeyError, ValueError) as error:
        target.unlink(missing_ok=True)
        raise LeftOutError("file_unreadable") from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Copied(digest, target.stat().st_size, metadata, rows)


def write_labels(target: Path, labels: Labels | None, t_ns: Iterable[int]) -> None:
    """A Parquet table with a line a row of the episode: row, t_ns, label ("" where nobody has
    said), quality (-1 there). LeftOutError when labels and rows differ in number."""
    times = pa.array(t_ns, pa.int64())
    rows = len(times)
    if labels is not None and len(labels.quality) != rows:
        raise LeftOutError("labels")
    names = pa.array([""] * rows if labels is None else labels.label.tolist(), pa.string())
    qualities = pa.array([-1] * rows if labels is None else labels.quality.tolist(), pa.int8())
    table = pa.table(
        {
            "row": pa.array(range(rows), pa.int32()),
            "t_ns": times,
            "label": names.dictionary_encode(),
            "quality": qualities,
        }
    )
    pq.write_table(table, target, compression="zstd")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path, wanted: str, advance: Callable[[int], None]) -> list[int]:
    """Where the episode's uuid stands. What is hashed is what is written: the source can't change
    between the two."""
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LeftOutError("file_missing") from error
    digest = hashlib.sha256()
    with os.fdopen(handle, "rb") as reader, target.open("wb") as writer:
        while block := reader.read(CHUNK):
            digest.update(block)
            writer.write(block)
            advance(len(block))
    if digest.hexdigest() != wanted:
        raise LeftOutError("file_changed")
    rehearse(lambda: _read(target), target)
    with open_untrusted(target) as episode:
        needle = episode.metadata.uuid.encode()
    with target.open("rb") as file:
        return [
            at for block, base in _blocks(file, len(needle)) for at in _find(block, needle, base)
        ]


def _read(path: Path) -> None:
    """All that an export reads of an episode by way of HDF5."""
    with open_untrusted(path) as episode:
        _ = episode.file.attrs["uuid"], episode.file["metadata"].id.get_offset()
        _ = episode.t_ns, len(episode)


def _rename(path: Path, identity: Identity, places: Iterable[int]) -> list[str]:
    """Write the new uuid where the old one is, and the metadata of this export into both slots;
    the ids that the file had."""
    with open_untrusted(path) as episode:
        old = episode.metadata
        dataset = episode.file["metadata"]
        offset = dataset.id.get_offset()
        fits = len(old.uuid) == len(identity.uuid)
        if offset is None or dataset.shape != (2, SLOT_BYTES) or not fits:
            raise LeftOutError("file_unreadable")
    fresh = old.replace(**_cleaned(old, identity.secrets)).replace(
        uuid=identity.uuid,
        operator=identity.contributor,
        station=identity.station,
        consent=identity.consent,
        boot_id=_salted(old.boot_id, identity.salt),
        session=None,
        parent=None,
        revision=1,
    )
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # The root attribute `uuid` is text in HDF5's global heap, which has no checksum
        # (File Format Specification, III.E): as long as before, it may be overwritten.
        for at in places:
            os.pwrite(handle, identity.uuid.encode(), at)
        os.pwrite(handle, encode_slot(fresh) + bytes(SLOT_BYTES), offset)
    finally:
        os.close(handle)
    ids = (old.uuid, old.boot_id, old.operator, old.session, old.parent)
    return [text for text in ids if text is not None and len(text) >= LEAST_ID]


def _salted(text: str, salt: bytes) -> str:
    return str(uuid.UUID(bytes=hmac.digest(salt, text.encode(), "sha256")[:16], version=4))


def _cleaned(metadata: EpisodeMetadata, secrets: tuple[str, ...]) -> dict[str, Any]:
    """Fields in which one of the secrets stands, without it."""

    def named(value: Any) -> bool:
        text = json.dumps(value)
        return any(secret in text for secret in secrets)

    changes: dict[str, Any] = {}
    for name, value in metadata.to_dict().items():
        if name in ("uuid", "boot_id", "operator", "station", "consent", "session", "parent"):
            continue
        if named(value):
            kept = isinstance(value, dict)
            changes[name] = {k: v for k, v in value.items() if not named([k, v])} if kept else None
    return changes


def _searched(path: Path, secrets: Iterable[str]) -> str:
    """The SHA-256 of a file in which none of ``secrets`` stands; LeftOutError if one does."""
    needles = [secret.encode() for secret in secrets]
    digest = hashlib.sha256()
    overlap = max(map(len, needles), default=1)
    with path.open("rb") as file:
        read = 0
        for block, base in _blocks(file, overlap):
            if any(needle in block for needle in needles):
                raise LeftOutError("identifying")
            digest.update(block[read - base :])
            read = base + len(block)
    return digest.hexdigest()


def _blocks(file: BinaryIO, overlap: int) -> Iterator[tuple[bytes, int]]:
    """A file in blocks, each with where it begins, that overlap by a byte less than ``overlap``:
    what is at most that long is whole in one of them."""
    base, tail = 0, b""
    while block := file.read(CHUNK):
        window = tail + block
        yield window, base
        tail = window[len(window) - min(overlap - 1, len(window)) :]
        base += len(window) - len(tail)


def _find(block: bytes, needle: bytes, base: int) -> Iterator[int]:
    at = block.find(needle)
    while at >= 0:
        yield base + at
        at = block.find(needle, at + 1)
