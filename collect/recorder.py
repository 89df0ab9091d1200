"""The recorder: reads a station's rings and writes episodes, one row a control step.

It runs in a process of its own and touches no device, so it may die at any moment: the robot does
not notice, and what it had flushed is recovered by the next recorder in that directory.

    with Recorder(config) as recorder:
        recorder.start(task="transfer the cube")
        while operating:
            recorder.poll()            # every 10 ms or so
        recorder.stop(success=True)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from collect.channels import CameraChannel
from collect.recorder_config import (
    RecordedRobot,
    RecorderConfig,
    describe,
    refuse_mismatch,
    schema_of,
    software,
)
from collect.recorder_stats import RateMeter, RecorderStats
from collect.rings import RingFollower
from collect.rows import RowBuilder
from collect.space import SpaceGuard, free_bytes
from collect.watch import SILENT_NS, CameraWatch, RobotWatch
from robot_stack.episode import EpisodeWriter, Recovery, next_episode, recover_all
from robot_stack.errors import EpisodeError
from robot_stack.records import ring_path

__all__ = [
    "RecordedRobot",
    "Recorder",
    "RecorderConfig",
    "RecorderStats",
    "SavedEpisode",
    "prioritise",
]

HISTORY_TICKS = 64  # enough for the state before row 0 at any loop rate
FLUSH_NS = 100_000_000
SYNC_NS = 1_000_000_000
DRAIN_S = 2.0  # longer than any encoder backlog that the rings can hold
# What is started from here does not inherit it.
PRIORITISED = os.SCHED_RR | os.SCHED_RESET_ON_FORK


@dataclass(frozen=True, slots=True)
class SavedEpisode:
    """An episode that is complete on disk; ``save_s`` is how long completing it took."""

    path: Path
    rows: int
    seconds: float
    ended: str
    frames: Mapping[str, Mapping[str, float]]
    save_s: float


def prioritise() -> bool:
    """Put this thread before ordinary ones; the threads of a ``Recorder`` that it makes then too.

    The lowest real-time priority: a recorder that gets no processor for a second loses frames, and
    it needs little, but every device loop goes first. (Niceness would not do: the kernel weighs it
    within a terminal's session only.) A program that it starts is an ordinary one: imports at this
    priority take the processors for a tenth of a second from the kernel's own threads, which hand
    on the bytes of serial ports, and arms go without an answer. False where it is not permitted;
    `robot-stack doctor` tells how to permit it.
    """
    try:
        os.sched_setscheduler(0, PRIORITISED, os.sched_param(1))
    except PermissionError:
        return False
    return True


class Recorder:
    """Writes one episode after another. Drive it with ``poll``; never blocks but in ``stop``."""

    def __init__(self, config: RecorderConfig) -> None:
        self.config = config
        self.directory = Path(config.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.recovered: list[Recovery] = recover_all(self.directory)
        self._period_ns = round(1e9 / config.rate_hz)
        self._delay_ns = round(config.delay_s * 1e9)
        alike = prioritise if os.sched_getscheduler(0) == PRIORITISED else None
        self._encoders = ThreadPoolExecutor(2, "encode", alike)
        self._syncer = ThreadPoolExecutor(1, "sync", alike)
        quality = config.jpeg_quality if config.encoding == "jpeg" else None
        self._cameras = {
            name: CameraChannel(config.station, spec, quality, self._encoders)
            for name, spec in sorted(config.cameras.items())
        }
        self._robots = {
            robot.name: RingFollower(ring_path(config.station, "arm", robot.name))
            for robot in config.robots
        }
        self._world = RingFollower(ring_path(config.station, "world", "world"))
        self._software = software()
        self._rates = RateMeter()
        self._disk = (0, 0, 0.0)  # time, bytes, MB/s
        self._writer: EpisodeWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def recording(self) -> bool:
        return self._writer is not None

    def _followers(self) -> dict[str, RingFollower]:
        followers = {f"robot {name}": follower for name, follower in self._robots.items()}
        followers |= {f"camera {name}": c.follower for name, c in self._cameras.items()}
        return followers | ({"world": self._world} if self.config.world else {})

    def silent(self) -> list[str]:
        """``robot NAME``, ``camera NAME`` and ``world`` that send nothing now."""
        now = time.monotonic_ns()
        return [name for name, f in self._followers().items() if now - f.newest_t_ns() > SILENT_NS]

    def start(self, **metadata: Any) -> Path:
        """Begin the next episode now; ``metadata`` are fields of ``EpisodeMetadata``.

        EpisodeError when one is being recorded, a robot in the rows or the world sends nothing, or
        the disk is full. Silent cameras don't hinder: their rows are black until a frame comes, so
        ask ``silent`` first where that is not wanted.
        """
        if self._writer is not None:
            raise EpisodeError(f"{self._writer.path} is being recorded; stop or discard it first")
        quiet = self.silent()
        self._require(quiet)
        world = self._world.ring.dtype if self.config.world and self._world.ring else None
        schema = schema_of(self.config, world["env_state"].shape[0] if world else 0)
        info = {
            name: channel.follower.ring.meta
            for name, channel in self._cameras.items()
            if channel.follower.ring is not None
        }
        described = describe(self.config, info, self._software, metadata)
        writer = EpisodeWriter(next_episode(self.directory), schema, described)
        space = SpaceGuard(self.directory, self.config.free_space_floor_bytes)
        if shortage := space.shortage(writer.fileno()):
            writer.discard()
            raise EpisodeError(f"no room to record: {shortage}; free space or lower the floor")
        for follower in (*self._robots.values(), self._world):
            follower.seek(HISTORY_TICKS)
        self._space = space
        self._next_row = 0
        self._start_ns = self._flushed_ns = self._synced_ns = time.monotonic_ns()
        self._sync_job: Future[None] | None = None
        self._disk = (self._start_ns, 0, 0.0)
        self._rows = RowBuilder(self.config.robots, world)
        self._robot_watch = {
            robot.name: RobotWatch(robot.name, robot.spec.names, writer.event)
            for robot in self.config.robots
        }
        self._camera_watch = {}
        for name, channel in self._cameras.items():
            channel.start(self._start_ns, self._period_ns, schema.jpeg_bytes(name))
            self._camera_watch[name] = CameraWatch(name, channel.spec.fps, writer.event)
        self._writer = writer
        for name in quiet:
            writer.event(self._start_ns, "silent_at_start", name)
        return writer.path

    def _require(self, quiet: list[str]) -> None:
        """EpisodeError when what every row needs is silent or of another shape."""
        rows = [robot for robot in self.config.robots if robot.in_rows]
        needed = {f"robot {robot.name}" for robot in rows} | {"world"}
        if missing := [name for name in quiet if name in needed]:
            raise EpisodeError(
                f"nothing comes from {', '.join(missing)}; start the station "
                "(`robot-stack serve`) and see `robot-stack status`"
            )
        rings = {name: f.ring for name, f in self._robots.items() if f.ring is not None}
        rings |= {n: c.follower.ring for n, c in self._cameras.items() if c.follower.ring}
        refuse_mismatch(self.config, rings)

    def event(self, kind: str, text: str) -> None:
        """Put a remark into the episode, stamped now."""
        if self._writer is not None:
            self._writer.event(time.monotonic_ns(), kind, text)

    def poll(self) -> SavedEpisode | None:
        """Move what is new from the rings to the file.

        Call every 10 ms or so; a second's pause is made up for. Returns the episode when it ended
        by itself: at ``max_seconds`` or for want of disk space.
        """
        if self._writer is None:
            return None
        now = time.monotonic_ns()
        if now - self._flushed_ns >= FLUSH_NS or self._space.due(self._writer.bytes):
            self._flushed_ns = now
            if shortage := self._space.shortage(self._writer.fileno()):
                self._writer.event(now, "disk_full", shortage)
                return self._end("disk_full", {}, self._last_row(now))
        self._collect(now)
        last = round(self.config.max_seconds * self.config.rate_hz) - 1
        self._emit(now, last)
        if self._flushed_ns == now:
            self._writer.flush()
            self._sync(now)
        if self._next_row > last:
            return self._end("max_seconds", {}, last)
        return None

    def _last_row(self, now_ns: int) -> int:
        return (now_ns - self._start_ns) // self._period_ns

    def _collect(self, now: int) -> None:
        assert self._writer is not None
        for name, follower in self._robots.items():
            records = follower.records()
            if records is not None:
                self._rows.add(name, records)
                self._writer.append_log(name, records[records["t_ns"] >= self._start_ns])
                self._robot_watch[name].see(records, follower.restarts)
            self._robot_watch[name].look(now, follower.last_t_ns)
        if self.config.world and (records := self._world.records()) is not None:
            self._rows.add_world(records)
        for name, channel in self._cameras.items():
            channel.collect()
            follower = channel.follower
            self._camera_watch[name].look(
                now, self._start_ns, follower.last_t_ns, follower.restarts
            )

    def _emit(self, now: int, last: int) -> None:
        """Write the rows up to ``last`` that are complete, or too old to wait for, as far as the
        disk has been looked at."""
        assert self._writer is not None
        while self._next_row <= last and not self._space.due(self._writer.bytes):
            t_ns = self._start_ns + self._next_row * self._period_ns
            if t_ns > now:
                return
            late = now - t_ns >= self._delay_ns
            if late:
                for channel in self._cameras.values():
                    channel.close(self._next_row)
            if not all(channel.ready(self._next_row) for channel in self._cameras.values()):
                return
            if not late and not self._rows.complete(t_ns):
                return
            shots = {name: c.take(self._next_row, t_ns) for name, c in self._cameras.items()}
            self._writer.append(self._rows.build(t_ns, shots))
            self._next_row += 1

    def _sync(self, now: int) -> None:
        """Push to the disk once a second, in a thread: power may fail too."""
        assert self._writer is not None
        if now - self._synced_ns >= SYNC_NS and (self._sync_job is None or self._sync_job.done()):
            if self._sync_job is not None:
                self._sync_job.result()
            self._synced_ns = now
            self._sync_job = self._syncer.submit(self._writer.sync)
            self._disk = (
                now,
                self._writer.bytes,
                (self._writer.bytes - self._disk[1]) / max(now - self._disk[0], 1) * 1e3,
            )

    def stop(
        self,
        success: bool | None = None,
        *,
        labeller: str | None = None,
        failure_tag: str | None = None,
        **metadata: Any,
    ) -> SavedEpisode:
        """End the episode with the row of now, complete it and give it its name.

        Blocks for the rows still on their way (at most ``delay_s`` and the encoder's backlog).
        EpisodeError when nothing is being recorded or the file is not what it should be.
        """
        if self._writer is None:
            raise EpisodeError("nothing is being recorded")
        changes = {
            "success": success,
            "labeller": labeller,
            "failure_tag": failure_tag,
            **metadata,
        }
        return self._end("stopped", changes, self._last_row(time.monotonic_ns()))

    def _end(self, ended: str, changes: Mapping[str, Any], last: int) -> SavedEpisode:
        assert self._writer is not None
        began = time.monotonic()
        while self._next_row <= last and time.monotonic() - began < self.config.delay_s + DRAIN_S:
            now = time.monotonic_ns()
            due = self._space.due(self._writer.bytes)
            if due and (shortage := self._space.shortage(self._writer.fileno())):
                if ended != "disk_full":
                    self._writer.event(now, "disk_full", shortage)
                ended = "disk_full"
                break
            self._collect(now)
            self._emit(now, last)
            if self._next_row <= last:
                time.sleep(0.002)
        writer, self._writer = self._writer, None
        for channel in self._cameras.values():
            channel.stop()
        if self._sync_job is not None:
            self._sync_job.result()
        frames = {name: channel.counts.to_dict() for name, channel in self._cameras.items()}
        path = writer.finalise(
            ended=ended,
            frames=frames,
            human_seconds=self._rows.human_rows / self.config.rate_hz,
            interventions=self._rows.takeovers,
            **changes,
        )
        self._space.release(path)
        return SavedEpisode(
            path=path,
            rows=writer.rows,
            seconds=writer.rows / self.config.rate_hz,
            ended=ended,
            frames=frames,
            save_s=time.monotonic() - began,
        )

    def discard(self) -> None:
        """Throw the running episode away; its number is used again."""
        if self._writer is None:
            raise EpisodeError("nothing is being recorded")
        writer, self._writer = self._writer, None
        for channel in self._cameras.values():
            channel.stop()
        if self._sync_job is not None:
            self._sync_job.result()
        writer.discard()

    def stats(self) -> RecorderStats:
        """Where things stand now."""
        now = time.monotonic_ns()
        writer = self._writer
        behind = now - self._start_ns - self._next_row * self._period_ns if writer else 0
        followers = self._followers()
        ages = {name: (now, f.newest_t_ns()) for name, f in followers.items()}
        return RecorderStats(
            recording=writer is not None,
            path=writer.path if writer else None,
            rows=writer.rows if writer else 0,
            seconds=(now - self._start_ns) / 1e9 if writer else 0.0,
            hz={name: self._rates.of(name, f.count, now) for name, f in followers.items()},
            age_ms={name: (a - b) / 1e6 if b >= 0 else math.nan for name, (a, b) in ages.items()},
            frames={name: channel.counts.to_dict() for name, channel in self._cameras.items()},
            encoder_backlog=sum(channel.backlog for channel in self._cameras.values()),
            row_delay_ms=max(behind, 0) / 1e6,
            file_bytes=writer.bytes if writer else 0,
            mb_per_s=self._disk[2] if writer else 0.0,
            free_bytes=free_bytes(self.directory),
        )

    def close(self) -> None:
        """End the process's part; an episode that is being recorded is saved as it is."""
        if self._writer is not None:
            self._end("interrupted", {}, self._last_row(time.monotonic_ns()))
        self._encoders.shutdown()
        self._syncer.shutdown()
