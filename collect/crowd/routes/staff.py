"""Staff come and go: sign-in with password and one-time code, home with what waits, sign-out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from sqlalchemy import select
from starlette.responses import RedirectResponse, Response

from collect.crowd import accounts, consent, review
from collect.crowd.accounts import MAX_PASSWORD, SignInRefusedError
from collect.crowd.deps import CurrentSite, CurrentStaff, CurrentWho, Db, address_of
from collect.crowd.leases import online
from collect.crowd.routes.staff_people import open_calls, open_cases
from collect.crowd.security.sessions import set_cookie, sign_in, sign_out
from collect.crowd.site import Site
from collect.crowd.tables import Station
from collect.crowd.templating import render
from robot_stack.errors import ConfigError

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
    return _begin(request, site, staff.id)


@router.post("/staff/signout")
def sign_staff_out(request: Request, db: Db, _: CurrentWho) -> Response:
    """End the session and what the browser keeps of it."""
    response = RedirectResponse("/staff/signin", status_code=303)
    with db.begin() as tx:
        sign_out(tx, request, response, "staff")
    return response


@router.get("/staff/password")
def password_page(request: Request, _: CurrentStaff) -> Response:
    """The form for a password of one's own choice."""
    return render(request, "staff/password.html", problem=None)


@router.post("/staff/password")
def change_password(
    request: Request,
    site: CurrentSite,
    staff: CurrentStaff,
    password: Annotated[str, Form(min_length=1, max_length=MAX_PASSWORD)],
    new: Annotated[str, Form(min_length=1, max_length=MAX_PASSWORD)],
    again: Annotated[str, Form(min_length=1, max_length=MAX_PASSWORD)],
    code: Annotated[str, Form(min_length=1, max_length=16)],
) -> Response:
    """Change one's password; every other browser of this account is signed out."""
    problem = "differ" if new != again else None
    try:
        if problem is None:
            accounts.change_password(site, staff, password, code, new, address_of(request))
    except ConfigError:
        problem = "weak"
    except SignInRefusedError:
        problem = "refused"
    if problem is not None:
        return render(request, "staff/password.html", 422, problem=problem)
    return _begin(request, site, staff.id)


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
            help_requests=open_calls(tx),
            queue=waiting.queue,
            disputes=waiting.disputes,
            stations=[(station, online(station)) for station in stations],
            consent_news=consent.outdated(tx) is not None,
        )


def _begin(request: Request, site: Site, staff_id: str) -> Response:
    """A new session of this browser, at its first page."""
    with site.database.begin() as tx:
        session = sign_in(tx, request, "staff", staff_id=staff_id)
    response = RedirectResponse("/staff", status_code=303)
    set_cookie(response, request, session)
    return response
