"""The order of steps, held on the server: nobody skips age, consent or tutorial."""

from __future__ import annotations

import datetime as dt

import pytest
from sqlalchemy import select, update

from collect.crowd import flow, stations
from collect.crowd.consent import add
from collect.crowd.tables import (
    Consent,
    LedgerEntry,
    Participant,
    Play,
    Station,
    StationLease,
    WebSession,
    utc_now,
)
from tests.crowd.visitor import Visitor

DATABASES = ["sqlite"]
both = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
FAR = dt.timedelta(hours=1)  # the station is not silent within a test


@pytest.fixture
def station(make_station):
    return make_station(seen_at=utc_now() + FAR, state={"phase": "idle"})


@pytest.fixture
def visitor(browser, station):
    return Visitor(browser.sign_in(kiosk=station))


def only(database, table):
    with database.read() as tx:
        return tx.scalars(select(table)).one()


def passed(database):
    """The station has seen the tutorial done."""
    with database.begin() as tx:
        tx.execute(update(Participant).values(tutorial_at=utc_now()))
        tx.execute(
            update(Play).values(state="finished", ended_at=utc_now(), ended_by="rest", seconds=30.0)
        )


@both
def test_the_whole_way(visitor, database, make_task):
    task = make_task("hard")
    visitor.come()
    assert visitor.path == "/age"
    visitor.submit("/age", {"adult": "true"})
    assert visitor.path == "/consent"
    visitor.submit("/consent", {"scope": ["record"]})
    assert visitor.path == "/nickname"
    visitor.submit("/nickname", {"nickname": "Ada"})
    assert visitor.path == "/tutorial"
    visitor.submit("/tutorial")
    assert visitor.path == "/tutorial" and only(database, Play).kind == "tutorial"
    passed(database)
    assert "/tasks" in visitor.go("/tutorial").page
    visitor.go(f"/tasks/{task.id}").submit(f"/tasks/{task.id}/start")
    assert visitor.path == "/play"
    visitor.submit("/play/stop")
    assert visitor.path == "/report"
    visitor.submit("/report", {"success": "true", "intuitive": 5, "fun": 4, "did": 3})
    assert visitor.path == "/report" and "+20" in visitor.page
    with database.read() as tx:
        play = tx.scalars(select(Play).where(Play.kind == "task")).one()
        assert (play.claimed, play.ended_by) == (True, "button")
        assert (play.likert_intuitive, play.likert_fun, play.likert_did) == (5, 4, 3)
        assert tx.scalars(select(LedgerEntry)).one().points == 20
    assert "20" in visitor.go("/me").page
    visitor.submit("/logout")
    assert visitor.path == "/"
    assert visitor.go("/me").path == "/signin"


STEPS = ["age", "minor", "consent", "tutorial", "choose", "play", "report"]
GETS = ["/age", "/consent", "/tutorial", "/tasks", "/free", "/queue", "/play", "/report"]


def at_step(step, participant_of, make_consent, make_play, station, task):
    """A participant who stands at this step."""
    columns = {
        "age": {"adult": None, "tutorial_at": None},
        "minor": {"adult": False, "tutorial_at": None},
        "consent": {"tutorial_at": None},
        "tutorial": {"tutorial_at": None},
    }
    someone = participant_of(**columns.get(step, {}))
    if step not in ("age", "minor", "consent"):
        make_consent(someone)
    if step == "play":
        make_play(someone, station, task, state="running", ended_at=None, claimed=None)
    if step == "report":
        make_play(someone, station, task, claimed=None)
    return someone


@pytest.mark.parametrize("step", STEPS)
def test_a_page_out_of_order_leads_to_the_right_one(
    step, browser, station, make_participant, make_consent, make_play, make_task, make_lease
):
    """Every page at every step: it is shown, or leads to the step's own."""
    task = make_task()
    someone = at_step(step, make_participant, make_consent, make_play, station, task)
    make_lease(station, someone)
    browser.sign_in(kiosk=station, participant=someone)
    for page in [*GETS, f"/tasks/{task.id}"]:
        answer = browser.get(page)
        allowed = flow.ALLOWED["/tasks" if page.startswith("/tasks/") else page]
        if step in allowed:
            # In the middle of one's turn there is no queue to look at.
            assert answer.status_code == 200 or page == "/queue", page
        else:
            assert answer.headers.get("location") == flow.PAGES[step], page
    own = browser.get(flow.PAGES[step])
    assert own.status_code == 200, "the step's own page must be open, or redirects go round"


