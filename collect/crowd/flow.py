"""The order of a participant's steps, held on the server: which page comes next, which ones may be.

    sign in ─► age ─► consent ─► tutorial ─► choose ─► play ─► report ─► choose ...
                 └─► minor: no further

Where somebody stands follows from what is in the database, so that it is the same at the kiosk and
at a phone, after a restart and with an old page in another tab. A page asked for out of order
answers with a redirect to the right one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from collect.crowd import consent, plays
from collect.crowd.security.sessions import Who
from collect.crowd.tables import Consent, Participant, Play, Station, utc_now

__all__ = ["NEAR", "PAGES", "Progress", "Step", "detour", "progress", "station_of"]

Step = Literal["age", "minor", "consent", "tutorial", "choose", "play", "report"]
NEAR = dt.timedelta(minutes=10)  # a phone is carried away; the robot moves when a play begins

# The page of each step.
PAGES: dict[Step, str] = {
    "age": "/age",
    "minor": "/age",
    "consent": "/consent",
    "tutorial": "/tutorial",
    "choose": "/tasks",
    "play": "/play",
    "report": "/report",
}
# At which steps a page may be shown. Pages that aren't here may be at any.
ALLOWED: dict[str, frozenset[Step]] = {
    "/age": frozenset({"age", "minor"}),
    "/consent": frozenset({"consent"}),
    "/nickname": frozenset({"tutorial", "choose", "report"}),
    "/tutorial": frozenset({"tutorial", "choose"}),
    "/tasks": frozenset({"choose"}),
    "/free": frozenset({"choose"}),
    "/queue": frozenset({"tutorial", "choose"}),
    "/play": frozenset({"play"}),
    "/report": frozenset({"report"}),
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Where somebody stands. ``play``: the one that runs, or that is to be reported."""

    step: Step
    consent: Consent | None = None
    play: Play | None = None

    @property
    def page(self) -> str:
        return PAGES[self.step]


def progress(tx: Session, participant: Participant) -> Progress:
    """The step that a participant is at.

    What runs is ended first, even if the consent's text has changed meanwhile; then age and
    consent are asked for before anything is said or begun.
    """
    current = tx.get_one(Participant, participant.id)  # the caller's may be older
    running = tx.scalar(
        select(Play)
        .where(Play.participant_id == participant.id, Play.state == "running")
        .order_by(Play.started_at.desc())
        .limit(1)
    )
    given = consent.valid(tx, current)
    if running is not None:
        return Progress("tutorial" if running.kind == "tutorial" else "play", given, running)
    if current.adult is None:
        return Progress("age")
    if not current.adult:
        return Progress("minor")
    if given is None:
        return Progress("consent")
    open_report = plays.unreported(tx, current)
    if open_report is not None:
        return Progress("report", given, open_report)
    if current.tutorial_at is None:
        return Progress("tutorial", given)
    return Progress("choose", given)


def detour(tx: Session, participant: Participant, page: str) -> str | None:
    """Where to go instead of ``page``; None when it is in order."""
    at = progress(tx, participant)
    allowed = ALLOWED.get(page)
    return None if allowed is None or at.step in allowed else at.page


def station_of(tx: Session, who: Who) -> Station | None:
    """The station that somebody is at: the kiosk's; at a phone the one whose code it scanned, for
    ten minutes after that and after each time its owner drove there. None for others: nobody
    starts a robot from home."""
    session = who.sessions.get("participant")
    if session is None:
        return None if who.kiosk is None else tx.get(Station, who.kiosk.id)
    if session.station_id is not None:
        return tx.get(Station, session.station_id)
    if session.linked_id is None:
        return None
    since = utc_now() - NEAR
    drove = select(Play.id).where(
        Play.participant_id == session.participant_id,
        Play.station_id == session.linked_id,
        Play.state != "void",  # hands were on the leaders
        or_(Play.ended_at.is_(None), Play.ended_at > since),
    )
    near = session.created_at > since or tx.scalar(drove.limit(1)) is not None
    return tx.get(Station, session.linked_id) if near else None
