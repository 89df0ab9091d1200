"""A participant's turn, as pages need it: take it, keep it, and say kindly why there is none."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from sqlalchemy.orm import Session

from collect.crowd import flow, leases, plays, queue, stations
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.plays import Kind, PlayError
from collect.crowd.security.sessions import Who
from collect.crowd.stations import StationBusyError
from collect.crowd.tables import Participant, Play, Station, Task, utc_now

__all__ = ["Refused", "begin", "keep", "status", "take"]

KEEP_EVERY = dt.timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing begins, as a key for a text; ``waits`` when a place in the queue was given."""

    reason: str
    waits: bool = False


def status(tx: Session, station: Station, me: Participant | None) -> str:
    """How a station is: free, yours, busy, queue (others wait), closed, offline or fault."""
    if station.closed:
        return "closed"
    if not leases.online(station):
        return "offline"
    if station.state.get("phase") == "fault":
        return "fault"
    lease = leases.holder(tx, station)
    if lease is not None:
        return "yours" if me is not None and lease.participant_id == me.id else "busy"
    first = queue.called(tx, station)
    if first is None or (me is not None and first.participant_id == me.id):
        return "free"
    return "queue"


def take(tx: Session, who: Who) -> Station | Refused:
    """The station, now that it is the participant's turn; a place in its queue otherwise."""
    me = who.participant
    assert me is not None
    station = flow.station_of(tx, who)
    if station is None:
        return Refused("away")
    try:
        stations.grant(tx, station, me)
    except StationBusyError as error:
        if error.reason not in ("busy", "queue"):
            return Refused(error.reason)
        try:
            queue.join(tx, station, me)
        except StationBusyError as full:
            return Refused(full.reason)
        return Refused(error.reason, waits=True)
    return station


def begin(
    database: Database, config: CrowdConfig, who: Who, kind: Kind, task_id: str | None = None
) -> Play | Refused:
    """Take the turn and ask the station to begin. The same asked twice is one play."""
    me = who.participant
    assert me is not None
    with database.begin() as tx:
        station = take(tx, who)
        if isinstance(station, Refused):
            return station
        at = flow.progress(tx, me)
        if at.consent is None:
            return Refused("consent")
        try:
            return plays.start(
                tx,
                station,
                tx.get_one(Participant, me.id),
                task=None if task_id is None else tx.get(Task, task_id),
                kind=kind,
                consent=at.consent,
                per_day=config.caps.plays_per_day,
            )
        except PlayError as error:
            if leases.running(tx, station) is None:
                stations.release(tx, station, me)  # the robot is free for who can use it
            return Refused(error.reason)


def keep(database: Database, who: Who) -> None:
    """The participant is still at it: their turn does not run out under them."""
    me = who.participant
    assert me is not None
    now = utc_now()
    with database.read() as tx:
        station = flow.station_of(tx, who)
        lease = None if station is None else leases.holder(tx, station, now)
    if station is None or lease is None or lease.participant_id != me.id:
        return
    if now - lease.seen_at < KEEP_EVERY:
        return
    with database.begin() as tx:
        try:
            stations.renew(tx, station, me, now)
        except StationBusyError:
            stations.release(tx, station, me, now)  # others wait, and have waited long enough
