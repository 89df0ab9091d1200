"""Of the review desk, what looks at the reviewers: agreement, disputes, plays of known quality."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from collect.crowd import review
from collect.crowd.agreement import agreement, gold_hits
from collect.crowd.deps import CurrentAdmin, CurrentReviewer, CurrentSite, Db
from collect.crowd.review import ReviewError
from collect.crowd.routes.review import may_look
from collect.crowd.routes.staff_people import Id
from collect.crowd.tables import GoldPlay, Play, Review
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "Not as things stand"}}


@router.get("/staff/agreement")
def agreement_page(request: Request, db: Db, staff: CurrentReviewer) -> Response:
    """Kappa and the table behind it; for admins, hits on gold plays too."""
    with db.read() as tx:
        return render(
            request,
            "staff/agreement.html",
            found=agreement(tx),
            hits=gold_hits(tx) if staff.role == "admin" else None,
            gold=tx.query(GoldPlay).count() if staff.role == "admin" else None,
        )


@router.get("/api/staff/agreement")
def agreement_json(db: Db, staff: CurrentReviewer) -> Response:
    """The same as JSON."""
    with db.read() as tx:
        answer = asdict(agreement(tx))
        if staff.role == "admin":
            answer["gold"] = [asdict(hits) for hits in gold_hits(tx)]
    return JSONResponse(answer)


@router.get("/staff/disputes")
def disputes_page(request: Request, db: Db, _: CurrentAdmin) -> Response:
    """Plays of which three reviewers say three things."""
    with db.read() as tx:
        return render(request, "staff/disputes.html", plays=review.disputes(tx))


@router.post("/staff/review/{play_id}/settle", responses=CONFLICT)
def settle(
    site: CurrentSite,
    admin: CurrentAdmin,
    play_id: Id,
    chosen: Annotated[str, Form(pattern=r"^[0-9a-f-]{36}$")],
) -> Response:
    """Say which of a play's reviews stands."""
    with site.database.begin() as tx:
        may_look(tx, play_id, admin)
        found = tx.get(Review, chosen)
        if found is None or found.play_id != play_id:
            raise HTTPException(404, "this play has no such review")
        try:
            review.settle(tx, admin, found, site.config.points)
        except ReviewError as error:
            raise HTTPException(409, str(error)) from error
    return RedirectResponse(f"/staff/review/{play_id}", status_code=303)


@router.post("/staff/review/{play_id}/gold", responses=CONFLICT)
def gold(db: Db, admin: CurrentAdmin, play_id: Id, is_gold: Annotated[bool, Form()]) -> Response:
    """Make a play one of known quality, or no longer."""
    with db.begin() as tx:
        may_look(tx, play_id, admin)
        try:
            review.set_gold(tx, admin, tx.get_one(Play, play_id), is_gold)
        except ReviewError as error:
            raise HTTPException(409, str(error)) from error
    return RedirectResponse(f"/staff/review/{play_id}", status_code=303)
