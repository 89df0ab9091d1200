"""The order of a participant's steps, held on the server: which page comes next, which ones may be.

    sign in ─► age ─► consent ─► tutorial ─► choose ─► play ─► report ─► choose ...
                 └─► minor: no further

Where somebody stands follows from what is in the database, so that it is the same at the kiosk and
at a phone, after a restart and with an old page in another tab. A page asked for out of order
answers with a redirect to the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd import consent, plays
from collect.crowd.security.sessions import Who
from collect.crowd.tables import Consent, Participant, Play, Station

__all__ = ["PAGES", "Progress", "Step", "detour", "progress", "station_of"]

Step = Literal["age", "minor", "consent", "tutorial", "choose", "play", "report"]

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
    """The station that somebody can play at: that of the kiosk, or of the kiosk that sent the
    phone. None for others: nobody starts a robot from home."""
    session = who.sessions.get("participant")
    if session is None:
        return None if who.kiosk is None else tx.get(Station, who.kiosk.id)
    near = session.station_id or session.linked_id
    return None if near is None else tx.get(Station, near)
