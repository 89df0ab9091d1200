"""Writes an episode so that being killed at any moment loses only what was not yet flushed.

The file is complete in structure before its first row, is written under HDF5's single-writer rules
(SWMR), and gets its real name when it is whole. Image chunks go to the file as they come and small
columns in batches, so memory does not grow with the length of the episode.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from robot_stack.episode import files
from robot_stack.episode.digest import ContentHash, combine
from robot_stack.episode.layout import (
    EVENT,
    ROW_CHUNK,
    Column,
    EpisodeSchema,
    columns,
    create_datasets,
    depth_path,
    image_path,
    log_path,
    log_record,
    stream_names,
)
from robot_stack.episode.metadata import (
    SCHEMA_VERSION,
    SLOT_BYTES,
    EpisodeMetadata,
    encode_slot,
    write_next,
)
from robot_stack.episode.padding import pad_chunk
from robot_stack.episode.row import PackedDepth, Row, pack_depth
from robot_stack.errors import EpisodeError

__all__ = ["FLUSH_NS", "EpisodeWriter"]

FLUSH_NS = 100_000_000
CHUNK_CACHE_BYTES = 65536  # HDF5's default of 8 MiB a dataset would fill up over a long recording
# Files that HDF5 1.10 and later read; its newest format would shut out the readers in use.
LIBVER = ("v110", "v110")


class EpisodeWriter:
    """Records one episode into ``path`` (a name like ``episode_3.hdf5``, which must not exist).

    ``append`` takes one row at a time and writes on every ``FLUSH_NS``; call ``flush`` when no row
    comes for a while. ``finalise`` checks the file and gives it its name, ``discard`` removes it.
    Not for use from several threads, but for ``sync``.
    """

    def __init__(self, path: Path, schema: EpisodeSchema, metadata: EpisodeMetadata) -> None:
        self.path = path
        self.schema = schema
        self.metadata = metadata
        self.rows = 0
        self._columns = columns(schema)
        self._fd = files.claim(path)
        self._part = files.with_suffix(path, files.PART)
        fresh = files.with_suffix(path, files.NEW)
        try:
            self._file = self._create(fresh)
            fresh.rename(self._part)
        except BaseException:
            fresh.unlink(missing_ok=True)
            os.close(self._fd)
            raise
        self._sets: dict[str, Any] = {c.path: self._file[c.path] for c in self._columns}
        self._images = {name: self._file[image_path(name)] for name in schema.camera_names}
        self._depth = {
            name: self._file[depth_path(name)]
            for name in schema.camera_names
            if schema.cameras[name].depth
        }
        self._jpeg = schema.encoding == "jpeg"
        self._logs = {r.name: self._file[log_path(r.name)] for r in schema.robots}
        self._log_types = {r.name: log_record(len(r.joints)) for r in schema.robots}
        self._events = self._file["events"]
        self._hash = ContentHash(stream_names(schema))
        self._buffer = {c.path: self._empty(c) for c in self._columns}
        self._lengths = np.zeros((ROW_CHUNK, len(schema.cameras)), "<f4")
        self._pending = 0
        self._pending_logs: dict[str, list[NDArray[Any]]] = {r.name: [] for r in schema.robots}
        self._pending_events: list[tuple[int, bytes, bytes]] = []
        self._flushed_ns = time.monotonic_ns()

    @staticmethod
    def _empty(column: Column) -> NDArray[Any]:
        return np.full((ROW_CHUNK, *column.shape), column.fill, column.dtype)

    def _create(self, fresh: Path) -> h5py.File:
        file = h5py.File(fresh, "w", libver=LIBVER, rdcc_nbytes=CHUNK_CACHE_BYTES, locking=False)
        try:
            file.attrs["schema_version"] = SCHEMA_VERSION
            file.attrs["uuid"] = self.metadata.uuid
            create_datasets(file, self.schema)
            slots = np.zeros((2, SLOT_BYTES), "u1")
            slots[0] = np.frombuffer(encode_slot(self.metadata), "u1")
            self._metadata_at = file.create_dataset("metadata", data=slots).id.get_offset()
            file.swmr_mode = True
            file.flush()
        except BaseException:
            file.close()
            raise
        return file

    def append(self, row: Row) -> None:
        """Add one row; EpisodeError when a camera's image is missing, of another size or too long.

        A refused row leaves the episode as it was.
        """
        self._check_images(row)
        i = self._pending
        order = self.schema.camera_names
        values: dict[str, Any] = {
            "t_ns": row.t_ns,
            "observations/qpos": row.qpos,
            "observations/qvel": row.qvel,
            "observations/effort": row.effort,
            "observations/t_ns": row.state_t_ns,
            "action": row.action,
            "action_sent": row.action_sent,
            "frame_t_ns": [row.frame_t_ns.get(name, -1) for name in order],
            "frame_seq": [row.frame_seq.get(name, -1) for name in order],
            "source": row.source,
            "token": row.token,
            "takeover_id": row.takeover_id,
            "policy/chunk_id": row.chunk_id,
            "policy/chunk_index": row.chunk_index,
            "policy/observation_t_ns": row.observation_t_ns,
            "difference": row.difference,
            "reward": row.reward,
            "terminated": row.terminated,
            "truncated": row.truncated,
            "env_state": row.env_state,
            "env_t_ns": row.env_t_ns,
            "tracking/applied": row.applied,
            "tracking/success_rate": row.success_rate,
            "tracking/target_age_s": row.target_age_s,
            "tracking/fault": row.fault.encode()[:160],
        }
        for column in self._columns:
            self._buffer[column.path][i] = values[column.path]
        for c, name in enumerate(order):
            self._append_image(c, name, row)
        self._pending += 1
        self.rows += 1
        if self._pending == ROW_CHUNK or time.monotonic_ns() - self._flushed_ns >= FLUSH_NS:
            self.flush()

    def _check_images(self, row: Row) -> None:
        for name in self.schema.camera_names:
            image = row.images.get(name)
            layout = self.schema.cameras[name]
            if self._jpeg:
                width = self.schema.jpeg_bytes(name)
                if not isinstance(image, bytes) or not image.startswith(b"\xff\xd8"):
                    raise EpisodeError(f"row {self.rows}: camera {name} needs a JPEG image (bytes)")
                if len(image) > width:
                    raise EpisodeError(
                        f"row {self.rows}: the JPEG of camera {name} takes {len(image)} bytes of "
                        f"{width}; encode it at a lower quality or raise jpeg_bits_per_pixel"
                    )
            elif (
                not isinstance(image, np.ndarray)
                or image.shape != (layout.height, layout.width, 3)
                or image.dtype != np.uint8
            ):
                raise EpisodeError(
                    f"row {self.rows}: camera {name} needs RGB uint8 "
                    f"({layout.height}, {layout.width}, 3)"
                )
            if layout.depth and name not in row.depth:
                raise EpisodeError(f"row {self.rows}: camera {name} needs a depth image")

    def _append_image(self, c: int, name: str, row: Row) -> None:
        image, images = row.images[name], self._images[name]
        images.resize(self.rows + 1, 0)
        at = (self.rows,) + (0,) * (images.ndim - 1)
        if isinstance(image, bytes):
            self._lengths[self._pending, c] = len(image)
            images.id.write_direct_chunk(at, pad_chunk(image, images.shape[1]))
            self._hash.update(image_path(name), image)
        else:
            pixels = np.ascontiguousarray(image)
            images.id.write_direct_chunk(at, pixels)
            self._hash.update(image_path(name), pixels.data)
        if name in self._depth:
            depth, data = self._depth[name], row.depth[name]
            packed = data if isinstance(data, PackedDepth) else pack_depth(data)
            depth.resize(self.rows + 1, 0)
            depth.id.write_direct_chunk((self.rows, 0, 0), packed.data)
            self._hash.update(depth_path(name), packed.digest)

    def append_log(self, robot: str, records: NDArray[Any]) -> None:
        """Add ticks (N,) of ``records.tick_record`` or ``log_record``, oldest first."""
        if len(records):
            wanted = self._log_types[robot]
            log = np.empty(len(records), wanted)
            for name in wanted.names or ():
                log[name] = records[name]
            self._pending_logs[robot].append(log)

    def event(self, t_ns: int, kind: str, text: str) -> None:
        """Add an event; ``kind`` up to 32 bytes, ``text`` is cut at 216 bytes."""
        self._pending_events.append((t_ns, kind.encode()[:32], text.encode()[:216]))

    def flush(self) -> None:
        """Hand everything appended so far to the kernel: it now survives a kill of this process."""
        n, end = self._pending, self.rows
        start = end - n
        if n:
            if self._jpeg and self._lengths.shape[1]:
                lengths = self._lengths[:n]
                target = self._file["compress_len"]
                target.resize(end, 1)
                target[:, start:end] = lengths.T
                self._hash.update("compress_len", lengths.tobytes())
            for column in self._columns:
                self._extend(self._sets[column.path], column.path, self._buffer[column.path][:n])
            self._pending = 0
        for name, pieces in self._pending_logs.items():
            for piece in pieces:
                self._extend(self._logs[name], log_path(name), piece)
            pieces.clear()
        if self._pending_events:
            self._extend(self._events, "events", np.array(self._pending_events, EVENT))
            self._pending_events.clear()
        self._file.flush()
        self._flushed_ns = time.monotonic_ns()

    def _extend(self, target: Any, path: str, values: NDArray[Any]) -> None:
        start = target.shape[0]
        target.resize(start + len(values), 0)
        target[start:] = values
        self._hash.update(path, values.tobytes())

    def sync(self) -> None:
        """Force what was flushed to the disk, against power loss. Blocks; any thread may call."""
        os.fdatasync(self._fd)

    @property
    def bytes(self) -> int:
        """Size of the file so far."""
        return os.fstat(self._fd).st_size

    def fileno(self) -> int:
        """The file's descriptor, for reserving disk space."""
        return self._fd

    def finalise(self, *, ended: str = "stopped", **changes: Any) -> Path:
        """Complete the episode and give it its name; returns the path.

        ``changes`` are fields of ``EpisodeMetadata`` known only now (``success``, ``labeller``,
        ``frames``...). EpisodeError when the file is not what was appended; it then stays as
        ``.part`` and ``recover`` saves what it holds.
        """
        try:
            self._complete(ended, changes)
        finally:  # also drops the lock, so that `recover` can take over
            os.close(self._fd)
        return self.path

    def _complete(self, ended: str, changes: Mapping[str, Any]) -> None:
        self.flush()
        streams = self._hash.streams()
        self.metadata = write_next(
            self._fd,
            self._metadata_at,
            self.metadata.replace(
                ended=ended,
                rows=self.rows,
                streams=streams,
                content_hash=combine(streams),
                **changes,
            ),
        )
        self._file.close()
        self._verify()
        os.fsync(self._fd)
        self._part.rename(self.path)
        files.sync_directory(self.path.parent)

    def _verify(self) -> None:
        with h5py.File(self._part, "r", locking=False) as file:
            paths = [c.path for c in self._columns]
            paths += [image_path(name) for name in self._images]
            paths += [depth_path(name) for name in self._depth]
            wrong = [path for path in paths if file[path].shape[0] != self.rows]
            for name in self._images:
                if file[image_path(name)].id.get_num_chunks() != self.rows:
                    wrong.append(image_path(name))
        if wrong:
            raise EpisodeError(
                f"{self._part} should hold {self.rows} rows and does not in "
                f"{', '.join(sorted(set(wrong)))}; `robot-stack episode recover` saves the rest"
            )

    def discard(self) -> None:
        """Stop and remove the recording."""
        with contextlib.suppress(OSError):  # a full disk: it goes away in any case
            self._file.close()
        self._part.unlink(missing_ok=True)
        os.close(self._fd)
