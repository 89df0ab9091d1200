"""What routes ask for by type: the database, the participant, the staff, the kiosk, the agent.

    @router.get("/me")
    def me(request: Request, db: Db, me: CurrentParticipant) -> Response: ...

Each way of being somebody is a security scheme of its own in the OpenAPI, from which the tests
make their matrix of roles and routes. What only looks asks for `MaybeParticipant` or `CurrentWho`.
Pages answer a stranger with a redirect to the sign-in, everything below /api with 401.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPBearer
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.security.csrf import SAFE_METHODS, check_csrf
from collect.crowd.security.rate_limit import RateLimiter
from collect.crowd.security.sessions import Who, identify
from collect.crowd.site import Site, site_of
from collect.crowd.tables import Participant, Staff, Station

__all__ = [
    "AGENT_PREFIX",
    "Config",
    "CurrentAdmin",
    "CurrentAgent",
    "CurrentKiosk",
    "CurrentOperator",
    "CurrentParticipant",
    "CurrentReviewer",
    "CurrentSite",
    "CurrentStaff",
    "CurrentWho",
    "Db",
    "Key",
    "Limiter",
    "MaybeParticipant",
    "SignInError",
    "address_of",
    "guard_writes",
]

AGENT_PREFIX = "/api/station/"
MAX_BEARER = 128


class SignInError(HTTPException):
    """Nobody, or nobody who may; a page becomes a redirect to ``where``."""

    def __init__(self, where: str) -> None:
        super().__init__(401, "sign in first")
        self.where = where


def address_of(connection: HTTPConnection) -> str:
    """The address of whoever asks, behind trusted proxies too. For limits; never kept or logged."""
    return connection.client.host if connection.client else "unknown"


# None of these blocks: as plain functions, each would cost a hop to a thread, every request.
async def _site(connection: HTTPConnection) -> Site:
    return site_of(connection)


async def _database(site: Annotated[Site, Depends(_site)]) -> Database:
    return site.database


async def _config(site: Annotated[Site, Depends(_site)]) -> CrowdConfig:
    return site.config


async def _key(site: Annotated[Site, Depends(_site)]) -> SiteKey:
    return site.key


async def _limiter(site: Annotated[Site, Depends(_site)]) -> RateLimiter:
    return site.limiter


CurrentSite = Annotated[Site, Depends(_site)]
Db = Annotated[Database, Depends(_database)]
Config = Annotated[CrowdConfig, Depends(_config)]
Key = Annotated[SiteKey, Depends(_key)]
Limiter = Annotated[RateLimiter, Depends(_limiter)]


async def _who(connection: HTTPConnection) -> Who:
    # Scripts look below /api and hold sockets, htmx looks again and again: that keeps nobody
    # signed in.
    reads = connection.scope.get("method", "GET") == "GET"
    script = (
        connection.scope["type"] == "websocket"
        or connection.url.path.startswith("/api/")
        or "hx-request" in connection.headers
    )
    who = Who()
    if connection.cookies:  # a session is in the database, which blocks
        who = await run_in_threadpool(identify, connection, active=not (reads and script))
    connection.state.who = who
    return who


CurrentWho = Annotated[Who, Depends(_who)]


async def guard_writes(connection: HTTPConnection, who: CurrentWho, limiter: Limiter) -> None:
    """Of every route: a write has the CSRF token and is not one of too many from its address.

    Not for agents, who have no cookies: theirs is the bearer token. Of WebSockets the guard has
    checked the Origin.
    """
    if not isinstance(connection, Request) or connection.method in SAFE_METHODS:
        return
    if connection.url.path.startswith(AGENT_PREFIX):
        return
    limiter.write(address_of(connection))
    await check_csrf(connection, who)


def _scheme(name: str, text: str) -> APIKeyCookie:
    return APIKeyCookie(name=f"__Host-{name}", scheme_name=name, description=text, auto_error=False)


_PARTICIPANT = _scheme("participant", "A participant's session")
_KIOSK = APIKeyCookie(name="__Host-kiosk", scheme_name="kiosk", auto_error=False)
_STAFF = {
    role: APIKeyCookie(name="__Host-staff", scheme_name=role, auto_error=False)
    for role in ("reviewer", "operator", "admin")
}
_AGENT = HTTPBearer(scheme_name="agent", auto_error=False)


def _participant(who: CurrentWho, _: Annotated[str | None, Depends(_PARTICIPANT)]) -> Participant:
    if who.participant is None:
        raise SignInError("/signin")
    return who.participant


def _maybe_participant(who: CurrentWho) -> Participant | None:
    return who.participant


def _kiosk(who: CurrentWho, _: Annotated[str | None, Depends(_KIOSK)]) -> Station:
    if who.kiosk is None:
        raise HTTPException(403, "only a paired kiosk may do this")
    return who.kiosk


def _staff(who: Who, *roles: str) -> Staff:
    if who.staff is None:
        raise SignInError("/staff/signin")
    if who.staff.role not in (*roles, "admin"):
        raise HTTPException(403, f"this is for {' and '.join(roles) or 'admin'} only")
    return who.staff


def _reviewer(
    who: CurrentWho,
    _: Annotated[str | None, Depends(_STAFF["reviewer"])],
    __: Annotated[str | None, Depends(_STAFF["admin"])],
) -> Staff:
    return _staff(who, "reviewer")


def _operator(
    who: CurrentWho,
    _: Annotated[str | None, Depends(_STAFF["operator"])],
    __: Annotated[str | None, Depends(_STAFF["admin"])],
) -> Staff:
    return _staff(who, "operator")


def _admin(who: CurrentWho, _: Annotated[str | None, Depends(_STAFF["admin"])]) -> Staff:
    return _staff(who)


def _any_staff(
    who: CurrentWho,
    _: Annotated[str | None, Depends(_STAFF["reviewer"])],
    __: Annotated[str | None, Depends(_STAFF["operator"])],
    ___: Annotated[str | None, Depends(_STAFF["admin"])],
) -> Staff:
    return _staff(who, "reviewer", "operator")


def _agent(request: Request, site: CurrentSite, _: Annotated[object, Depends(_AGENT)]) -> Station:
    scheme, _space, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(token) <= MAX_BEARER:
        raise HTTPException(401, "an agent sends the token of its pairing as Authorization: Bearer")
    wanted = site.key.mac("agent token", token)
    with site.database.read() as tx:
        station = tx.scalar(select(Station).where(Station.token_hash == wanted))
    if station is None:
        raise HTTPException(401, "no station has this token; pair it again")
    return station


CurrentParticipant = Annotated[Participant, Depends(_participant)]
MaybeParticipant = Annotated[Participant | None, Depends(_maybe_participant)]
CurrentKiosk = Annotated[Station, Depends(_kiosk)]
CurrentReviewer = Annotated[Staff, Depends(_reviewer)]
CurrentOperator = Annotated[Staff, Depends(_operator)]
CurrentAdmin = Annotated[Staff, Depends(_admin)]
CurrentStaff = Annotated[Staff, Depends(_any_staff)]
CurrentAgent = Annotated[Station, Depends(_agent)]
