"""Staff's pages: who gets in, who may do what, and that every act is in the log."""

from __future__ import annotations

import html
import re
import time

import pyotp
import pytest
import segno
from sqlalchemy import select

from collect.crowd import accounts, names
from collect.crowd.tables import (
    AuditEntry,
    HelpRequest,
    NicknameCase,
    PairingCode,
    Participant,
    SiteVersion,
    Staff,
    Station,
    new_id,
)
from tests.crowd.conftest import ORIGIN
from tests.crowd.factories import PASSWORD, TOTP_SECRET

DATABASES = ["sqlite"]
PAGES = {
    "/staff": {"reviewer", "operator", "admin"},
    "/staff/password": {"reviewer", "operator", "admin"},
    "/staff/review": {"reviewer", "admin"},
    "/staff/stations": {"operator", "admin"},
    "/staff/names": {"operator", "admin"},
    "/staff/help": {"operator", "admin"},
    "/staff/participants": {"operator", "admin"},
    "/staff/plays": {"operator", "admin"},
    "/staff/accounts": {"admin"},
    "/staff/audit": {"admin"},
}


def code(steps=0, secret=TOTP_SECRET):
    return pyotp.TOTP(secret).at(int(time.time()) + 30 * steps)


def log_of(database):
    """(who, action, subject, detail) of every entry, in order."""
    with database.read() as tx:
        rows = tx.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    return [(row.staff_id, row.action, row.subject, row.detail) for row in rows]


def cookie_of(response):
    return re.search(r"__Host-staff=([^;]+)", response.headers["set-cookie"])[1]


def sign_in_form(browser, **fields):
    data = {"name": "ada", "password": PASSWORD, "code": code(), **fields}
    return browser.post("/staff/signin", data=data)


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_signing_in_begins_a_new_session_and_signing_out_ends_it(browser, make_staff):
    make_staff("operator", name="ada")
    assert browser.get("/staff").headers["location"] == "/staff/signin"
    first = sign_in_form(browser)
    assert (first.status_code, first.headers["location"]) == (303, "/staff")
    old = cookie_of(first)
    assert browser.get("/staff").status_code == 200
    page = browser.get("/staff").text
    token = re.search(r'name="csrf" value="([^"]+)"', page)[1]
    second = browser.post(
        "/staff/signin", csrf=token, data={"name": "ada", "password": PASSWORD, "code": code(1)}
    )
    assert second.status_code == 303
    new = cookie_of(second)
    assert new != old
    browser.set_cookie("__Host-staff", old)
    assert browser.get("/staff").status_code == 303, "the session of before the sign-in lives on"
    browser.set_cookie("__Host-staff", new)
    token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/staff").text)[1]
    out = browser.post("/staff/signout", csrf=token)
    assert out.headers["clear-site-data"] == '"cache", "storage"'
    browser.set_cookie("__Host-staff", new)
    assert browser.get("/staff").status_code == 303, "the cookie is good after the sign-out"


def test_what_was_wrong_is_not_said(browser, make_staff):
    make_staff("operator", name="ada")
    make_staff("operator", name="gone", disabled=True)
    answers = set()
    for fields in (
        {"password": "another long one"},
        {"code": "000000"},
        {"name": "bob"},
        {"name": "gone"},
    ):
        answer = sign_in_form(browser, **fields)
        assert answer.status_code == 401
        assert "__Host-staff" not in browser.client.cookies
        answers.add(re.sub(r'value="[^"]*"', "", answer.text))
    assert len(answers) == 1


@pytest.mark.parametrize("role", ["reviewer", "operator", "admin"])
def test_each_role_sees_its_pages_and_is_shown_the_way_to_those_only(browser, make_staff, role):
    browser.sign_in(staff=make_staff(role))
    home = browser.get("/staff").text
    for page, roles in PAGES.items():
        answer = browser.get(page)
        assert answer.status_code == (200 if role in roles else 403), page
        assert (f'href="{page}"' in home) == (role in roles), page


def test_every_page_of_an_operator_looks_for_calls_and_no_other(browser, make_staff):
    for role in ("operator", "admin", "reviewer"):
        browser.sign_in(staff=make_staff(role))
        for page in (page for page, roles in PAGES.items() if role in roles):
            text = browser.get(page).text
            looks = "/static/staff.js" in text, 'hx-get="/api/staff/help"' in text
            assert looks == ((role != "reviewer"),) * 2, (role, page)
    for script in ("staff.js", "sound.js", "live.js", "htmx.min.js"):
        assert browser.get(f"/static/{script}").status_code == 200


