"""Frames decoded and resized once into a file beside the run; training maps it into memory.

A camera slower than the rows repeats its frames: each is kept once. What is already there for the
same episodes, camera and size is used again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from policies.training.demonstrations import Demonstration, open_frames
from policies.training.windows import Pixels
from robot_stack.contract import CameraInput
from robot_stack.errors import EpisodeError

__all__ = ["Decode", "FrameCache", "Resize"]

Decode = Callable[[bytes], NDArray[np.uint8]]
# RGB uint8 (h, w, 3), height, width -> (height, width, 3)
Resize = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]

RESERVE_BYTES = 1 << 28  # left free on the disk: the run itself needs some


class FrameCache:
    """The frames of one camera of all episodes, uint8 (F, H, W, 3) in ``<directory>/<camera>.u8``.

    EpisodeError when an episode lacks the camera or the disk has no room.
    """

    def __init__(
        self,
        directory: Path,
        camera: CameraInput,
        episodes: Sequence[Demonstration],
        decode: Decode,
        resize: Resize,
        *,
        threads: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.camera = camera
        self._path = directory / f"{camera.name}.u8"
        self._index: dict[Path, NDArray[np.int64]] = {}
        first_rows: dict[Path, NDArray[np.int64]] = {}
        frames = 0
        for one in episodes:
            with open_frames(one.path, camera.name) as source:
                same = source.same[one.first_row : one.first_row + len(one)]
                change = np.diff(same, prepend=same[0] - 1) != 0
                self._index[one.path] = frames + np.cumsum(change) - 1
                first_rows[one.path] = one.first_row + np.flatnonzero(change)
                frames += int(change.sum())
        self._shape = (frames, camera.height, camera.width, 3)
        key = json.dumps(
            {"shape": self._shape, "episodes": [[one.path.name, one.digest] for one in episodes]}
        )
        key_path = self._path.with_suffix(".json")
        if not (self._path.exists() and key_path.exists() and key_path.read_text() == key):
            directory.mkdir(parents=True, exist_ok=True)
            key_path.unlink(missing_ok=True)
            self._room(directory)
            fresh = self._path.with_suffix(".new")
            with fresh.open("wb") as file, ThreadPoolExecutor(threads) as pool:
                done = 0
                for one in episodes:
                    with open_frames(one.path, camera.name) as source:
                        raw = (source[int(row)] for row in first_rows[one.path])
                        for image in pool.map(lambda r: self._ready(r, decode, resize), raw):
                            file.write(image.tobytes())
                            done += 1
                    progress(done, frames)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self._path)
            key_path.write_text(key)
        self._frames = np.memmap(self._path, np.uint8, "r", shape=self._shape)

    def _ready(
        self, raw: bytes | NDArray[np.uint8], decode: Decode, resize: Resize
    ) -> NDArray[np.uint8]:
        image = decode(raw) if isinstance(raw, bytes) else raw
        size = (self.camera.height, self.camera.width, 3)
        if image.shape != size:
            image = resize(image, self.camera.height, self.camera.width)
        return np.ascontiguousarray(image)

    def _room(self, directory: Path) -> None:
        needed = int(np.prod(self._shape)) + RESERVE_BYTES
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise EpisodeError(
                f"the frames of camera {self.camera.name} take {needed / 1e9:.1f} GB at "
                f"{self.camera.width}x{self.camera.height}, {directory} has {free / 1e9:.1f} GB "
                "free; make room, or give data.cameras a smaller size"
            )

    def pixels(self, episodes: Sequence[Demonstration]) -> Pixels:
        """For ``Windows`` over these episodes."""
        frame_of_row = np.concatenate([self._index[one.path] for one in episodes])

        def read(rows: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(self._frames[frame_of_row[rows]])

        return read
