"""Sessions of browsers: opaque, hashed, rotated, ended by idleness, age, sign-out and unpairing."""

from __future__ import annotations

import datetime as dt

import pytest
from fastapi import APIRouter, Request
from sqlalchemy import select, update
from starlette.responses import PlainTextResponse, Response

from collect.crowd.deps import (
    CurrentAdmin,
    CurrentAgent,
    CurrentKiosk,
    CurrentOperator,
    CurrentParticipant,
    CurrentReviewer,
    CurrentStaff,
    Db,
    MaybeParticipant,
)
from collect.crowd.security.redirects import redirect
from collect.crowd.security.sessions import end_all, set_cookie, sign_in, sign_out
from collect.crowd.tables import Participant, Staff, Station, WebSession

router = APIRouter(prefix="/test")
api = APIRouter(prefix="/api/test")


@router.get("/me")
def page(me: CurrentParticipant) -> Response:
    return PlainTextResponse(me.id)


@api.get("/me")
def poll(me: CurrentParticipant) -> Response:
    return PlainTextResponse(me.id)


@router.get("/maybe")
def maybe(me: MaybeParticipant) -> Response:
    return PlainTextResponse("nobody" if me is None else me.id)


@router.get("/kiosk")
def kiosk(station: CurrentKiosk) -> Response:
    return PlainTextResponse(station.id)


@router.get("/staff/any")
def any_staff(staff: CurrentStaff) -> Response:
    return PlainTextResponse(staff.role)


@router.get("/staff/reviewer")
def reviewer(staff: CurrentReviewer) -> Response:
    return PlainTextResponse(staff.role)


@router.get("/staff/operator")
def operator(staff: CurrentOperator) -> Response:
    return PlainTextResponse(staff.role)


@router.get("/staff/admin")
def admin(staff: CurrentAdmin) -> Response:
    return PlainTextResponse(staff.role)


@api.get("/agent")
def agent(station: CurrentAgent) -> Response:
    return PlainTextResponse(station.id)


@router.post("/in/{participant_id}")
def go_in(request: Request, db: Db, participant_id: str) -> Response:
    with db.begin() as tx:
        session = sign_in(tx, request, "participant", participant_id=participant_id)
    response = redirect("/tasks")
    set_cookie(response, request, session)
    return response


@router.post("/out")
def go_out(request: Request, db: Db) -> Response:
    response = redirect("/")
    with db.begin() as tx:
        sign_out(tx, request, response, "participant")
    return response


@pytest.fixture
def app(app):
    app.include_router(router)
    app.include_router(api)
    return app


def age(database, **back_s):
    """Let time pass for all sessions: their times move into the past."""
    with database.begin() as tx:
        for row in tx.scalars(select(WebSession)):
            for column, seconds in back_s.items():
                setattr(row, column, getattr(row, column) - dt.timedelta(seconds=seconds))


def test_nobody_is_sent_to_the_sign_in(browser):
    response = browser.get("/test/me")
    assert (response.status_code, response.headers["location"]) == (303, "/signin")
    assert browser.get("/test/staff/any").headers["location"] == "/staff/signin"
    assert browser.get("/api/test/me").status_code == 401
    assert browser.get("/test/maybe").text == "nobody"
    assert browser.get("/test/kiosk").status_code == 403


def test_a_participant_is_who_signed_in(browser, make_browser, make_participant):
    ada, bob = make_participant(), make_participant()
    browser.sign_in(participant=ada)
    other = make_browser().sign_in(participant=bob)
    assert browser.get("/test/me").text == ada.id
    assert other.get("/test/me").text == bob.id
    assert browser.get("/test/staff/any").status_code == 303


def test_the_cookie_is_host_only_and_its_token_is_kept_nowhere(browser, database, make_participant):
    response = browser.post(f"/test/in/{make_participant().id}")
    cookie = response.headers["set-cookie"]
    assert cookie.startswith("__Host-participant=")
    for attribute in ("; Path=/", "; Secure", "; HttpOnly", "samesite=strict"):
        assert attribute.lower() in cookie.lower()
    assert "domain" not in cookie.lower() and "max-age" not in cookie.lower()
    token = cookie.split(";")[0].partition("=")[2]
    assert len(token) >= 43  # 32 random bytes
    with database.read() as tx:
        row = tx.scalars(select(WebSession)).one()
    assert token not in (row.token_hash, row.csrf) and len(row.token_hash) == 64


def test_each_sign_in_has_a_new_cookie_and_ends_the_old(browser, database, make_participant):
    ada = make_participant()
    first = browser.post(f"/test/in/{ada.id}").cookies["__Host-participant"]
    with database.read() as tx:
        csrf = tx.scalars(select(WebSession)).one().csrf
    second = browser.post(f"/test/in/{ada.id}", csrf=csrf).cookies["__Host-participant"]
    assert first != second
    with database.read() as tx:
        assert len(tx.scalars(select(WebSession)).all()) == 1
    browser.set_cookie("__Host-participant", first)
    assert browser.get("/test/me").status_code == 303


def test_a_cookie_that_somebody_made_up_is_nobody(browser, make_participant):
    ada = make_participant()
    for token in ("", "x" * 43, ada.id, "x" * 10_000, "' OR 1=1 --", "%00"):
        browser.set_cookie("__Host-participant", token)
        assert browser.get("/test/me").status_code == 303


def test_a_token_is_good_for_its_own_kind_only(browser, make_participant):
    browser.sign_in(participant=make_participant())
    token = browser.client.cookies["__Host-participant"]
    browser.set_cookie("__Host-staff", token)
    browser.set_cookie("__Host-kiosk", token)
    assert browser.get("/test/staff/any").status_code == 303
    assert browser.get("/test/kiosk").status_code == 403