def test_pages_in_german_have_every_text(browser, make_staff):
    browser.sign_in(staff=make_staff("admin"))
    for page in PAGES:
        answer = browser.get(page, headers={"accept-language": "de"})
        assert answer.status_code == 200
        assert '<html lang="de">' in answer.text


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_nicknames_are_approved_or_refused_with_a_reason_once(
    browser, database, make_staff, make_participant
):
    staff = make_staff("operator")
    people = [make_participant(None) for _ in range(3)]
    with database.begin() as tx:
        for person, name in zip(people, ("Good One", "Bad One", "Was One"), strict=True):
            names.rename(tx, tx.get(Participant, person.id), name, ["en"])
        names.rename(tx, tx.get(Participant, people[2].id), "Is One", ["en"])
        cases = {case.nickname: case.id for case in tx.scalars(select(NicknameCase))}
    browser.sign_in(staff=staff)
    page = browser.get("/staff/names").text
    assert "Good One" in page and "Is One" in page
    assert "Was One" not in page, "nobody bears this name any more"
    browser.post(f"/staff/names/{cases['Good One']}", data={"approved": "true"})
    refusal = {"approved": "false", "reason": "insult"}
    browser.post(f"/staff/names/{cases['Bad One']}", data=refusal)
    browser.post(f"/staff/names/{cases['Bad One']}", data={"approved": "true"})
    with database.read() as tx:
        states = [tx.get(Participant, person.id).nickname_state for person in people]
        boards = tx.get(SiteVersion, 1).boards
    assert states == ["approved", "refused", "pending"]
    assert boards > 0, "the boards were not told"
    assert log_of(database) == [
        (staff.id, "nickname approved", people[0].id, {}),
        (staff.id, "nickname refused", people[1].id, {"reason": "insult"}),
    ]
    answer = browser.post(f"/staff/names/{new_id()}", data=refusal)
    assert answer.status_code == 404


def test_a_name_in_a_page_is_text(browser, database, make_staff, make_participant):
    browser.sign_in(staff=make_staff("operator"))
    make_participant("<script>alert(1)</script>"[:24], nickname_state="pending")
    for page in ("/staff/participants", "/staff/participants?q=%3Cscript%3E"):
        assert "<script>alert" not in browser.get(page).text
    assert "&lt;script&gt;" in browser.get("/staff/participants").text


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_hiding_takes_somebody_off_the_boards_and_back(
    browser, database, make_staff, make_participant
):
    staff, ada = make_staff("operator"), make_participant("Ada")
    browser.sign_in(staff=staff)
    for hidden in ("true", "true", "false"):
        browser.post(f"/staff/participants/{ada.id}", data={"hidden": hidden})
        with database.read() as tx:
            assert tx.get(Participant, ada.id).hidden is (hidden == "true")
            assert tx.get(SiteVersion, 1).boards > 0
    assert [entry[1] for entry in log_of(database)] == ["hidden", "shown again"]


@pytest.mark.parametrize(
    "back, where",
    [
        (
            "/staff/participants?q=ad&show=hidden&page=2",
            "/staff/participants?q=ad&show=hidden&page=2",
        ),
        (
            "/staff/participants?q=M%C3%BCller&show=all",
            "/staff/participants?q=M%C3%BCller&show=all",
        ),
        ("/staff/participants?q=%0d%0aSet-Cookie:x", "/staff/participants"),
        ("", "/staff/participants"),
        ("//evil.test", "/staff/participants"),
        ("https://evil.test/staff", "/staff/participants"),
    ],
)
def test_the_search_stands_after_somebody_was_hidden(
    browser, make_staff, make_participant, back, where
):
    browser.sign_in(staff=make_staff("operator"))
    path = f"/staff/participants/{make_participant('Ada').id}"
    for action, data in ((path, {"hidden": "true"}), (f"{path}/age", {})):
        answer = browser.post(action, data={**data, "back": back})
        assert answer.headers["location"] == where


