"""Saves what a killed recorder left: clears HDF5's writer mark and cuts all rows to one length.

All edits are in place and small, and a recovery that is itself killed can be started again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from robot_stack.episode import files, superblock
from robot_stack.episode.digest import combine
from robot_stack.episode.layout import (
    EpisodeSchema,
    columns,
    depth_path,
    image_path,
    log_path,
    read_schema,
)
from robot_stack.episode.metadata import SLOT_BYTES, decode_slots, write_next
from robot_stack.episode.reader import Episode
from robot_stack.errors import EpisodeError

__all__ = ["Recovery", "recover", "recover_all"]

TAIL_ROWS = 256  # more rows than one flush writes: older ones are known to be whole


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of one leftover; ``path`` is None when it held no row and was removed.

    ``problem`` says why it could not be recovered; ``path`` is then where it lies.
    """

    leftover: Path
    path: Path | None
    rows: int
    dropped_rows: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Cut:
    header_at: int
    axis: int
    length: int


def recover(path: Path | str) -> Recovery:
    """Recover ``episode_3.hdf5.part`` to ``episode_3.hdf5``, cut to its last whole row.

    EpisodeError when a living process records it. What cannot be read is kept as ``.broken`` and
    named in ``problem``.
    """
    path = Path(path)
    if path.suffix not in (files.PART, files.NEW):
        raise EpisodeError(f"{path} is not a leftover; those end in {files.PART} or {files.NEW}")
    target = path.with_suffix("")
    with _locked(path) as fd:
        if path.suffix == files.NEW:  # the layout was not complete: no row was ever written
            path.unlink()
            return Recovery(path, None, 0, 0)
        if target.exists():
            raise EpisodeError(f"{target} exists already; move one of the two away")
        try:
            rows, dropped = _repair(path, fd)
        except (EpisodeError, OSError, KeyError, ValueError, RuntimeError) as error:
            broken = files.with_suffix(target, files.BROKEN)
            path.rename(broken)
            return Recovery(path, broken, 0, 0, f"not recoverable: {error}")
        if rows == 0:
            path.unlink()
            return Recovery(path, None, 0, dropped)
        os.fsync(fd)
        path.rename(target)
        files.sync_directory(path.parent)
        return Recovery(path, target, rows, dropped)


def recover_all(directory: Path | str) -> list[Recovery]:
    """Recover every leftover in a directory but those that a living process records.

    Never raises for a single file: what stands in its way is its ``problem``.
    """
    found = []
    for path in sorted(Path(directory).glob("*.hdf5.*")):
        if path.suffix in (files.PART, files.NEW) and not _is_live(path):
            try:
                found.append(recover(path))
            except (EpisodeError, OSError) as error:
                found.append(Recovery(path, path, 0, 0, str(error)))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise EpisodeError(f"{path} does not exist") from None
    try:
        if not files.lock(fd):
            raise EpisodeError(f"{path} is being recorded by a living process")
        yield fd
    finally:
        os.close(fd)


def _is_live(path: Path) -> bool:
    try:
        with _locked(path):
            return False
    except EpisodeError:
        return True


def _repair(path: Path, fd: int) -> tuple[int, int]:
    """(rows kept, rows dropped) after making the file readable and of one length."""
    os.ftruncate(fd, os.fstat(fd).st_size)  # give back what was reserved beyond the end
    superblock.mark_closed(fd)
    with h5py.File(path, "r", locking=False) as file:
        schema = read_schema(file)
        offset = file["metadata"].id.get_offset()
        metadata = decode_slots(os.pread(fd, 2 * SLOT_BYTES, offset))[1]
        rows, longest = _whole_rows(file, schema)
        cuts = [*_row_cuts(file, schema, rows), *_record_cuts(file, schema)]
    for cut in cuts:
        superblock.set_length(fd, cut.header_at, cut.axis, cut.length)
    if rows and not (metadata.ended and metadata.rows == rows):
        with h5py.File(path, "r", locking=False) as file:
            streams = Episode(path, file).streams()
        write_next(
            fd,
            offset,
            metadata.replace(
                ended="recovered", rows=rows, streams=streams, content_hash=combine(streams)
            ),
        )
    return rows, longest - rows


def _row_sets(file: h5py.File, schema: EpisodeSchema) -> Iterator[tuple[Any, int]]:
    for column in columns(schema):
        yield file[column.path], 0
    for name in schema.camera_names:
        yield file[image_path(name)], 0
        if schema.cameras[name].depth:
            yield file[depth_path(name)], 0
    if "compress_len" in file:
        yield file["compress_len"], 1


def _whole_rows(file: h5py.File, schema: EpisodeSchema) -> tuple[int, int]:
    """(rows that every dataset holds in full, length of the longest dataset)."""
    lengths = [data.shape[axis] for data, axis in _row_sets(file, schema)]
    rows = min(lengths)
    first = max(rows - TAIL_ROWS, 0)
    whole = file["t_ns"][first:rows] > 0
    if "compress_len" in file:
        whole &= (file["compress_len"][:, first:rows] > 0).all(axis=0)
    size = Path(file.filename).stat().st_size
    for name in schema.camera_names:
        paths = [image_path(name)]
        if schema.cameras[name].depth:
            paths.append(depth_path(name))
        for path in paths:
            for i in range(rows - first):
                whole[i] = whole[i] and _has_chunk(file[path], first + i, size)
    bad = np.flatnonzero(~whole)
    return (first + int(bad[0]) if bad.size else rows), max(lengths)


def _has_chunk(data: Any, row: int, size: int) -> bool:
    """Whether a row with a chunk of its own was written, inside the file of ``size`` bytes."""
    info = data.id.get_chunk_info_by_coord((row,) + (0,) * (data.ndim - 1))
    if info.byte_offset is None or info.size == 0:
        return False
    return bool(info.byte_offset + info.size <= size)


def _row_cuts(file: h5py.File, schema: EpisodeSchema, rows: int) -> list[_Cut]:
    return [
        _Cut(h5py.h5o.get_info(data.id).addr, axis, rows)
        for data, axis in _row_sets(file, schema)
        if data.shape[axis] > rows
    ]


def _record_cuts(file: h5py.File, schema: EpisodeSchema) -> list[_Cut]:
    """Logs and events have lengths of their own: cut what was counted but not written."""
    cuts = []
    for path in [*(log_path(robot.name) for robot in schema.robots), "events"]:
        data = file[path]
        times = data["t_ns"][max(data.shape[0] - 65536, 0) :]
        bad = np.flatnonzero(times <= 0)
        if bad.size:
            length = data.shape[0] - len(times) + int(bad[0])
            cuts.append(_Cut(h5py.h5o.get_info(data.id).addr, 0, length))
    return cuts
