"""What a play is worth: the participant says it, measurements agree or not, staff decide.

Three steps, each in any order and any number of times, with one result:

- `claim`: 10 points for an easy success and 20 for a hard one, on the participant's word
  (RoboCrowd's rule): provisional.
- `evidence`: what the station measured. The task's own success check decides where there is one;
  else a play without time, motion or most of its data is refused, and a smooth one without
  collisions believed. Believed successes that were faster than par earn up to half as much again.
- `review`: staff confirm or reverse, with a quality of 0-3 for the quality board.

Staff's decision stands over evidence, and evidence over the claim. What a play was given before
and should not have is taken back by reversals; nothing is ever changed.
"""

from __future__ import annotations

import datetime as dt
import enum
import math
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd import badges
from collect.crowd.config import PointsConfig
from collect.crowd.ledger import award, points_of, reverse, standing_entries
from collect.crowd.tables import LedgerEntry, Play, Task

__all__ = [
    "Evidence",
    "Points",
    "Verdict",
    "bonus",
    "claim",
    "evidence",
    "judge",
    "points",
    "review",
]

# A success takes at least this part of the par time; less was a slip of the finger.
SHORTEST = 0.1
LATE_S = 5.0  # the recorder stops a little after the countdown
MIN_PATH_M = 0.3  # both grippers together: less is a robot that was looked at
MAX_IDLE = 0.9
MAX_DROPPED_HZ = 25.0  # a fifth of four cameras' frames: nobody can see what happened
# Without a success check a play is believed only within these; beyond, staff must look.
SMOOTH_JERK = 60.0  # m/s^3, root mean square over both grippers
GENTLE_COLLISIONS = 3
BELIEVED_IDLE = 0.5
BELIEVED_DROPPED_HZ = 2.5

DEFAULT_POINTS = PointsConfig()
QUALITY_WEIGHT = {"easy": 1, "hard": 2}


