"""Coming and going: cards of which nothing is kept, guests, phones by QR, languages, log-out."""

from __future__ import annotations

import datetime as dt
import html
import re

import pytest
import segno
from sqlalchemy import delete, select, text, update

from collect.crowd import people, stations
from collect.crowd.pairing import unpair
from collect.crowd.tables import (
    Participant,
    PhoneLink,
    Play,
    Queued,
    StationLease,
    WebSession,
    utc_now,
)
from tests.crowd.visitor import Visitor

DATABASES = ["sqlite"]
both = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
CARD = "04A1B2C3D4"


@pytest.fixture
def station(make_station):
    return make_station(seen_at=utc_now() + dt.timedelta(hours=1), state={"phase": "idle"})


@pytest.fixture
def visitor(browser, station):
    return Visitor(browser.sign_in(kiosk=station))


def everybody(database):
    with database.read() as tx:
        return tx.scalars(select(Participant)).all()


def everything(database):
    """All that the database holds, as text."""
    with database.read() as tx:
        tables = [table.name for table in Participant.metadata.sorted_tables]
        return "\n".join(
            str(row) for name in tables for row in tx.execute(text(f"SELECT * FROM {name}"))
        )


@both
def test_nothing_of_a_card_is_kept_but_a_keyed_hash(visitor, database, key, capfd):
    visitor.come(CARD)
    (ada,) = everybody(database)
    assert ada.kind == "card"
    assert ada.card_hash == key.mac("card", CARD) == people.card_hash(key, CARD)
    assert ada.card_hash != key.mac("session", CARD)
    assert CARD.lower() not in everything(database).lower()
    told = capfd.readouterr()
    assert CARD not in told.out + told.err
    assert CARD not in visitor.page


@both
def test_the_same_card_is_the_same_person(visitor, database):
    visitor.join(CARD).submit("/logout")
    visitor.come(f" {CARD.lower()}\r\n")
    assert len(everybody(database)) == 1
    assert visitor.path == "/tutorial", "consent and age are remembered"


@both
def test_another_card_is_somebody_else_and_takes_over(visitor, database):
    visitor.join(CARD).go("/tutorial").submit("/tutorial")
    with database.begin() as tx:
        tx.execute(update(Play).values(state="finished", ended_at=utc_now()))
    visitor.client.post("/signin/card", data={"card": "99887766", "csrf": csrf(visitor)})
    assert visitor.go("/age").path == "/age"
    assert len(everybody(database)) == 2
    with database.read() as tx:
        assert tx.scalars(select(StationLease)).all() == [], "the turn was the other one's"
        assert len(tx.scalars(select(WebSession)).all()) == 2, "the kiosk's and the new one's"


def test_who_drives_is_not_tapped_away(visitor, database):
    visitor.join(CARD).go("/tutorial").submit("/tutorial")
    answer = visitor.client.post("/signin/card", data={"card": "99887766", "csrf": csrf(visitor)})
    assert answer.headers["location"] == "/play"
    assert len(everybody(database)) == 1


@pytest.mark.parametrize("reading", ["", "12345", "hello!!", ";?%", "x" * 250], ids=range(5))
def test_what_is_no_card_is_nobody(reading, visitor, database):
    visitor.come(reading)
    assert visitor.path == "/signin" and 'role="alert"' in visitor.page
    assert everybody(database) == []


@pytest.mark.parametrize(
    "readings",
    [
        ("%B4321000000001?", "b4321000000001"),
        ("04:a1:b2:c3", "04A1B2C3"),
        ("04-A1-B2-C3 ", "04a1b2c3"),
    ],
    ids=["stripe", "colons", "dashes"],
)
def test_readers_differ_in_what_they_add(readings, key):
    assert len({people.card_hash(key, reading) for reading in readings}) == 1


def test_trying_card_numbers_out_is_slow(visitor, database):
    form = {"card": "", "csrf": csrf(visitor.go("/signin"))}
    codes = [visitor.client.post("/signin/card", data=form).status_code for _ in range(61)]
    assert codes[:60] == [303] * 60 and codes[60] == 429


