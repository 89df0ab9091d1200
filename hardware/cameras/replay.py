"""A camera that plays what an episode recorded, at the pace it was recorded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from hardware.cameras.base import CameraDriver, sleep_toward
from robot_stack.config import parse
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

if TYPE_CHECKING:
    from robot_stack.config import CameraConfig, Station

__all__ = ["ReplayCamera", "ReplayOptions"]


@dataclass(frozen=True)
class ReplayOptions:
    """``episode``: an HDF5 file. ``camera``: its name there, the same as here by default.
    ``loop``: start over at the end, else end in silence."""

    episode: str
    camera: str | None = None
    loop: bool = True


class ReplayCamera(CameraDriver):
    """Plays each recorded frame once, however many rows hold it.

    ``t_ns`` is the moment of playing, which is when a robot beside it would see the picture;
    ``seq`` keeps the recording's gaps, so frames that were lost then are lost now. When played
    in a loop one recorded period lies between the last frame and the first.
    """

    def __init__(self, spec: CameraSpec, options: ReplayOptions) -> None:
        super().__init__(spec)
        self._path = Path(options.episode)
        self._camera = options.camera or spec.name
        self._loop = options.loop
        self._episode: Episode | None = None
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)
        self._offsets_ns: NDArray[np.int64] = np.empty(0, np.int64)
        self._numbers: NDArray[np.int64] = np.empty(0, np.int64)
        self._start_ns = 0
        self._next = 0
        self._seq_base = 0

    @classmethod
    def from_config(cls, config: CameraConfig, station: Station) -> Self:
        """Options: ``ReplayOptions``."""
        return cls(
            config.spec, parse(ReplayOptions, config.options, f"cameras.{config.name}.options")
        )

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "driver": "replay",
            "serial": None,
            "source": f"{self._path}:{self._camera}",
            "intrinsics": None,
            "clock": "monotonic, as played",
        }

    def connect(self) -> None:
        """Open the episode; DeviceError when it lacks the camera, its size or its depth."""
        self.disconnect()
        try:
            self._episode = Episode.open(self._path)
            self._check(self._episode)
        except EpisodeError as error:
            self.disconnect()
            raise self._error(str(error)) from error
        self._begin(time.monotonic_ns())

    def _check(self, episode: Episode) -> None:
        times = episode.frame_t_ns(self._camera)
        numbers = episode.frame_seq(self._camera)
        layout = episode.schema.cameras[self._camera]
        wanted = (self._spec.width, self._spec.height)
        if (layout.width, layout.height) != wanted:
            raise EpisodeError(
                f"{self._path} holds {layout.width}x{layout.height} images of {self._camera}, not "
                f"{wanted[0]}x{wanted[1]}; correct width and height in the station file"
            )
        if self._spec.depth and not layout.depth:
            raise EpisodeError(f"{self._path}: {self._camera} has no depth; set depth to false")
        fresh = (numbers >= 0) & (np.diff(numbers, prepend=-1) != 0)
        self._rows = np.flatnonzero(fresh)
        if not len(self._rows):
            raise EpisodeError(f"{self._path} holds no frame of {self._camera}")
        self._offsets_ns = times[self._rows] - times[self._rows[0]]
        self._numbers = numbers[self._rows] - numbers[self._rows[0]]

    def _begin(self, start_ns: int) -> None:
        self._start_ns, self._next = start_ns, 0

    def disconnect(self) -> None:
        if self._episode is not None:
            self._episode.close()
            self._episode = None
            self._end_pass()

    def _end_pass(self) -> None:
        """Numbers of the next pass follow on those that were played."""
        if self._next:
            self._seq_base += int(self._numbers[self._next - 1]) + 1

    def read(self, timeout_s: float) -> Frame | None:
        """The next recorded frame when it is due."""
        if self._episode is None:
            raise self._not_connected()
        if self._next == len(self._rows):
            if not self._loop:
                time.sleep(timeout_s)
                return None
            self._end_pass()
            period_ns = round(1e9 / self._spec.fps)
            self._begin(self._start_ns + int(self._offsets_ns[-1]) + period_ns)
        if not sleep_toward(self._start_ns + int(self._offsets_ns[self._next]), timeout_s):
            return None
        t_ns = time.monotonic_ns()
        row = int(self._rows[self._next])
        try:
            image = self._episode.image(self._camera, row, _decode)
            depth = self._episode.depth(self._camera, row) if self._spec.depth else None
        except (EpisodeError, OSError) as error:
            raise self._error(f"row {row} of {self._path}: {error}") from error
        seq = self._seq_base + int(self._numbers[self._next])
        self._next += 1
        return Frame(t_ns, seq, image, depth)


def _decode(data: bytes) -> NDArray[np.uint8]:
    # Episodes hold RGB arrays that were encoded as they were, so this gives RGB back.
    image: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise EpisodeError("a JPEG row does not decode; run `robot-stack episode check`")
    return image
