"""Stations: whose turn it is, what their agents say, and what is asked of the agents.

A lease is a turn. Its fence grows with every one, so that what belongs to an earlier turn is known
as such wherever it turns up. **The web can request, never command, motion**: an order says which
play to begin or to end, and nothing of how anything moves; the agent decides whether it does.

Orders are not a queue but what shall be: each heartbeat is answered with the difference between
the play that runs here and the one that the agent is at. So a lost, doubled or late answer does no
harm.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd import badges, plays, queue
from collect.crowd.keys import SiteKey
from collect.crowd.leases import StationBusyError, current, holder, online, running
from collect.crowd.tables import (
    Consent,
    Participant,
    Play,
    Queued,
    Station,
    StationLease,
    Task,
    TaskText,
    utc_now,
)

__all__ = [
    "StationBusyError",
    "due",
    "grant",
    "heartbeat",
    "holder",
    "online",
    "passed",
    "release",
    "renew",
    "sweep",
]

LEASE_FOR = dt.timedelta(seconds=120)  # longer than a kiosk's participant may be idle
TURN = dt.timedelta(minutes=10)  # when others wait; a play is never cut short by it
LOST_AFTER = dt.timedelta(seconds=15)  # a silent agent's play goes on, but nobody waits for it
OVERDUE = dt.timedelta(seconds=120)  # starting and lowering included: the agent is not at it
CONTRIBUTOR = "contributor"  # the purpose of the id that goes into episodes


def grant(
    tx: Session, station: Station, participant: Participant, now: dt.datetime | None = None
) -> StationLease:
    """Give the participant a turn, or renew the one that they have.

    StationBusyError when the station is closed or offline, somebody else's turn it is, others wait,
    or the participant has a turn at another station.
    """
    now = now or utc_now()
    station = current(tx, station)
    lease = holder(tx, station, now)
    if lease is not None and lease.participant_id == participant.id:
        return renew(tx, station, participant, now)
    if station.closed:
        raise StationBusyError("closed", f"station {station.name} is closed")
    if not online(station, now):
        raise StationBusyError("offline", f"the robot of {station.name} is not connected")
    if lease is not None:
        raise StationBusyError("busy", f"somebody has a turn at {station.name}")
    elsewhere = tx.scalar(select(StationLease).where(StationLease.participant_id == participant.id))
    if elsewhere is not None and elsewhere.station_id != station.id:
        other = tx.get(Station, elsewhere.station_id)
        assert other is not None
        if holder(tx, other, now) is not None:
            raise StationBusyError("elsewhere", f"you have a turn at {other.name}")
        tx.delete(elsewhere)
    queue.advance(tx, station, now)
    first = queue.called(tx, station, now)
    if first is not None and first.participant_id != participant.id:
        raise StationBusyError("queue", f"others wait for {station.name}")
    place = tx.scalar(select(Queued).where(Queued.participant_id == participant.id))
    expired = tx.get(StationLease, station.id)
    for done in (place, expired):
        if done is not None:
            tx.delete(done)
    tx.flush()
    station.fence += 1
    fresh = StationLease(
        station_id=station.id,
        participant_id=participant.id,
        fence=station.fence,
        granted_at=now,
        seen_at=now,
        expires_at=now + LEASE_FOR,
    )
    tx.add(fresh)
    tx.flush()
    return fresh


def renew(
    tx: Session, station: Station, participant: Participant, now: dt.datetime | None = None
) -> StationLease:
    """The participant is still there. StationBusyError ``over`` when the turn has expired, or has
    lasted for ten minutes while others wait; a play that runs goes to its end."""
    now = now or utc_now()
    station = current(tx, station)
    lease = holder(tx, station, now)
    if lease is None or lease.participant_id != participant.id:
        raise StationBusyError("over", f"your turn at {station.name} is over")
    if (
        now - lease.granted_at >= TURN
        and running(tx, station) is None
        and queue.length(tx, station)
    ):
        raise StationBusyError("over", f"your turn at {station.name} is over: others wait")
    lease.seen_at = now
    lease.expires_at = max(lease.expires_at, now + LEASE_FOR)
    tx.flush()
    return lease


def release(
    tx: Session, station: Station, participant: Participant, now: dt.datetime | None = None
) -> None:
    """End the participant's turn, and their play with it; the next one is called. Nothing happens
    when it isn't theirs."""
    now = now or utc_now()
    lease = tx.get(StationLease, station.id)
    if lease is None or lease.participant_id != participant.id:
        return
    station = current(tx, station)
    play = running(tx, station)
    if play is not None and play.fence == lease.fence:
        plays.finish(tx, play, by="button", now=now)
    _end(tx, station, lease, now)