@pytest.mark.parametrize("path", ["/signin/card", "/signin/guest", "/signin/phone/link"])
def test_only_a_kiosk_signs_in(path, browser, database):
    assert browser.post(path, data={"card": CARD}).status_code == 403
    assert everybody(database) == []
    page = browser.get("/signin").text
    assert "/signin/card" not in page and "/signin/guest" not in page


def test_a_guest_can_not_come_back(visitor, database):
    visitor.go("/signin").submit("/signin/guest")
    assert visitor.path == "/age"
    visitor.submit("/logout").go("/signin").submit("/signin/guest")
    assert [(one.kind, one.card_hash) for one in everybody(database)] == [("guest", None)] * 2


# Phones


def scan(visitor):
    """Show a code at the kiosk and read it as a phone's camera does; the address."""
    page = visitor.go("/signin" if "/logout" not in visitor.page else visitor.path).page
    assert page
    answer = visitor.client.post("/signin/phone/link", data={"csrf": csrf(visitor)})
    shown = html.unescape(re.search(r'<img class="qr" src="([^"]+)"', answer.text)[1])
    assert shown.startswith("data:image/svg+xml")
    return answer.text, shown


def link_of(visitor, monkeypatch):
    """What the code that the kiosk shows says."""
    drawn = []
    make = segno.make
    monkeypatch.setattr(segno, "make", lambda text, **of: drawn.append(text) or make(text, **of))
    scan(visitor)
    return drawn[-1]


def csrf(visitor):
    return re.search(r'data-csrf="([^"]+)"', visitor.page)[1]


@both
def test_a_phone_goes_on_where_the_kiosk_was(visitor, make_browser, database, config, monkeypatch):
    visitor.join(CARD)
    address = link_of(visitor, monkeypatch)
    assert address.startswith(f"{config.origin}/signin/phone?link=")
    mine = Visitor(make_browser())
    mine.go(address.removeprefix(config.origin))
    assert mine.path == "/signin/phone"
    mine.submit("/signin/phone")
    assert mine.path == "/tutorial" and len(everybody(database)) == 1
    assert visitor.go("/me").path == "/signin", "the kiosk is free for the next one"
    with database.read() as tx:
        session = tx.scalars(select(WebSession).where(WebSession.kind == "participant")).one()
        assert (session.station_id, session.linked_id is not None) == (None, True)
        assert tx.scalars(select(PhoneLink)).all() == []
    mine.submit("/tutorial")  # and drives with it
    with database.read() as tx:
        assert tx.scalars(select(Play)).one().kind == "tutorial"


def test_a_phone_without_a_card_is_somebody_new(
    visitor, make_browser, database, config, monkeypatch
):
    visitor.go("/signin")
    address = link_of(visitor, monkeypatch).removeprefix(config.origin)
    mine = Visitor(make_browser()).go(address).submit("/signin/phone")
    assert mine.path == "/age" and everybody(database)[0].kind == "phone"


@both
def test_a_link_works_once(visitor, make_browser, database, config, monkeypatch):
    visitor.join(CARD)
    address = link_of(visitor, monkeypatch).removeprefix(config.origin)
    first, second = Visitor(make_browser()).go(address), Visitor(make_browser()).go(address)
    assert first.submit("/signin/phone").path == "/tutorial"
    assert second.submit("/signin/phone").path == "/signin" and 'role="alert"' in second.page
    assert second.go("/me").path == "/signin"


def test_a_link_is_good_for_minutes_only(visitor, make_browser, database, config, monkeypatch):
    visitor.join(CARD)
    address = link_of(visitor, monkeypatch).removeprefix(config.origin)
    with database.begin() as tx:
        tx.execute(update(PhoneLink).values(expires_at=utc_now()))
    assert Visitor(make_browser()).go(address).submit("/signin/phone").path == "/signin"


