"""For admins: accounts of staff, and the log of what staff did."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

import segno
from fastapi import APIRouter, Form, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from collect.crowd.accounts import ROLES, add_staff, disable, enrolment_uri, renew
from collect.crowd.deps import CurrentAdmin, CurrentSite, Db
from collect.crowd.routes.staff_people import Id
from collect.crowd.site import Site
from collect.crowd.tables import AuditEntry, Staff
from collect.crowd.templating import render
from robot_stack.errors import ConfigError

__all__ = ["router"]

router = APIRouter()

PASSWORD_BYTES = 15  # 20 characters, 120 bits
PAGE = 100


@router.get("/staff/accounts")
def accounts_page(request: Request, db: Db, _: CurrentAdmin) -> Response:
    """Everybody who works here."""
    return _page(request, db)


@router.post("/staff/accounts")
def add_account(
    request: Request,
    site: CurrentSite,
    admin: CurrentAdmin,
    name: Annotated[str, Form(min_length=1, max_length=64)],
    role: Annotated[Literal["reviewer", "operator", "admin"], Form()],
) -> Response:
    """A new account. Its password and second factor are shown this once."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    try:
        with site.database.begin() as tx:
            staff, secret = add_staff(tx, site.key, name.strip().lower(), role, password, admin.id)
    except ConfigError:
        return _page(request, site.database, problem="name", status=422)
    return _enrolment(request, site, staff.name, password, secret)


@router.post("/staff/accounts/{staff_id}/renew")
def renew_account(
    request: Request, site: CurrentSite, admin: CurrentAdmin, staff_id: Id
) -> Response:
    """Another password and second factor, shown this once; signs the account out everywhere."""
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    with site.database.begin() as tx:
        staff = _existing(tx, staff_id)
        secret = renew(tx, site.key, staff, password, admin.id)
    return _enrolment(request, site, staff.name, password, secret)


@router.post("/staff/accounts/{staff_id}/disable")
def disable_account(request: Request, db: Db, admin: CurrentAdmin, staff_id: Id) -> Response:
    """Lock an account and sign it out. The last admin stays."""
    try:
        with db.begin() as tx:
            disable(tx, _existing(tx, staff_id), admin.id)
    except ConfigError:
        return _page(request, db, problem="last", status=422)
    return RedirectResponse("/staff/accounts", status_code=303)


@router.get("/staff/audit")
def audit_page(
    request: Request,
    db: Db,
    _: CurrentAdmin,
    before: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Who did what, newest first; ``before`` is the number of the last line of the page before."""
    query = (
        select(AuditEntry, Staff.name)
        .outerjoin(Staff, Staff.id == AuditEntry.staff_id)
        .order_by(AuditEntry.id.desc())
        .limit(PAGE)
    )
    if before:
        query = query.where(AuditEntry.id < before)
    with db.read() as tx:
        rows = tx.execute(query).all()
        subjects = [entry.subject for entry, _ in rows]
        known = tx.execute(select(Staff.id, Staff.name).where(Staff.id.in_(subjects)))
        return render(
            request,
            "staff/audit.html",
            rows=rows,
            subjects={row.id: row.name for row in known},
            before=rows[-1][0].id if len(rows) == PAGE else None,
        )


def _existing(tx: Session, staff_id: str) -> Staff:
    staff = tx.get(Staff, staff_id)
    if staff is None:
        raise HTTPException(404, "there is no such account")
    return staff


def _enrolment(request: Request, site: Site, name: str, password: str, secret: str) -> Response:
    uri = enrolment_uri(site.config.origin, name, secret)
    return render(
        request,
        "staff/enrolment.html",
        name=name,
        password=password,
        secret=secret,
        qr=segno.make(uri, error="m").svg_data_uri(scale=5, border=3),
    )


def _page(request: Request, db: Db, problem: str | None = None, status: int = 200) -> Response:
    with db.read() as tx:
        people = tx.scalars(select(Staff).order_by(Staff.disabled, Staff.name)).all()
    return render(
        request, "staff/accounts.html", status, people=people, roles=ROLES, problem=problem
    )
