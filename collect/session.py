"""A recording session: episodes of one station, one after another, with labels and a trash.

    with RecordingSession(station) as session:
        session.start()
        while operating:
            session.poll()             # every 10 ms or so
        session.stop(success=True)

It only reads shared memory: a stopped or faulted station does not end an episode, it is written
into it as an event. ``collect.record`` is the command around it.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from collect.dataset.labels import label
from collect.dataset.trash import trash
from collect.panel import CameraLine, RobotLine, Snapshot
from collect.recorder import Recorder, SavedEpisode
from collect.recorder_config import RecordedRobot, RecorderConfig
from robot_stack import registry
from robot_stack.client import StationClient
from robot_stack.config import GroupConfig, Station
from robot_stack.episode import next_episode
from robot_stack.errors import ConfigError, EpisodeError, SharedMemoryError
from robot_stack.types import Lifecycle

__all__ = ["Kept", "RecordingSession", "recorded_group", "recorder_config"]

LATENESS_TICKS = 200
MESSAGES = 6
START_TRIES = 16


def recorded_group(station: Station) -> GroupConfig:
    """The group whose commands are the episode's actions; ConfigError when it is not clear."""
    wanted = station.recording.group or (station.teleop.group if station.teleop else "")
    if wanted:
        return station.groups[wanted]
    if len(station.groups) == 1:
        return next(iter(station.groups.values()))
    known = ", ".join(station.groups) or "none"
    raise ConfigError(
        f"{station.path}: recording.group is missing: say whose commands an episode's actions are "
        f"(groups: {known})"
    )


def recorder_config(
    station: Station,
    *,
    directory: Path | None = None,
    encoding: Literal["jpeg", "raw"] | None = None,
    metadata: dict[str, Any] | None = None,
) -> RecorderConfig:
    """What ``station`` says about recording; what is given here takes its place.

    The rows hold the recorded group's robots in its order; all other robots are in the log.
    """
    recording = station.recording
    group = recorded_group(station)
    others = [name for name in station.robots if name not in group.robots]
    robots = []
    for name in [*group.robots, *others]:
        config = station.robots[name]
        spec = registry.load("robot", config.driver).from_config(config, station).spec
        info = {"driver": config.driver, "options": _plain(config.options)}
        robots.append(RecordedRobot(name, spec, in_rows=name in group.robots, info=info))
    return RecorderConfig(
        station=station.station,
        directory=Path(recording.directory) if directory is None else directory,
        robots=tuple(robots),
        cameras={name: camera.spec for name, camera in station.cameras.items()},
        rate_hz=station.rate_hz,
        encoding=recording.encoding if encoding is None else encoding,
        jpeg_quality=recording.jpeg_quality,
        world=station.world is not None,
        max_seconds=recording.max_seconds,
        free_space_floor_bytes=int(recording.free_space_floor_gb * 1e9),
        metadata=metadata or {},
    )


