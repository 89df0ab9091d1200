"""The flight recorder: the last half minute, written to disk when something goes wrong.

It runs beside the station whether or not anybody records. Ticks need no copying: the arms' rings
hold 30 s of them. Of the cameras it keeps two JPEGs a second in memory. A dump is an episode file
(rows at the rate of the frames, ``/log`` at the arm's own rate), so all episode tools open it.
"""

from __future__ import annotations

import re
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect import jpeg
from collect.channels import Shot
from collect.recorder_config import RecordedRobot, RecorderConfig, describe, schema_of
from collect.rings import RingFollower
from collect.rows import RowBuilder
from collect.space import free_bytes
from collect.watch import fault_reason
from robot_stack.episode import EpisodeWriter, recover_all
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.spec import CameraSpec

__all__ = ["FlightConfig", "FlightRecorder", "run"]

SILENT_NS = 1_000_000_000
SILENT = "no tick for 1 s"
JPEG_QUALITY = 60
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class FlightConfig:
    """What to keep, and how much of it.

    Dumps go to ``directory``/flight, at most ``keep`` of them, the oldest go first; none is begun
    within ``quiet_s`` of the last. ``after_s`` of what follows a fault is waited for. No dump
    when less than ``free_space_floor_bytes`` are free.
    """

    station: str
    directory: Path
    robots: tuple[RecordedRobot, ...]
    cameras: Mapping[str, CameraSpec]
    seconds: float = 30.0
    frame_hz: float = 2.0
    after_s: float = 0.5
    quiet_s: float = 10.0
    keep: int = 20
    free_space_floor_bytes: int = 1_000_000_000
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Trigger:
    t_ns: int
    robot: str
    reason: str