def test_an_idle_browser_is_signed_out(browser, database, make_participant, config):
    browser.sign_in(participant=make_participant())
    idle = config.sessions.phone_idle_s
    age(database, seen_at=idle - 5)
    assert browser.get("/test/me").status_code == 200  # which counts as activity
    age(database, seen_at=idle - 5)
    assert browser.get("/test/me").status_code == 200
    age(database, seen_at=idle + 1)
    assert browser.get("/test/me").status_code == 303


@pytest.mark.parametrize(
    "path, headers, gone", [("/api/test/me", {}, 401), ("/test/me", {"HX-Request": "true"}, 303)]
)
def test_polling_keeps_nobody_signed_in(
    browser, database, make_participant, config, path, headers, gone
):
    browser.sign_in(participant=make_participant())
    age(database, seen_at=config.sessions.phone_idle_s - 5)
    assert browser.get(path, headers=headers).status_code == 200
    age(database, seen_at=6)
    assert browser.get(path, headers=headers).status_code == gone


def test_a_session_ends_at_its_age_however_busy(browser, database, make_participant, config):
    browser.sign_in(participant=make_participant())
    age(database, expires_at=config.sessions.phone_limit_s + 1)
    assert browser.get("/test/me").status_code == 303


def test_at_a_kiosk_idleness_is_short_and_the_kiosk_stays(
    browser, database, make_participant, make_station, config
):
    station, ada = make_station(), make_participant()
    browser.sign_in(kiosk=station, participant=ada)
    assert browser.get("/test/me").text == ada.id
    age(database, seen_at=config.sessions.kiosk_idle_s + 1)
    assert browser.get("/test/me").status_code == 303
    assert browser.get("/test/kiosk").text == station.id


def test_a_kiosks_participant_can_not_be_carried_elsewhere(
    browser, make_browser, make_participant, make_station
):
    browser.sign_in(kiosk=make_station(), participant=make_participant())
    token = browser.client.cookies["__Host-participant"]
    thief = make_browser()
    thief.set_cookie("__Host-participant", token)
    assert thief.get("/test/me").status_code == 303
    thief.sign_in(kiosk=make_station())
    assert thief.get("/test/me").status_code == 303
    assert browser.get("/test/me").status_code == 200


def test_unpairing_ends_the_kiosk_and_whoever_is_at_it(
    browser, database, make_participant, make_station
):
    station = make_station()
    browser.sign_in(kiosk=station, participant=make_participant())
    with database.begin() as tx:
        end_all(tx, station_id=station.id)
    assert browser.get("/test/kiosk").status_code == 403
    assert browser.get("/test/me").status_code == 303


def test_signing_out_ends_the_session_and_clears_the_browser(browser, database, make_participant):
    browser.sign_in(participant=make_participant())
    token = browser.client.cookies["__Host-participant"]
    response = browser.post("/test/out")
    assert response.headers["clear-site-data"] == '"cache", "storage"'
    assert 'participant="";' in response.headers["set-cookie"]
    browser.set_cookie("__Host-participant", token)
    assert browser.get("/test/me").status_code == 303
    with database.read() as tx:
        assert tx.scalars(select(WebSession)).all() == []


def test_the_erased_and_the_disabled_are_nobody(browser, database, make_participant, make_staff):
    ada, carol = make_participant(), make_staff("admin")
    browser.sign_in(participant=ada, staff=carol)
    assert browser.get("/test/staff/admin").status_code == 200
    with database.begin() as tx:
        tx.execute(update(Staff).values(disabled=True))
        tx.execute(update(Participant).values(erased_at=dt.datetime.now(dt.UTC)))
    assert browser.get("/test/staff/any").status_code == 303
    assert browser.get("/test/me").status_code == 303


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("reviewer", {"any", "reviewer"}),
        ("operator", {"any", "operator"}),
        ("admin", {"any", "reviewer", "operator", "admin"}),
    ],
)
def test_roles(browser, make_staff, role, allowed):
    browser.sign_in(staff=make_staff(role))
    for page in ("any", "reviewer", "operator", "admin"):
        expected = 200 if page in allowed else 403
        assert browser.get(f"/test/staff/{page}").status_code == expected, page


def test_an_agent_is_known_by_its_token(client, make_station):
    station = make_station(token="t" * 43)

    def ask(authorization):
        headers = {} if authorization is None else {"authorization": authorization}
        return client.get("/api/test/agent", headers=headers)

    assert ask(f"Bearer {'t' * 43}").text == station.id
    for wrong in (
        None,
        "Bearer ",
        "Bearer x",
        f"Basic {'t' * 43}",
        f"Bearer {'t' * 500}",
        f"Bearer {station.token_hash}",
    ):
        assert ask(wrong).status_code == 401, wrong


def test_unpaired_stations_have_no_token(client, database, make_station):
    station = make_station(token="t" * 43)
    with database.begin() as tx:
        tx.execute(update(Station).values(token_hash=None))
    headers = {"authorization": f"Bearer {'t' * 43}"}
    assert client.get("/api/test/agent", headers=headers).status_code == 401
    assert station.token_hash is not None


def test_who_may_what_stands_in_the_openapi(app):
    paths = app.openapi()["paths"]

    def schemes(path):
        found = paths[path]["get"].get("security", [])
        return {name for requirement in found for name in requirement}

    assert schemes("/test/me") == {"participant"}
    assert schemes("/test/staff/reviewer") == {"reviewer", "admin"}
    assert schemes("/test/staff/admin") == {"admin"}
    assert schemes("/test/kiosk") == {"kiosk"}
    assert schemes("/api/test/agent") == {"agent"}
    assert schemes("/test/maybe") == set()
