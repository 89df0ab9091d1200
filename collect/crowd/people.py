"""Participants as they come and go: by a card, as a guest, by phone.

A card's number is kept nowhere: what is stored is a keyed hash with a purpose of its own, and the
key is not in the database.
"""

from __future__ import annotations

import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd import queue, stations
from collect.crowd.flow import station_of
from collect.crowd.keys import SiteKey
from collect.crowd.names import new_pseudonym
from collect.crowd.security.sessions import Who
from collect.crowd.tables import Participant

__all__ = ["CARD", "by_card", "card_hash", "leave", "newcomer"]

CARD = "card"  # the purpose under which a card's hash is kept
MIN_CARD, MAX_CARD = 6, 128


def card_hash(key: SiteKey, reading: str) -> str | None:
    """The keyed hash of what a reader has typed; None when that is no card.

    Readers differ in case, separators and sentinels (``%B...?`` of magnetic stripes): letters and
    digits alone make the card.
    """
    number = re.sub(r"[^0-9A-Z]", "", reading[: 2 * MAX_CARD].upper())
    if not MIN_CARD <= len(number) <= MAX_CARD or not re.search(r"[0-9]", number):
        return None
    return key.mac(CARD, number)


def by_card(tx: Session, hashed: str, language: str) -> Participant:
    """Whose card this is; somebody new the first time."""
    known = tx.scalar(select(Participant).where(Participant.card_hash == hashed))
    if known is not None:
        return known
    return newcomer(tx, "card", language, hashed)


def newcomer(tx: Session, kind: str, language: str, hashed: str | None = None) -> Participant:
    """Somebody new: ``card`` (with its hash), ``phone`` or ``guest``."""
    participant = Participant(
        kind=kind, card_hash=hashed, pseudonym=new_pseudonym(tx), language=language
    )
    tx.add(participant)
    tx.flush()
    return participant


def leave(tx: Session, who: Who) -> None:
    """Somebody goes: their turn, their play and their place in the queue end."""
    if who.participant is None:
        return
    station = station_of(tx, who)
    if station is not None:
        stations.release(tx, station, who.participant)
    queue.leave(tx, who.participant)