def test_looking_at_a_link_does_not_use_it_up(visitor, make_browser, config, monkeypatch):
    """Chats and cameras open links to show what is behind them."""
    visitor.join(CARD)
    address = link_of(visitor, monkeypatch).removeprefix(config.origin)
    for _ in range(3):
        assert Visitor(make_browser()).go(address).path == "/signin/phone"
    assert Visitor(make_browser()).go(address).submit("/signin/phone").path == "/tutorial"


def test_a_second_code_makes_the_first_void(visitor, make_browser, config, monkeypatch):
    visitor.join(CARD)
    first = link_of(visitor, monkeypatch).removeprefix(config.origin)
    second = link_of(visitor, monkeypatch).removeprefix(config.origin)
    assert Visitor(make_browser()).go(first).submit("/signin/phone").path == "/signin"
    assert Visitor(make_browser()).go(second).submit("/signin/phone").path == "/tutorial"


def test_the_link_is_kept_as_a_hash(visitor, database, config, monkeypatch):
    visitor.join(CARD)
    token = link_of(visitor, monkeypatch).partition("link=")[2]
    assert len(token) >= 43 and token not in everything(database)


def test_a_link_that_somebody_made_up(browser):
    assert browser.post("/signin/phone", data={"link": "x" * 43}).headers["location"] == (
        "/signin?problem=link"
    )


def test_unpairing_ends_the_phones_and_links_of_a_kiosk(
    visitor, make_browser, database, station, config, monkeypatch
):
    visitor.join(CARD)
    address = link_of(visitor, monkeypatch).removeprefix(config.origin)
    mine = Visitor(make_browser()).go(address).submit("/signin/phone")
    with database.begin() as tx:
        unpair(tx, tx.merge(station))
    assert mine.go("/me").path == "/signin"


@both
@pytest.mark.parametrize(
    "drove",
    [{"state": "finished"}, {"state": "void"}, None],
    ids=["who drove lately", "whose play nobody took hold of", "who went home"],
)
def test_a_phone_is_at_the_robot_for_minutes(
    drove,
    visitor,
    make_browser,
    make_play,
    make_task,
    database,
    config,
    station,
    monkeypatch,
):
    """When a play begins the arms move: not because of somebody who has gone."""
    visitor.join(CARD)
    with database.begin() as tx:
        tx.execute(update(Participant).values(tutorial_at=utc_now()))
    mine = Visitor(make_browser())
    mine.go(link_of(visitor, monkeypatch).removeprefix(config.origin)).submit("/signin/phone")
    (ada,), task = everybody(database), make_task()
    form = mine.go(f"/tasks/{task.id}").page
    assert "data-count=" in form
    earlier = utc_now() - dt.timedelta(minutes=11)
    with database.begin() as tx:
        tx.execute(
            update(WebSession).where(WebSession.kind == "participant").values(created_at=earlier)
        )
    make_play(ada, station, task, ended_at=earlier)
    if drove is not None:
        make_play(ada, station, task, ended_at=utc_now() - dt.timedelta(minutes=9), **drove)
    mine.go(f"/tasks/{task.id}")
    near = "data-count=" in mine.page
    assert near == (drove == {"state": "finished"})
    mine.page = form  # a page that was open before
    mine.submit(f"/tasks/{task.id}/start")
    assert (mine.path == "/play") == near
    with database.read() as tx:
        assert len(tx.scalars(select(Play).where(Play.state == "running")).all()) == near
        assert len(tx.scalars(select(StationLease)).all()) == near
    if near:
        return
    assert "at the robot only" in mine.page
    # Once more to the kiosk: it is the same person, who is there.
    visitor.go("/signin")
    mine.go(link_of(visitor, monkeypatch).removeprefix(config.origin)).submit("/signin/phone")
    assert [one.id for one in everybody(database)] == [ada.id]
    mine.go(f"/tasks/{task.id}").submit(f"/tasks/{task.id}/start")
    assert mine.path == "/play"