def _plain(value: Any) -> Any:
    """A part of a station file as plain JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _trouble(tick: Any) -> str:
    """The fault or stop of a tick in words, empty when there is none."""
    fault = str(tick["fault"].decode(errors="replace"))
    if fault or not tick["stop"]:
        return fault
    return f"stopped (category {int(tick['stop']) - 1})"


@dataclass(frozen=True, slots=True)
class Kept:
    """A saved episode of this session and what has been said of it."""

    saved: SavedEpisode
    success: bool | None


class RecordingSession:
    """Records episodes of a station into one directory, numbered without a gap.

    ``task`` is the instruction in words, ``operator`` a pseudonym. With ``seconds`` every episode
    is stopped after that time, and labelled by the world if there is one. ``policy`` says what runs
    if no person operates. Opening a session
    recovers what a killed recorder left in the directory (``recovered``). Several sessions may
    record into one directory. Nothing here moves a robot.
    """

    def __init__(
        self,
        station: Station,
        *,
        directory: Path | None = None,
        task: str | None = None,
        operator: str | None = None,
        encoding: Literal["jpeg", "raw"] | None = None,
        seconds: float | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> None:
        self.station = station
        self.task = station.task if task is None else task
        self.operator = operator
        self.session_id = time.strftime("%Y%m%dT%H%M%SZ-", time.gmtime()) + secrets.token_hex(3)
        self.seconds = seconds
        self.group = recorded_group(station)
        metadata = {
            "session": self.session_id,
            "operator": operator,
            "task_id": station.task or None,
            "task": self.task or None,
            "language": task,
            "policy": dict(policy or {}),
        }
        self.config = recorder_config(
            station,
            directory=directory,
            encoding=encoding,
            metadata=metadata,
        )
        self.client = StationClient(station.station)
        self.recorder = Recorder(self.config)
        self.recovered = self.recorder.recovered
        self.kept: list[Kept] = []
        self.discarded = 0
        self.messages: list[tuple[str, str]] = []
        self._troubles: dict[str, str] = {}
        self._began_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; an episode that is being recorded is saved, not labelled."""
        if self.recorder.recording:
            self.stop()
        self.recorder.close()
        self.client.close()

    # -- episodes ----------------------------------------------------------------------------

    @property
    def recording(self) -> bool:
        return self.recorder.recording

    @property
    def last(self) -> Kept | None:
        """The episode saved last that is not in the trash."""
        return self.kept[-1] if self.kept else None

    def start(self, **metadata: Any) -> Path:
        """Begin the next episode; returns the name it will have. ``metadata``: of this one.

        EpisodeError when one is being recorded, a robot or the world sends nothing, or the disk is
        full.
        """
        for _ in range(START_TRIES):
            free = next_episode(self.recorder.directory)
            try:
                path = self.recorder.start(**metadata)
            except EpisodeError:
                # Another recorder may have taken the number between our look and our claim.
                if self.recorder.recording or next_episode(self.recorder.directory) == free:
                    raise
            else:
                self._troubles.clear()
                self._began_s = time.monotonic()
                return path
        raise EpisodeError(f"no free number in {self.recorder.directory}: too many recorders")

    def poll(self) -> SavedEpisode | None:
        """Move what is new to the file; an episode that ended by itself (time, disk) comes back."""
        elapsed_s = time.monotonic() - self._began_s
        if self.recording and self.seconds is not None and elapsed_s >= self.seconds:
            return self.stop(self.world_verdict(), labeller="world")
        saved = self.recorder.poll()
        if saved is not None:
            self.kept.append(Kept(saved, None))
        return saved

    def stop(self, success: bool | None = None, *, labeller: str | None = None) -> SavedEpisode:
        """Save the running episode; None leaves it unlabelled. By default the operator labels."""
        who = (labeller or self.operator or "operator") if success is not None else None
        saved = self.recorder.stop(success, labeller=who)
        self.kept.append(Kept(saved, success))
        return saved

    def discard(self) -> None:
        """Throw the running episode away for good; its number is used again."""
        self.recorder.discard()
        self.discarded += 1

    def label_last(self, success: bool | None) -> Kept:
        """Say (again) whether the episode saved last was a success."""
        kept = self._last()
        label(kept.saved.path, by=self.operator or "operator", success=success)
        self.kept[-1] = replace(kept, success=success)
        return self.kept[-1]

    def trash_last(self) -> Path:
        """Move the episode saved last into the trash; returns where it was."""
        kept = self._last()
        trash(kept.saved.path, by=self.operator or "operator", reason="discarded while recording")
        self.kept.pop()
        self.discarded += 1
        return kept.saved.path

    def _last(self) -> Kept:
        if self.last is None:
            raise EpisodeError("this session has saved no episode yet")
        return self.last

    def world_verdict(self) -> bool | None:
        """Whether the task of a virtual station's world is done now; None without a world."""
        if self.station.world is None:
            return None
        try:
            latest = self.client.ring("world", "world").latest()
        except SharedMemoryError:
            return None
        return None if latest is None else bool(latest[1]["success"])

    # -- what stands where -------------------------------------------------------------------

    def tell(self, text: str, style: str = "") -> None:
        """Add a line to the messages of the panel."""
        self.messages = [*self.messages, (style, text)][-MESSAGES:]

    def troubles(self) -> list[str]:
        """Faults and stops that are new since the last call, in words."""
        now = {}
        for name in self.station.robots:
            try:
                text = _trouble(self.client.tick(name))
            except SharedMemoryError:
                text = "no arm process"
            if text:
                now[name] = text
        fresh = [
            f"{name}: {text}" for name, text in now.items() if self._troubles.get(name) != text
        ]
        self._troubles = now
        return fresh

    def _robot(self, name: str, rate_hz: float, age_ms: float) -> RobotLine:
        nothing = RobotLine(
            name, "absent", rate_hz, age_ms, math.nan, math.nan, 0, "no arm process"
        )
        try:
            ring = self.client.ring("arm", name)
            _, ticks = ring.since(ring.count - LATENESS_TICKS)
        except SharedMemoryError:
            return nothing
        if not ticks:
            return nothing
        late_us = np.array([int(tick["lateness_ns"]) for tick in ticks]) / 1e3
        newest = ticks[-1]
        p50, p99 = np.percentile(late_us, [50, 99])
        state = Lifecycle(int(newest["lifecycle"])).name.lower()
        return RobotLine(
            name, state, rate_hz, age_ms, p50, p99, int(newest["overruns"]), _trouble(newest)
        )

    def _holder(self) -> str:
        """Who may move the recorded group now."""
        try:
            latest = self.client.ring("lease", self.group.name).latest()
        except SharedMemoryError:
            return "nobody: no supervisor"
        if latest is None or time.monotonic_ns() > int(latest[1]["expires_t_ns"]):
            return "nobody"
        lease = latest[1]
        return f"{lease['holder'].decode(errors='replace')} (lease {int(lease['token'])})"

    def snapshot(self, wanted: int | None = None) -> Snapshot:
        """All that the panel shows; ``wanted`` is how many episodes the session shall have."""
        stats = self.recorder.stats()
        path = stats.path or next_episode(self.recorder.directory)
        verdicts = [kept.success for kept in self.kept]
        return Snapshot(
            station=self.station.station,
            task=self.task,
            operator=self.operator or "",
            directory=str(self.recorder.directory),
            state="recording" if stats.recording else "idle",
            episode=path.name.partition(".")[0],
            seconds=stats.seconds,
            max_seconds=min(self.config.max_seconds, self.seconds or math.inf),
            rows=stats.rows,
            row_delay_ms=stats.row_delay_ms,
            robots=[
                self._robot(name, stats.hz[f"robot {name}"], stats.age_ms[f"robot {name}"])
                for name in self.station.robots
            ],
            cameras=[
                CameraLine(
                    name,
                    stats.hz[f"camera {name}"],
                    camera.fps,
                    stats.age_ms[f"camera {name}"],
                    stats.frames[name],
                )
                for name, camera in self.station.cameras.items()
            ],
            mb_per_s=stats.mb_per_s,
            file_mb=stats.file_bytes / 1e6,
            free_gb=stats.free_bytes / 1e9,
            floor_gb=self.station.recording.free_space_floor_gb,
            backlog=stats.encoder_backlog,
            lease=self._holder(),
            saved=len(self.kept),
            wanted=wanted,
            successes=sum(verdict is True for verdict in verdicts),
            failures=sum(verdict is False for verdict in verdicts),
            messages=tuple(self.messages),
        )