def test_a_slip_at_the_age_gate_is_not_for_ever(browser, database, make_staff, make_participant):
    """A card is the same person's next time: without this it would never let anybody drive."""
    cleo, dora = make_participant("Cleo", adult=False, kind="card"), make_participant("Dora")
    browser.sign_in(staff=make_staff("operator"))
    assert browser.get("/staff/participants").text.count(' action="/staff/participants') == 4
    assert browser.get("/staff/participants").text.count('/age" hx-post') == 1
    for _ in range(2):
        for who in (cleo, dora):
            answer = browser.post(f"/staff/participants/{who.id}/age")
            assert answer.headers["location"] == "/staff/participants"
    with database.read() as tx:
        assert tx.get(Participant, cleo.id).adult is None
        assert tx.get(Participant, dora.id).adult is True
    assert [entry[1:3] for entry in log_of(database)] == [("age asked again", cleo.id)]
    assert browser.post(f"/staff/participants/{new_id()}/age").status_code == 404


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_a_search_finds_parts_of_names_and_no_patterns(browser, make_staff, make_participant):
    browser.sign_in(staff=make_staff("operator"))
    make_participant("Grace", hidden=True)
    make_participant("Ada")
    assert "Grace" in browser.get("/staff/participants?q=rac").text
    for query in ("%25", "_", "a%25", "%27%20or%20%271%27=%271"):
        assert "Grace" not in browser.get(f"/staff/participants?q={query}").text, query
    hidden = browser.get("/staff/participants?show=hidden").text
    assert "Grace" in hidden and "Ada" not in hidden


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_plays_are_filtered_and_sorted_by_what_is_allowed_only(
    browser, make_staff, make_participant, make_station, make_task, make_play
):
    browser.sign_in(staff=make_staff("operator"))
    ada, station, task = make_participant("Ada"), make_station(), make_task()
    make_play(ada, station, task, seconds=11.0, state="synced")
    make_play(ada, station, seconds=22.0)
    make_play(ada, station, seconds=5.0, metrics={"seconds": 17.4})
    everything = browser.get("/staff/plays?sort=longest").text
    assert everything.index(">22<") < everything.index(">17<") < everything.index(">11<")
    for query, there in (
        ("state=synced", "11"),
        ("kind=free", "22"),
        (f"task={task.id}", "11"),
        (f"station={station.id}&kind=task", "11"),
        ("verdict=none&state=finished", "22"),
    ):
        found = browser.get(f"/staff/plays?{query}").text
        assert f">{there}<" in found, query
        assert f">{33 - int(there)}<" not in found, query
    for query in (
        "sort=password_hash",
        "sort=newest;drop",
        "state=gone",
        "participant__card_hash=a",
        "task=a'--",
        "page=0",
        "page=1e9",
    ):
        answer = browser.get(f"/staff/plays?{query}")
        if "card_hash" in query:
            assert answer.text == browser.get("/staff/plays").text, (
                "an unknown filter has an effect"
            )
        else:
            assert answer.status_code == 422, query


def calls_said(browser) -> tuple[str, bool]:
    """What an operator's tab says of calls for help, and whether it is seen."""
    badge = browser.get("/api/staff/help").text
    return re.search(r">(\d+)<", badge)[1], " hidden" not in badge


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_help_is_answered_once(browser, database, make_staff, make_station):
    staff, station = make_staff("operator"), make_station()
    with database.begin() as tx:
        tx.add(HelpRequest(id="0" * 8 + "-0000-4000-8000-" + "0" * 12, station_id=station.id))
    browser.sign_in(staff=staff)
    page = browser.get("/staff/help").text
    assert station.name in page
    assert calls_said(browser) == ("1", True)
    where = re.search(r"/staff/help/[0-9a-f-]{36}", page)[0]
    for _ in range(2):
        assert browser.post(where).status_code == 303
    assert [entry[1] for entry in log_of(database)] == ["help answered"]
    assert calls_said(browser) == ("0", False)
    with database.read() as tx:
        assert tx.scalar(select(HelpRequest)).answered_by == staff.id


@pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
def test_stations_are_closed_opened_paired_and_unpaired(
    browser, database, make_staff, make_station, make_participant, make_play
):
    staff, station = make_staff("operator"), make_station(token="t" * 43)
    running = make_play(
        make_participant(), station, None, state="running", ended_at=None, ended_by=None
    )
    browser.sign_in(staff=staff)
    where = f"/staff/stations/{station.id}"
    for act, check in (
        ("close", lambda row: row.closed),
        ("open", lambda row: not row.closed),
        ("end", lambda row: True),
        ("unpair", lambda row: row.token_hash is None),
    ):
        assert browser.post(where, data={"act": act}).status_code == 303
        with database.read() as tx:
            assert check(tx.get(Station, station.id)), act
    with database.read() as tx:
        play = tx.get(type(running), running.id)
    assert (play.state, play.ended_by) == ("finished", "staff")
    assert [entry[1] for entry in log_of(database)] == [
        "station close",
        "station open",
        "station end",
        "station unpair",
    ]
    assert browser.post(where, data={"act": "move"}).status_code == 422
    assert browser.post(f"/staff/stations/{new_id()}", data={"act": "open"}).status_code == 404


