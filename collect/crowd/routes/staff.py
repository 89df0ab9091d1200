"""Staff come and go: sign-in with password and one-time code, home with what waits, sign-out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from sqlalchemy import func, select
from starlette.responses import RedirectResponse, Response

from collect.crowd import accounts, review
from collect.crowd.accounts import MAX_PASSWORD, SignInRefusedError
from collect.crowd.deps import CurrentSite, CurrentStaff, CurrentWho, Db, address_of
from collect.crowd.leases import online
from collect.crowd.routes.staff_people import open_cases
from collect.crowd.security.sessions import set_cookie, sign_in, sign_out
from collect.crowd.tables import HelpRequest, Station
from collect.crowd.templating import render

__all__ = ["router"]

router = APIRouter()


@router.get("/staff/signin")
def sign_in_page(request: Request) -> Response:
    """The form of staff."""
    return render(request, "staff/signin.html", refused=False, name="")


@router.post("/staff/signin")
def sign_staff_in(
    request: Request,
    site: CurrentSite,
    name: Annotated[str, Form(min_length=1, max_length=64)],
    password: Annotated[str, Form(min_length=1, max_length=MAX_PASSWORD)],
    code: Annotated[str, Form(min_length=1, max_length=16)],
) -> Response:
    """Begin a new session. What was wrong is not said."""
    try:
        staff = accounts.verify(site, name, password, code, address_of(request))
    except SignInRefusedError:
        return render(request, "staff/signin.html", 401, refused=True, name=name)
    with site.database.begin() as tx:
        session = sign_in(tx, request, "staff", staff_id=staff.id)
    response = RedirectResponse("/staff", status_code=303)
    set_cookie(response, request, session)
    return response


@router.post("/staff/signout")
def sign_staff_out(request: Request, db: Db, _: CurrentWho) -> Response:
    """End the session and what the browser keeps of it."""
    response = RedirectResponse("/staff/signin", status_code=303)
    with db.begin() as tx:
        sign_out(tx, request, response, "staff")
    return response


@router.get("/staff")
def home(request: Request, db: Db, _: CurrentStaff) -> Response:
    """What waits for whom, and how the stations are."""
    with db.read() as tx:
        waiting = review.waiting(tx)
        stations = tx.scalars(select(Station).order_by(Station.name)).all()
        return render(
            request,
            "staff/home.html",
            names=len(open_cases(tx)),
            help_requests=tx.scalar(
                select(func.count())
                .select_from(HelpRequest)
                .where(HelpRequest.answered_at.is_(None))
            ),
            queue=waiting.queue,
            disputes=waiting.disputes,
            stations=[(station, online(station)) for station in stations],
        )
