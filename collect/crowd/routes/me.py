"""What is one's own: points, level, badges, plays, and whether others see one's name."""

from __future__ import annotations

from typing import Annotated
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Form, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from collect.crowd import badges, boards, experiment, flow, scoring
from collect.crowd.deps import Config, CurrentParticipant, Db
from collect.crowd.i18n import choose_language
from collect.crowd.names import public_name
from collect.crowd.security.redirects import redirect
from collect.crowd.tables import LedgerEntry, Participant, Play, TaskText
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

LAST = 20


@router.get("/me")
def me_page(request: Request, db: Db, config: Config, me: CurrentParticipant) -> Response:
    """One's own page."""
    experiment.log_exposure(db, me, "badges")
    with db.read() as tx:
        current = tx.get_one(Participant, me.id)
        points = scoring.points(tx, me.id)
        place = None
        if experiment.shows(current, "board"):
            place = boards.open_board(tx, "all", "all").place_of(tx, me.id)
        return render(
            request,
            "participant/me.html",
            at=flow.progress(tx, me),
            public=public_name(current),
            on_board=current.on_board,
            points=points,
            level=badges.level(points.total),
            all_badges=badges.BADGES,
            badges=badges.of_participant(tx, me.id),
            place=place,
            plays=_plays(tx, me, choose_language(request, me), ZoneInfo(config.zone)),
        )


@router.post("/me/board")
def on_board(db: Db, me: CurrentParticipant, show: Annotated[bool, Form()] = False) -> Response:
    """Be on the leaderboards, or not."""
    with db.begin() as tx:
        tx.get_one(Participant, me.id).on_board = show
    return redirect("/me")


def _plays(tx: Session, me: Participant, language: str, zone: ZoneInfo) -> list[dict[str, object]]:
    """The last plays, with what each was worth and whether that has been checked."""
    rows = tx.execute(
        select(Play, TaskText.title)
        .outerjoin(TaskText, (TaskText.task_id == Play.task_id) & (TaskText.language == language))
        .where(Play.participant_id == me.id, Play.state != "void")
        .order_by(Play.started_at.desc())
        .limit(LAST)
    ).all()
    ids = [play.id for play, _ in rows]
    worth = {
        play_id: int(total)
        for play_id, total in tx.execute(
            select(LedgerEntry.play_id, func.sum(LedgerEntry.points))
            .where(LedgerEntry.play_id.in_(ids))
            .group_by(LedgerEntry.play_id)
        )
    }
    judged = set(
        tx.scalars(
            select(LedgerEntry.play_id).where(
                LedgerEntry.play_id.in_(ids),
                LedgerEntry.kind.in_(("evidence", "review", "reversal")),
            )
        )
    )
    return [
        {
            "play": play,
            "at": play.started_at.astimezone(zone),
            "title": title,
            "points": worth.get(play.id, 0),
            "checked": play.id in judged,
        }
        for play, title in rows
    ]
