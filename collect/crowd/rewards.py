"""Rewards (candy): a ledger of what was stocked, handed out and counted.

Points are not spent: they stay on the board. But each piece handed out takes its worth off what
somebody may still take: a participant has taken at most as much as all confirmed points are worth
(a bare claim buys nothing), and of each item at most its daily cap. A guest can come back as
somebody else, so each item has a cap for everybody together, too. The stock is what the entries add
up to; staff count the bowl and the difference is an entry, too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from collect.crowd import scoring
from collect.crowd.standings import midnight
from collect.crowd.tables import AuditEntry, Participant, RewardEntry, RewardItem, utc_now
from robot_stack.errors import RobotStackError

__all__ = [
    "MAX_PIECES",
    "REASONS",
    "Offer",
    "RewardError",
    "StaffEntry",
    "count",
    "credit",
    "hand",
    "handed_today",
    "offers",
    "stock",
    "stock_of",
]

MAX_PIECES = 10_000
REASONS = ("points", "cap", "day", "stock", "gone")


class RewardError(RobotStackError):
    """A reward that can't be had. ``reason``: one of ``REASONS``, or pieces; pages translate it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Offer:
    """An item and how many of it somebody may take now; ``reason`` when that is none."""

    item: RewardItem
    stock: int
    today: int  # taken by this participant since midnight
    pieces: int
    reason: str | None


class StaffEntry(Protocol):
    """`stock` and `count`."""

    def __call__(
        self, tx: Session, *, item_id: str, pieces: int, staff_id: str, key: str
    ) -> RewardEntry: ...


def offers(tx: Session, participant_id: str, now: dt.datetime | None = None) -> list[Offer]:
    """What is there, and what of it this participant may take."""
    left = credit(tx, participant_id)
    items = tx.scalars(
        select(RewardItem).where(RewardItem.active).order_by(RewardItem.points, RewardItem.id)
    ).all()
    return [_offer(tx, item, participant_id, left, now) for item in items]


def credit(tx: Session, participant_id: str) -> int:
    """A participant's confirmed points less the worth of what was taken; may be negative."""
    taken = tx.scalar(
        select(func.sum(-RewardEntry.count * RewardItem.points))
        .select_from(RewardEntry)
        .join(RewardItem, RewardItem.id == RewardEntry.item_id)
        .where(RewardEntry.participant_id == participant_id, RewardEntry.kind == "handed")
    )
    return scoring.points(tx, participant_id).confirmed - int(taken or 0)


def hand(
    tx: Session,
    *,
    item_id: str,
    participant_id: str,
    key: str,
    now: dt.datetime | None = None,
) -> RewardEntry:
    """Hand one piece out; the same ``key`` again gives the entry of the first time.

    ``tx`` is a write transaction: nobody else takes the last piece meanwhile.
    RewardError when points, caps or stock don't allow it.
    """
    key = f"handed:{participant_id}:{key}"
    before = tx.scalar(select(RewardEntry).where(RewardEntry.key == key))
    if before is not None:
        return before
    item = _item(tx, item_id)
    participant = tx.get(Participant, participant_id)
    if not item.active or participant is None or participant.erased_at is not None:
        raise RewardError("gone", f"{item_id} isn't given out any more")
    offer = _offer(tx, item, participant_id, credit(tx, participant_id), now)
    if offer.reason is not None:
        raise RewardError(
            offer.reason,
            f"no {item.name}: {offer.stock} in stock, {offer.today} of {item.daily_cap} taken "
            f"today, {item.pieces_a_day} a day for everybody, worth {item.points} points each",
        )
    return _add(
        tx,
        RewardEntry(
            key=key,
            item_id=item_id,
            participant_id=participant_id,
            count=-1,
            kind="handed",
            created_at=now or utc_now(),
        ),
    )


def stock(tx: Session, *, item_id: str, pieces: int, staff_id: str, key: str) -> RewardEntry:
    """Staff fill the bowl up by so many pieces; once a ``key``."""
    if not 1 <= pieces <= MAX_PIECES:
        raise RewardError("pieces", f"{pieces} pieces: stock 1 to {MAX_PIECES} at once")
    return _by_staff(tx, item_id, pieces, staff_id, f"stocked:{key}", "stocked")


def count(tx: Session, *, item_id: str, pieces: int, staff_id: str, key: str) -> RewardEntry:
    """Staff have counted so many pieces: the difference to the books becomes an entry."""
    if not 0 <= pieces <= MAX_PIECES:
        raise RewardError("pieces", f"{pieces} pieces: count 0 to {MAX_PIECES}")
    difference = pieces - stock_of(tx, item_id)
    return _by_staff(tx, item_id, difference, staff_id, f"counted:{key}", "counted")


def stock_of(tx: Session, item_id: str) -> int:
    """How many pieces the books say are there."""
    return _sum(tx, RewardEntry.item_id == item_id)


def handed_today(
    tx: Session,
    item_id: str,
    now: dt.datetime | None = None,
    *,
    participant_id: str | None = None,
) -> int:
    """How many pieces went out since the site's midnight: to one participant, or to everybody."""
    whose = () if participant_id is None else (RewardEntry.participant_id == participant_id,)
    return -_sum(
        tx,
        RewardEntry.item_id == item_id,
        RewardEntry.kind == "handed",
        RewardEntry.created_at >= midnight(tx, now or utc_now()),
        *whose,
    )


def _offer(
    tx: Session, item: RewardItem, participant_id: str, left: int, now: dt.datetime | None
) -> Offer:
    there = stock_of(tx, item.id)
    today = handed_today(tx, item.id, now, participant_id=participant_id)
    limits = {
        "points": left // item.points if item.points else MAX_PIECES,
        "cap": item.daily_cap - today,
        "day": item.pieces_a_day - handed_today(tx, item.id, now),
        "stock": there,
    }
    pieces = min(limits.values())
    reason = next((name for name, most in limits.items() if most < 1), None)
    return Offer(item, there, today, max(0, pieces), reason)


def _by_staff(
    tx: Session, item_id: str, pieces: int, staff_id: str, key: str, kind: str
) -> RewardEntry:
    before = tx.scalar(select(RewardEntry).where(RewardEntry.key == key))
    if before is not None:
        return before
    _item(tx, item_id)
    tx.add(
        AuditEntry(
            staff_id=staff_id, action=f"reward {kind}", subject=item_id, detail={"pieces": pieces}
        )
    )
    return _add(
        tx, RewardEntry(key=key, item_id=item_id, staff_id=staff_id, count=pieces, kind=kind)
    )


def _add(tx: Session, entry: RewardEntry) -> RewardEntry:
    tx.add(entry)
    tx.flush()
    return entry


def _item(tx: Session, item_id: str) -> RewardItem:
    item = tx.get(RewardItem, item_id)
    if item is None:
        raise RewardError("gone", f"there is no reward {item_id!r}")
    return item


def _sum(tx: Session, *conditions: ColumnElement[bool]) -> int:
    return int(tx.scalar(select(func.sum(RewardEntry.count)).where(*conditions)) or 0)
