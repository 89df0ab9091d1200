"""One camera's way into an episode: its ring, its share of the rows, and the JPEG encoder."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from collect import jpeg
from collect.alignment import FrameAssigner
from collect.rings import FrameRef, RingFollower
from robot_stack.episode import Image, PackedDepth, pack_depth
from robot_stack.records import ring_path
from robot_stack.spec import CameraSpec

__all__ = ["CameraChannel", "FrameCounts", "Shot", "encode_shot"]

HISTORY_FRAMES = 3


class Shot(NamedTuple):
    """A frame as it goes into the file."""

    image: Image
    depth: PackedDepth | None
    t_ns: int
    seq: int


class _Encoded(NamedTuple):
    shot: Shot
    quality: int


@dataclass(slots=True)
class FrameCounts:
    """What became of a camera's frames during an episode.

    ``stored`` are in the file. Not in the file: ``dropped`` (more frames than rows)
    and ``lost`` (overwritten before they were read, or numbers that never came). ``repeated`` rows
    hold the frame of the row before, ``missing`` rows have none yet, ``stale_rows`` hold one older
    than ``STALE_S``. ``requantised`` JPEGs were too long at the chosen quality.
    """

    stored: int = 0
    dropped: int = 0
    lost: int = 0
    repeated: int = 0
    missing: int = 0
    stale_rows: int = 0
    requantised: int = 0
    worst_skew_ms: float = 0.0

    @property
    def produced(self) -> int:
        return self.stored + self.dropped + self.lost

    def to_dict(self) -> dict[str, float]:
        return {"produced": self.produced, **asdict(self)}


STALE_S = 0.5


def encode_shot(ref: FrameRef, quality: int | None, limit: int, depth: bool) -> _Encoded | None:
    """Turn a frame in its ring into what the file holds; None when it was overwritten meanwhile.

    Runs in a worker thread. ``quality`` None keeps the pixels raw.
    """
    view = ref.ring.view(ref.index)
    if view is None:
        return None
    pixels = view["image"]
    if quality is None:
        image: Image = np.array(pixels)
        used = 0
    else:
        image, used = jpeg.encode_within(pixels, quality, limit)
    packed = pack_depth(view["depth"]) if depth else None
    if not ref.ring.intact(ref.index):
        return None
    return _Encoded(Shot(image, packed, ref.t_ns, ref.seq), used)


class CameraChannel:
    """Collects the frames of one camera for consecutive rows of one episode at a time."""

    def __init__(self, station: str, spec: CameraSpec, quality: int | None, pool: Executor) -> None:
        self.spec = spec
        self.follower = RingFollower(ring_path(station, "camera", spec.name))
        self.counts = FrameCounts()
        self._quality = quality
        self._pool = pool
        self._limit = 0
        self._assigner = FrameAssigner(0, 1, fps=spec.fps)
        self._jobs: dict[int, Future[_Encoded | None]] = {}
        self._last: Shot | None = None
        self._last_seq = -1
        self._seen_restarts = 0

    def start(self, start_ns: int, period_ns: int, limit: int) -> None:
        """Begin an episode: rows from ``start_ns`` on; JPEGs of at most ``limit`` bytes."""
        self._assigner = FrameAssigner(start_ns, period_ns, fps=self.spec.fps)
        self._start_ns, self._period_ns, self._limit = start_ns, period_ns, limit
        self.counts = FrameCounts()
        self._jobs.clear()
        self._last = self._blank()
        self._last_seq, self._seen_restarts = -1, 0
        # A slow camera's newest frame is what its first rows show.
        self.follower.seek(1 if self._assigner.slow else HISTORY_FRAMES)

    def _blank(self) -> Shot:
        """What a row holds before the first frame: black."""
        black = np.zeros((self.spec.height, self.spec.width, 3), np.uint8)
        depth = None
        if self.spec.depth:
            depth = pack_depth(np.zeros((self.spec.height, self.spec.width), np.uint16))
        image: Image = black if self._quality is None else jpeg.encode(black, self._quality)
        return Shot(image, depth, -1, -1)

    def collect(self) -> None:
        """Take the new frames of the ring and hand those that get a row to the encoder."""
        for ref in self.follower.frames():
            self._count_gap(ref)
            row = self._assigner.offer(ref.t_ns)
            if row is None:
                if ref.t_ns >= self._start_ns:
                    self.counts.dropped += 1
            else:
                self._jobs[row] = self._pool.submit(
                    encode_shot, ref, self._quality, self._limit, self.spec.depth
                )

    def _count_gap(self, ref: FrameRef) -> None:
        """Numbers that never came were lost, by the camera or by reading its ring too late."""
        restarted = self.follower.restarts != self._seen_restarts
        self._seen_restarts = self.follower.restarts
        if self._last_seq >= 0 and not restarted and ref.seq > self._last_seq + 1:
            self.counts.lost += ref.seq - self._last_seq - 1
        self._last_seq = ref.seq

    def ready(self, row: int) -> bool:
        """Whether ``row`` is decided and its frame encoded."""
        job = self._jobs.get(row)
        return self._assigner.row > row and (job is None or job.done())

    def close(self, row: int) -> None:
        """No more waiting for a frame for ``row``; a frame being encoded is still awaited."""
        self._assigner.close(row)

    def take(self, row: int, t_ns: int) -> Shot:
        """The frame of a row that is ``ready``; the one before when it got none."""
        assert self._last is not None
        job = self._jobs.pop(row, None)
        encoded = job.result() if job is not None else None
        if job is not None and encoded is None:
            self.counts.lost += 1
        if encoded is not None:
            self._last = encoded.shot
            self.counts.stored += 1
            self.counts.requantised += self._quality is not None and encoded.quality < self._quality
            skew_ms = abs(t_ns - encoded.shot.t_ns) / 1e6
            self.counts.worst_skew_ms = max(self.counts.worst_skew_ms, skew_ms)
        elif self._last.seq < 0:
            self.counts.missing += 1
        else:
            self.counts.repeated += 1
        if self._last.seq >= 0 and t_ns - self._last.t_ns > STALE_S * 1e9:
            self.counts.stale_rows += 1
        return self._last

    @property
    def backlog(self) -> int:
        """Frames that were handed to the encoder and are not in the file."""
        return len(self._jobs)

    def stop(self) -> None:
        """Forget frames of rows that the episode no longer has."""
        for job in self._jobs.values():
            job.cancel()
        self._jobs.clear()
