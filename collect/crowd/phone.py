"""Going on at one's own phone: a link in a QR code, for one phone and three minutes."""

from __future__ import annotations

import datetime as dt
import secrets

import segno
from sqlalchemy import delete
from sqlalchemy.orm import Session

from collect.crowd.keys import SiteKey
from collect.crowd.tables import Participant, PhoneLink, Station, WebSession, utc_now
from robot_stack.errors import RobotStackError

__all__ = ["LIFETIME", "PhoneLinkError", "new_link", "qr_code", "take"]

LIFETIME = dt.timedelta(minutes=3)
PURPOSE = "phone link"
MAX_TOKEN = 64


class PhoneLinkError(RobotStackError):
    """The link is unknown, used or too old; which one is not said."""

    def __init__(self) -> None:
        super().__init__("this link is used up or too old; scan a new code at the station")


def new_link(
    tx: Session,
    key: SiteKey,
    station: Station,
    participant: Participant | None,
    language: str,
    now: dt.datetime | None = None,
) -> str:
    """The secret of a new link; an earlier one of the same participant is void."""
    now = now or utc_now()
    tx.execute(delete(PhoneLink).where(PhoneLink.expires_at <= now))
    if participant is not None:
        tx.execute(delete(PhoneLink).where(PhoneLink.participant_id == participant.id))
    token = secrets.token_urlsafe(32)
    tx.add(
        PhoneLink(
            token_hash=key.mac(PURPOSE, token),
            station_id=station.id,
            participant_id=None if participant is None else participant.id,
            language=language,
            expires_at=now + LIFETIME,
        )
    )
    tx.flush()
    return token


def take(tx: Session, key: SiteKey, token: str, now: dt.datetime | None = None) -> PhoneLink:
    """Use a link up. Who was signed in at the kiosk no longer is: it is free for the next one."""
    row = tx.get(PhoneLink, key.mac(PURPOSE, token[:MAX_TOKEN]))
    if row is None or row.expires_at <= (now or utc_now()):
        raise PhoneLinkError
    tx.delete(row)
    if row.participant_id is not None:
        tx.execute(
            delete(WebSession).where(
                WebSession.participant_id == row.participant_id,
                WebSession.station_id == row.station_id,
            )
        )
    tx.flush()
    return row


def qr_code(address: str) -> str:
    """``address`` as a QR code: an SVG in a data URI, for an <img>."""
    code = segno.make(address, error="m", micro=False)
    return str(code.svg_data_uri(scale=8, border=3, dark="#14201b", light="#ffffff"))
