"""What the leaderboards show: the first of them, one's own place, and who stands around it.

Hidden, erased and opted-out people are on no board and in no count. Ranks are competition ranks
(1, 2, 2, 4); of equals whoever reached the score first is shown first.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import Session

from collect.crowd.names import public_name
from collect.crowd.standings import NEWCOMER, period_keys, site_version
from collect.crowd.tables import UNLISTED, Participant, Standing, Task, utc_now

__all__ = ["LIMIT", "PERIODS", "SCOPES", "Board", "Place", "check_board", "open_board"]

SCOPES = ("all", "quality", "newcomers")  # and task:<id> of each active task
PERIODS = ("all", "day", "week")
LIMIT = 50
RADIUS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a board. ``participant_id`` is for the server only and leaves it never."""

    rank: int
    name: str
    score: int
    participant_id: str


@dataclass(frozen=True, slots=True)
class Board:
    """A board as it stands. ``period`` is the stored key, such as ``2026-W47``.

    ``since``: of newcomers for all time, who came after it still is one.
    """

    scope: str
    period: str
    since: dt.datetime | None

    def top(self, tx: Session, limit: int = LIMIT) -> list[Place]:
        """The first ``limit`` places."""
        rows = tx.execute(
            self._listed(Standing.score, Participant).order_by(*_DISPLAYED).limit(limit)
        ).all()
        places: list[Place] = []
        for position, (score, participant) in enumerate(rows, 1):
            rank = places[-1].rank if places and places[-1].score == score else position
            places.append(Place(rank, public_name(participant), score, participant.id))
        return places

    def count(self, tx: Session) -> int:
        """How many people are on the board."""
        return self._above(tx, 0)

    def place_of(self, tx: Session, participant_id: str) -> Place | None:
        """Somebody's place; None for who isn't on the board."""
        row = tx.execute(
            self._listed(Standing.score, Participant).where(
                Standing.participant_id == participant_id
            )
        ).one_or_none()
        if row is None:
            return None
        score, participant = row
        return Place(self._above(tx, score) + 1, public_name(participant), score, participant_id)

    def around(self, tx: Session, participant_id: str, radius: int = RADIUS) -> list[Place]:
        """Somebody's place with up to ``radius`` before and after; empty for who isn't on it."""
        me = tx.execute(
            self._listed(Standing.score, Standing.reached_at).where(
                Standing.participant_id == participant_id
            )
        ).one_or_none()
        if me is None:
            return []
        before = _before(me.score, me.reached_at, participant_id)
        rows = [
            *reversed(
                tx.execute(
                    self._listed(Standing.score, Participant)
                    .where(before)
                    .order_by(
                        Standing.score, Standing.reached_at.desc(), Standing.participant_id.desc()
                    )
                    .limit(radius)
                ).all()
            ),
            *tx.execute(
                self._listed(Standing.score, Participant)
                .where(Standing.score <= me.score, ~before)
                .order_by(*_DISPLAYED)
                .limit(radius + 1)
            ).all(),
        ]
        ranks = {score: self._above(tx, score) + 1 for score in {row[0] for row in rows}}
        return [
            Place(ranks[score], public_name(participant), score, participant.id)
            for score, participant in rows
        ]

    def _on(self) -> tuple[ColumnElement[bool], ...]:
        return (
            Standing.scope == self.scope,
            Standing.period == self.period,
            Standing.score > 0,
        )

    def _listed(self, *columns: Any) -> Select[*tuple[Any, ...]]:
        listed = (
            select(*columns)
            .select_from(Standing)
            .join(Participant, Participant.id == Standing.participant_id)
            .where(*self._on(), ~UNLISTED)
        )
        return listed if self.since is None else listed.where(Participant.created_at > self.since)

    def _above(self, tx: Session, score: int) -> int:
        """How many have more points: everybody's standings, less those of the few unlisted."""
        higher = Standing.score > score
        if self.since is not None:
            return tx.scalar(self._listed(func.count()).where(higher)) or 0
        everybody = tx.scalar(select(func.count()).where(*self._on(), higher)) or 0
        # A subquery a person: joined, SQLite would look at every standing of the board instead.
        theirs = (
            select(func.count())
            .select_from(Standing)
            .where(*self._on(), higher, Standing.participant_id == Participant.id)
            .correlate(Participant)
            .scalar_subquery()
        )
        unlisted = tx.scalar(select(func.sum(theirs)).select_from(Participant).where(UNLISTED))
        return everybody - int(unlisted or 0)


_DISPLAYED = (Standing.score.desc(), Standing.reached_at, Standing.participant_id)


def _before(score: int, reached_at: dt.datetime, participant_id: str) -> ColumnElement[bool]:
    """Shown before somebody with this score."""
    return or_(
        Standing.score > score,
        and_(
            Standing.score == score,
            or_(
                Standing.reached_at < reached_at,
                and_(Standing.reached_at == reached_at, Standing.participant_id < participant_id),
            ),
        ),
    )


def check_board(tx: Session, scope: str, period: str) -> None:
    """LookupError unless there is such a board: scopes and periods come from a closed list."""
    if period not in PERIODS:
        raise LookupError(f"no period is called {period!r}; there are {', '.join(PERIODS)}")
    if scope in SCOPES:
        return
    kind, _, task = scope.partition(":")
    if kind != "task" or tx.scalar(select(Task.id).where(Task.id == task, Task.active)) is None:
        raise LookupError(f"no board is called {scope!r}")


def open_board(tx: Session, scope: str, period: str, now: dt.datetime | None = None) -> Board:
    """The board of this scope and of today, this week or all time; LookupError for another."""
    check_board(tx, scope, period)
    now = now or utc_now()
    _, zone = site_version(tx)
    since = now - NEWCOMER if (scope, period) == ("newcomers", "all") else None
    return Board(scope, period_keys(now, zone)[period], since)
