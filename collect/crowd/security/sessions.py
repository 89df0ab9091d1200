"""Who sits at a browser: opaque cookies, kept as keyed hashes, that end by themselves.

A browser has up to three sessions, a cookie each: the `kiosk` (the paired tablet), the
`participant` at it or at a phone, and `staff`. A participant's session of a kiosk is good at that
kiosk only, and ends with its pairing. A new sign-in makes a new cookie and ends the old one.
"""

from __future__ import annotations

import datetime as dt
import secrets
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import delete
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection
from starlette.responses import Response

from collect.crowd.config import CrowdConfig
from collect.crowd.site import Site, site_of
from collect.crowd.tables import Participant, PhoneLink, Staff, Station, WebSession, utc_now

__all__ = [
    "KINDS",
    "Kind",
    "NewSession",
    "Who",
    "cookie_name",
    "end_all",
    "identify",
    "set_cookie",
    "sign_in",
    "sign_out",
]

Kind = Literal["participant", "staff", "kiosk"]
KINDS: tuple[Kind, ...] = ("participant", "staff", "kiosk")
KIOSK_IDLE_S = 30 * 86400.0  # a tablet in a cafe that is closed over the holidays stays paired
KIOSK_LIMIT_S = 366 * 86400.0
TOKEN_BYTES = 32
MAX_TOKEN = 64
TOUCH_FRACTION = 10  # `seen_at` is written when a tenth of the idle time has gone by


@dataclass(frozen=True)
class Who:
    """Who a request comes from; ``csrf`` is what its forms must carry.

    ``kiosk`` is the station of the tablet; ``sessions`` the rows behind it all, by kind.
    """

    participant: Participant | None = None
    staff: Staff | None = None
    kiosk: Station | None = None
    csrf: str | None = None
    sessions: dict[Kind, WebSession] = field(default_factory=dict)


@dataclass(frozen=True)
class NewSession:
    """A session that has begun. ``set_cookie(response, request, it)`` tells the browser."""

    kind: Kind
    token: str
    csrf: str


def cookie_name(config: CrowdConfig, kind: str) -> str:
    """``__Host-`` (only ever sent over https, to this host) but in development."""
    return f"__Host-{kind}" if config.https else f"dev-{kind}"


def sign_in(
    tx: Session,
    connection: HTTPConnection,
    kind: Kind,
    *,
    participant_id: str | None = None,
    staff_id: str | None = None,
    station_id: str | None = None,
    linked_id: str | None = None,
) -> NewSession:
    """Begin a session and end the one of that kind which this browser had.

    A kiosk's needs ``station_id``; a participant's at a kiosk has the kiosk's station, one at a
    phone has the station whose kiosk sent it there as ``linked_id``.
    """
    site = site_of(connection)
    _end(tx, site, connection, kind)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    now = utc_now()
    _, limit_s = _lifetime(site.config, kind, at_kiosk=station_id is not None)
    row = WebSession(
        token_hash=site.key.mac("session", token),
        kind=kind,
        participant_id=participant_id,
        staff_id=staff_id,
        station_id=station_id,
        linked_id=linked_id,
        csrf=secrets.token_urlsafe(TOKEN_BYTES),
        created_at=now,
        seen_at=now,
        expires_at=now + dt.timedelta(seconds=limit_s),
    )
    tx.add(row)
    return NewSession(kind, token, row.csrf)


def set_cookie(response: Response, connection: HTTPConnection, session: NewSession) -> None:
    """Give the browser its cookie. It goes with the browser; the server ends it earlier."""
    config = site_of(connection).config
    response.set_cookie(
        cookie_name(config, session.kind),
        session.token,
        # A tablet is restarted; everybody else's cookie goes with the browser.
        max_age=int(KIOSK_LIMIT_S) if session.kind == "kiosk" else None,
        path="/",
        secure=config.https,
        httponly=True,
        samesite="strict",
    )


def sign_out(tx: Session, connection: HTTPConnection, response: Response, kind: Kind) -> None:
    """End this browser's session and clear what the browser keeps of it (ASVS 14.3.1)."""
    site = site_of(connection)
    _end(tx, site, connection, kind)
    response.delete_cookie(
        cookie_name(site.config, kind),
        path="/",
        secure=site.config.https,
        httponly=True,
        samesite="strict",
    )
    # Not "cookies": a participant who leaves does not unpair the kiosk.
    response.headers["clear-site-data"] = '"cache", "storage"'


