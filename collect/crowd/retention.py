"""What is forgotten by itself, and when: rules of the settings, applied again and again.

Cards and guests are counted from their last visit: a sign-in that is still known, a play, a
consent, or the first time they came. All of it may be done twice, or beside another one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, fields

from sqlalchemy import ColumnElement, Select, delete, func, or_, select
from sqlalchemy.orm import Session

from collect.crowd import data_rights
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

    def count(people: Select[Participant]) -> int:
        return tx.scalar(select(func.count()).select_from(people.subquery())) or 0

    return Forgotten(
        cards=count(_cards(rules, now)),
        guests=count(_guests(rules, now)),
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
    with database.begin() as tx:
        cards = tx.scalars(_cards(rules, now)).all()
        for participant in cards:
            participant.card_hash = None
        tx.flush()
        guests = tx.scalars(_guests(rules, now)).all()
        for participant in guests:
            data_rights.erase(tx, participant, reason="retention", now=now)
        counts = {
            "sessions": _delete(tx, WebSession, _sessions(rules, now)),
            "pairing_codes": _delete(tx, PairingCode, _codes(rules, now)),
            "phone_links": _delete(tx, PhoneLink, PhoneLink.expires_at < now),
            "rate_counts": _delete(tx, RateCount, RateCount.expires_at < now),
            "audit": _delete(tx, AuditEntry, AuditEntry.created_at < now - _days(rules.audit_days)),
        }
    files = data_rights.sweep(database, config)
    return Forgotten(cards=len(cards), guests=len(guests), files=files, **counts)


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
    return ~or_(Participant.created_at >= moment, *(query.exists() for query in seen))


def _cards(rules: RetentionConfig, now: dt.datetime) -> Select[Participant]:
    return select(Participant).where(
        Participant.card_hash.is_not(None), _unseen_since(now - _days(rules.card_days))
    )


def _guests(rules: RetentionConfig, now: dt.datetime) -> Select[Participant]:
    """Those who can't come back (a guest or phone has no card), and never took a nickname.

    Their recordings stay if they consented to research: the consent says so, and nobody can be
    told by them. Without recordings nothing is left of them.
    """
    return select(Participant).where(
        Participant.kind != "card",
        Participant.nickname.is_(None),
        Participant.erased_at.is_(None),
        _unseen_since(now - _days(rules.guest_days)),
        ~select(Play.id)
        .where(Play.participant_id == Participant.id, Play.state != "void")
        .exists(),
    )


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
