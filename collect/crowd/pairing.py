"""Pairing of agents and kiosks with a station: codes for ten minutes and one use (ASVS 6.5)."""

from __future__ import annotations

import datetime as dt
import re
import secrets

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from collect.crowd.keys import SiteKey
from collect.crowd.security.sessions import end_all
from collect.crowd.tables import PairingCode, Station, utc_now
from robot_stack.errors import ConfigError, RobotStackError

__all__ = ["PairingError", "new_code", "pair_agent", "redeem", "unpair"]

# Crockford's base 32: nothing that is misread from a screen. Eight are 40 random bits, against
# ten minutes and a limit on attempts.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
LENGTH = 8
LIFETIME = dt.timedelta(minutes=10)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
AGENT_TOKEN = "agent token"  # the purpose under which the token's hash is kept


class PairingError(RobotStackError):
    """The code is unknown, used, too old, or of the other kind; which one is not said."""

    def __init__(self) -> None:
        super().__init__("this code is wrong or used up; ask staff for a new one")


def new_code(tx: Session, key: SiteKey, station_name: str, kind: str) -> str:
    """A code, ``XXXX-XXXX``, for the ``agent`` or a ``kiosk`` of a station, which is made when
    there is none of that name. An earlier code of the kind is void."""
    if kind not in ("agent", "kiosk"):
        raise ConfigError(f"{kind!r} can't be paired; an agent or a kiosk can")
    if not NAME.fullmatch(station_name):
        raise ConfigError(f"{station_name!r}: a station's name has letters, digits, '.', '_', '-'")
    station = tx.scalar(select(Station).where(Station.name == station_name))
    if station is None:
        station = Station(name=station_name)
        tx.add(station)
        tx.flush()
    tx.execute(
        delete(PairingCode).where(
            PairingCode.station_id == station.id,
            PairingCode.kind == kind,
            PairingCode.used_at.is_(None),
        )
    )
    code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
    tx.add(
        PairingCode(
            code_hash=key.mac("pairing code", code),
            station_id=station.id,
            kind=kind,
            expires_at=utc_now() + LIFETIME,
        )
    )
    return f"{code[:4]}-{code[4:]}"


def redeem(tx: Session, key: SiteKey, code: str, kind: str) -> Station:
    """The station of a code, which is used by this. PairingError if it is not good.

    Limit the attempts (``limiter.hit("pair", "10 per 10 minutes", address)``) before the
    transaction.
    """
    plain = re.sub(r"[\s-]", "", code[:40]).upper().replace("O", "0").translate({73: 49, 76: 49})
    row = tx.get(PairingCode, key.mac("pairing code", plain))
    now = utc_now()
    if row is None or row.kind != kind or row.used_at is not None or row.expires_at <= now:
        raise PairingError
    row.used_at = now
    station = tx.get(Station, row.station_id)
    assert station is not None
    return station


def pair_agent(tx: Session, key: SiteKey, code: str) -> tuple[str, Station]:
    """The agent's token, told once, and its station. An earlier agent's token is void."""
    station = redeem(tx, key, code, "agent")
    token = secrets.token_urlsafe(32)
    station.token_hash = key.mac(AGENT_TOKEN, token)
    station.paired_at = utc_now()
    return token, station


def unpair(tx: Session, station: Station) -> None:
    """The station's agent and kiosks are strangers again."""
    station.token_hash = None
    station.paired_at = None
    end_all(tx, station_id=station.id)
    tx.execute(delete(PairingCode).where(PairingCode.station_id == station.id))