@pytest.mark.parametrize("step", [step for step in STEPS if step != "choose"])
def test_nothing_is_begun_out_of_order(
    step,
    browser,
    station,
    database,
    make_participant,
    make_consent,
    make_play,
    make_task,
    make_lease,
):
    """Posting is no way round the pages."""
    task = make_task()
    someone = at_step(step, make_participant, make_consent, make_play, station, task)
    make_lease(station, someone)
    browser.sign_in(kiosk=station, participant=someone)
    with database.read() as tx:
        before = len(tx.scalars(select(Play)).all())
    for page in (f"/tasks/{task.id}/start", "/free/start"):
        assert browser.post(page).headers["location"] == flow.PAGES[step]
    if step != "tutorial":
        assert browser.post("/tutorial").headers["location"] == flow.PAGES[step]
    with database.read() as tx:
        assert len(tx.scalars(select(Play)).all()) == before


@both
def test_a_new_version_of_the_consent_is_asked_for(visitor, database):
    visitor.join()
    passed(database)
    assert visitor.go("/tasks").path == "/tasks"
    with database.begin() as tx:
        add(tx, "2", {"en": ("New", "Now we also film the cat.")})
    assert visitor.go("/tasks").path == "/consent"
    assert "film the cat" in visitor.page
    visitor.submit("/consent", {"scope": ["record"]})
    assert visitor.path == "/tasks"


def test_consent_to_a_text_that_has_changed_meanwhile_is_none(visitor, database):
    visitor.come().submit("/age", {"adult": "true"})
    with database.begin() as tx:
        add(tx, "2", {"en": ("New", "Now we also film the cat.")})
    visitor.submit("/consent", {"scope": ["record"]})  # of the page with the old text
    assert visitor.error == 422 and "film the cat" in visitor.page
    with database.read() as tx:
        assert tx.scalars(select(Consent)).all() == []


def test_without_record_there_is_no_consent(visitor, database):
    visitor.come().submit("/age", {"adult": "true"}).submit("/consent", {"scope": ["research"]})
    assert visitor.error == 422
    with database.read() as tx:
        assert tx.scalars(select(Consent)).all() == []
    assert visitor.go("/tutorial").path == "/consent"


def test_minors_may_watch_and_are_not_asked_again(visitor, database):
    visitor.come().submit("/age", {"adult": "false"})
    assert visitor.path == "/age" and "welcome to watch" in visitor.page
    assert visitor.go("/tutorial").path == "/age"
    assert visitor.go("/board").path == "/board"
    visitor.submit("/logout")
    visitor.come()  # the same card again
    assert visitor.path == "/age" and "/age" not in visitor.page.split("<main")[1]
    assert only(database, Participant).adult is False
    answer = visitor.client.post(
        "/age", data={"adult": "true", "csrf": visitor.page.split('data-csrf="')[1].split('"')[0]}
    )
    assert answer.headers["location"] == "/age"
    assert only(database, Participant).adult is False


@both
def test_the_report_sent_twice_is_paid_once(visitor, database, make_task):
    task = make_task("easy")
    visitor.join()
    passed(database)
    visitor.go(f"/tasks/{task.id}").submit(f"/tasks/{task.id}/start").submit("/play/stop")
    form, path = visitor.page, visitor.path
    answers = {"success": "true", "intuitive": 1, "fun": 1, "did": 1}
    visitor.submit("/report", answers)
    visitor.page, visitor.path = form, path  # back, and once more
    visitor.submit("/report", {**answers, "fun": 5})
    assert "+10" in visitor.page
    with database.read() as tx:
        assert [entry.points for entry in tx.scalars(select(LedgerEntry))] == [10]
        assert tx.scalars(select(Play).where(Play.kind == "task")).one().likert_fun == 1


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"success": "true"},
        {"intuitive": 1, "fun": 1, "did": 1},
        {"success": "true", "intuitive": 6, "fun": 1, "did": 1},
        {"success": "true", "intuitive": 0, "fun": 1, "did": 1},
    ],
    ids=["nothing", "no items", "no verdict", "six", "zero"],
)
def test_half_a_report_is_none(answers, visitor, database, make_task):
    task = make_task()
    visitor.join()
    passed(database)
    visitor.go(f"/tasks/{task.id}").submit(f"/tasks/{task.id}/start").submit("/play/stop")
    visitor.submit("/report", answers)
    assert visitor.error == 422
    with database.read() as tx:
        assert tx.scalars(select(LedgerEntry)).all() == []
        assert tx.scalars(select(Play).where(Play.kind == "task")).one().claimed is None


def test_nobody_reports_or_sees_anothers_play(
    browser, database, station, make_participant, make_consent, make_play, make_task
):
    ada, eve = make_participant(), make_participant()
    make_consent(eve)
    task = make_task()
    play = make_play(ada, station, task, claimed=None)
    told = make_play(ada, station, task)
    browser.sign_in(kiosk=station, participant=eve)
    answer = browser.post(
        "/report",
        data={"play": play.id, "success": "true", "intuitive": 5, "fun": 5, "did": 5},
    )
    assert answer.headers["location"] == "/tasks"
    assert browser.get(f"/report?done={told.id}").headers["location"] == "/tasks"
    with database.read() as tx:
        assert tx.get(Play, play.id).claimed is None