class Verdict(enum.Enum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the station's measurements say of a play, and why."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class Points:
    """A participant's points: ``provisional`` ones wait for evidence or staff."""

    confirmed: int
    provisional: int

    @property
    def total(self) -> int:
        return self.confirmed + self.provisional


def claim(
    tx: Session, play: Play, *, worth: PointsConfig = DEFAULT_POINTS, at: dt.datetime | None = None
) -> LedgerEntry | None:
    """Points for what the participant says; None without a claimed success or the second time."""
    task = _task(tx, play)
    if task is None or not play.claimed or play.participant_id is None:
        return None
    tx.flush()
    if tx.scalar(select(func.count()).where(LedgerEntry.play_id == play.id)):
        return None  # evidence or staff were faster, and know better
    entry = _award(tx, play, "claim", f"claim:{play.id}", _worth(worth, task), 0, at, "claimed")
    badges.update(tx, play.participant_id, at)
    return entry


def judge(play: Play, task: Task) -> Evidence:
    """What the station's measurements say. A measurement that is missing says nothing."""
    if play.checked is not None:
        return Evidence(
            Verdict.CONFIRMED if play.checked else Verdict.REFUTED,
            "the task's check saw a success" if play.checked else "the task's check saw no success",
        )
    seconds = _seconds(play)
    path, idle, jerk, collisions, dropped = (
        play.measured(name)
        for name in ("path_m", "idle_fraction", "jerk", "collisions", "dropped_frames")
    )
    dropped_hz = dropped / seconds if seconds > 0.0 else math.nan
    if seconds < SHORTEST * task.par_s:
        return Evidence(Verdict.REFUTED, "too short to have been done")
    if path < MIN_PATH_M:
        return Evidence(Verdict.REFUTED, "the robot hardly moved")
    if idle > MAX_IDLE:
        return Evidence(Verdict.REFUTED, "the robot stood nearly all the time")
    if dropped_hz > MAX_DROPPED_HZ:
        return Evidence(Verdict.REFUTED, "too much of the recording is missing")
    believed = (  # a missing measurement is a NaN, and believes nothing
        seconds <= task.seconds + LATE_S
        and path >= MIN_PATH_M
        and idle <= BELIEVED_IDLE
        and dropped_hz <= BELIEVED_DROPPED_HZ
        and jerk <= SMOOTH_JERK
        and collisions <= GENTLE_COLLISIONS
    )
    if believed:
        return Evidence(Verdict.CONFIRMED, "measured: moved, smoothly, without collisions")
    return Evidence(Verdict.UNCLEAR, "staff must look")


def evidence(
    tx: Session, play: Play, *, worth: PointsConfig = DEFAULT_POINTS, at: dt.datetime | None = None
) -> LedgerEntry | None:
    """Confirm or take back a play's points by what was measured.

    None when nothing was measured yet, the measurements decide nothing, or staff have decided.
    """
    task = _task(tx, play)
    if task is None or play.participant_id is None or play.state != "synced":
        return None
    found = judge(play, task)
    if found.verdict is Verdict.UNCLEAR or _decided(tx, play, "review"):
        return None
    success = found.verdict is Verdict.CONFIRMED and (play.checked is True or bool(play.claimed))
    earned = _worth(worth, task) + bonus(_worth(worth, task), _seconds(play), task.par_s)
    return _settle(tx, play, "evidence", earned if success else 0, 0, at, found.reason)


def review(
    tx: Session,
    play: Play,
    decision: str,
    quality: int | None,
    *,
    worth: PointsConfig = DEFAULT_POINTS,
    at: dt.datetime | None = None,
) -> LedgerEntry | None:
    """What staff decided: ``confirm``, ``reverse`` or ``unclear`` and a quality of 0-3.

    A later decision takes the place of an earlier one. None when it changes nothing.
    """
    if decision not in ("confirm", "reverse", "unclear"):
        raise ValueError(f"decision {decision!r} must be confirm, reverse or unclear")
    if quality is not None and not 0 <= quality <= 3:
        raise ValueError(f"quality {quality} must be 0 to 3")
    task = _task(tx, play)
    if task is None or play.participant_id is None or decision == "unclear":
        return None
    if decision == "reverse":
        return _settle(tx, play, "review", 0, 0, at, "reversed by staff")
    base = _worth(worth, task)
    earned = base + bonus(base, _seconds(play), task.par_s)
    stars = (quality or 0) * QUALITY_WEIGHT[task.difficulty]
    return _settle(tx, play, "review", earned, stars, at, "confirmed by staff")


def bonus(base: int, seconds: float, par_s: float) -> int:
    """Points for being faster than par: half of ``base`` at no time at all, none at par."""
    if not (math.isfinite(seconds) and seconds > 0.0 and par_s > 0.0):
        return 0
    return int(0.5 * base * max(0.0, 1.0 - seconds / par_s))


def points(tx: Session, participant_id: str) -> Points:
    """A participant's points. Those of a play are provisional until evidence or staff spoke."""
    spoken = select(LedgerEntry.play_id).where(
        LedgerEntry.participant_id == participant_id,
        LedgerEntry.kind.in_(("evidence", "review")),
        LedgerEntry.play_id.is_not(None),
    )
    waiting = tx.scalar(
        select(func.sum(LedgerEntry.points)).where(
            LedgerEntry.participant_id == participant_id,
            LedgerEntry.play_id.is_not(None),
            LedgerEntry.play_id.not_in(spoken),
        )
    )
    provisional = int(waiting or 0)
    return Points(points_of(tx, participant_id) - provisional, provisional)


def _settle(
    tx: Session,
    play: Play,
    kind: str,
    earned: int,
    quality: int,
    at: dt.datetime | None,
    note: str,
) -> LedgerEntry | None:
    """Make the play's points ``earned`` and ``quality`` by what ``kind`` of judge found."""
    assert play.participant_id is not None
    standing = standing_entries(tx, play.id)
    now = (sum(e.points for e in standing), sum(e.quality for e in standing))
    count = _decided(tx, play, kind)
    if count and now == (earned, quality):
        return None
    if earned < now[0] or quality < now[1]:
        for given in standing:
            reverse(tx, given, at=at, note=note)
        now = (0, 0)
    key = f"{kind}:{play.id}" + (f":{count}" if count else "")
    entry = _award(tx, play, kind, key, earned - now[0], quality - now[1], at, note)
    badges.update(tx, play.participant_id, at)
    return entry


def _award(
    tx: Session,
    play: Play,
    kind: str,
    key: str,
    points: int,
    quality: int,
    at: dt.datetime | None,
    note: str,
) -> LedgerEntry | None:
    assert play.participant_id is not None
    return award(
        tx,
        key=key,
        participant_id=play.participant_id,
        play_id=play.id,
        task_id=play.task_id,
        kind=kind,
        points=points,
        quality=quality,
        at=at,
        counts_at=play.ended_at or play.started_at,
        note=note,
    )


def _decided(tx: Session, play: Play, kind: str) -> int:
    """How often this kind of judge has decided on the play."""
    return (
        tx.scalar(
            select(func.count()).where(LedgerEntry.play_id == play.id, LedgerEntry.kind == kind)
        )
        or 0
    )


def _task(tx: Session, play: Play) -> Task | None:
    """The task of a play that can earn points: not of tutorials, free play or void plays."""
    if play.kind != "task" or play.task_id is None or play.state == "void":
        return None
    return tx.get(Task, play.task_id)


def _worth(worth: PointsConfig, task: Task) -> int:
    return worth.hard if task.difficulty == "hard" else worth.easy


def _seconds(play: Play) -> float:
    """How long it took; NaN where that is not known."""
    return math.nan if play.took_s is None else play.took_s
