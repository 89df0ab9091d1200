"""Coming and going: the start page, signing in by card, phone or as a guest, languages, leaving."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from collect.crowd import boards, experiment, flow, people, phone, queue, turns
from collect.crowd.config import CrowdConfig, is_loopback
from collect.crowd.deps import (
    Config,
    CurrentKiosk,
    CurrentParticipant,
    CurrentSite,
    CurrentWho,
    Db,
    address_of,
)
from collect.crowd.i18n import COOKIE, choose_language
from collect.crowd.security.redirects import local_path, redirect
from collect.crowd.security.sessions import NewSession, cookie_name, set_cookie, sign_in, sign_out
from collect.crowd.tables import Participant, Station
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

LANGUAGE_S = 900  # at a kiosk the next visitor may speak another one
# A queue of people fits into these; trying card numbers out does not.
CARDS = "60 per 10 minutes"
GUESTS = "60 per 10 minutes"
LINKS = "60 per 10 minutes"
TOP = 3


@router.get("/")
def start(
    request: Request,
    db: Db,
    who: CurrentWho,
    left: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """What this is, how it goes, who is ahead this week, whether the robot is free."""
    experiment.log_exposure(db, who.participant, "board")
    with db.read() as tx:
        station = None if who.kiosk is None else tx.get(Station, who.kiosk.id)
        at = None if who.participant is None else flow.progress(tx, who.participant)
        return render(
            request,
            "participant/start.html",
            left=left if left in ("out", "idle") else None,
            at=at,
            station=station,
            station_is=None if station is None else turns.status(tx, station, who.participant),
            top=boards.open_board(tx, "all", "week").top(tx, TOP),
        )


@router.get("/signin")
def signin_page(
    request: Request,
    db: Db,
    who: CurrentWho,
    problem: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """Ways to sign in at a kiosk; elsewhere, how to come to one."""
    if who.participant is not None:
        with db.read() as tx:
            return redirect(flow.progress(tx, who.participant).page)
    return render(
        request,
        "participant/signin.html",
        problem=problem if problem in ("card", "link") else None,
    )


@router.post("/signin/card")
def card(
    request: Request,
    site: CurrentSite,
    kiosk: CurrentKiosk,
    who: CurrentWho,
    card: Annotated[str, Form(max_length=256)] = "",
) -> Response:
    """What the card reader has typed. Somebody who taps takes the kiosk over from who was there,
    but not while that one drives."""
    site.limiter.hit("card", CARDS, kiosk.id)
    hashed = people.card_hash(site.key, card)
    if hashed is None:
        return RedirectResponse("/signin?problem=card", status_code=303)
    language = choose_language(request, None)
    with site.database.begin() as tx:
        if _drives(tx, who.participant):
            return redirect("/play")
        participant = people.by_card(tx, hashed, language)
        if who.participant is not None and who.participant.id != participant.id:
            people.leave(tx, who)
        chosen = request.cookies.get(cookie_name(site.config, COOKIE))
        if chosen in site.config.languages:
            participant.language = chosen
        session = sign_in(
            tx, request, "participant", participant_id=participant.id, station_id=kiosk.id
        )
        where = flow.progress(tx, participant).page
    return _welcome(request, site.config, session, where)


@router.post("/signin/guest")
def guest(request: Request, site: CurrentSite, kiosk: CurrentKiosk, who: CurrentWho) -> Response:
    """Take part without a card; a code at /me/data lets the same guest come back."""
    site.limiter.hit("guest", GUESTS, kiosk.id)
    language = choose_language(request, None)
    with site.database.begin() as tx:
        if who.participant is not None:  # a second press is the same guest
            return redirect(flow.progress(tx, who.participant).page)
        participant = people.newcomer(tx, "guest", language)
        session = sign_in(
            tx, request, "participant", participant_id=participant.id, station_id=kiosk.id
        )
        where = flow.progress(tx, participant).page
    return _welcome(request, site.config, session, where)


@router.get("/signin/phone")
def phone_page(
    request: Request, who: CurrentWho, link: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """What a phone sees that has scanned the code: one more press, so that a preview of the link
    does not use it up."""
    if not link:
        return redirect("/signin")
    return render(request, "participant/phone.html", link=link)


@router.post("/signin/phone/link")
def phone_link(
    request: Request, site: CurrentSite, kiosk: CurrentKiosk, who: CurrentWho
) -> Response:
    """Show a code, at the kiosk."""
    site.limiter.hit("phone link", LINKS, kiosk.id)
    language = choose_language(request, who.participant)
    with site.database.begin() as tx:
        token = phone.new_link(tx, site.key, kiosk, who.participant, language)
    return render(
        request,
        "participant/phone_code.html",
        code=phone.qr_code(f"{site.config.origin}/signin/phone?link={token}"),
        seconds=int(phone.LIFETIME.total_seconds()),
        alone=is_loopback(site.config.host.rpartition(":")[0] or site.config.host),
    )


@router.post("/signin/phone")
def phone_signin(
    request: Request,
    site: CurrentSite,
    who: CurrentWho,
    link: Annotated[str, Form(max_length=64)],
) -> Response:
    """Use the link: this phone is signed in, and the kiosk no longer is. A phone that has somebody
    already stays theirs: they show that they are at the robot (see `flow.station_of`)."""
    site.limiter.hit("phone", LINKS, address_of(request))
    try:
        with site.database.begin() as tx:
            row = phone.take(tx, site.key, link)
            known = row.participant_id or (who.participant.id if who.participant else None)
            if known is None:
                participant = people.newcomer(tx, "phone", row.language)
            else:
                participant = tx.get_one(Participant, known)
            session = sign_in(
                tx,
                request,
                "participant",
                participant_id=participant.id,
                linked_id=row.station_id,
            )
            waits = queue.place(tx, participant) is not None
            where = "/queue" if waits else flow.progress(tx, participant).page
    except phone.PhoneLinkError:
        return RedirectResponse("/signin?problem=link", status_code=303)
    return _welcome(request, site.config, session, where)


@router.post("/language")
def language(
    request: Request,
    db: Db,
    who: CurrentWho,
    config: Config,
    language: Annotated[str, Form(max_length=8)],
    next_page: Annotated[str, Form(alias="next", max_length=300)] = "/",
) -> Response:
    """Speak another language: the participant from now on, or whoever is at this browser."""
    response = redirect(next_page)
    if language not in config.languages:
        return response
    if who.participant is not None:
        with db.begin() as tx:
            tx.get_one(Participant, who.participant.id).language = language
        return response
    response.set_cookie(
        cookie_name(config, COOKIE),
        language,
        max_age=LANGUAGE_S,
        path="/",
        secure=config.https,
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/logout")
def logout(
    request: Request,
    db: Db,
    who: CurrentWho,
    why: Annotated[str, Form(max_length=8)] = "out",
) -> Response:
    """Leave: the turn, the session and what this browser keeps of it end."""
    response = RedirectResponse(f"/?left={'idle' if why == 'idle' else 'out'}", status_code=303)
    with db.begin() as tx:
        people.leave(tx, who)
        sign_out(tx, request, response, "participant")
    return response


@router.post("/still-here", responses={204: {"description": "Noted"}})
def still_here(db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """Somebody reads, scrolls or types: they are not signed out, and keep their turn."""
    turns.keep(db, who)
    return Response(status_code=204)


def _drives(tx: Session, participant: Participant | None) -> bool:
    if participant is None:
        return False
    play = flow.progress(tx, participant).play
    return play is not None and play.state == "running"


def _welcome(
    request: Request, config: CrowdConfig, session: NewSession, where: str
) -> RedirectResponse:
    response = RedirectResponse(local_path(where), status_code=303)
    set_cookie(response, request, session)
    _forget_language(response, config)
    return response


def _forget_language(response: Response, config: CrowdConfig) -> None:
    response.delete_cookie(
        cookie_name(config, COOKIE),
        path="/",
        secure=config.https,
        httponly=True,
        samesite="strict",
    )