def heartbeat(
    tx: Session,
    station: Station,
    state: dict[str, Any],
    *,
    key: SiteKey,
    fence: int = 0,
    now: dt.datetime | None = None,
) -> dict[str, Any]:
    """Take what the agent says of itself (see `agent_messages.State`) and answer what shall be.

    An older state than the last one, by the agent's own count, is not taken, but answered.
    ``fence``: the highest that the agent has heard of; the turns from now on have higher ones, also
    when this database was brought back from a backup. Gives ``fence``, ``lease`` (seconds left,
    None without one) and ``orders``.
    """
    now = now or utc_now()
    station = current(tx, station)
    station.seen_at = now
    station.fence = max(station.fence, fence)
    if not _older(state, station.state):
        station.state = state
        tx.flush()
        _take_ended(tx, station, state, now)
    play = running(tx, station)
    if play is not None:
        task = None if play.task_id is None else tx.get(Task, play.task_id)
        limit = dt.timedelta(seconds=plays.limit_s(play, task)) + OVERDUE
        if now > play.started_at + limit:
            plays.finish(tx, play, by="time", now=now)
            play = None
    lease = tx.get(StationLease, station.id)
    if lease is not None and play is not None and play.fence == lease.fence:
        lease.expires_at = max(lease.expires_at, now + LEASE_FOR)  # hands are on the leaders
    tx.flush()
    queue.advance(tx, station, now)
    lease = holder(tx, station, now)
    return {
        "fence": station.fence,
        "lease": None if lease is None else round((lease.expires_at - now).total_seconds(), 1),
        "orders": _orders(tx, play, state, key),
    }


def passed(tx: Session, play: Play, done: bool, now: dt.datetime | None = None) -> None:
    """The station has seen a tutorial done: its participant may drive."""
    if done and play.kind == "tutorial" and play.participant_id is not None:
        participant = tx.get(Participant, play.participant_id)
        if participant is not None and participant.tutorial_at is None:
            participant.tutorial_at = now or utc_now()
            tx.flush()
            badges.update(tx, participant.id, now)


def due(tx: Session, now: dt.datetime, listening: dt.datetime | None = None) -> bool:
    """Whether `sweep` has something to do."""
    if queue.due(tx, now):
        return True
    if tx.scalar(select(StationLease.station_id).where(StationLease.expires_at <= now).limit(1)):
        return True
    return any(_lost(tx, play, now, listening) for play in _running(tx))


def sweep(
    tx: Session, now: dt.datetime | None = None, listening: dt.datetime | None = None
) -> None:
    """End what time has ended: plays and leases of silent stations, turns that nobody uses, places
    of those who did not come. ``listening``: since when the site could have heard a station."""
    now = now or utc_now()
    for play in _running(tx):
        if _lost(tx, play, now, listening):
            plays.finish(tx, play, by="lost", now=now)
            lease = tx.get(StationLease, play.station_id)
            if lease is not None and lease.fence == play.fence:
                tx.delete(lease)
                tx.flush()
    for lease in tx.scalars(select(StationLease).where(StationLease.expires_at <= now)).all():
        station = tx.get(Station, lease.station_id)
        assert station is not None
        if holder(tx, station, now) is None:
            _end(tx, station, lease, now)
    for station_id in queue.due(tx, now):
        station = tx.get(Station, station_id)
        assert station is not None
        queue.advance(tx, station, now)


def _end(tx: Session, station: Station, lease: StationLease, now: dt.datetime) -> None:
    tx.delete(lease)
    tx.flush()
    queue.advance(tx, station, now)


def _running(tx: Session) -> list[Play]:
    return list(tx.scalars(select(Play).where(Play.state == "running")))


def _lost(tx: Session, play: Play, now: dt.datetime, listening: dt.datetime | None) -> bool:
    station = tx.get(Station, play.station_id)
    assert station is not None
    heard = [at for at in (station.seen_at, listening, play.started_at) if at is not None]
    return now - max(heard) >= LOST_AFTER


def _older(state: dict[str, Any], known: dict[str, Any]) -> bool:
    """Whether a heartbeat was overtaken by a later one of the same agent's process."""
    return bool(state.get("boot") == known.get("boot") and state.get("n", 0) < known.get("n", 0))


def _take_ended(tx: Session, station: Station, state: dict[str, Any], now: dt.datetime) -> None:
    """The agent says that a play ended, or that a tutorial was passed."""
    play = running(tx, station)
    if play is None:
        return
    tutorial = state.get("tutorial") or {}
    if play.kind == "tutorial" and tutorial.get("play") == play.id:
        passed(tx, play, tutorial.get("step") == "done", now)
    ended = state.get("ended") or {}
    if ended.get("play") == play.id:
        ended_at = now - dt.timedelta(seconds=ended.get("ago_s", 0.0))
        plays.finish(tx, play, by=ended["by"], now=ended_at)


def _orders(
    tx: Session, play: Play | None, state: dict[str, Any], key: SiteKey
) -> list[dict[str, Any]]:
    at = state.get("play")
    orders: list[dict[str, Any]] = []
    if at is not None and (play is None or play.id != at):
        orders.append({"do": "stop", "play": at})
    if play is not None and play.id != at:
        orders.append(_start(tx, play, key))
    return orders


def _start(tx: Session, play: Play, key: SiteKey) -> dict[str, Any]:
    """What the agent must know to record a play; nothing of who the participant is."""
    task = None if play.task_id is None else tx.get(Task, play.task_id)
    text = None if task is None else tx.get(TaskText, (task.id, "en"))
    consent = None if play.consent_id is None else tx.get(Consent, play.consent_id)
    return {
        "do": "start",
        "play": play.id,
        "kind": play.kind,
        "fence": play.fence,
        "task": play.task_id,
        "instruction": None if text is None else text.title,
        "seconds": plays.limit_s(play, task),
        "contributor": key.mac(CONTRIBUTOR, play.participant_id or play.id)[:32],
        "consent": None if consent is None else consent.version,
        "scopes": [] if consent is None else list(consent.scopes),
    }
