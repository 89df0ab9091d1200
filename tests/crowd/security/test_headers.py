"""What every answer carries: policy, sniffing, framing, caching; and every cookie's attributes.

ASVS 5.0: 3.3.1-3.3.4 (cookies), 3.4.1-3.4.6 (headers), 14.3.1 and 14.3.2 (what stays behind).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import httpx
import pyotp
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient

from collect.crowd import pairing, phone
from collect.crowd.app import create_app
from collect.crowd.routes import kiosk as kiosk_routes
from collect.crowd.tables import PhoneLink, WebSession
from tests.crowd.factories import PASSWORD, TOTP_SECRET
from tests.crowd.security.conftest import ORIGIN, ROLES, Operation, World

DATABASES = ["sqlite"]
# By hand, and not from the site's own table.
WANTED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
DIRECTIVES = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
COOKIE = re.compile(r"__Host-(participant|staff|kiosk|visit|language)=[A-Za-z0-9_\"-]*")


def _complaints(answer: httpx.Response) -> Iterator[str]:
    for name, value in WANTED.items():
        if answer.headers.get(name) != value:
            yield f"{name} is {answer.headers.get(name)!r}"
    policy = answer.headers.get("content-security-policy", "")
    directives = dict(item.partition(" ")[::2] for item in policy.split("; "))
    if not DIRECTIVES.items() <= directives.items():
        yield f"the policy is {policy!r}"
    if "camera=()" not in answer.headers.get("permissions-policy", ""):
        yield "no permissions policy"
    if re.search(r"unsafe|\*|https?:|blob:|strict-dynamic|nonce", policy):
        yield f"the policy opens something: {policy}"
    if not re.match(
        r"max-age=(3[1-9]|[4-9]\d)\d{6,}", answer.headers.get("strict-transport-security", "")
    ):
        yield "no HSTS of a year"
    if {"server", "x-powered-by"} & set(answer.headers):
        yield "says what it is made of"
    if "access-control-allow-origin" in answer.headers:
        yield "lets other sites read"
    if "cache-control" not in answer.headers:
        yield "says nothing of caching"
    if answer.content and answer.status_code != 304:
        kind = answer.headers.get("content-type", "")
        if not kind:
            yield "no content type"
        if kind.startswith("text/") and "charset=utf-8" not in kind.lower():
            yield f"no charset in {kind!r}"
    for cookie in answer.headers.get_list("set-cookie"):
        pair, *attributes = [part.strip() for part in cookie.split(";")]
        lower = {attribute.lower() for attribute in attributes}
        if not COOKIE.fullmatch(pair):
            yield f"a cookie is called {pair!r}"
        if not {"path=/", "httponly", "secure", "samesite=strict"} <= lower:
            yield f"a cookie's attributes are {attributes}"
        if any(attribute.startswith("domain") for attribute in lower):
            yield "a cookie has a domain"


def test_every_route_in_every_role_has_all_headers(
    world: World, operations: list[Operation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Allowed or refused, a page or JSON, with cookies or without."""
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)
    wrong = []
    for role in ("nobody", "participant", "kiosk", "agent", "admin"):
        actor = world.as_(role)
        for operation in operations:
            if operation.method == "GET":
                answer = actor.get(world.path(operation))
                private = bool(operation.schemes & ROLES[role]) and answer.status_code == 200
                found = list(_complaints(answer))
                kept = not re.search("no-store|private", answer.headers["cache-control"])
                if private and kept and operation.path != "/api/kiosk/state":  # nobody's data
                    found.append(f"may be kept: {answer.headers['cache-control']}")
                wrong += [f"{role}: {operation}: {text}" for text in found]
    assert not wrong, "\n".join(wrong)


def test_errors_files_and_refusals_have_them_too(world: World, app: FastAPI) -> None:
    router = APIRouter()

    @router.get("/test/mistake")
    def mistake() -> None:
        raise ValueError("a mistake of ours")

    app.include_router(router)
    nobody = world.as_("nobody")
    form = {"a": "x" * 100_000}
    answers = {
        404: nobody.get("/there-is-nothing"),
        405: nobody.request("DELETE", "/board"),
        403: nobody.post("/signin/guest", csrf=None),
        413: nobody.post("/language", data=form),
        421: nobody.get("/", headers={"host": "evil.test"}),
        422: nobody.post("/staff/signin", data={}),
        500: nobody.get("/test/mistake"),
    }
    statuses = {status: answer.status_code for status, answer in answers.items()}
    assert statuses == {status: status for status in answers}
    static = [nobody.get(f"/static/{name}") for name in ("crowd.css", "nothing.css", "..%2fapp.py")]
    assert [answer.status_code for answer in static] == [200, 404, 404]
    api = nobody.get("/api/board/nothing")
    health = nobody.get("/health")
    wrong = [
        f"{answer.url} {answer.status_code}: {text}"
        for answer in (*answers.values(), *static, api, health)
        for text in _complaints(answer)
    ]
    assert not wrong, "\n".join(wrong)