@both
def test_two_presses_on_start_are_one_play(visitor, database, make_task):
    task = make_task()
    visitor.join()
    passed(database)
    visitor.go(f"/tasks/{task.id}")
    form = visitor.page
    visitor.submit(f"/tasks/{task.id}/start")
    visitor.page = form
    visitor.submit(f"/tasks/{task.id}/start")
    assert visitor.path == "/play"
    with database.read() as tx:
        assert len(tx.scalars(select(Play).where(Play.kind == "task")).all()) == 1


def test_from_home_nobody_starts_the_robot(
    browser, database, station, make_participant, make_consent, make_task
):
    """A session that was not begun at a kiosk, nor sent on by one."""
    ada, task = make_participant(), make_task()
    make_consent(ada)
    browser.sign_in(participant=ada)
    for page in ("/tutorial", f"/tasks/{task.id}/start", "/free/start", "/queue"):
        back = page.removesuffix("/start")
        assert browser.post(page).headers["location"] == f"{back}?refused=away"
    assert "at the robot only" in browser.get("/free?refused=away").text
    with database.read() as tx:
        assert tx.scalars(select(Play)).all() == []
        assert tx.scalars(select(StationLease)).all() == []


@both
def test_who_finds_the_robot_taken_waits_and_is_called(
    browser, database, station, make_participant, make_consent, make_lease, make_task
):
    ada, eve, task = make_participant(), make_participant(), make_task()
    make_consent(ada)
    make_lease(station, eve)
    browser.sign_in(kiosk=station, participant=ada)
    assert browser.post(f"/tasks/{task.id}/start").headers["location"] == "/queue"
    assert "next" in browser.get("/queue").text
    assert "min" in browser.get("/queue").text
    with database.begin() as tx:
        stations.release(tx, tx.get(Station, station.id), eve)
    assert "your turn" in browser.get("/queue").text
    assert browser.post("/queue").headers["location"] == "/tasks"
    assert only(database, StationLease).participant_id == ada.id
    assert browser.post(f"/tasks/{task.id}/start").headers["location"] == "/play"


def test_giving_up_a_place(browser, station, make_participant, make_consent, make_lease, make_task):
    ada, eve = make_participant(), make_participant()
    make_consent(ada)
    make_lease(station, eve)
    browser.sign_in(kiosk=station, participant=ada)
    browser.post("/queue")
    browser.post("/queue/leave")
    assert "Give up my place" not in browser.get("/queue").text


@pytest.mark.parametrize(
    "columns, reason",
    [
        ({"closed": True}, "closed"),
        ({"seen_at": utc_now() - FAR}, "offline"),
        ({"state": {"phase": "fault"}}, "fault"),
    ],
    ids=["closed", "offline", "fault"],
)
def test_a_robot_that_can_not_says_so_and_is_not_held(
    columns, reason, browser, database, make_station, make_participant, make_consent, make_task
):
    station = make_station(**{"seen_at": utc_now() + FAR, **columns})
    ada, task = make_participant(), make_task()
    make_consent(ada)
    browser.sign_in(kiosk=station, participant=ada)
    answer = browser.post(f"/tasks/{task.id}/start")
    assert answer.headers["location"] == f"/tasks/{task.id}?refused={reason}"
    assert 'role="alert"' in browser.get(answer.headers["location"]).text
    with database.read() as tx:
        assert tx.scalars(select(StationLease)).all() == []


def test_a_reason_that_nobody_gave_is_not_shown(browser, station, make_participant, make_consent):
    ada = make_participant()
    make_consent(ada)
    browser.sign_in(kiosk=station, participant=ada)
    page = browser.get("/tasks?refused=haha")
    assert page.status_code == 200 and 'role="alert"' not in page.text


def test_while_driving_nobody_is_signed_out(
    browser, database, station, config, make_participant, make_consent, make_play
):
    """Hands are on the robot: the page says so, and that counts as being there; a poll does not."""
    ada = make_participant()
    make_consent(ada)
    play = make_play(ada, station, None, state="running", ended_at=None, claimed=None)
    browser.sign_in(kiosk=station, participant=ada)

    def age():
        with database.begin() as tx:
            back = dt.timedelta(seconds=config.sessions.kiosk_idle_s * 0.9)
            tx.execute(
                update(WebSession)
                .where(WebSession.kind == "participant")
                .values(seen_at=utc_now() - back)
            )

    age()
    assert browser.post("/play/alive").status_code == 204
    with database.read() as tx:
        seen = tx.scalar(select(WebSession.seen_at).where(WebSession.kind == "participant"))
    assert utc_now() - seen < dt.timedelta(seconds=30)
    with database.begin() as tx:
        tx.get(Play, play.id).state = "finished"
    assert browser.post("/play/alive", headers={"accept": "application/json"}).status_code == 409