def end_all(
    tx: Session,
    *,
    participant_id: str | None = None,
    staff_id: str | None = None,
    station_id: str | None = None,
) -> None:
    """End every session of a participant, of a staff member, or of a station's kiosks and of the
    phones that they sent on; links that wait for a phone go too."""
    for column, value in (
        (WebSession.participant_id, participant_id),
        (WebSession.staff_id, staff_id),
        (WebSession.station_id, station_id),
        (WebSession.linked_id, station_id),
        (PhoneLink.participant_id, participant_id),
        (PhoneLink.station_id, station_id),
    ):
        if value is not None:
            tx.execute(delete(column.class_).where(column == value))


def identify(connection: HTTPConnection, *, active: bool) -> Who:
    """Who sends this request; ``active`` when it is an act of a person and not of a script.

    Does not touch the database when the browser has no session.
    """
    site = site_of(connection)
    tokens = {
        kind: token
        for kind in KINDS
        if (token := connection.cookies.get(cookie_name(site.config, kind)))
        and len(token) <= MAX_TOKEN
    }
    if not tokens:
        return Who()
    now = utc_now()
    with site.database.read() as tx:
        sessions: dict[Kind, WebSession] = {}
        for kind, token in tokens.items():
            row = tx.get(WebSession, site.key.mac("session", token))
            if row is not None and row.kind == kind and _alive(site.config, row, now):
                sessions[kind] = row
        kiosk = staff = participant = None
        if row := sessions.get("kiosk"):
            kiosk = tx.get(Station, row.station_id)
        if row := sessions.get("staff"):
            staff = tx.get(Staff, row.staff_id)
            if staff is None or staff.disabled:
                staff = None
                del sessions["staff"]
        if row := sessions.get("participant"):
            participant = tx.get(Participant, row.participant_id)
            elsewhere = row.station_id is not None and (kiosk is None or kiosk.id != row.station_id)
            if participant is None or participant.erased_at is not None or elsewhere:
                participant = None
                del sessions["participant"]
    if active:
        _touch(site, sessions, now)
    return Who(participant, staff, kiosk, _csrf(connection, sessions), sessions)


def _csrf(connection: HTTPConnection, sessions: dict[Kind, WebSession]) -> str | None:
    """A form acts for one session; its token is that one's, so that a stale page of the last
    visitor does nothing in the name of the next."""
    path = connection.url.path
    staff_page = path.startswith(("/staff", "/api/staff"))
    for kind in ("staff",) if staff_page else ("participant", "kiosk"):
        if row := sessions.get(kind):  # type: ignore[call-overload]
            return str(row.csrf)
    return None


def _lifetime(config: CrowdConfig, kind: str, *, at_kiosk: bool) -> tuple[float, float]:
    times = config.sessions
    if kind == "kiosk":
        return KIOSK_IDLE_S, KIOSK_LIMIT_S
    if kind == "staff":
        return times.staff_idle_s, times.staff_limit_s
    if at_kiosk:
        return times.kiosk_idle_s, times.kiosk_limit_s
    return times.phone_idle_s, times.phone_limit_s


def _alive(config: CrowdConfig, row: WebSession, now: dt.datetime) -> bool:
    idle_s, _ = _lifetime(config, row.kind, at_kiosk=row.station_id is not None)
    return now < row.expires_at and now < row.seen_at + dt.timedelta(seconds=idle_s)


def _touch(site: Site, sessions: dict[Kind, WebSession], now: dt.datetime) -> None:
    stale = []
    for row in sessions.values():
        idle_s, _ = _lifetime(site.config, row.kind, at_kiosk=row.station_id is not None)
        if now - row.seen_at > dt.timedelta(seconds=idle_s / TOUCH_FRACTION):
            stale.append(row.token_hash)
    if stale:
        with site.database.begin() as tx:
            for token_hash in stale:
                current = tx.get(WebSession, token_hash)
                if current is not None:
                    current.seen_at = now


def _end(tx: Session, site: Site, connection: HTTPConnection, kind: Kind) -> None:
    token = connection.cookies.get(cookie_name(site.config, kind))
    if token and len(token) <= MAX_TOKEN:
        tx.execute(
            delete(WebSession).where(WebSession.token_hash == site.key.mac("session", token))
        )