def test_each_way_in_sets_a_host_cookie_that_is_new(world: World) -> None:
    """Nothing of before a sign-in is good after it (ASVS 7.2.4)."""
    with world.database.begin() as tx:
        code = pairing.new_code(tx, world.key, "here", "kiosk")
    tablet = world.as_("nobody")
    set_by = [tablet.post("/pair", data={"code": code})]
    kiosk = world.as_("kiosk")
    kiosk.set_cookie("__Host-participant", "chosen-by-somebody-else")
    set_by.append(kiosk.post("/signin/guest"))
    set_by.append(world.as_("kiosk").post("/signin/card", data={"card": "04A1B2C3D4"}))
    with world.database.begin() as tx:
        link = phone.new_link(tx, world.key, tx.merge(world.here), None, "en")
    set_by.append(world.as_("nobody").post("/signin/phone", data={"link": link}))
    staff = world.staff["operator"]
    now = pyotp.TOTP(TOTP_SECRET).now()
    form = {"name": staff.name, "password": PASSWORD, "code": now}
    set_by.append(world.as_("nobody").post("/staff/signin", data=form))
    for answer in set_by:
        assert answer.status_code == 303 and not list(_complaints(answer))
        values = [c.partition("=")[2].split(";")[0] for c in answer.headers.get_list("set-cookie")]
        fresh = [value for value in values if value.strip('"')]
        assert len(fresh) == 1 and len(fresh[0]) >= 43, values
    assert "chosen-by-somebody-else" not in str([answer.headers for answer in set_by])
    with world.database.read() as tx:
        assert not tx.scalars(select(PhoneLink)).all()


def test_a_kiosks_log_out_leaves_nothing(world: World) -> None:
    """The session's row is gone, the browser clears what it keeps, the back button finds a page
    that must be asked for again and then is the sign-in."""
    kiosk = world.as_("kiosk").sign_in(participant=world.ada)
    cookie = kiosk.client.cookies["__Host-participant"]
    pages = ["/me", "/me/data", "/nickname", "/tasks", "/board"]
    for page in pages:
        assert kiosk.get(page).headers["cache-control"] == "no-store", page
    hashed = world.key.mac("session", cookie)
    with world.database.read() as tx:
        assert tx.get(WebSession, hashed) is not None
    answer = kiosk.post("/logout")
    assert answer.headers["clear-site-data"] == '"cache", "storage"'
    gone = [c for c in answer.headers.get_list("set-cookie") if c.startswith("__Host-participant")]
    assert len(gone) == 1 and "Max-Age=0" in gone[0]
    with world.database.read() as tx:
        assert tx.get(WebSession, hashed) is None
    kiosk.set_cookie("__Host-participant", "")
    for page in ("/me", "/me/data", "/tasks"):
        assert kiosk.get(page).headers["location"] == "/signin", page
    assert "Ada" not in kiosk.get("/").text
    assert kiosk.get("/api/kiosk/state").status_code == 200  # it stays the station's tablet
    kiosk.set_cookie("__Host-participant", cookie)  # as a thief would who has copied it
    assert kiosk.get("/me").headers["location"] == "/signin"


def test_staffs_sign_out_ends_it_everywhere_that_it_was(world: World) -> None:
    admin = world.as_("admin")
    cookie = admin.client.cookies["__Host-staff"]
    assert "clear-site-data" in admin.post("/staff/signout").headers
    admin.set_cookie("__Host-staff", cookie)
    assert admin.get("/staff").headers["location"] == "/staff/signin"


def test_in_development_no_cookie_pretends_to_be_a_host_cookie(app: FastAPI) -> None:
    config = app.state.site.config
    local = dataclasses.replace(
        config, origin="http://127.0.0.1:8430", development=True, trusted_proxies=()
    )
    other = create_app(local)
    with TestClient(other, base_url="http://127.0.0.1:8430") as client:
        cookie = client.get("/staff/signin").headers["set-cookie"]
    other.state.site.database.close()
    assert cookie.startswith("dev-visit=") and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ORIGIN.startswith("https")