def test_who_waits_with_a_phone_shows_that_they_have_come(
    visitor,
    make_browser,
    make_participant,
    make_lease,
    database,
    config,
    station,
    monkeypatch,
):
    visitor.join(CARD)
    lease = make_lease(station, make_participant())
    mine = Visitor(make_browser())
    mine.go(link_of(visitor, monkeypatch).removeprefix(config.origin)).submit("/signin/phone")
    assert mine.go("/queue").submit("/queue").path == "/queue"
    earlier = utc_now() - dt.timedelta(minutes=11)
    with database.begin() as tx:
        tx.execute(
            update(WebSession).where(WebSession.kind == "participant").values(created_at=earlier)
        )
        stations.release(tx, station, tx.get(Participant, lease.participant_id))
    mine.go("/queue")
    assert "your turn" in mine.page and 'action="/queue"' not in mine.page
    visitor.go("/signin")
    mine.go(link_of(visitor, monkeypatch).removeprefix(config.origin)).submit("/signin/phone")
    assert mine.path == "/queue" and "your turn" in mine.page
    mine.submit("/queue")
    with database.read() as tx:
        assert tx.scalars(select(StationLease)).one().participant_id != lease.participant_id


def test_a_place_in_the_queue_goes_along(
    browser,
    make_browser,
    database,
    config,
    station,
    monkeypatch,
    make_participant,
    make_consent,
    make_lease,
):
    """At the kiosk somebody drives: one waits with the phone."""
    ada, eve = make_participant(), make_participant()
    make_consent(ada)
    make_lease(station, eve)
    browser.sign_in(kiosk=station, participant=ada)
    browser.post("/queue")
    visitor = Visitor(browser).go("/queue")
    drawn = []
    make = segno.make
    monkeypatch.setattr(segno, "make", lambda text, **of: drawn.append(text) or make(text, **of))
    visitor.submit("/signin/phone/link")
    mine = Visitor(make_browser()).go(drawn[0].removeprefix(config.origin)).submit("/signin/phone")
    assert "next" in mine.go("/queue").page
    with database.read() as tx:
        assert tx.scalars(select(Queued)).one().participant_id == ada.id


# Leaving


@both
def test_logging_out_leaves_nothing(visitor, database):
    visitor.join(CARD)
    old = csrf(visitor)
    visitor.go("/tutorial").submit("/tutorial")
    answer = visitor.client.post("/logout", data={"csrf": csrf(visitor)})
    assert answer.headers["location"] == "/?left=out"
    assert '"cache"' in answer.headers["clear-site-data"]
    assert "no-store" in answer.headers["cache-control"]
    assert "no-store" in visitor.go("/signin").response.headers["cache-control"]
    with database.read() as tx:
        assert tx.scalars(select(StationLease)).all() == []
        assert tx.scalars(select(Play)).one().state == "finished"
        assert [row.kind for row in tx.scalars(select(WebSession))] == ["kiosk"]
    # A page of the visitor before does nothing in the name of the next.
    visitor.come("11223344")
    assert visitor.client.post("/age", data={"adult": "true", "csrf": old}).status_code == 403


def test_leaving_gives_up_the_place_in_the_queue(
    browser, database, station, make_participant, make_consent, make_lease
):
    ada, eve = make_participant(), make_participant()
    make_consent(ada)
    make_lease(station, eve)
    browser.sign_in(kiosk=station, participant=ada)
    browser.post("/queue")
    browser.post("/logout")
    with database.read() as tx:
        assert tx.scalars(select(Queued)).all() == []
        assert tx.scalars(select(StationLease)).one().participant_id == eve.id


def test_an_idle_kiosk_forgets_who_was_there(visitor, database, config):
    visitor.join(CARD)
    assert f'data-idle="{int(config.sessions.kiosk_idle_s)}"' in visitor.page
    assert 'http-equiv="refresh"' in visitor.page, "without scripts the page itself goes"
    with database.begin() as tx:
        back = dt.timedelta(seconds=config.sessions.kiosk_idle_s + 1)
        tx.execute(
            update(WebSession)
            .where(WebSession.kind == "participant")
            .values(seen_at=utc_now() - back)
        )
    answer = visitor.client.post("/still-here", data={"csrf": csrf(visitor)})
    assert answer.status_code in (401, 403), "a late sign of life signs nobody in"
    visitor.go("/?left=idle")
    assert "signed you out" in visitor.page and "data-idle" not in visitor.page
    assert visitor.go("/me").path == "/signin"


