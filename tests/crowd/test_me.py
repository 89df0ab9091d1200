"""One's own page, nicknames as pages show them, results, calls for help."""

from __future__ import annotations

import datetime as dt
import html
import re

import pytest
from sqlalchemy import select

from collect.crowd import ledger, scoring
from collect.crowd.experiment import set_arm
from collect.crowd.tables import Exposure, HelpRequest, Participant, utc_now

DATABASES = ["sqlite"]
XSS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'-alert(1)-'",
    "{{ 7 * 7 }}",
    "javascript:alert(1)",
    "</title><script>",
    "&lt;b&gt;",
]


@pytest.fixture
def station(make_station):
    return make_station(seen_at=utc_now() + dt.timedelta(hours=1), state={"phase": "idle"})


@pytest.fixture
def ada(browser, station, make_participant, make_consent):
    ada = make_participant(nickname="Ada")
    make_consent(ada)
    browser.sign_in(kiosk=station, participant=ada)
    return ada


def change(database, participant, **columns):
    with database.begin() as tx:
        row = tx.get_one(Participant, participant.id)
        for name, value in columns.items():
            setattr(row, name, value)


@pytest.mark.parametrize("name", XSS)
def test_a_name_is_text_wherever_it_is_shown(name, browser, database, ada):
    """Such names can't be taken; were one in the database all the same, it would be text."""
    refused = browser.post("/nickname", data={"nickname": name})
    assert refused.status_code in (303, 422)
    if refused.status_code == 422:
        assert name not in refused.text or html.escape(name) == name
    change(database, ada, nickname=name[:24], nickname_state="approved", on_board=True)
    with database.begin() as tx:
        ledger.award(
            tx,
            key="x",
            participant_id=ada.id,
            play_id=None,
            task_id=None,
            kind="staff",
            points=10,
        )
    shown = html.escape(name[:24])
    for page in ("/", "/me", "/board", "/nickname"):
        text = browser.get(page).text.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
        assert shown in text, page
        assert shown == name[:24] or name[:24] not in text, page


@pytest.mark.parametrize(
    "state, said",
    [
        ("pending", "A person is looking at it"),
        ("approved", "Others see this name"),
        ("refused", "choose another"),
    ],
)
def test_what_becomes_of_a_nickname(state, said, browser, database, ada):
    change(database, ada, nickname_state=state)
    page = browser.get("/me").text
    assert said in page
    if state != "approved":
        assert ada.pseudonym in page.split('id="my-name"')[1].split("</section>")[0]


@pytest.mark.parametrize(
    "name, said",
    [
        ("A", "longer"),
        ("x" * 25, "shorter"),
        ("a@b.de", "Letters, digits"),
        ("Gr\u0430ce", "one alphabet"),
        ("Admin", "our staff"),
        ("4da\u200b", "Letters, digits"),
        ("ΑDA", "alphabet"),
        ("EVE", "looks just like it"),
    ],
)
def test_why_a_nickname_is_not_taken(name, said, browser, database, ada, make_participant):
    make_participant(nickname="Eve")
    answer = browser.post("/nickname", data={"nickname": name})
    assert answer.status_code == 422 and said in html.unescape(answer.text)
    assert 'aria-invalid="true"' in answer.text
    with database.read() as tx:
        assert tx.get(Participant, ada.id).nickname == "Ada"


def test_on_the_board_or_not(browser, database, ada):
    with database.begin() as tx:
        ledger.award(
            tx, key="x", participant_id=ada.id, play_id=None, task_id=None, kind="staff", points=10
        )
    assert "Ada" in re.sub(r"<header.*?</header>", "", browser.get("/board").text, flags=re.S)
    browser.post("/me/board", data={"show": "false"})
    assert "on the leaderboard" in html.unescape(browser.get("/me").text)
    assert browser.get("/api/board/all").json()["places"] == []
    browser.post("/me/board", data={"show": "true"})
    assert browser.get("/api/board/all").json()["places"][0]["name"] == "Ada"


def test_points_say_what_of_them_is_checked(browser, database, station, ada, make_play, make_task):
    task = make_task("hard")
    play = make_play(ada, station, task)
    with database.begin() as tx:
        scoring.claim(tx, tx.merge(play))
    page = browser.get("/me").text
    assert "being checked" in page and re.search(r"20</span>\s*waiting to be checked", page)
    with database.begin() as tx:
        scoring.review(tx, tx.merge(play), "confirm", 3)
    page = browser.get("/me").text
    assert "being checked" not in page and re.search(r">0</span>\s*waiting to be checked", page)


@pytest.mark.parametrize(
    "arm, there, gone",
    [
        ("material", ["/rewards"], ["/board", 'id="badges"']),
        ("intrinsic", ['id="badges"'], ["/board", 'href="/rewards"']),
        ("social", ["/board"], ["/rewards", 'id="badges"']),
    ],
)
def test_an_arm_sees_what_it_is_about(arm, there, gone, browser, database, ada):
    with database.begin() as tx:
        set_arm(tx, arm)
    change(database, ada, arm=arm)
    page = browser.get("/me").text
    assert all(text in page for text in there)
    assert not any(text in page for text in gone)


def test_a_plays_time_is_the_one_that_points_are_given_for(browser, station, ada, make_play):
    make_play(ada, station, seconds=77.0, metrics={"seconds": 41.6})
    page = browser.get("/me").text
    assert "42 s" in page and "77 s" not in page


def test_anothers_plays_are_not_mine(browser, station, ada, make_participant, make_play, make_task):
    mine, theirs = make_task(), make_task()
    make_play(ada, station, mine)
    make_play(make_participant(), station, theirs)
    page = browser.get("/me").text
    titles = [f"Task {task.id.removeprefix('task-')}</th>" for task in (mine, theirs)]
    assert (titles[0] in page, titles[1] in page) == (True, False)


def test_staff_are_called_once(browser, database, station, ada):
    assert "Call staff" in browser.get("/help").text
    for _ in range(3):
        browser.post("/help")
    with database.read() as tx:
        assert tx.scalars(select(HelpRequest)).one().station_id == station.id
    assert "have been called" in browser.get("/help").text
    with database.begin() as tx:
        tx.scalars(select(HelpRequest)).one().answered_at = utc_now()
    browser.post("/help")
    with database.read() as tx:
        assert len(tx.scalars(select(HelpRequest)).all()) == 2


def test_help_needs_no_sign_in_but_a_kiosk(browser, make_browser, database, station):
    assert make_browser().post("/help").headers["location"] == "/help"
    with database.read() as tx:
        assert tx.scalars(select(HelpRequest)).all() == []
    browser.sign_in(kiosk=station)
    browser.post("/help")
    with database.read() as tx:
        assert len(tx.scalars(select(HelpRequest)).all()) == 1


def test_calling_without_end_is_slowed_down(browser, database, station):
    browser.sign_in(kiosk=station)
    codes = [browser.post("/help").status_code for _ in range(7)]
    assert codes == [303] * 6 + [429]


def test_whoever_sees_the_ranking_anywhere_has_seen_it(browser, database, ada):
    with database.begin() as tx:
        set_arm(tx, "social")
    change(database, ada, arm="social")
    browser.get("/")
    with database.read() as tx:
        assert tx.scalars(select(Exposure)).one().page == "board"
