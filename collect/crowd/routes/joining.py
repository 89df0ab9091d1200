"""Before the first play: age, consent, a nickname."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from collect.crowd import consent, experiment, flow, names
from collect.crowd.consent import ConsentError
from collect.crowd.deps import Config, CurrentParticipant, Db, Limiter
from collect.crowd.i18n import choose_language
from collect.crowd.names import NameRefusedError
from collect.crowd.security.redirects import redirect
from collect.crowd.tables import Participant
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

# Staff look at every name, and which ones are taken is not to be had by asking for all.
NAMES = "20 per 10 minutes"


@router.get("/age")
def age_page(request: Request, db: Db, me: CurrentParticipant) -> Response:
    """The age gate; for minors, that they may watch."""
    with db.read() as tx:
        where = flow.detour(tx, me, "/age")
    if where is not None:
        return redirect(where)
    return render(request, "participant/age.html", minor=me.adult is False)


@router.post("/age")
def age(db: Db, me: CurrentParticipant, adult: Annotated[bool, Form()]) -> Response:
    """The answer, once: who says that they are too young is asked again when staff say so."""
    with db.begin() as tx:
        participant = tx.get_one(Participant, me.id)
        if participant.adult is None:
            participant.adult = adult
        return redirect(flow.progress(tx, participant).page)


@router.get("/consent")
def consent_page(request: Request, db: Db, me: CurrentParticipant) -> Response:
    """The text in force, and what of it one may choose."""
    return _consent(request, db, me)


@router.post("/consent")
def give_consent(
    request: Request,
    db: Db,
    me: CurrentParticipant,
    version: Annotated[str, Form(max_length=16)],
    language: Annotated[str, Form(max_length=8)],
    scope: Annotated[list[Annotated[str, Form(max_length=16)]], Form(max_length=8)] = [],  # noqa: B006
) -> Response:
    """Agree to a version, in the language that it was read in."""
    if consent.REQUIRED not in scope:
        return _consent(request, db, me, problem="required", chosen=scope)
    try:
        with db.begin() as tx:
            if where := flow.detour(tx, me, "/consent"):
                return redirect(where)
            participant = tx.get_one(Participant, me.id)
            consent.give(tx, participant, version, language, scope)
            experiment.assign(tx, participant)
            if participant.nickname is None and participant.tutorial_at is None:
                return redirect("/nickname")
            return redirect(flow.progress(tx, participant).page)
    except ConsentError:
        return _consent(request, db, me, problem="changed", chosen=scope)


@router.get("/nickname")
def nickname_page(request: Request, db: Db, me: CurrentParticipant) -> Response:
    """Choose a name for the leaderboard, or go on under the pseudonym."""
    with db.read() as tx:
        at = flow.progress(tx, me)
        if where := flow.detour(tx, me, "/nickname"):
            return redirect(where)
    return _nickname(request, me, at.page, None, me.nickname or "")


@router.post("/nickname")
def nickname(
    request: Request,
    db: Db,
    me: CurrentParticipant,
    config: Config,
    limiter: Limiter,
    nickname: Annotated[str, Form(max_length=names.MAX_INPUT)] = "",
    then: Annotated[Literal["me", "on"], Form()] = "on",
) -> Response:
    """Bear this name: others see it once staff have looked at it."""
    limiter.hit("nickname", NAMES, me.id)
    try:
        with db.begin() as tx:
            if where := flow.detour(tx, me, "/nickname"):
                return redirect(where)
            participant = tx.get_one(Participant, me.id)
            at = flow.progress(tx, participant)
            names.rename(tx, participant, nickname, config.languages)
    except NameRefusedError as error:
        return _nickname(request, me, at.page, error.code, nickname)
    return redirect("/me" if then == "me" else at.page)


def _consent(
    request: Request,
    db: Db,
    me: Participant,
    problem: str | None = None,
    chosen: list[str] | None = None,
) -> Response:
    with db.read() as tx:
        if where := flow.detour(tx, me, "/consent"):
            return redirect(where)
        text = consent.current(tx, choose_language(request, me))
    return render(
        request,
        "participant/consent.html",
        200 if problem is None else 422,
        text=text,
        blocks=consent.blocks(text.body),
        scopes=consent.SCOPES,
        required=consent.REQUIRED,
        chosen=chosen or [],
        problem=problem,
    )


def _nickname(
    request: Request, me: Participant, page: str, problem: str | None, typed: str
) -> Response:
    return render(
        request,
        "participant/nickname.html",
        200 if problem is None else 422,
        next_page=page,
        problem=problem,
        typed=typed,
        longest=names.MAX_NAME,
    )
