"""What a page shows of one camera: its newest frame as JPEG, and how the frames come."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring, runtime_dir

__all__ = ["CameraFeed", "CameraStatus", "FeedState", "camera_rings"]

STALE_S = 0.5  # or three periods, if that is longer
REOPEN_S = 1.0
JPEG_QUALITY = 80
MAX_WIDTH = 1280  # wider frames are scaled down for the page


class FeedState(StrEnum):
    """``waiting``: no camera process has published yet; ``stale``: the newest frame is old;
    ``ended``: the camera process ended properly."""

    WAITING = "waiting"
    LIVE = "live"
    STALE = "stale"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """``dropped`` counts numbers that the camera gave and nobody saw, since this feed attached.
    What is unknown is None."""

    name: str
    state: FeedState
    width: int | None = None
    height: int | None = None
    seq: int | None = None
    age_s: float | None = None
    fps: float | None = None
    dropped: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def camera_rings(station: str) -> list[str]:
    """Names of the cameras that have ever published in this station, sorted."""
    files = runtime_dir(station).glob("camera.*")
    return sorted(f.name.removeprefix("camera.") for f in files if f.suffix != ".lock")


class CameraFeed:
    """Follows one camera's ring through restarts of its process; never writes to it."""

    def __init__(self, station: str, name: str) -> None:
        self.name = name
        self.version = 0  # grows with each new ``jpeg``
        self.jpeg: bytes | None = None
        self._path = ring_path(station, "camera", name)
        self._ring: Ring | None = None
        self._base: tuple[int, int] | None = None  # index and seq that drops are counted from
        self._dropped_before = 0
        self._shown = -1
        self._checked = 0.0

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def poll(self, *, encode: bool = True) -> CameraStatus:
        """Look at the ring: the camera's status, and with ``encode`` a new ``jpeg`` if there is
        a new frame."""
        ring = self._attach()
        if ring is None:
            return CameraStatus(self.name, FeedState.WAITING)
        status = self._status(ring)
        if status.state != FeedState.LIVE and time.monotonic() - self._checked > REOPEN_S:
            self._checked = time.monotonic()
            if ring.reopen():
                self._dropped_before = status.dropped
                self._base, self._shown = None, -1
                status = self._status(ring)
        if encode and ring.count:
            self._encode(ring)
        return status

    def image(self) -> NDArray[np.uint8] | None:
        """A copy of the newest frame, RGB (H, W, 3); None before the first."""
        newest = self._ring.latest() if self._ring is not None else None
        return None if newest is None else np.asarray(newest[1]["image"])

    def _attach(self) -> Ring | None:
        if self._ring is None:
            try:
                self._ring = Ring(self._path)
            except SharedMemoryError:
                return None
        return self._ring

    def _status(self, ring: Ring) -> CameraStatus:
        if not ring.count:
            return CameraStatus(self.name, FeedState.WAITING)
        index, record = self._newest(ring)
        t_ns, seq = int(record["t_ns"]), int(record["seq"])
        if self._base is None:
            self._base = (index, seq)
        age_s = (time.monotonic_ns() - t_ns) / 1e9
        rate = float(ring.meta.get("fps") or 30.0)
        state = FeedState.LIVE
        if ring.closed:
            state = FeedState.ENDED
        elif age_s > max(STALE_S, 3 / rate):
            state = FeedState.STALE
        height, width = record["image"].shape[:2]
        return CameraStatus(
            self.name,
            state,
            width,
            height,
            seq,
            age_s,
            self._rate(ring, index, t_ns) if state == FeedState.LIVE else None,
            self._dropped_before + (seq - self._base[1]) - (index - self._base[0]),
        )

    @staticmethod
    def _newest(ring: Ring) -> tuple[int, Any]:
        """The newest record in place. Its small fields are read at once, and a ring holds many
        more frames than can come meanwhile."""
        while True:
            index = ring.count - 1
            record = ring.view(index)
            if record is not None:
                return index, record

    @staticmethod
    def _rate(ring: Ring, index: int, t_ns: int) -> float | None:
        """Frames a second over what the ring holds, at most the last two seconds."""
        oldest = max(index - ring.slots + 3, 0)
        for first in range(oldest, index):
            record = ring.view(first)
            if record is None:
                continue
            span_s = (t_ns - int(record["t_ns"])) / 1e9
            if ring.intact(first) and 0 < span_s <= 2:
                return (index - first) / span_s
        return None

    def _encode(self, ring: Ring) -> None:
        index, record = self._newest(ring)
        if index == self._shown:
            return
        image = cv2.cvtColor(record["image"], cv2.COLOR_RGB2BGR)
        if not ring.intact(index):  # overwritten while it was copied: the next one then
            return
        height, width = image.shape[:2]
        if width > MAX_WIDTH:
            size = (MAX_WIDTH, round(height * MAX_WIDTH / width))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        encoded, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if encoded:
            self.jpeg = data.tobytes()
            self.version += 1
            self._shown = index