class FlightRecorder:
    """Watches all robots of a station; drive it with ``poll``."""

    def __init__(self, config: FlightConfig) -> None:
        self.config = config
        self.directory = Path(config.directory) / "flight"
        self.directory.mkdir(parents=True, exist_ok=True)
        recover_all(self.directory)
        self._robots = {
            robot.name: RingFollower(ring_path(config.station, "arm", robot.name))
            for robot in config.robots
        }
        for follower in self._robots.values():
            follower.seek(1)
        self._rings: dict[str, deque[Ring]] = {name: deque(maxlen=2) for name in self._robots}
        self._reasons: dict[str, str | None] = {}
        self._cameras = {
            name: RingFollower(ring_path(config.station, "camera", name)) for name in config.cameras
        }
        length = max(round(config.seconds * config.frame_hz), 1)
        self._frames: dict[str, deque[Shot]] = {n: deque(maxlen=length) for n in config.cameras}
        self._period_ns = round(1e9 / config.frame_hz)
        self._framed_ns = 0
        self._trigger: _Trigger | None = None
        self._dumped_ns: int | None = None

    def poll(self) -> Path | None:
        """Look once; call some 20 times a second. Returns the dump when one was written."""
        now = time.monotonic_ns()
        for name, follower in self._robots.items():
            reason = self._look(name, follower, now)
            if reason is not None and self._trigger is None and self._may_dump(now):
                self._trigger = _Trigger(now, name, reason)
        if now - self._framed_ns >= self._period_ns:
            self._framed_ns = now
            self._keep_frames()
        if self._trigger is not None and now - self._trigger.t_ns >= self.config.after_s * 1e9:
            trigger, self._trigger = self._trigger, None
            self._dumped_ns = now
            return self._dump(trigger, now)
        return None

    def _may_dump(self, now: int) -> bool:
        waited = self._dumped_ns is None or now - self._dumped_ns >= self.config.quiet_s * 1e9
        return waited and free_bytes(self.directory) >= self.config.free_space_floor_bytes

    def _look(self, name: str, follower: RingFollower, now: int) -> str | None:
        """Why this robot is in trouble, if it came into it since the last look."""
        records = follower.records()
        self._hold(name, follower.ring)
        if records is None:
            silent = now - follower.last_t_ns > SILENT_NS
            if name in self._reasons and silent and not self._ended(follower):
                return self._change(name, [SILENT])
            return None
        return self._change(name, [fault_reason(tick) for tick in _changes(records)])

    def _change(self, name: str, reasons: list[str | None]) -> str | None:
        """Note the last of ``reasons``; the first that is new. What was so at the start is not."""
        known = name in self._reasons
        before = self._reasons.get(name)
        self._reasons[name] = reasons[-1]
        fresh = (reason for reason in reasons if reason is not None and reason != before)
        return next(fresh, None) if known else None

    @staticmethod
    def _ended(follower: RingFollower) -> bool:
        """Whether the arm process closed its ring itself: shut down, not dead."""
        return follower.ring is not None and follower.ring.closed

    def _hold(self, name: str, ring: Ring | None) -> None:
        """Keep the ring of a dead arm process beside that of its successor."""
        held = self._rings[name]
        if ring is not None and (not held or held[-1] is not ring):
            held.append(ring)

    def _keep_frames(self) -> None:
        for name, follower in self._cameras.items():
            frames = follower.frames()
            if not frames:
                continue
            last = frames[-1]
            view = last.ring.view(last.index)
            if view is None:
                continue
            data = jpeg.encode(view["image"], JPEG_QUALITY)
            if last.ring.intact(last.index):
                self._frames[name].append(Shot(data, None, last.t_ns, last.seq))

    def _dump(self, trigger: _Trigger, now: int) -> Path:
        first = now - round(self.config.seconds * 1e9)
        rows = RowBuilder(self.config.robots, None)
        logs = []
        for name, rings in self._rings.items():
            for ring in rings:
                log = _history(ring, first)
                rows.add(name, log)
                logs.append((name, log))
        config = RecorderConfig(
            station=self.config.station,
            directory=self.directory,
            robots=self.config.robots,
            cameras={
                name: CameraSpec(name, spec.width, spec.height, spec.fps)
                for name, spec in self.config.cameras.items()
            },
            rate_hz=self.config.frame_hz,
            metadata=self.config.metadata,
        )
        extra = {"reason": trigger.reason, "robot": trigger.robot, "trigger_t_ns": trigger.t_ns}
        metadata = describe(config, {}, {}, {"extra": extra})
        writer = EpisodeWriter(self._name(trigger), schema_of(config, 0), metadata)
        try:
            for name, log in logs:
                writer.append_log(name, log)
            writer.event(trigger.t_ns, "fault", f"{trigger.robot}: {trigger.reason}")
            black = {
                name: Shot(_black(spec), None, -1, -1) for name, spec in config.cameras.items()
            }
            for t_ns in range(first, now, self._period_ns):
                shots = {
                    name: next((s for s in reversed(frames) if s.t_ns <= t_ns), black[name])
                    for name, frames in self._frames.items()
                }
                writer.append(rows.build(t_ns, shots))
        except BaseException:
            writer.discard()
            raise
        path = writer.finalise(ended="flight")
        self._prune()
        return path

    def _name(self, trigger: _Trigger) -> Path:
        utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        slug = re.sub(r"[^a-z0-9]+", "-", f"{trigger.robot} {trigger.reason}".lower()).strip("-")
        return self.directory / f"{utc}-{slug[:60]}.hdf5"

    def _prune(self) -> None:
        dumps = sorted(self.directory.glob("*.hdf5"), key=lambda path: path.stat().st_mtime)
        for path in dumps[: -self.config.keep]:
            path.unlink()


def _black(spec: CameraSpec) -> bytes:
    return jpeg.encode(np.zeros((spec.height, spec.width, 3), np.uint8), JPEG_QUALITY)


def _changes(records: NDArray[Any]) -> Iterable[Any]:
    """The last tick, and before it those in which lifecycle or fault changed."""
    differs = (records["lifecycle"][1:] != records["lifecycle"][:-1]) | (
        records["fault"][1:] != records["fault"][:-1]
    )
    chosen = sorted({0, *(np.flatnonzero(differs) + 1).tolist(), len(records) - 1})
    return [records[index] for index in chosen]


def _history(ring: Ring, first_t_ns: int) -> NDArray[Any]:
    """All ticks in the ring from ``first_t_ns`` on, oldest first."""
    count = ring.count
    begin = max(count - ring.slots + 1, 0)
    out = np.empty(count - begin, ring.dtype)
    kept = [j for j in range(len(out)) if ring.read(begin + j, out[j : j + 1]) is not None]
    out = out[kept]
    return out[out["t_ns"] >= first_t_ns]


def run(config: FlightConfig) -> None:
    """Watch until SIGTERM or SIGINT: the entry point of a process."""
    running = True

    def end(*_: object) -> None:
        nonlocal running
        running = False

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    recorder = FlightRecorder(config)
    while running:
        path = recorder.poll()
        if path is not None:
            print(f"flight recorder: {path}", flush=True)
        time.sleep(POLL_S)
