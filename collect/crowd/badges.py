"""Badges and levels: what somebody has done, whatever others did.

Badges follow from plays that are confirmed (by evidence or by staff), so they are made anew after
each decision: one that rested on a play that was reversed goes again. Levels follow from points.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Row, delete, func, select
from sqlalchemy.orm import Session

from collect.crowd.standings import period_keys, site_version
from collect.crowd.tables import BadgeAward, LedgerEntry, Participant, Play, Task, utc_now

__all__ = ["BADGES", "Level", "level", "of_participant", "update"]

# In the order in which they are shown; texts are in the locales, under `badges`.
BADGES = (
    "tutorial",  # passed it
    "first_success",
    "hard_success",
    "swift",  # in half of par
    "explorer",  # every task of the site
    "ten",  # ten successes
    "regular",  # successes on three days
    "smooth",  # a play of quality 3, as staff see it
)
LEVEL_STEP = 30  # points from level 1 to 2; each further level takes this much more
TOP_QUALITY = {"easy": 3, "hard": 6}  # on the quality board


@dataclass(frozen=True, slots=True)
class Level:
    """``number`` from 1; it begins at ``floor`` points and the next one at ``ceiling``."""

    number: int
    floor: int
    ceiling: int


def level(points: int) -> Level:
    """The level of so many points: it begins at 0, 30, 90, 180, 300, ... of them."""
    steps = max(points, 0) / LEVEL_STEP
    number = int((1.0 + math.sqrt(1.0 + 8.0 * steps)) / 2.0 + 1e-9)
    begins = [LEVEL_STEP * n * (n - 1) // 2 for n in (number, number + 1)]
    return Level(number, begins[0], begins[1])


def of_participant(tx: Session, participant_id: str) -> list[str]:
    """A participant's badges, in the order in which they are shown."""
    held = set(
        tx.scalars(
            select(BadgeAward.badge).where(BadgeAward.participant_id == participant_id)
        ).all()
    )
    return [badge for badge in BADGES if badge in held]


def update(tx: Session, participant_id: str, at: dt.datetime | None = None) -> list[str]:
    """Give and take a participant's badges by what is confirmed; the names of new ones."""
    participant = tx.get(Participant, participant_id)
    if participant is None or participant.erased_at is not None:
        return []
    earned = _earned(tx, participant)
    held = set(of_participant(tx, participant_id))
    if gone := held - earned:
        tx.execute(
            delete(BadgeAward).where(
                BadgeAward.participant_id == participant_id, BadgeAward.badge.in_(gone)
            )
        )
    new = [badge for badge in BADGES if badge in earned - held]
    tx.add_all(
        BadgeAward(participant_id=participant_id, badge=badge, awarded_at=at or utc_now())
        for badge in new
    )
    tx.flush()
    return new


def _earned(tx: Session, participant: Participant) -> set[str]:
    tx.flush()
    decided = (
        select(
            LedgerEntry.play_id,
            func.sum(LedgerEntry.points).label("points"),
            func.sum(LedgerEntry.quality).label("quality"),
        )
        .where(
            LedgerEntry.participant_id == participant.id,
            LedgerEntry.play_id.in_(
                select(LedgerEntry.play_id).where(
                    LedgerEntry.participant_id == participant.id,
                    LedgerEntry.kind.in_(("evidence", "review")),
                )
            ),
        )
        .group_by(LedgerEntry.play_id)
        .subquery()
    )
    successes = tx.execute(
        select(Play, Task, decided.c.quality)
        .join(decided, decided.c.play_id == Play.id)
        .join(Task, Task.id == Play.task_id)
        .where(decided.c.points > 0)
    ).all()
    earned = {"tutorial"} if participant.tutorial_at is not None else set()
    if successes:
        earned |= _by_successes(tx, successes)
    return earned


def _by_successes(tx: Session, successes: Sequence[Row[Play, Task, int]]) -> set[str]:
    zone = site_version(tx)[1]
    days = {period_keys(play.started_at, zone)["day"] for play, _, _ in successes}
    every = set(tx.scalars(select(Task.id).where(Task.active)).all())
    conditions = {
        "first_success": True,
        "hard_success": any(task.difficulty == "hard" for _, task, _ in successes),
        "swift": any(
            play.took_s is not None and 0.0 < play.took_s <= task.par_s / 2
            for play, task, _ in successes
        ),
        "explorer": every <= {task.id for _, task, _ in successes},
        "ten": len(successes) >= 10,
        "regular": len(days) >= 3,
        "smooth": any(quality >= TOP_QUALITY[task.difficulty] for _, task, quality in successes),
    }
    return {badge for badge, holds in conditions.items() if holds}
