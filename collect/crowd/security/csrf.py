"""A write must come from a page of ours: a token in the form or header, and the right Origin.

Signed in, the token is the session's own. Before that it is the keyed hash of a `visit` cookie,
so that nobody can be signed in as somebody else by a foreign page (login CSRF).
"""

from __future__ import annotations

import hmac
import secrets

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request

from collect.crowd.security.sessions import MAX_TOKEN, Who, cookie_name
from collect.crowd.site import site_of

__all__ = ["FIELD", "HEADER", "SAFE_METHODS", "check_csrf", "csrf_token"]

FIELD = "csrf"
HEADER = "x-csrf-token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def csrf_token(request: Request, who: Who) -> str:
    """What a form or script of the page must send back; begins a visit where there is none."""
    if who.csrf is not None:
        return who.csrf
    site = site_of(request)
    visit = _visit(request)
    if visit is None:
        visit = getattr(request.state, "new_visit", None) or secrets.token_urlsafe(32)
        request.state.new_visit = visit  # the headers' middleware sets the cookie
    return site.key.mac("csrf", visit)


async def check_csrf(request: Request, who: Who) -> None:
    """Refuse (403) a write without the token that this browser's pages carry."""
    if request.method in SAFE_METHODS:
        return
    expected = who.csrf
    if expected is None and (visit := _visit(request)) is not None:
        expected = site_of(request).key.mac("csrf", visit)
    given: object = request.headers.get(HEADER)
    if given is None and request.headers.get("content-type", "").startswith(FORMS):
        form: FormData = await request.form()
        given = form.get(FIELD)
    if expected is None or not isinstance(given, str):
        raise HTTPException(403, "this page is out of date; go back to the start and try again")
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, "this page is out of date; go back to the start and try again")


def _visit(request: Request) -> str | None:
    visit = request.cookies.get(cookie_name(site_of(request).config, "visit"))
    return visit if visit and len(visit) <= MAX_TOKEN else None
