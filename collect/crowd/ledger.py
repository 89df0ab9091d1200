"""The points ledger: entries are added and never changed, and each reason counts once.

An entry's `key` names its reason (`claim:<play>`); a second award with the same key gives nothing.
What was given is taken back by a reversal: an entry of its own with the opposite points, at most
one for each entry. Standings follow in the same transaction, so no reader sees one without the
other.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from collect.crowd import observe, standings
from collect.crowd.tables import LedgerEntry, Participant, utc_now
from robot_stack.errors import RobotStackError

__all__ = ["KINDS", "LedgerError", "award", "points_of", "reverse", "standing_entries"]

KINDS = ("claim", "evidence", "review", "staff")  # and reversal, which only `reverse` writes
MAX_POINTS = 10_000  # of one entry: a slip of the keyboard is not a new world record
INSERT = {
    "sqlite": sqlite.insert(LedgerEntry).on_conflict_do_nothing(index_elements=["key"]),
    "postgresql": postgresql.insert(LedgerEntry).on_conflict_do_nothing(index_elements=["key"]),
}


class LedgerError(RobotStackError):
    """An award or reversal that makes no sense; nothing was written."""


def award(
    tx: Session,
    *,
    key: str,
    participant_id: str,
    play_id: str | None,
    task_id: str | None,
    kind: str,
    points: int,
    quality: int = 0,
    at: dt.datetime | None = None,
    counts_at: dt.datetime | None = None,
    note: str = "",
) -> LedgerEntry | None:
    """Write an entry and what it does to the standings; None when its key is there already.

    ``at``: when it is given, now by default. ``counts_at``: the moment whose day and week it
    belongs to, ``at`` by default. LedgerError for a kind, size or participant that can't be.
    """
    if kind not in KINDS:
        raise LedgerError(f"no entry is of kind {kind!r}; allowed: {', '.join(KINDS)}")
    for name, value in (("points", points), ("quality", quality)):
        if not -MAX_POINTS <= value <= MAX_POINTS:
            raise LedgerError(f"{name} = {value} is more than {MAX_POINTS} at once")
    at = at or utc_now()
    return _write(
        tx,
        {
            "key": key,
            "participant_id": participant_id,
            "play_id": play_id,
            "task_id": task_id,
            "kind": kind,
            "points": points,
            "quality": quality,
            "created_at": at,
            "counts_at": counts_at or at,
            "reverses_id": None,
            "note": note[:200],
        },
    )


def reverse(
    tx: Session, entry: LedgerEntry, *, at: dt.datetime | None = None, note: str = ""
) -> LedgerEntry | None:
    """Take an entry back, for the day on which it counted; None when that was done already."""
    if entry.reverses_id is not None:
        raise LedgerError(
            f"entry {entry.key!r} is a reversal itself; give the points anew under another key"
        )
    return _write(
        tx,
        {
            "key": f"reversal:{entry.key}",
            "participant_id": entry.participant_id,
            "play_id": entry.play_id,
            "task_id": entry.task_id,
            "kind": "reversal",
            "points": -entry.points,
            "quality": -entry.quality,
            "created_at": at or utc_now(),
            "counts_at": entry.counts_at,
            "reverses_id": entry.id,
            "note": note[:200],
        },
    )


def standing_entries(tx: Session, play_id: str) -> Sequence[LedgerEntry]:
    """What was given for a play and not taken back, oldest first."""
    reversal = aliased(LedgerEntry)
    return tx.scalars(
        select(LedgerEntry)
        .where(
            LedgerEntry.play_id == play_id,
            LedgerEntry.reverses_id.is_(None),
            ~select(reversal.id).where(reversal.reverses_id == LedgerEntry.id).exists(),
        )
        .order_by(LedgerEntry.id)
    ).all()


def points_of(tx: Session, participant_id: str) -> int:
    """What all entries of a participant add up to."""
    total = tx.scalar(
        select(func.sum(LedgerEntry.points)).where(LedgerEntry.participant_id == participant_id)
    )
    return int(total or 0)


def _write(tx: Session, values: dict[str, object]) -> LedgerEntry | None:
    tx.flush()  # the play that it is for may not be in the database yet
    joined = tx.scalar(
        select(Participant.created_at).where(Participant.id == values["participant_id"])
    )
    if joined is None:
        raise LedgerError(f"there is no participant {values['participant_id']}")
    insert = INSERT[tx.get_bind().dialect.name]
    number = tx.scalar(insert.values(**values).returning(LedgerEntry.id))
    if number is None:
        return None
    entry = tx.get_one(LedgerEntry, number)
    observe.count(tx, observe.awards.labels(entry.kind))
    if entry.reverses_id is None:
        standings.add(tx, entry, joined)
    else:
        standings.retake(tx, entry.participant_id)
    return entry
