"""One's own data: a copy of it, taking consent back, being erased, coming back to it by a code. And
forgetting what is due."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Form, Query, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response, StreamingResponse

from collect.crowd import consent, data_rights, my_data, people, phone, retention, way_back
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.deps import (
    Config,
    CurrentParticipant,
    CurrentSite,
    CurrentWho,
    Db,
    Limiter,
    address_of,
)
from collect.crowd.i18n import choose_language, translator
from collect.crowd.log import log
from collect.crowd.security.redirects import redirect
from collect.crowd.security.sessions import Who, set_cookie, sign_in, sign_out
from collect.crowd.site import Site
from collect.crowd.tables import Consent, LedgerEntry, Participant, Play
from collect.crowd.templating import render

__all__ = ["router"]

COPY_RULE = "12 per hour"
CODES = "20 per 10 minutes"  # of 2^48
FIRST_S = 60.0  # after the start: not in the way of it
EVERY_S = 86400.0
RETRY_S = 600.0

Scope = Literal["record", "research", "clips"]


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    forgetting = asyncio.create_task(_forget_daily(site.database, site.config))
    try:
        yield
    finally:
        forgetting.cancel()
        await asyncio.gather(forgetting, return_exceptions=True)


router = APIRouter(lifespan=_lifespan)


@router.get("/me/data")
def data_page(
    request: Request,
    site: CurrentSite,
    who: CurrentWho,
    me: CurrentParticipant,
    done: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """What there is of one, and what one may do about it."""
    return _page(request, site, who, me, done=done if done in consent.SCOPES else None)


@router.get("/back")
def back_page(
    request: Request,
    who: CurrentWho,
    code: Annotated[str, Query(max_length=way_back.MAX_TYPED)] = "",
) -> Response:
    """Where the code that is shown at /me/data is typed, or comes from a scan."""
    if who.participant is not None:
        return redirect("/me/data")
    return render(request, "account/back.html", code=code, unknown=False)


@router.post("/back")
def back(
    request: Request,
    site: CurrentSite,
    who: CurrentWho,
    code: Annotated[str, Form(max_length=way_back.MAX_TYPED)] = "",
) -> Response:
    """Come back to one's data; at a kiosk also to drive on, as with a card."""
    site.limiter.hit("way back", CODES, address_of(request))
    if who.participant is not None:
        return redirect("/me/data")
    station_id = None if who.kiosk is None else who.kiosk.id
    with site.database.begin() as tx:
        me = way_back.find(tx, site.key, code)
        if me is None:
            return render(request, "account/back.html", 422, code=code, unknown=True)
        session = sign_in(tx, request, "participant", participant_id=me.id, station_id=station_id)
    response = redirect("/me/data")
    set_cookie(response, request, session)
    return response


@router.get("/me/data/copy.zip")
def copy(
    request: Request,
    db: Db,
    config: Config,
    limiter: Limiter,
    who: CurrentWho,
    me: CurrentParticipant,
    episodes: bool = False,
) -> Response:
    """All of it as a ZIP, with the recordings if they are asked for. Not at a kiosk: the next
    visitor would find the file there."""
    if _at_kiosk(who):
        raise HTTPException(403, "get your copy on your own phone: the kiosk is everybody's")
    limiter.hit("my data", COPY_RULE, me.id)
    with db.read() as tx:
        data = my_data.collect(tx, me, choose_language(request, me))
    pieces = my_data.stream(data, db, config.episodes if episodes else None)
    return StreamingResponse(
        pieces,
        media_type="application/zip",
        headers={
            "content-disposition": 'attachment; filename="my-data.zip"',
            "cache-control": "no-store",
        },
    )


@router.post("/me/data/withdraw")
def withdraw(
    request: Request,
    site: CurrentSite,
    who: CurrentWho,
    me: CurrentParticipant,
    scope: Annotated[Scope, Form()],
    sure: Annotated[bool, Form()] = False,
) -> Response:
    """Take one scope back. Recordings go with `record`, so that one is asked for twice."""
    if scope == consent.REQUIRED and not sure:
        return _page(request, site, who, me, problem="sure")
    with site.database.begin() as tx:
        data_rights.withdraw(tx, me, [scope])
    data_rights.sweep(site.database, site.config)
    return RedirectResponse(f"/me/data?done={scope}", status_code=303)


@router.post("/me/data/erase")
def erase(
    request: Request,
    site: CurrentSite,
    who: CurrentWho,
    me: CurrentParticipant,
    word: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Erase all of it, for who has typed the word; the answer is the last page that they see."""
    wanted = translator(choose_language(request, me))("account.erase.word")
    if word.strip().casefold() != wanted.casefold():
        return _page(request, site, who, me, problem="word")
    # `me` overrides: nobody is signed in on that page any more.
    response = render(request, "account/erased.html", me=None, who=Who(), idle_s=None)
    with site.database.begin() as tx:
        people.leave(tx, who)
        data_rights.erase(tx, me)
        sign_out(tx, request, response, "participant")
    data_rights.sweep(site.database, site.config)
    return response


def _page(
    request: Request,
    site: Site,
    who: Who,
    me: Participant,
    *,
    done: str | None = None,
    problem: str | None = None,
) -> Response:
    code = way_back.code_of(site.key, me)
    with site.database.read() as tx:
        given = tx.scalars(
            select(Consent).where(Consent.participant_id == me.id).order_by(Consent.given_at)
        ).all()
        counts = {
            "plays": _count(tx, Play, Play.participant_id == me.id, Play.state != "void"),
            "recordings": _count(tx, Play, Play.participant_id == me.id, Play.file.is_not(None)),
            "points": _count(tx, LedgerEntry, LedgerEntry.participant_id == me.id),
        }
    return render(
        request,
        "account/data.html",
        200 if problem is None else 422,
        scopes=[(scope, _held(given, scope)) for scope in consent.SCOPES],
        asked=bool(given),
        counts=counts,
        at_kiosk=_at_kiosk(who),
        code=code,
        scan=phone.qr_code(f"{site.config.origin}/back?code={code}"),
        done=done,
        problem=problem,
    )


def _held(given: Sequence[Consent], scope: str) -> bool:
    return any(consent.covers(row, scope) for row in given)


def _count(tx: Session, table: type[Play] | type[LedgerEntry], *conditions: object) -> int:
    return tx.scalar(select(func.count()).select_from(table).where(*conditions)) or 0  # type: ignore[arg-type]


def _at_kiosk(who: Who) -> bool:
    session = who.sessions.get("participant")
    return session is not None and session.station_id is not None


async def _forget_daily(database: Database, config: CrowdConfig) -> None:
    """Retention, as long as the site runs. Every worker does it: the second finds nothing."""
    await asyncio.sleep(FIRST_S)
    while True:
        pause = EVERY_S
        try:
            gone = await run_in_threadpool(retention.apply, database, config)
            log.info("retention", count=sum(gone.as_dict().values()))
        except DatabaseBusyError:
            pause = RETRY_S
        except Exception as error:  # noqa: BLE001 - a disk's mistake must not end it for good
            log.error("retention", error=error)
            pause = RETRY_S
        await asyncio.sleep(pause)
