"""Rewards: what a participant may take from the bowl, and the bowl's books for staff."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy import select
from starlette.responses import RedirectResponse, Response

from collect.crowd import experiment, rewards, scoring
from collect.crowd.deps import CurrentOperator, CurrentParticipant, Db
from collect.crowd.rewards import MAX_PIECES, RewardError
from collect.crowd.tables import AuditEntry, RewardEntry, RewardItem, new_id
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()

SLUG = r"^[a-z0-9][a-z0-9-]{0,46}$"
Key = Annotated[str, Form(pattern=r"^[0-9a-f-]{36}$")]  # of the form: a double click is one piece
Slug = Annotated[str, Form(pattern=SLUG)]
Pieces = Annotated[int, Form(ge=0, le=MAX_PIECES)]
LAST = 50


@router.get("/rewards")
def rewards_page(
    request: Request,
    db: Db,
    me: CurrentParticipant,
    took: Annotated[str, Query(max_length=48)] = "",
    refused: Annotated[str, Query(max_length=8)] = "",
) -> Response:
    """What there is, and what of it the reader may take. Not for arms that see no rewards."""
    if not experiment.shows(me, "rewards"):
        return RedirectResponse("/me", status_code=303)
    experiment.log_exposure(db, me, "rewards")
    with db.read() as tx:
        offers = rewards.offers(tx, me.id)
        return render(
            request,
            "rewards.html",
            offers=offers,
            credit=max(0, rewards.credit(tx, me.id)),
            points=scoring.points(tx, me.id),
            took=next((offer.item.name for offer in offers if offer.item.id == took), None),
            refused=refused if refused in rewards.REASONS else None,
            key=new_id(),
        )


@router.post("/rewards/take")
def take(db: Db, me: CurrentParticipant, item: Slug, key: Key) -> Response:
    """Take one piece. The same form sent twice takes one."""
    if not experiment.shows(me, "rewards"):
        return RedirectResponse("/me", status_code=303)
    try:
        with db.begin() as tx:
            rewards.hand(tx, item_id=item, participant_id=me.id, key=key)
    except RewardError as error:
        return RedirectResponse(f"/rewards?refused={error.reason}", status_code=303)
    return RedirectResponse(f"/rewards?took={item}", status_code=303)


@router.get("/staff/rewards")
def books(request: Request, db: Db, _: CurrentOperator) -> Response:
    """Each item's stock by the books, forms to fill up and to count, the last entries."""
    return _books(request, db)


@router.post("/staff/rewards/item")
def add_item(
    request: Request,
    db: Db,
    staff: CurrentOperator,
    item: Slug,
    name: Annotated[str, Form(min_length=1, max_length=80)],
    points: Annotated[int, Form(ge=1, le=10_000)],
    daily_cap: Annotated[int, Form(ge=1, le=100)] = 1,
    pieces_a_day: Annotated[int, Form(ge=1, le=MAX_PIECES)] = 50,
) -> Response:
    """A new item with nothing in stock."""
    with db.begin() as tx:
        if tx.get(RewardItem, item) is not None:
            duplicate = True
        else:
            duplicate = False
            tx.add(
                RewardItem(
                    id=item,
                    name=name.strip(),
                    points=points,
                    daily_cap=daily_cap,
                    pieces_a_day=pieces_a_day,
                )
            )
            tx.add(AuditEntry(staff_id=staff.id, action="reward item", subject=item))
    if duplicate:
        return _books(request, db, problem="duplicate")
    return _back()


@router.post("/staff/rewards/offer")
def offer_item(
    db: Db,
    staff: CurrentOperator,
    item: Slug,
    active: Annotated[bool, Form()],
    pieces_a_day: Annotated[int, Form(ge=1, le=MAX_PIECES)],
) -> Response:
    """Give an item out, at most so many pieces a day, or no longer."""
    with db.begin() as tx:
        found = tx.get(RewardItem, item)
        if found is not None:
            found.active = active
            found.pieces_a_day = pieces_a_day
            tx.add(
                AuditEntry(
                    staff_id=staff.id,
                    action="reward offered" if active else "reward withdrawn",
                    subject=item,
                    detail={"a_day": pieces_a_day},
                )
            )
    return _back()


@router.post("/staff/rewards/stock")
def stock(
    request: Request, db: Db, staff: CurrentOperator, item: Slug, pieces: Pieces, key: Key
) -> Response:
    """So many pieces were put in."""
    return _book(request, db, rewards.stock, staff.id, item, pieces, key)


@router.post("/staff/rewards/count")
def count(
    request: Request, db: Db, staff: CurrentOperator, item: Slug, pieces: Pieces, key: Key
) -> Response:
    """So many pieces are there; the books are made right."""
    return _book(request, db, rewards.count, staff.id, item, pieces, key)


def _book(
    request: Request,
    db: Db,
    what: rewards.StaffEntry,
    staff_id: str,
    item: str,
    pieces: int,
    key: str,
) -> Response:
    try:
        with db.begin() as tx:
            what(tx, item_id=item, pieces=pieces, staff_id=staff_id, key=key)
    except RewardError as error:
        return _books(request, db, problem=error.reason)
    return _back()


def _back() -> Response:
    return RedirectResponse("/staff/rewards", status_code=303)


def _books(request: Request, db: Db, problem: str | None = None) -> Response:
    with db.read() as tx:
        items = tx.scalars(select(RewardItem).order_by(RewardItem.id)).all()
        entries = tx.scalars(select(RewardEntry).order_by(RewardEntry.id.desc()).limit(LAST)).all()
        return render(
            request,
            "staff/rewards.html",
            200 if problem is None else 422,
            items=[
                (item, rewards.stock_of(tx, item.id), rewards.handed_today(tx, item.id))
                for item in items
            ],
            entries=entries,
            problem=problem,
            most=MAX_PIECES,
            key=new_id(),
        )
