"""What the ledger adds up to, on every board: kept beside it, and made anew from it.

A board is a scope (all, quality, newcomers, task:<id>) and a period (for ever, a day, an ISO
week). The score is the sum of what was given and not taken back; `reached_at` is when the last of
it counted, so a reversal leaves no trace but in the ledger. An award adds to at most twelve rows;
a reversal makes its participant's rows anew, which are few.

The site's zone stands in the database, beside what was computed by it.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias, cast
from zoneinfo import ZoneInfo

from sqlalchemy import Row, Table, case, delete, event, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased

from collect.crowd.tables import LedgerEntry, Participant, SiteVersion, Standing

__all__ = [
    "CHANNEL",
    "NEWCOMER",
    "QUARTER_S",
    "BoardKey",
    "add",
    "changed",
    "differences",
    "midnight",
    "period_keys",
    "rebuild",
    "retake",
    "set_zone",
    "site_version",
]

NEWCOMER = dt.timedelta(days=7)
CHANNEL = "crowd_boards"  # PostgreSQL's NOTIFY, with the version as its payload
BATCH = 2000
QUARTER_S = 900
NOTIFY = text("SELECT pg_notify(:channel, :version)")
TABLE = cast(Table, Standing.__table__)
SITE = cast(Table, SiteVersion.__table__)
# What of a participant shows on a board: a change of these is a change of the boards.
SHOWN = ("nickname", "nickname_state", "hidden", "on_board", "erased_at")


# One participant's place on one board: scope, period, participant's id.
BoardKey: TypeAlias = tuple[str, str, str]


class Place(NamedTuple):
    score: int
    reached_at: dt.datetime


def period_keys(at: dt.datetime, zone: str) -> dict[str, str]:
    """The stored names of the periods that ``at`` lies in, by all, day and week."""
    ever, day, week = _periods(at.timestamp() // QUARTER_S, zone)
    return {"all": ever, "day": day, "week": week}


@functools.lru_cache(maxsize=8192)
def _periods(quarter: float, zone: str) -> tuple[str, str, str]:
    """By the quarter of an hour: every zone's midnight is at one."""
    local = dt.datetime.fromtimestamp(quarter * QUARTER_S, ZoneInfo(zone))
    year, week, _ = local.isocalendar()
    return "all", f"{local:%Y-%m-%d}", f"{year}-W{week:02}"


def site_version(tx: Session) -> tuple[int, str]:
    """The version of all boards, and the site's zone."""
    row = tx.execute(select(SiteVersion.boards, SiteVersion.zone)).one_or_none()
    return (0, "UTC") if row is None else (row.boards, row.zone)


def changed(tx: Session) -> str:
    """Count the boards' version up: viewers get new ones after the commit. Gives the zone.

    Awards do this, and so does every change of what a board shows of a participant that is made
    through an object of the session; only bulk UPDATEs of participants must call it.
    """
    connection = tx.connection()  # not the session: this also runs within its flush
    moved = connection.execute(
        update(SITE)
        .where(SITE.c.id == 1)
        .values(boards=SITE.c.boards + 1)
        .returning(SITE.c.boards, SITE.c.zone)
    ).one_or_none()
    if moved is None:
        connection.execute(insert(SITE).values(id=1, boards=1, zone="UTC"))
        version, zone = 1, "UTC"
    else:
        version, zone = int(moved.boards), str(moved.zone)
    if connection.dialect.name == "postgresql":
        connection.execute(NOTIFY, {"channel": CHANNEL, "version": str(version)})
    return zone


@event.listens_for(Session, "after_flush")
def _participants_changed(tx: Session, _: Any) -> None:
    """Somebody who is hidden, erased or renamed must not stay in a page that is kept."""
    for thing in tx.dirty:
        if isinstance(thing, Participant):
            state = inspect(thing)
            if any(state.attrs[name].history.has_changes() for name in SHOWN):
                changed(tx)
                return


def add(tx: Session, entry: LedgerEntry, joined: dt.datetime) -> None:
    """Add a new entry, no reversal, to its boards. ``joined``: when its participant came."""
    zone = changed(tx)
    places = {key: Place(share, entry.counts_at) for key, share in _shares(entry, joined, zone)}
    if places:
        rows = list(_rows(places))
        tx.connection().execute(UPSERT[tx.get_bind().dialect.name], rows)


def retake(tx: Session, participant_id: str) -> None:
    """Make the standings of one participant anew from the ledger."""
    zone = changed(tx)
    tx.execute(
        delete(Standing)
        .where(Standing.participant_id == participant_id)
        .execution_options(synchronize_session=False)
    )
    _insert(tx, _add_up(tx, zone, participant_id))


