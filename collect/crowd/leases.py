"""Whose turn it is at a station: a look at its lease. `collect.crowd.stations` gives and takes it.

A lease is live until it expires, and as long as a play runs under it: nobody is sent away while
driving. A station is online while its agent sends heartbeats; the times are the site's own.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.tables import Play, Station, StationLease, utc_now
from robot_stack.errors import RobotStackError

__all__ = ["OFFLINE_AFTER", "StationBusyError", "current", "holder", "online", "running"]

OFFLINE_AFTER = dt.timedelta(seconds=10)  # an agent speaks every half second

BusyReason = Literal["closed", "offline", "busy", "queue", "elsewhere", "over"]


class StationBusyError(RobotStackError):
    """There is no turn to be had now. ``reason``: closed (by staff), offline (its agent is silent),
    busy (somebody has it), queue (others wait), elsewhere (you have another station), over (your
    turn is)."""

    def __init__(self, reason: BusyReason, text: str) -> None:
        super().__init__(text)
        self.reason: BusyReason = reason


def online(station: Station, now: dt.datetime | None = None) -> bool:
    """Whether the station's agent was heard of lately."""
    now = now or utc_now()
    return station.seen_at is not None and now - station.seen_at < OFFLINE_AFTER


def running(tx: Session, station: Station) -> Play | None:
    """The play that runs at the station; there is one at most."""
    return tx.scalar(
        select(Play)
        .where(Play.station_id == station.id, Play.state == "running")
        .order_by(Play.started_at.desc(), Play.id)
        .limit(1)
    )


def holder(tx: Session, station: Station, now: dt.datetime | None = None) -> StationLease | None:
    """The lease of whoever's turn it is; None when the station is free."""
    lease = tx.get(StationLease, station.id)
    if lease is None or lease.expires_at > (now or utc_now()):
        return lease
    play = running(tx, station)
    return lease if play is not None and play.fence == lease.fence else None


def current(tx: Session, station: Station) -> Station:
    """The station's row in this transaction; what a request brings was read by another one."""
    row = tx.get(Station, station.id)
    if row is None:
        raise StationBusyError("closed", f"there is no station {station.name} any more")
    return row
