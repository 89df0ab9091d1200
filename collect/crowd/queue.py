"""Waiting for a turn at a station, in the order of coming, with how long it will take.

The first in the queue is called when the station is free, and loses the place when three minutes go
by without coming. Nobody waits at two stations.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from collect.crowd.leases import StationBusyError, current, holder, online
from collect.crowd.tables import Participant, Play, Queued, Station, utc_now

__all__ = [
    "CALL_FOR",
    "MAX_WAITING",
    "Place",
    "advance",
    "called",
    "due",
    "join",
    "leave",
    "length",
    "place",
    "turn_s",
]

# To walk up to the station (a minute), wait for its kiosk, where somebody may be signed in who has
# left (`sessions.kiosk_idle_s`), have it show a code and scan that (half a minute). The texts
# `queue.called_*` say it, too.
CALL_FOR = dt.timedelta(minutes=3)
MAX_WAITING = 50  # nobody waits for longer than a day's opening hours
USUAL_TURN_S = 240.0
BETWEEN_S = 30.0  # signing in, choosing, reporting
SHORTEST_S, LONGEST_S = 60.0, 900.0
TURNS = 20  # so many of the last ones say how long a turn takes


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a queue: how many are ahead, how long it will take (s), whether it is called and
    until when it is kept."""

    station_id: str
    ahead: int
    expected_s: float
    called: bool
    called_until: dt.datetime | None


def join(
    tx: Session, station: Station, participant: Participant, now: dt.datetime | None = None
) -> Place:
    """Wait for a turn; the place one has already is kept. A place elsewhere is given up.

    StationBusyError ``closed``, or ``queue`` when too many wait.
    """
    now = now or utc_now()
    station = current(tx, station)
    if station.closed:
        raise StationBusyError("closed", f"station {station.name} is closed")
    row = _row(tx, participant)
    if row is not None and row.station_id != station.id:
        left = row.station_id
        tx.delete(row)
        tx.flush()
        _advance_id(tx, left, now)
        row = None
    if row is None:
        if length(tx, station) >= MAX_WAITING:
            raise StationBusyError("queue", f"too many people wait for {station.name}")
        tx.add(Queued(station_id=station.id, participant_id=participant.id, joined_at=now))
        tx.flush()
    advance(tx, station, now)
    found = place(tx, participant, now)
    assert found is not None
    return found


def leave(tx: Session, participant: Participant, now: dt.datetime | None = None) -> None:
    """Wait no longer; who comes next is called. Nothing happens to somebody who does not wait."""
    row = _row(tx, participant)
    if row is not None:
        tx.delete(row)
        tx.flush()
        _advance_id(tx, row.station_id, now or utc_now())


def place(tx: Session, participant: Participant, now: dt.datetime | None = None) -> Place | None:
    """Where a participant stands; None when they don't wait or have missed their turn."""
    now = now or utc_now()
    row = _row(tx, participant)
    if row is None or _missed(row, now):
        return None
    station = tx.get(Station, row.station_id)
    assert station is not None
    ahead = [other for other in _waiting(tx, station, now) if other.id < row.id]
    until = None if row.called_at is None else row.called_at + CALL_FOR
    wait_s = 0.0
    if until is None:
        usual_s = turn_s(tx, station)
        wait_s = len(ahead) * usual_s
        lease = holder(tx, station, now)
        if lease is not None:
            spent_s = (now - lease.granted_at).total_seconds()
            wait_s += max(BETWEEN_S, usual_s - spent_s)
    return Place(station.id, len(ahead), wait_s, until is not None, until)


def called(tx: Session, station: Station, now: dt.datetime | None = None) -> Queued | None:
    """Who is called to the station now, and has not come yet."""
    now = now or utc_now()
    first = next(iter(_waiting(tx, station, now)), None)
    return first if first is not None and first.called_at is not None else None


def advance(tx: Session, station: Station, now: dt.datetime | None = None) -> None:
    """Strike out who has missed the call, and call the next when the station is free."""
    now = now or utc_now()
    tx.execute(
        delete(Queued)
        .where(Queued.station_id == station.id, Queued.called_at <= now - CALL_FOR)
        .execution_options(synchronize_session="fetch")
    )
    first = next(iter(_waiting(tx, station, now)), None)
    if first is None or first.called_at is not None:
        return
    if not station.closed and online(station, now) and holder(tx, station, now) is None:
        first.called_at = now
        tx.flush()


def due(tx: Session, now: dt.datetime) -> list[str]:
    """Stations whose queue has something to be done."""
    stations: dict[str, Queued] = {}
    for row in tx.scalars(select(Queued).order_by(Queued.id)):
        stations.setdefault(row.station_id, row)
    found = []
    for station_id, first in stations.items():
        station = tx.get(Station, station_id)
        assert station is not None
        free = not station.closed and online(station, now) and holder(tx, station, now) is None
        if _missed(first, now) or (first.called_at is None and free):
            found.append(station_id)
    return found


def length(tx: Session, station: Station) -> int:
    """How many wait."""
    return tx.scalar(select(func.count()).where(Queued.station_id == station.id)) or 0


def turn_s(tx: Session, station: Station) -> float:
    """How long a turn at the station takes, by the last ones: from the first play to the end of the
    last one under a lease, and what comes before and after."""
    rows = tx.execute(
        select(func.min(Play.started_at), func.max(Play.ended_at))
        .where(Play.station_id == station.id, Play.ended_at.is_not(None))
        .group_by(Play.fence)
        .order_by(Play.fence.desc())
        .limit(TURNS)
    ).all()
    spent = [(last - first).total_seconds() + BETWEEN_S for first, last in rows if last is not None]
    if not spent:
        return USUAL_TURN_S
    return min(LONGEST_S, max(SHORTEST_S, sum(spent) / len(spent)))


def _row(tx: Session, participant: Participant) -> Queued | None:
    return tx.scalar(select(Queued).where(Queued.participant_id == participant.id))


def _missed(row: Queued, now: dt.datetime) -> bool:
    return row.called_at is not None and row.called_at + CALL_FOR <= now


def _waiting(tx: Session, station: Station, now: dt.datetime) -> list[Queued]:
    rows = tx.scalars(select(Queued).where(Queued.station_id == station.id).order_by(Queued.id))
    return [row for row in rows if not _missed(row, now)]


def _advance_id(tx: Session, station_id: str, now: dt.datetime) -> None:
    station = tx.get(Station, station_id)
    if station is not None:
        advance(tx, station, now)
