"""The tablet beside a station: pairing it by a code, and what it shows of the robot.

`/api/kiosk/state` answers once, `/api/kiosk/live` streams (server-sent events); both are what
`collect.crowd.kiosk_view` says, for the paired kiosk only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from collect.crowd import pairing
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.deps import CurrentKiosk, CurrentWho, Db, Key, Limiter, address_of
from collect.crowd.kiosk_view import view
from collect.crowd.observe import viewers
from collect.crowd.security.sessions import set_cookie, sign_in, sign_out
from collect.crowd.tables import WebSession
from collect.crowd.templating import render

__all__ = ["router"]

PAIR_RULE = "10 per 10 minutes"
LOOK_S = 0.25
BEAT_S = 15.0
STREAMS = 64  # of a worker: there are as many kiosks as tablets
RETRY_S = 10

router = APIRouter()
_open: set[object] = set()


@router.get("/pair")
def pair_page(request: Request, who: CurrentWho) -> Response:
    """Where a tablet becomes the kiosk of a station."""
    return render(request, "kiosk_pair.html", paired=who.kiosk, refused=False)


@router.post("/pair")
def pair(
    request: Request,
    db: Db,
    key: Key,
    limiter: Limiter,
    who: CurrentWho,
    code: Annotated[str, Form(max_length=40)],
) -> Response:
    """Make this browser the kiosk of the code's station; a participant's session here ends."""
    limiter.hit("pair", PAIR_RULE, address_of(request))
    response = RedirectResponse("/", status_code=303)
    try:
        with db.begin() as tx:
            station = pairing.redeem(tx, key, code, "kiosk")
            session = sign_in(tx, request, "kiosk", station_id=station.id)
            sign_out(tx, request, response, "participant")
    except pairing.PairingError:
        return render(request, "kiosk_pair.html", 403, paired=who.kiosk, refused=True)
    set_cookie(response, request, session)
    return response


@router.get("/api/kiosk/state", responses={304: {"description": "Nothing has changed"}})
def state(request: Request, db: Db, kiosk: CurrentKiosk) -> Response:
    """The station now. With If-None-Match of the last answer's ETag: 304 when nothing changed."""
    body = _look(db, kiosk.id)
    if body is None:
        raise HTTPException(404, "this station is no more")
    tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match", "")[:100] == tag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@router.get("/api/kiosk/live")
async def live(request: Request, db: Db, kiosk: CurrentKiosk, who: CurrentWho) -> Response:
    """The station and what becomes of it, for as long as this tablet is its kiosk."""
    if len(_open) >= STREAMS:
        headers = {"retry-after": str(RETRY_S)}
        return JSONResponse({"error": 503, "message": "too many kiosks"}, 503, headers=headers)
    session = who.sessions["kiosk"].token_hash
    return StreamingResponse(
        _stream(db, kiosk.id, session),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _stream(db: Database, station_id: str, session: str) -> AsyncIterator[bytes]:
    stream = object()
    _open.add(stream)
    viewers.inc()
    try:
        yield b"retry: 2000\n\n"
        shown, beaten = b"", time.monotonic()
        while True:
            try:
                body = await run_in_threadpool(_look, db, station_id, session)
            except DatabaseBusyError:
                return  # the browser comes back; meanwhile the page says that there is no news
            if body is None:
                return
            if body != shown:
                shown, beaten = body, time.monotonic()
                yield b"event: station\ndata: " + body + b"\n\n"
            elif time.monotonic() - beaten > BEAT_S:
                beaten = time.monotonic()
                yield b": still here\n\n"
            await asyncio.sleep(LOOK_S)
    finally:
        _open.discard(stream)
        viewers.dec()


def _look(db: Database, station_id: str, session: str | None = None) -> bytes | None:
    """The station as JSON; None when it, or the tablet's pairing, is no more."""
    with db.read() as tx:
        if session is not None and tx.get(WebSession, session) is None:
            return None
        seen = view(tx, station_id)
    return None if seen is None else json.dumps(seen, sort_keys=True).encode()
