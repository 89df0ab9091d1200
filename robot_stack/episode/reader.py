"""Reads an episode: numpy arrays by name, images one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from robot_stack.episode import files
from robot_stack.episode.digest import ContentHash
from robot_stack.episode.layout import (
    EpisodeSchema,
    columns,
    depth_path,
    image_path,
    log_path,
    read_schema,
    stream_names,
)
from robot_stack.episode.metadata import SLOT_BYTES, EpisodeMetadata, decode_slots, write_next
from robot_stack.errors import EpisodeError

__all__ = ["Decode", "Episode", "Event", "relabel"]

Decode = Callable[[bytes], NDArray[np.uint8]]
HASH_ROWS = 4096


class Event(NamedTuple):
    """Something that happened while recording."""

    t_ns: int
    kind: str
    text: str


class Episode:
    """A finished (or recovered) episode, open for reading. Use it as a context manager.

    Array properties read from the file each time; T rows, D joints. JPEG images need ``decode``,
    a function from JPEG bytes to RGB (H, W, 3): ``collect.jpeg.decode``.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self.file = file
        self.schema: EpisodeSchema = read_schema(file)
        self.metadata: EpisodeMetadata = decode_slots(file["metadata"][:].tobytes())[1]
        self._opened: dict[str, h5py.Dataset] = {}
        self._lengths: NDArray[np.int64] | None = None

    @classmethod
    def open(cls, path: Path | str) -> Episode:
        """Open an episode file; EpisodeError when it is not one, or is still being recorded."""
        path = Path(path)
        if path.suffix == files.PART:
            raise EpisodeError(
                f"{path} is being recorded or its recorder died; "
                "`robot-stack episode recover` saves what it holds"
            )
        try:
            file = h5py.File(path, "r", locking=False)
        except FileNotFoundError:
            raise EpisodeError(f"{path} does not exist") from None
        except OSError as error:
            raise EpisodeError(f"{path} is not a readable HDF5 file: {error}") from error
        try:
            if "metadata" not in file:
                raise EpisodeError(f"{path} is HDF5 but not an episode of robot-stack")
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self.file["t_ns"].shape[0])

    def column(self, path: str) -> NDArray[Any]:
        """A whole row dataset by its path, as in the table of ``layout``."""
        if path not in self.file:
            raise EpisodeError(f"{self.path} has no /{path}")
        values: NDArray[Any] = self.file[path][:]
        return values

    @property
    def t_ns(self) -> NDArray[np.int64]:
        return self.column("t_ns")

    @property
    def qpos(self) -> NDArray[np.float32]:
        """(T, D), in the units of ``metadata.action``."""
        return self.column("observations/qpos")

    @property
    def qvel(self) -> NDArray[np.float32]:
        return self.column("observations/qvel")

    @property
    def effort(self) -> NDArray[np.float32]:
        return self.column("observations/effort")

    @property
    def state_t_ns(self) -> NDArray[np.int64]:
        """(T, robots in the rows): when each state was sampled."""
        return self.column("observations/t_ns")

    @property
    def action(self) -> NDArray[np.float32]:
        """(T, D): what was asked."""
        return self.column("action")

    @property
    def action_sent(self) -> NDArray[np.float32]:
        """(T, D): what was sent."""
        return self.column("action_sent")

    @property
    def source(self) -> NDArray[np.uint8]:
        return self.column("source")

    @property
    def token(self) -> NDArray[np.int64]:
        return self.column("token")

    @property
    def takeover_id(self) -> NDArray[np.int64]:
        return self.column("takeover_id")

    @property
    def chunk_id(self) -> NDArray[np.int64]:
        return self.column("policy/chunk_id")

    @property
    def chunk_index(self) -> NDArray[np.int64]:
        return self.column("policy/chunk_index")

    @property
    def observation_t_ns(self) -> NDArray[np.int64]:
        """(T,) when what the policy's chunk answers was captured, -1 when no policy."""
        if "policy/observation_t_ns" not in self.file:  # recorded before policies ran here
            return np.full(len(self), -1, np.int64)
        return self.column("policy/observation_t_ns")

    @property
    def difference(self) -> NDArray[np.uint32]:
        """(T,) bits of ``types.Difference``."""
        return self.column("difference")

    @property
    def reward(self) -> NDArray[np.float32]:
        return self.column("reward")

    @property
    def terminated(self) -> NDArray[np.bool_]:
        return self.column("terminated").astype(bool)

    @property
    def truncated(self) -> NDArray[np.bool_]:
        return self.column("truncated").astype(bool)

    @property
    def env_state(self) -> NDArray[np.float64] | None:
        """(T, E) of a virtual station, else None."""
        return self.column("env_state") if self.schema.env_dim else None

    @property
    def applied(self) -> NDArray[np.float32] | None:
        """(T, D): what the devices tracked; None where no robot closes a loop of its own."""
        return self.column("tracking/applied") if self.schema.tracks else None

    @property
    def success_rate(self) -> NDArray[np.float32] | None:
        """(T, robots): share of the device's own cycles that had a command in time, or None."""
        return self.column("tracking/success_rate") if self.schema.tracks else None

    @property
    def target_age_s(self) -> NDArray[np.float32] | None:
        """(T, robots): age of the target that the device tracked, or None."""
        return self.column("tracking/target_age_s") if self.schema.tracks else None

    @property
    def fault(self) -> list[str] | None:
        """(T,) what was wrong in each row: faults, reflexes, what was recovered from; or None."""
        if not self.schema.tracks:
            return None
        return [text.decode(errors="replace") for text in self.file["tracking/fault"][:]]

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, alphabetical."""
        return self.schema.camera_names

    def _camera(self, camera: str) -> int:
        if camera not in self.cameras:
            raise EpisodeError(f"{self.path} has no camera {camera!r}, only {self.cameras}")
        return self.cameras.index(camera)

    def frame_t_ns(self, camera: str) -> NDArray[np.int64]:
        """(T,) capture time of the frame that each row holds, -1 before the first."""
        index = self._camera(camera)
        return np.asarray(self.file["frame_t_ns"][:, index])

    def frame_seq(self, camera: str) -> NDArray[np.int64]:
        """(T,) the camera's own number of that frame, -1 before the first."""
        index = self._camera(camera)
        return np.asarray(self.file["frame_seq"][:, index])

    def jpeg(self, camera: str, row: int) -> bytes:
        """The JPEG bytes of a row, without padding."""
        if self.schema.encoding != "jpeg":
            raise EpisodeError(f"{self.path} holds raw images, not JPEG")
        index = self._camera(camera)
        if self._lengths is None:
            self._lengths = self.file["compress_len"][:].astype(np.int64)
        length = int(self._lengths[index, row])
        return bytes(self._dataset(image_path(camera))[row, :length])

    def _dataset(self, path: str) -> h5py.Dataset:
        """A dataset that is read row by row: looking it up costs more than reading a row."""
        dataset = self._opened.get(path)
        if dataset is None:
            dataset = self._opened[path] = self.file[path]
        return dataset

    def image(self, camera: str, row: int, decode: Decode | None = None) -> NDArray[np.uint8]:
        """The RGB image (H, W, 3) of a row; JPEG episodes need ``decode``."""
        self._camera(camera)
        if self.schema.encoding == "raw":
            return np.asarray(self._dataset(image_path(camera))[row])
        if decode is None:
            raise EpisodeError(
                f"{self.path} holds JPEG images: pass decode, e.g. collect.jpeg.decode"
            )
        return decode(self.jpeg(camera, row))

    def images(self, camera: str, decode: Decode | None = None) -> Iterator[NDArray[np.uint8]]:
        """All images of a camera in row order, one in memory at a time."""
        return (self.image(camera, row, decode) for row in range(len(self)))

    def depth(self, camera: str, row: int) -> NDArray[np.uint16]:
        """The depth image (H, W) of a row in millimetres."""
        self._camera(camera)
        if depth_path(camera) not in self.file:
            raise EpisodeError(f"{self.path}: camera {camera} has no depth")
        return np.asarray(self._dataset(depth_path(camera))[row])

    @property
    def robots(self) -> tuple[str, ...]:
        return tuple(robot.name for robot in self.schema.robots)

    def log(self, robot: str) -> NDArray[Any]:
        """Every tick of a robot's loop as a structured array of ``layout.log_record``."""
        if robot not in self.robots:
            raise EpisodeError(f"{self.path} has no robot {robot!r}, only {self.robots}")
        return np.asarray(self.file[log_path(robot)][:])

    @property
    def events(self) -> list[Event]:
        return [
            Event(int(row["t_ns"]), row["kind"].decode(), row["text"].decode(errors="replace"))
            for row in self.file["events"][:]
        ]

    def streams(self, see: Callable[[str, bytes], None] | None = None) -> dict[str, str]:
        """The SHA-256 of every dataset, read from the file again (see ``digest``).

        ``see`` is shown every JPEG on the way, as (camera, data).
        """
        # A column that a newer release has added is absent, and was not part of the hash.
        recorded = [path for path in stream_names(self.schema) if path in self.file]
        digest = ContentHash(recorded)
        for column in columns(self.schema):
            if column.path in self.file:
                self._feed(digest, column.path)
        for name in self.robots:
            self._feed(digest, log_path(name))
        self._feed(digest, "events")
        for name in self.cameras:
            for row in range(len(self)):
                data = self.jpeg(name, row) if self.schema.encoding == "jpeg" else None
                if see is not None and data is not None:
                    see(name, data)
                digest.update(image_path(name), data or self.image(name, row).tobytes())
                if self.schema.cameras[name].depth:
                    pixels = self.depth(name, row).astype("<u2").tobytes()
                    digest.update(depth_path(name), hashlib.sha256(pixels).digest())
        if "compress_len" in self.file:
            digest.update("compress_len", self.file["compress_len"][:].T.tobytes())
        return digest.streams()

    def _feed(self, digest: ContentHash, path: str) -> None:
        data = self.file[path]
        for start in range(0, data.shape[0], HASH_ROWS):
            digest.update(path, data[start : start + HASH_ROWS].tobytes())


def relabel(path: Path | str, **changes: Any) -> EpisodeMetadata:
    """Change metadata of a saved episode in place (``success``, ``labeller``, ``failure_tag``...).

    Content and content hash stay. Safe against being killed; returns what now holds.
    """
    with Episode.open(path) as episode:
        current = episode.metadata.replace(**changes)
        offset = episode.file["metadata"].id.get_offset()
        if offset is None or episode.file["metadata"].shape != (2, SLOT_BYTES):
            raise EpisodeError(f"{path}: /metadata is not the two slots of this format")
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return write_next(fd, offset, current)
    finally:
        os.close(fd)