def test_reading_is_not_being_idle(visitor, database, config):
    visitor.join(CARD)
    with database.begin() as tx:
        back = dt.timedelta(seconds=config.sessions.kiosk_idle_s * 0.8)
        tx.execute(
            update(WebSession)
            .where(WebSession.kind == "participant")
            .values(seen_at=utc_now() - back)
        )
    assert visitor.client.post("/still-here", data={"csrf": csrf(visitor)}).status_code == 204
    with database.read() as tx:
        seen = tx.scalar(select(WebSession.seen_at).where(WebSession.kind == "participant"))
    assert utc_now() - seen < dt.timedelta(seconds=30)


def test_no_field_is_filled_in_by_the_browser(visitor):
    """The next visitor is not offered what the last one typed."""
    visitor.come(CARD).submit("/age", {"adult": "true"}).submit("/consent", {"scope": ["record"]})
    for page in ("/nickname", "/signin"):
        for field in re.findall(r"<input[^>]+>", visitor.go(page).page):
            if not re.search(r'type="(hidden|radio|checkbox)"', field):
                assert 'autocomplete="off"' in field, field
        if page == "/nickname":
            visitor.submit("/logout")


# Languages


def test_the_language_is_asked_of_the_browser_then_of_the_visitor(visitor, database):
    visitor.client.headers["accept-language"] = "de-DE,de;q=0.9"
    visitor.go("/")
    assert '<html lang="de">' in visitor.page and "echten Roboter" in visitor.page
    visitor.submit("/language", {"language": "en"})
    assert '<html lang="en">' in visitor.page
    visitor.come(CARD)
    assert '<html lang="en">' in visitor.page
    assert everybody(database)[0].language == "en"
    visitor.submit("/language", {"language": "de"})
    assert visitor.path == "/age" and '<html lang="de">' in visitor.page
    visitor.submit("/logout").client.headers["accept-language"] = "en"
    assert '<html lang="en">' in visitor.go("/").page, "the next one's own"
    visitor.come(CARD)
    assert '<html lang="de">' in visitor.page, "remembered"


@pytest.mark.parametrize("language", ["fr", "", "../de", "en\r\nset-cookie: a=b"])
def test_a_language_that_there_is_not(language, visitor):
    answer = visitor.go("/").client.post(
        "/language", data={"language": language, "csrf": csrf(visitor)}
    )
    assert "language=" not in answer.headers.get("set-cookie", "")


def test_another_language_is_the_same_page(visitor, make_browser, make_task, config, monkeypatch):
    task = make_task()
    address = link_of(visitor.go("/"), monkeypatch).removeprefix(config.origin)
    for page in (address, f"/board/task:{task.id}?period=week", "/pair", "/signin?problem=card"):
        phone = Visitor(make_browser())
        phone.go(page).submit("/language", {"language": "de"})
        assert str(phone.response.url).removeprefix(config.origin) == page
        assert '<html lang="de">' in phone.page
    # An answer to a form is at the form's address, which is no page.
    visitor.go("/signin").submit("/signin/phone/link").submit("/language", {"language": "de"})
    assert visitor.path == "/signin" and visitor.error == 200


def test_the_way_back_is_a_page_of_ours(visitor):
    for target in ("//evil.test", "https://evil.test", "/\\evil.test", "/nowhere"):
        answer = visitor.go("/").client.post(
            "/language", data={"language": "de", "next": target, "csrf": csrf(visitor)}
        )
        assert answer.headers["location"] == "/"


def test_a_participant_who_was_erased_is_somebody_new(visitor, database):
    visitor.join(CARD)
    with database.begin() as tx:
        tx.execute(update(Participant).values(card_hash=None, erased_at=utc_now()))
        tx.execute(delete(WebSession).where(WebSession.kind == "participant"))
    visitor.come(CARD)
    assert visitor.path == "/age" and len(everybody(database)) == 2
