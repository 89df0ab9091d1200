"""Which plays may leave the site, and why the others may not.

Asked twice: before anything is copied, and again when all is, so that what was withdrawn, erased
or hidden meanwhile is not in what is given out.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from collect.crowd import consent
from collect.crowd.tables import Consent, Participant, Play, ReviewVerdict, Tombstone

__all__ = ["REASONS", "Chosen", "Selection", "Terms", "choose"]

# Why a play is left out, in the order in which it is asked; only counts of these are told.
REASONS = {
    "erased": "erased, with all that was recorded",
    "nothing_recorded": "nothing was recorded",
    "not_synced": "its recording has not arrived",
    "hidden": "staff have hidden the participant",
    "no_consent": "no consent is on record",
    "consent_later": "the consent is younger than the play",
    "not_agreed": "the participant did not agree to this use",
    "withdrawn": "the participant took the consent back",
    "before": "older than asked for",
    "not_reviewed": "no reviewer has said of what quality it is",
    "quality": "of less quality than asked for",
    "file_missing": "its file is gone",
    "file_changed": "its file is not the one that the station sent",
    "file_unreadable": "its file is no episode that can be read",
    "labels": "its labels are of another length than its recording",
    "identifying": "its file has something in it that tells who drove, in a place that is kept",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for: a least quality (0-3) by reviewers, and plays that began at ``since`` or
    later."""

    min_quality: int | None = None
    since: dt.datetime | None = None

    def as_dict(self) -> dict[str, str | int | None]:
        return {
            "scope": consent.RESEARCH,
            "min_quality": self.min_quality,
            "since": None if self.since is None else self.since.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """A play that may leave, with what it was driven under and what reviewers say."""

    play: Play
    participant: Participant
    consent: Consent
    verdict: ReviewVerdict | None


@dataclass(frozen=True, slots=True)
class Selection:
    """Plays in the order of time; ``left_out``: how many were for which of ``REASONS``."""

    chosen: list[Chosen]
    left_out: Counter[str]


def choose(tx: Session, terms: Terms) -> Selection:
    """Judge every play of the site as it is now."""
    chosen = []
    left_out: Counter[str] = Counter()
    for candidate, reason in _judged(tx, terms):
        if reason is not None:
            left_out[reason] += 1
        elif candidate is not None:
            chosen.append(candidate)
    return Selection(chosen, left_out)


def _judged(tx: Session, terms: Terms) -> Iterator[tuple[Chosen | None, str | None]]:
    rows = tx.execute(
        select(
            Play,
            Participant,
            Consent,
            ReviewVerdict,
            exists().where(Tombstone.id == Play.id),
        )
        .outerjoin(Participant, Participant.id == Play.participant_id)
        .outerjoin(Consent, Consent.id == Play.consent_id)
        .outerjoin(ReviewVerdict, ReviewVerdict.play_id == Play.id)
        .order_by(Play.started_at, Play.id)
    )
    for play, participant, given, verdict, buried in rows:
        reason = _person(play, participant, buried) or _agreement(play, given)
        reason = reason or _asked_for(play, verdict, terms)
        if reason is not None or participant is None or given is None:
            yield None, reason or "no_consent"
        else:
            yield Chosen(play, participant, given, verdict), None


def _person(play: Play, participant: Participant | None, buried: bool) -> str | None:
    if buried or (participant is not None and participant.erased_at is not None):
        return "erased"
    if play.state == "void":
        return "nothing_recorded"
    if play.state != "synced" or play.file is None or play.sha256 is None:
        return "not_synced"
    if participant is None:
        return "no_consent"
    return "hidden" if participant.hidden else None


def _agreement(play: Play, given: Consent | None) -> str | None:
    """The consent that the play was driven under must be the driver's own, older than the play,
    and hold now, for research and for recording as such. No other scope lets anything out: `record`
    is for the site itself, `clips` for a clip on its pages."""
    if given is None or given.participant_id != play.participant_id:
        return "no_consent"
    wanted = {consent.RESEARCH, consent.REQUIRED}
    if not wanted <= set(given.scopes):
        return "not_agreed"
    if given.given_at > play.started_at:
        return "consent_later"
    if not all(consent.covers(given, name) for name in wanted):
        return "withdrawn"
    return None


def _asked_for(play: Play, verdict: ReviewVerdict | None, terms: Terms) -> str | None:
    if terms.since is not None and play.started_at < terms.since:
        return "before"
    if terms.min_quality is None:
        return None
    if verdict is None or verdict.quality is None:
        return "not_reviewed"
    return "quality" if verdict.quality < terms.min_quality else None
