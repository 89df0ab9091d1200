"""The cameras as the teleoperation page shows them: the newest frame of each ring as JPEG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2

from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring

__all__ = ["LARGE", "SMALL", "CameraView", "Picture", "Size"]


@dataclass(frozen=True, slots=True)
class Size:
    """How a frame is sent: at most ``width`` pixels wide."""

    width: int
    quality: int


LARGE = Size(800, 75)  # 640 x 480: 4 ms of one core, about 40 kB
SMALL = Size(240, 60)


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame as JPEG; ``t_ns`` is when it was captured."""

    t_ns: int
    jpeg: bytes


class CameraView:
    """One camera's ring, followed through restarts of its process; never written to.

    Two people who look at the same camera cost one encoding. Belongs to one thread.
    """

    def __init__(self, station: str, name: str) -> None:
        self.name = name
        self._path = ring_path(station, "camera", name)
        self._ring: Ring | None = None
        self._made: dict[Size, tuple[int, int, Picture]] = {}

    def newest(self, size: Size, after_t_ns: int) -> Picture | None:
        """The newest frame, None when there is none that was captured after ``after_t_ns``."""
        ring = self._attach()
        if ring is None or not ring.count:
            return None
        index = ring.count - 1
        made = self._made.get(size)
        if made is not None and made[:2] == (ring.generation, index):
            picture = made[2]
        else:
            fresh = self._encode(ring, index, size)
            if fresh is None:
                return None
            picture = fresh
            self._made[size] = (ring.generation, index, picture)
        return picture if picture.t_ns > after_t_ns else None

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def _attach(self) -> Ring | None:
        try:
            if self._ring is None:
                self._ring = Ring(self._path)
            elif self._ring.closed:
                self._ring.reopen()
        except SharedMemoryError:
            return None
        return self._ring

    @staticmethod
    def _encode(ring: Ring, index: int, size: Size) -> Picture | None:
        """Record ``index`` as a picture; None when it was overwritten meanwhile."""
        record = ring.view(index)
        if record is None:
            return None
        t_ns, image = int(record["t_ns"]), record["image"]
        height, width = image.shape[:2]
        if width > size.width:
            smaller = (size.width, max(1, round(height * size.width / width)))
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        if not ring.intact(index):
            return None
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, size.quality])
        return Picture(t_ns, data.tobytes())