def rebuild(tx: Session) -> None:
    """Make all standings anew from the ledger, under the zone that the site has."""
    zone = changed(tx)
    tx.execute(delete(Standing).execution_options(synchronize_session=False))
    _insert(tx, _add_up(tx, zone))


def differences(tx: Session) -> dict[BoardKey, tuple[Place | None, Place | None]]:
    """Where the stored standings aren't what the ledger adds up to: (stored, ledger's)."""
    computed = _add_up(tx, site_version(tx)[1])
    stored = {
        (row.scope, row.period, row.participant_id): Place(row.score, row.reached_at)
        for row in tx.execute(
            select(
                Standing.scope,
                Standing.period,
                Standing.participant_id,
                Standing.score,
                Standing.reached_at,
            )
        )
    }
    return {
        key: (stored.get(key), computed.get(key))
        for key in stored.keys() | computed.keys()
        if stored.get(key) != computed.get(key)
    }


def midnight(tx: Session, now: dt.datetime) -> dt.datetime:
    """When the day began at the site."""
    local = now.astimezone(ZoneInfo(site_version(tx)[1]))
    return local.replace(hour=0, minute=0, second=0, microsecond=0)


def set_zone(tx: Session, zone: str) -> None:
    """Let days begin at this zone's midnight (``Europe/Berlin``); rebuilds where that is new."""
    ZoneInfo(zone)  # raises for a name that isn't one
    if site_version(tx)[1] == zone:
        return
    changed(tx)
    tx.execute(update(SiteVersion).values(zone=zone).execution_options(synchronize_session=False))
    rebuild(tx)


def _shares(
    entry: LedgerEntry | Row[*tuple[Any, ...]], joined: dt.datetime, zone: str
) -> Iterator[tuple[BoardKey, int]]:
    """What an entry adds to which boards; nothing where it adds zero."""
    scopes = [("all", entry.points), ("quality", entry.quality)]
    if entry.task_id is not None:
        scopes.append((f"task:{entry.task_id}", entry.points))
    if entry.counts_at < joined + NEWCOMER:
        scopes.append(("newcomers", entry.points))
    who = entry.participant_id
    for period in _periods(entry.counts_at.timestamp() // QUARTER_S, zone):
        for scope, share in scopes:
            if share:
                yield (scope, period, who), share


def _add_up(tx: Session, zone: str, participant_id: str | None = None) -> dict[BoardKey, Place]:
    """The standings by the ledger: all, or one participant's."""
    tx.flush()
    reversal = aliased(LedgerEntry)
    entries = (
        select(
            LedgerEntry.participant_id,
            LedgerEntry.task_id,
            LedgerEntry.points,
            LedgerEntry.quality,
            LedgerEntry.counts_at,
            Participant.created_at.label("joined"),
        )
        .join(Participant, Participant.id == LedgerEntry.participant_id)
        .where(
            LedgerEntry.reverses_id.is_(None),
            ~select(reversal.id).where(reversal.reverses_id == LedgerEntry.id).exists(),
        )
    )
    if participant_id is not None:
        entries = entries.where(LedgerEntry.participant_id == participant_id)
    sums: dict[BoardKey, int] = {}
    reached: dict[BoardKey, dt.datetime] = {}
    for entry in tx.execute(entries.execution_options(yield_per=BATCH)):
        at = entry.counts_at
        for key, share in _shares(entry, entry.joined, zone):
            if key in sums:
                sums[key] += share
                reached[key] = max(reached[key], at)
            else:
                sums[key] = share
                reached[key] = at
    return {key: Place(score, reached[key]) for key, score in sums.items()}


def _insert(tx: Session, places: dict[BoardKey, Place]) -> None:
    rows = list(_rows(places))
    for first in range(0, len(rows), BATCH):
        tx.connection().execute(insert(TABLE), rows[first : first + BATCH])


def _rows(places: dict[BoardKey, Place]) -> Iterator[dict[str, Any]]:
    for (scope, period, who), (score, at) in places.items():
        yield {
            "scope": scope,
            "period": period,
            "participant_id": who,
            "score": score,
            "reached_at": at,
        }


def _upsert(statement: Any) -> Any:
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=["scope", "period", "participant_id"],
        set_={
            "score": TABLE.c.score + new.score,
            "reached_at": case(
                (new.reached_at > TABLE.c.reached_at, new.reached_at), else_=TABLE.c.reached_at
            ),
        },
    )


UPSERT = {
    "sqlite": _upsert(sqlite.insert(TABLE)),
    "postgresql": _upsert(postgresql.insert(TABLE)),
}
