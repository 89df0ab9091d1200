"""What is forgotten by itself, and when: rules of the settings, applied again and again.

Cards and guests are counted from their last visit: a sign-in that is still known, a play, a
consent, or the first time they came. Who has been away for so long may never come back and take
anything back, so only what they gave for research is kept of their recordings. All of it may be
done twice, or beside another one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session

from collect.crowd import consent, data_rights
from collect.crowd.config import CrowdConfig, RetentionConfig
from collect.crowd.database import Database
from collect.crowd.tables import (
    AuditEntry,
    Consent,
    PairingCode,
    Participant,
    PhoneLink,
    Play,
    RateCount,
    StationLease,
    WebSession,
    utc_now,
)

__all__ = ["Forgotten", "apply", "due"]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many of each were (or would be) forgotten."""

    cards: int
    guests: int
    recordings: int
    sessions: int
    pairing_codes: int
    phone_links: int
    rate_counts: int
    audit: int
    files: int = 0

    def as_dict(self) -> dict[str, int]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def due(tx: Session, rules: RetentionConfig, now: dt.datetime | None = None) -> Forgotten:
    """What is due to be forgotten; changes nothing."""
    now = now or utc_now()
    guests, recordings = _due_of_people(tx, _gone(rules, now))
    return Forgotten(
        cards=_count(tx, Participant, _card_gone(rules, now)),
        guests=len(guests),
        recordings=sum(map(len, recordings.values())),
        sessions=_count(tx, WebSession, _sessions(rules, now)),
        pairing_codes=_count(tx, PairingCode, _codes(rules, now)),
        phone_links=_count(tx, PhoneLink, PhoneLink.expires_at < now),
        rate_counts=_count(tx, RateCount, RateCount.expires_at < now),
        audit=_count(tx, AuditEntry, AuditEntry.created_at < now - _days(rules.audit_days)),
    )


def apply(database: Database, config: CrowdConfig, now: dt.datetime | None = None) -> Forgotten:
    """Forget what is due, then remove the files of what is gone; what went."""
    now = now or utc_now()
    rules = config.retention
    with database.read() as tx:
        guests, recordings = _due_of_people(tx, _gone(rules, now))
    erased = forgotten = 0
    for who in [*guests, *recordings]:  # each by itself: a fortnight's guests keep nobody waiting
        with database.begin() as tx:
            theirs, plays = _due_of_people(tx, and_(_gone(rules, now), Participant.id == who))
            for participant_id in theirs:
                row = tx.get_one(Participant, participant_id)
                erased += data_rights.erase(tx, row, reason="retention", now=now)
            for play_ids in plays.values():
                found = tx.scalars(select(Play).where(Play.id.in_(play_ids))).all()
                forgotten += len(data_rights.forget_plays(tx, found, reason="retention", now=now))
    with database.begin() as tx:
        cards = tx.scalars(select(Participant).where(_card_gone(rules, now))).all()
        for participant in cards:
            participant.card_hash = None
        counts = {
            "sessions": _delete(tx, WebSession, _sessions(rules, now)),
            "pairing_codes": _delete(tx, PairingCode, _codes(rules, now)),
            "phone_links": _delete(tx, PhoneLink, PhoneLink.expires_at < now),
            "rate_counts": _delete(tx, RateCount, RateCount.expires_at < now),
            "audit": _delete(tx, AuditEntry, AuditEntry.created_at < now - _days(rules.audit_days)),
        }
    files = data_rights.sweep(database, config)
    return Forgotten(cards=len(cards), guests=erased, recordings=forgotten, files=files, **counts)


def _days(count: int) -> dt.timedelta:
    return dt.timedelta(days=count)


def _unseen_since(moment: dt.datetime) -> ColumnElement[bool]:
    """Of participants: not here since then, by anything that says so."""
    seen = (
        select(WebSession.participant_id).where(
            WebSession.participant_id == Participant.id, WebSession.seen_at >= moment
        ),
        select(Play.participant_id).where(
            Play.participant_id == Participant.id, Play.started_at >= moment
        ),
        select(Consent.participant_id).where(
            Consent.participant_id == Participant.id, Consent.given_at >= moment
        ),
        select(StationLease.participant_id).where(StationLease.participant_id == Participant.id),
    )
    return ~or_(
        Participant.created_at >= moment, *(query.correlate(Participant).exists() for query in seen)
    )


def _card_gone(rules: RetentionConfig, now: dt.datetime) -> ColumnElement[bool]:
    return and_(Participant.card_hash.is_not(None), _unseen_since(now - _days(rules.card_days)))


def _gone(rules: RetentionConfig, now: dt.datetime) -> ColumnElement[bool]:
    """Of participants: so long away that nobody counts on them any more."""
    card = Participant.kind == "card"
    return and_(
        Participant.erased_at.is_(None),
        or_(
            and_(card, _unseen_since(now - _days(rules.card_days))),
            and_(~card, _unseen_since(now - _days(rules.guest_days))),
        ),
    )


def _due_of_people(
    tx: Session, gone: ColumnElement[bool]
) -> tuple[list[str], dict[str, list[str]]]:
    """Of those who are gone: guests of whom nothing is kept, neither a nickname nor a recording for
    research; and of all others the plays that nobody gave for research."""
    kept: set[str] = set()
    going: dict[str, list[str]] = {}
    for play_id, who, given in tx.execute(
        select(Play.id, Participant.id, Consent)
        .join(Participant, Participant.id == Play.participant_id)
        .outerjoin(Consent, Consent.id == Play.consent_id)
        .where(gone, Play.state != "void")
    ):
        if given is not None and consent.covers(given, consent.RESEARCH):
            kept.add(who)
        else:
            going.setdefault(who, []).append(play_id)
    nameless = tx.scalars(
        select(Participant.id).where(
            gone, Participant.kind != "card", Participant.nickname.is_(None)
        )
    )
    guests = [who for who in nameless if who not in kept]
    for who in guests:
        going.pop(who, None)
    return guests, going


def _sessions(rules: RetentionConfig, now: dt.datetime) -> ColumnElement[bool]:
    return WebSession.expires_at < now - _days(rules.session_days)


def _codes(rules: RetentionConfig, now: dt.datetime) -> ColumnElement[bool]:
    return PairingCode.expires_at < now - _days(rules.session_days)


def _count(tx: Session, model: type, condition: ColumnElement[bool]) -> int:
    return tx.scalar(select(func.count()).select_from(model).where(condition)) or 0


def _delete(tx: Session, model: type, condition: ColumnElement[bool]) -> int:
    count = _count(tx, model, condition)
    tx.execute(delete(model).where(condition).execution_options(synchronize_session=False))
    return count
