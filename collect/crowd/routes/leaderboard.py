"""The leaderboards: pages that work without scripts, JSON with ETags, live streams.

Boards are public. What is one's own (place, neighbours) is on the page of who is signed in, and
below `/api/board/{scope}/me`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, FastAPI, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from collect.crowd import experiment, scoring, standings
from collect.crowd.boards import PERIODS, SCOPES, Place, open_board
from collect.crowd.database import DatabaseBusyError
from collect.crowd.deps import CurrentParticipant, Db, MaybeParticipant
from collect.crowd.i18n import choose_language
from collect.crowd.live import Hub, Message, Receive, Send
from collect.crowd.log import log
from collect.crowd.site import Site
from collect.crowd.tables import Task, TaskText
from collect.crowd.templating import render

__all__ = ["router"]

RETRY_S = 10  # a stream that finds the worker full asks again, and polls meanwhile
Period = Annotated[str, Query(max_length=8, description="all, day or week")]


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    site: Site = app.state.site
    try:
        await asyncio.to_thread(_use_zone, site)
    except DatabaseBusyError as error:
        log.warning("the boards' time zone was not looked at", error=error)
    async with Hub(site.database, site.config.caps.viewers).running() as hub:
        yield {"boards": hub}


def _use_zone(site: Site) -> None:
    with site.database.read() as tx:
        same = standings.site_version(tx)[1] == site.config.zone
    if not same:
        with site.database.begin() as tx:
            standings.set_zone(tx, site.config.zone)


router = APIRouter(lifespan=_lifespan)


@router.get("/board")
def first_board(request: Request, db: Db, me: MaybeParticipant, period: Period = "all") -> Response:
    """The board of all points."""
    return board_page(request, db, me, "all", period)


@router.get("/board/{scope}")
def board_page(
    request: Request, db: Db, me: MaybeParticipant, scope: str, period: Period = "all"
) -> Response:
    """One board: its first fifty, and where the reader stands. Not for arms that see no board."""
    if not experiment.shows(me, "board"):
        return RedirectResponse("/me", status_code=303)
    experiment.log_exposure(db, me, "board")
    language = choose_language(request, me)
    with db.read() as tx:
        try:
            board = open_board(tx, scope, period)
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        top = board.top(tx)
        around = [] if me is None else board.around(tx, me.id)
        if me is not None and any(place.participant_id == me.id for place in top):
            around = []
        return render(
            request,
            "leaderboard.html",
            scope=scope,
            period=period,
            periods=PERIODS,
            scopes=SCOPES,
            tasks=_tasks(tx, language),
            places=top,
            count=board.count(tx),
            around=around,
            my_points=None if me is None else scoring.points(tx, me.id),
            mine=None if me is None else me.id,
        )


@router.get("/api/board/{scope}", responses={304: {"description": "It stands"}})
def board(request: Request, scope: str, period: Period = "all") -> Response:
    """The first fifty as JSON. With If-None-Match of the last answer's ETag: 304 if it stands."""
    hub: Hub = request.state.boards
    try:
        frame = hub.frames.recent(scope, period)
    except LookupError as error:
        raise HTTPException(404, str(error)) from error
    tag = f'"{frame.tag}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    asked = request.headers.get("if-none-match", "")[:500]
    if tag in (part.strip().removeprefix("W/") for part in asked.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(frame.body, media_type="application/json", headers=headers)


@router.get("/api/board/{scope}/me")
def my_place(db: Db, me: CurrentParticipant, scope: str, period: Period = "all") -> Response:
    """The reader's own place on a board, and three before and after."""
    with db.read() as tx:
        try:
            board = open_board(tx, scope, period)
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        around = board.around(tx, me.id)
        return JSONResponse(
            {
                "place": next((_shown(p) for p in around if p.participant_id == me.id), None),
                "around": [
                    {**_shown(place), "me": place.participant_id == me.id} for place in around
                ],
            }
        )


class Live:
    """ASGI: the stream of one board (server-sent events); 503 and Retry-After when full."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":  # HEAD, of a body without an end
            raise HTTPException(405)
        hub: Hub = scope["state"]["boards"]
        query = parse_qs(scope["query_string"].decode("latin-1")[:100])
        last = Headers(scope=scope).get("last-event-id", "")[:40] or None
        name, period = scope["path_params"]["scope"], query.get("period", ["all"])[0]
        try:
            if await hub.stream(name, period, last, receive, send):
                return
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        raise HTTPException(503, "too many look at once", {"retry-after": str(RETRY_S)})


router.routes.append(Route("/api/board/{scope}/live", Live(), methods=["GET"], name="live_board"))


def _shown(place: Place) -> dict[str, Any]:
    return {"rank": place.rank, "name": place.name, "score": place.score}


def _tasks(tx: Session, language: str) -> list[tuple[str, str]]:
    """Scope and title of each task's board."""
    rows = tx.execute(
        select(Task.id, TaskText.title)
        .join(TaskText, TaskText.task_id == Task.id)
        .where(Task.active, TaskText.language == language)
        .order_by(Task.position, Task.id)
    )
    return [(f"task:{task}", title) for task, title in rows]
