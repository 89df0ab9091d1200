"""While driving and after: time left, the report, what it was worth, a call for help."""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from collect.crowd import boards, experiment, flow, plays, scoring, turns
from collect.crowd.deps import Config, CurrentParticipant, CurrentSite, CurrentWho, Db
from collect.crowd.i18n import choose_language
from collect.crowd.kiosk_view import view
from collect.crowd.plays import PlayError
from collect.crowd.security.redirects import redirect
from collect.crowd.security.sessions import Who
from collect.crowd.tables import HelpRequest, LedgerEntry, Play, Station, Task, utc_now
from collect.crowd.tasks import text_of
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

Likert = Annotated[int | None, Form(ge=1, le=5)]
HELP = "6 per 10 minutes"
HELP_LASTS = dt.timedelta(minutes=30)  # an unanswered call older than this is called again


@router.get("/play")
def play_page(request: Request, db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """While driving: time left, how near the arms are, and the button that ends it."""
    turns.keep(db, who)
    with db.read() as tx:
        if where := flow.detour(tx, me, "/play"):
            return redirect(where)
        play = flow.progress(tx, me).play
        assert play is not None
        task = None if play.task_id is None else tx.get(Task, play.task_id)
        station = tx.get_one(Station, play.station_id)
        robot = view(tx, station.id)
        assert robot is not None
        limit_s = plays.limit_s(play, task)
        return render(
            request,
            "participant/play.html",
            play=play,
            title=None if task is None else text_of(tx, task, choose_language(request, me)).title,
            limit_s=limit_s,
            left_s=max(0, math.ceil(limit_s - (robot["elapsed_s"] or 0.0))),
            robot=robot,
            called=_open_call(tx, station) is not None,
        )


@router.get("/api/play/state")
def play_state(db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """The robot as a kiosk shows it, for the phone of who drives it."""
    with db.read() as tx:
        station = flow.station_of(tx, who)
        robot = None if station is None else view(tx, station.id)
    if robot is None:
        raise HTTPException(404, "you are not at a robot")
    return JSONResponse(robot)


@router.post("/play/stop")
def stop(db: Db, me: CurrentParticipant) -> Response:
    """End the play that runs, if one does: the station is asked, the robot rests by itself."""
    with db.begin() as tx:
        play = flow.progress(tx, me).play
        if play is not None and play.state == "running":
            plays.finish(tx, play, by="button")
        return redirect(flow.progress(tx, me).page)


@router.post(
    "/play/alive",
    responses={204: {"description": "Noted"}, 409: {"description": "Nothing runs"}},
)
def alive(db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """Hands are on the robot and not on the screen: nobody is signed out while driving."""
    turns.keep(db, who)
    with db.read() as tx:
        play = flow.progress(tx, me).play
    if play is None or play.state != "running":
        raise HTTPException(409, "nothing runs")
    return Response(status_code=204)


@router.get("/report")
def report_page(
    request: Request,
    db: Db,
    me: CurrentParticipant,
    done: Annotated[str, Query(pattern=r"^[0-9a-f-]{0,36}$")] = "",
) -> Response:
    """How it went; afterwards what it was worth."""
    if done:
        experiment.log_exposure(db, me, "board")  # one's place is on the result's page
    with db.read() as tx:
        told = tx.get(Play, done) if done else None
        if told is not None and told.participant_id == me.id and told.claimed is not None:
            return _result(request, tx, me.id, told)
        if where := flow.detour(tx, me, "/report"):
            return redirect(where)
        play = flow.progress(tx, me).play
        assert play is not None
        return _report(request, tx, play)


@router.post("/report")
def report(
    request: Request,
    db: Db,
    me: CurrentParticipant,
    config: Config,
    play: Annotated[str, Form(pattern=r"^[0-9a-f-]{36}$")],
    success: Annotated[bool | None, Form()] = None,
    intuitive: Likert = None,
    fun: Likert = None,
    did: Likert = None,
) -> Response:
    """Say how it went. The form sent twice counts once."""
    with db.begin() as tx:
        row = tx.get(Play, play)
        if row is None or row.participant_id != me.id or row.kind != "task":
            return redirect(flow.progress(tx, me).page)
        if row.claimed is None:
            if success is None or intuitive is None or fun is None or did is None:
                return _report(request, tx, row, missing=True)
            try:
                plays.report(
                    tx,
                    row,
                    claimed=success,
                    likert=(intuitive, fun, did),
                    worth=config.points,
                )
            except PlayError:
                return redirect(flow.progress(tx, me).page)
    return RedirectResponse(f"/report?done={play}", status_code=303)


@router.get("/help")
def help_page(request: Request, db: Db, config: Config, who: CurrentWho) -> Response:
    """Call the staff; whether they have been called."""
    with db.read() as tx:
        station = flow.station_of(tx, who)
        call = None if station is None else _open_call(tx, station)
        at = None if who.participant is None else flow.progress(tx, who.participant)
    zone = ZoneInfo(config.zone)
    return render(
        request,
        "participant/help.html",
        station=station,
        called_at=None if call is None else call.created_at.astimezone(zone),
        at=at,
    )


@router.post("/help")
def call_help(site: CurrentSite, who: CurrentWho) -> Response:
    """Call the staff to the station, once until they have answered."""
    with site.database.read() as tx:
        station = flow.station_of(tx, who)
    if station is None:
        return redirect("/help")
    site.limiter.hit("help", HELP, station.id)
    with site.database.begin() as tx:
        if _open_call(tx, station) is None:
            tx.add(HelpRequest(station_id=station.id))
    return redirect("/help")


def _report(request: Request, tx: Session, play: Play, missing: bool = False) -> Response:
    who: Who = request.state.who
    task = tx.get(Task, play.task_id) if play.task_id else None
    return render(
        request,
        "participant/report.html",
        422 if missing else 200,
        play=play,
        title=""
        if task is None
        else text_of(tx, task, choose_language(request, who.participant)).title,
        missing=missing,
    )


def _result(request: Request, tx: Session, participant_id: str, play: Play) -> Response:
    given = tx.scalar(select(func.sum(LedgerEntry.points)).where(LedgerEntry.play_id == play.id))
    kinds = set(tx.scalars(select(LedgerEntry.kind).where(LedgerEntry.play_id == play.id)))
    who: Who = request.state.who
    place = None
    if experiment.shows(who.participant, "board"):
        place = boards.open_board(tx, "all", "week").place_of(tx, participant_id)
    return render(
        request,
        "participant/result.html",
        play=play,
        points=int(given or 0),
        checked=bool(kinds & {"evidence", "review"}),
        total=scoring.points(tx, participant_id),
        place=place,
    )


def _open_call(tx: Session, station: Station) -> HelpRequest | None:
    return tx.scalar(
        select(HelpRequest)
        .where(
            HelpRequest.station_id == station.id,
            HelpRequest.answered_at.is_(None),
            HelpRequest.created_at > utc_now() - HELP_LASTS,
        )
        .order_by(HelpRequest.created_at.desc())
        .limit(1)
    )
