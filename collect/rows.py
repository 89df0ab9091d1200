"""Builds episode rows out of robot ticks, the world's state and camera frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.alignment import TakeoverCounter, Track
from collect.channels import Shot
from collect.recorder_config import RecordedRobot
from robot_stack.episode import Row
from robot_stack.records import tick_record
from robot_stack.types import Source

__all__ = ["RowBuilder"]


class RowBuilder:
    """The recent ticks of one episode's robots, to be asked for rows in the order of time.

    A robot whose ticks have not come is NaN in its row: unknown, and not what it did before.
    """

    def __init__(self, robots: Sequence[RecordedRobot], world: np.dtype[Any] | None) -> None:
        self._robots = [robot for robot in robots if robot.in_rows]
        self._tracks = {r.name: Track(tick_record(r.spec.dof)) for r in self._robots}
        self._world = Track(world) if world is not None else None
        self._takeovers = TakeoverCounter()
        self.human_rows = 0

    @property
    def takeovers(self) -> int:
        """How often a person has taken over so far."""
        return self._takeovers.takeovers

    def add(self, robot: str, ticks: NDArray[Any]) -> None:
        """Ticks (N,) of ``records.tick_record``; those of robots outside the rows are ignored."""
        if robot in self._tracks:
            self._tracks[robot].add(ticks)

    def add_world(self, records: NDArray[Any]) -> None:
        if self._world is not None:
            self._world.add(records)

    def complete(self, t_ns: int) -> bool:
        """Whether every robot has ticked at or after ``t_ns``."""
        return all(track.first_from(t_ns) is not None for track in self._tracks.values())

    def build(self, t_ns: int, shots: Mapping[str, Shot]) -> Row:
        """The row of ``t_ns``; call once a row, in order."""
        states = [self._tracks[robot.name].last_until(t_ns) for robot in self._robots]
        answers = [self._tracks[robot.name].first_from(t_ns) for robot in self._robots]
        known = [tick for tick in answers if tick is not None]
        lead = next((tick for tick in known if tick["source"] != Source.NONE), None)
        if lead is None and known:
            lead = known[0]
        source = Source(int(lead["source"])) if lead is not None else Source.NONE
        self.human_rows += source in (Source.DEMO, Source.HUMAN)
        row = Row(
            t_ns=t_ns,
            qpos=self._join(states, "q"),
            qvel=self._join(states, "dq"),
            effort=self._join(states, "tau"),
            action=self._join(answers, "asked"),
            action_sent=self._join(answers, "sent"),
            state_t_ns=[int(tick["t_ns"]) if tick is not None else -1 for tick in states],
            images={name: shot.image for name, shot in shots.items()},
            depth={name: shot.depth for name, shot in shots.items() if shot.depth is not None},
            frame_t_ns={name: shot.t_ns for name, shot in shots.items()},
            frame_seq={name: shot.seq for name, shot in shots.items()},
            source=source,
            takeover_id=self._takeovers.row(source),
            applied=self._join(answers, "applied"),
            success_rate=self._each(answers, "success_rate"),
            target_age_s=self._each(answers, "target_age_s"),
            fault=self._trouble(answers),
        )
        for tick in known:
            row.difference |= int(tick["difference"])
        if lead is not None:
            row.token = int(lead["token"])
            row.chunk_id, row.chunk_index = int(lead["chunk_id"]), int(lead["chunk_index"])
            row.observation_t_ns = int(lead["observation_t_ns"])
        if self._world is not None:
            if (state := self._world.last_until(t_ns)) is not None:
                row.env_state, row.env_t_ns = state["env_state"], int(state["t_ns"])
                row.reward, row.terminated = float(state["reward"]), bool(state["success"])
            self._world.forget_before(t_ns)
        for track in self._tracks.values():
            track.forget_before(t_ns)
        return row

    @staticmethod
    def _each(ticks: Sequence[Any | None], field: str) -> list[float]:
        return [float(tick[field]) if tick is not None else np.nan for tick in ticks]

    def _trouble(self, ticks: Sequence[Any | None]) -> str:
        """Faults and notices of all robots in words."""
        texts = []
        for tick, robot in zip(ticks, self._robots, strict=True):
            if tick is not None and (tick["fault"] or tick["notice"]):
                text = bytes(tick["fault"] or tick["notice"]).decode(errors="replace")
                texts.append(f"{robot.name}: {text}" if len(self._robots) > 1 else text)
        return "; ".join(texts)

    def _join(self, ticks: Sequence[Any | None], field: str) -> NDArray[np.float64]:
        parts = [
            tick[field] if tick is not None else np.full(robot.spec.dof, np.nan)
            for tick, robot in zip(ticks, self._robots, strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty(0)