def test_a_pairing_code_is_shown_once_and_kept_nowhere(browser, database, make_staff):
    browser.sign_in(staff=make_staff("operator"))
    answer = browser.post("/staff/stations/code", data={"name": "cafe", "kind": "kiosk"})
    shown = re.search(r"[0-9A-Z]{4}-[0-9A-Z]{4}", answer.text)[0]
    picture = segno.make(f"{ORIGIN}/pair#{shown}", error="m").svg_data_uri(scale=6, border=3)
    assert html.unescape(re.search(r'src="(data:image/svg[^"]+)"', answer.text)[1]) == picture
    assert answer.headers["cache-control"] == "no-store"
    assert shown not in browser.get("/staff/stations").text
    with database.read() as tx:
        row = tx.scalar(select(PairingCode))
    assert shown.replace("-", "") not in str(vars(row)) and shown not in str(log_of(database))
    for name in ("../x", "a b", "x" * 65):
        bad = browser.post("/staff/stations/code", data={"name": name, "kind": "kiosk"})
        assert bad.status_code == 422


def test_accounts_are_added_renewed_and_disabled_by_admins(
    browser, make_browser, database, make_staff, app
):
    admin = make_staff("admin")
    browser.sign_in(staff=admin)
    answer = browser.post("/staff/accounts", data={"name": "Grace", "role": "reviewer"})
    password = re.search(r'staff-code"><strong>([^<]+)<', answer.text)[1]
    secret = re.search(r"staff-secret\"><code>([A-Z2-7]+)<", answer.text)[1]
    site = app.state.site
    grace = accounts.verify(site, "grace", password, code(secret=secret), "a")
    assert grace.role == "reviewer"
    again = browser.post("/staff/accounts", data={"name": "grace", "role": "admin"})
    assert again.status_code == 422
    other = make_browser().sign_in(staff=grace)
    assert other.get("/staff").status_code == 200
    assert browser.post(f"/staff/accounts/{grace.id}/renew").status_code == 200
    assert other.get("/staff").status_code == 303, "who is renewed stays signed in"
    with pytest.raises(accounts.SignInRefusedError):
        accounts.verify(site, "grace", password, code(1, secret), "a")
    assert browser.post(f"/staff/accounts/{grace.id}/disable").status_code == 303
    with database.read() as tx:
        assert tx.get(Staff, grace.id).disabled
    assert browser.post(f"/staff/accounts/{admin.id}/disable").status_code == 422
    assert [(who, what) for who, what, _, _ in log_of(database)] == [
        (admin.id, "staff added"),
        (grace.id, "signed in"),
        (admin.id, "staff renewed"),
        (admin.id, "staff disabled"),
    ]
    log = browser.get("/staff/audit").text
    assert admin.name in log and "staff renewed" in log and password not in log


def test_staff_choose_a_password_of_their_own(browser, make_browser, database, make_staff, app):
    ada = make_staff("reviewer", name="ada")
    browser.sign_in(staff=ada)
    elsewhere = make_browser().sign_in(staff=ada)
    new = "seven yellow bicycles"
    form = {"password": PASSWORD, "new": new, "again": new, "code": code()}
    for change, said in (
        ({"again": new + "s"}, "two new passwords differ"),
        ({"new": "ada ada ada ada", "again": "ada ada ada ada"}, "easily guessed"),
        ({"password": new}, "present password or the code is wrong"),
        ({"code": code(-10)}, "present password or the code is wrong"),
    ):
        answer = browser.post("/staff/password", data=form | change)
        assert answer.status_code == 422 and said in answer.text, change
    assert elsewhere.get("/staff").status_code == 200
    answer = browser.post("/staff/password", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/staff")
    assert browser.get("/staff").status_code == 200
    assert elsewhere.get("/staff").status_code == 303, "the other browser stays signed in"
    assert log_of(database) == [(ada.id, "password changed", ada.id, {})]
    with pytest.raises(accounts.SignInRefusedError):
        accounts.verify(app.state.site, "ada", PASSWORD, code(1), "a")
    assert accounts.verify(app.state.site, "ada", new, code(1), "a").id == ada.id


def test_only_admins_make_admins(browser, database, make_staff):
    for role in ("reviewer", "operator"):
        browser.sign_in(staff=make_staff(role))
        answer = browser.post("/staff/accounts", data={"name": "eve", "role": "admin"})
        assert answer.status_code == 403
    with database.read() as tx:
        assert tx.scalar(select(Staff).where(Staff.name == "eve")) is None


def test_the_log_goes_back_page_by_page(browser, database, make_staff):
    browser.sign_in(staff=make_staff("admin"))
    with database.begin() as tx:
        tx.add_all(AuditEntry(action=f"act {i:03}", subject="x") for i in range(150))
    first = browser.get("/staff/audit").text
    assert "act 149" in first and "act 050" in first and "act 049" not in first
    before = re.search(r"before=(\d+)", first)[1]
    second = browser.get(f"/staff/audit?before={before}").text
    assert "act 049" in second and "act 000" in second and "act 050" not in second
