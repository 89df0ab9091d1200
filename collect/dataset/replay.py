"""Sends an episode's commands through the control server again, and measures how they are followed.

The commands take the path of every other command: lease, mailbox, guard, SafetyFilter. What is
sent is ``/action_sent``, which the filter let pass once. The robots first go to the first row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.streaming import LEAD_S, approach, approach_seconds, stream
from robot_stack.client import Lease, StationClient
from robot_stack.episode import Episode
from robot_stack.errors import ControlPlaneError, EpisodeError, LeaseError, SharedMemoryError
from robot_stack.types import Difference, Lifecycle, Source

__all__ = ["JointError", "Recording", "Replay", "ReplayResult", "load_recording", "matching_group"]

Array = NDArray[np.float64]

ABSOLUTE = "absolute joint position"
REACHED = 0.03  # of the first row, in the joints' units


@dataclass(frozen=True, slots=True)
class Recording:
    """What a replay needs of an episode: robots in row order, and the commands (T, D)."""

    robots: tuple[str, ...]
    joints: dict[str, tuple[str, ...]]
    embodiments: dict[str, str]
    units: dict[str, tuple[str, ...]]
    rate_hz: float
    commands: Array
    qpos: Array

    @property
    def names(self) -> list[str]:
        """``robot/joint`` of each column."""
        return [f"{robot}/{joint}" for robot in self.robots for joint in self.joints[robot]]

    @property
    def column_units(self) -> list[str]:
        return [unit for robot in self.robots for unit in self.units[robot]]


@dataclass(frozen=True, slots=True)
class JointError:
    """How one joint followed: replayed measurement less command, and less the recorded one."""

    joint: str
    unit: str
    command_rms: float
    command_max: float
    recorded_rms: float
    recorded_max: float


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """``rows`` of ``total`` were played; ``differences`` counts ticks in which the filter changed
    a command, by reason; ``ended`` is why it ended: ``played`` or ``interrupted``."""

    ended: str
    rows: int
    total: int
    speed: float
    seconds: float
    joints: tuple[JointError, ...]
    differences: dict[str, int]


def load_recording(episode: Episode) -> Recording:
    """The commands of an episode. EpisodeError when they are unknown or the robots undescribed.

    Rows at the start and end without a command are left out; one in between is refused.
    """
    sent = episode.action_sent.astype(np.float64)
    known = np.flatnonzero(np.isfinite(sent).all(axis=1))
    if len(known) < 2:
        raise EpisodeError(f"{episode.path} holds no commands: /action_sent is unknown everywhere")
    first, last = int(known[0]), int(known[-1])
    if len(known) != last - first + 1:
        gap = int(np.setdiff1d(np.arange(first, last), known)[0])
        raise EpisodeError(
            f"{episode.path}: /action_sent is unknown in row {gap} amid known ones; an episode "
            "with a hole is not replayed"
        )
    robots = episode.schema.row_robots
    described, action = episode.metadata.robots, episode.metadata.action
    units = tuple(action.get("units", ()))
    if action.get("kind") != ABSOLUTE or tuple(action.get("names", ())) != (
        episode.schema.joint_names
    ):
        raise EpisodeError(
            f"{episode.path}: its actions are {action.get('kind', 'not described')}; only "
            f"{ABSOLUTE}s, in the order of /joint_names, can be replayed"
        )
    missing = [r.name for r in robots if not described.get(r.name, {}).get("embodiment")]
    if missing or len(units) != sent.shape[1]:
        raise EpisodeError(
            f"{episode.path} does not say which embodiment and units "
            f"{', '.join(missing) or 'its robots'} has, so it can't be checked against a station"
        )
    column, unit_of = 0, {}
    for robot in robots:
        unit_of[robot.name] = units[column : column + len(robot.joints)]
        column += len(robot.joints)
    return Recording(
        robots=tuple(robot.name for robot in robots),
        joints={robot.name: robot.joints for robot in robots},
        embodiments={robot.name: described[robot.name]["embodiment"] for robot in robots},
        units=unit_of,
        rate_hz=episode.schema.rate_hz,
        commands=sent[first : last + 1],
        qpos=episode.qpos[first : last + 1].astype(np.float64),
    )


def matching_group(recording: Recording, description: dict[str, Any]) -> str:
    """The group of a station (its ``describe`` answer) that the recording's commands fit.

    EpisodeError names the first thing that differs: robots, embodiment, joints or their order,
    units.
    """
    groups = description["groups"]
    name = next(
        (key for key, group in groups.items() if tuple(group["robots"]) == recording.robots), None
    )
    if name is None:
        offered = "; ".join(f"{key}: {', '.join(g['robots'])}" for key, g in groups.items())
        raise EpisodeError(
            f"the episode moves {', '.join(recording.robots)} in this order, and no group of "
            f"station {description['station']!r} does ({offered})"
        )
    for robot in recording.robots:
        here = description["robots"][robot]
        pairs = [
            ("embodiment", recording.embodiments[robot], here["embodiment"]),
            ("joints", list(recording.joints[robot]), list(here["joints"])),
            ("units", list(recording.units[robot]), list(here["units"])),
        ]
        for what, recorded, offered in pairs:
            if recorded != offered:
                raise EpisodeError(
                    f"{robot}: the episode was recorded with {what} {recorded}, this station has "
                    f"{offered}; replay it on the robot that it was made with"
                )
    return str(name)


class Replay:
    """One replay on one station: ``run`` takes the lease, arms, moves, plays and releases.

    ``say`` gets a line when a new phase begins. Whatever ends it, the lease is given back and the
    arms decelerate and hold; if this process is killed they do so within
    ``collect.streaming.WINDOW_S`` and the group's staleness limit.
    """

    def __init__(
        self,
        recording: Recording,
        client: StationClient,
        *,
        speed: float = 1.0,
        say: Callable[[str], None] = print,
    ) -> None:
        if not 0.1 <= speed <= 1.0:
            raise EpisodeError(f"replay speed {speed:g} is out of range, allowed 0.1..1.0")
        self.recording = recording
        self.client = client
        self.speed = speed
        self.say = say
        self.group = matching_group(recording, client.describe())
        self._next_tick: dict[str, int] = {}
        self._measured: dict[str, list[tuple[int, Array]]] = {r: [] for r in recording.robots}
        self._differences: dict[str, int] = {}

    def run(self, cancelled: Callable[[], bool] = lambda: False) -> ReplayResult:
        """Play the recording once. ControlPlaneError or LeaseError when the station objects.

        ``cancelled`` is asked often; True ends the replay at once.
        """
        commands = self.recording.commands
        period_s = 1.0 / (self.recording.rate_hz * self.speed)
        with self.client.lease(self.group, "replay", source=Source.REPLAY) as lease:
            self.client.request(
                "arm", {"group": self.group}, timeout_s=40.0, keep=lambda: self._keep(lease)
            )
            self._to_start(lease, cancelled)
            self.say(f"playing {len(commands)} rows at {self.speed:g} times the recorded speed")
            self._follow_ticks()
            start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
            turn = self._turn(lease, cancelled)
            done = stream(lease, commands, start_ns, period_s, turn)
            elapsed = max(0.0, (time.monotonic_ns() - start_ns) / 1e9)
        return ReplayResult(
            ended="played" if done == len(commands) else "interrupted",
            rows=done,
            total=len(commands),
            speed=self.speed,
            seconds=elapsed,
            joints=self._errors(done, start_ns, period_s),
            differences=dict(sorted(self._differences.items())),
        )

    def _keep(self, lease: Lease) -> None:
        lease.renew()
        if lease.lost is not None:
            raise LeaseError(f"the replay ended, group {self.group!r}: {lease.lost}")

    def _sent(self) -> Array:
        return np.concatenate([self.client.tick(r)["sent"] for r in self.recording.robots])

    def _to_start(self, lease: Lease, cancelled: Callable[[], bool]) -> None:
        goal = self.recording.commands[0]
        self.say(f"moving to the first row in {approach_seconds(self._sent(), goal):.1f} s")
        off = approach(lease, goal, self._sent, self._turn(lease, cancelled), within=REACHED)
        if off.max() >= REACHED and not cancelled():
            worst = int(off.argmax())
            raise ControlPlaneError(
                f"the first row was not reached: {self.recording.names[worst]} is "
                f"{off[worst]:.3f} {self.recording.column_units[worst]} away; something is in "
                "the way, or the row lies outside this station's limits "
                "(`robot-stack status` tells which)"
            )

    def _turn(self, lease: Lease, cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """What is looked after while the arms move; False when it is cancelled."""

        def turn() -> bool:
            if cancelled():
                return False
            self._keep(lease)
            self._check_armed()
            self._read_ticks()
            return True

        return turn

    def _check_armed(self) -> None:
        for robot in self.recording.robots:
            tick = self.client.tick(robot)
            if tick["lifecycle"] != Lifecycle.ARMED:
                state = Lifecycle(int(tick["lifecycle"])).name.lower()
                fault = tick["fault"].decode(errors="replace")
                raise ControlPlaneError(
                    f"the replay ended: {robot} is {state}{': ' + fault if fault else ''}; mend "
                    "that, `robot-stack reset`, and replay again"
                )

    # -- what came of it ---------------------------------------------------------------------

    def _follow_ticks(self) -> None:
        """Measure from here on."""
        self._differences.clear()
        for robot in self.recording.robots:
            self._measured[robot].clear()
            self._next_tick[robot] = self.client.ring("arm", robot).count

    def _read_ticks(self) -> None:
        for robot, index in self._next_tick.items():
            ring = self.client.ring("arm", robot)
            try:
                first, ticks = ring.since(index)
            except SharedMemoryError:  # its process restarts; _check_armed tells
                continue
            self._next_tick[robot] = first + len(ticks)
            for tick in ticks:
                self._measured[robot].append((int(tick["t_ns"]), tick["q"].copy()))
                for flag in Difference(int(tick["difference"])):
                    name = str(flag.name).lower()
                    self._differences[name] = self._differences.get(name, 0) + 1

    def _errors(self, rows: int, start_ns: int, period_s: float) -> tuple[JointError, ...]:
        """Measurements interpolated to the rows' times, less the command and the recorded qpos."""
        recording = self.recording
        at_ns = np.arange(rows) * (period_s * 1e9)
        columns: list[Array] = []
        for robot in recording.robots:
            measured = self._measured[robot]
            if len(measured) < 2:
                return ()
            t_ns = np.array([t for t, _ in measured], dtype=np.int64) - start_ns
            q = np.array([q for _, q in measured])
            columns += [
                np.interp(at_ns, t_ns, q[:, j], left=np.nan, right=np.nan)
                for j in range(q.shape[1])
            ]
        replayed = np.stack(columns, axis=1)
        found = []
        for i, (name, unit) in enumerate(zip(recording.names, recording.column_units, strict=True)):
            command = replayed[:, i] - recording.commands[:rows, i]
            recorded = replayed[:, i] - recording.qpos[:rows, i]
            found.append(JointError(name, unit, *_rms_max(command), *_rms_max(recorded)))
        return tuple(found)


def _rms_max(error: Array) -> tuple[float, float]:
    known = error[np.isfinite(error)]
    if not known.size:
        return float("nan"), float("nan")
    return float(np.sqrt(np.mean(known**2))), float(np.abs(known).max())
