"""Rewards: no more than points, stock and the day's cap allow; counted by staff; once a form."""

from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd import ledger, rewards, scoring, standings
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.rewards import RewardError
from collect.crowd.tables import AuditEntry, Participant, RewardEntry, RewardItem, new_id
from tests.crowd.browser import Browser
from tests.crowd.factories import make_participant, make_play, make_station, make_task

NOON = dt.datetime(2026, 11, 18, 12, tzinfo=dt.UTC)
ONE_DATABASE = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


def give(tx: Session, who: Participant, points: int) -> None:
    ledger.award(
        tx,
        key=new_id(),
        participant_id=who.id,
        play_id=None,
        task_id=None,
        kind="staff",
        points=points,
    )


@pytest.fixture
def candy(database: Database, make_staff: object) -> str:
    """Five pieces, 10 points each, two a day; by staff."""
    staff = make_staff("operator")  # type: ignore[operator]
    with database.begin() as tx:
        tx.add(RewardItem(id="candy", name="Hi-Chew", points=10, daily_cap=2))
        tx.flush()
        rewards.stock(tx, item_id="candy", pieces=5, staff_id=staff.id, key="first")
    return str(staff.id)


def take(tx: Session, who: Participant, now: dt.datetime = NOON) -> str:
    """How it went: taken, or the reason why not."""
    try:
        rewards.hand(tx, item_id="candy", participant_id=who.id, key=new_id(), now=now)
    except RewardError as error:
        return error.reason
    return "taken"


@pytest.mark.usefixtures("candy")
def test_points_cap_and_stock_limit_what_is_taken(database: Database) -> None:
    with database.begin() as tx:
        rich, poor = make_participant(tx), make_participant(tx)
        give(tx, rich, 100)
        give(tx, poor, 19)
        assert [take(tx, poor) for _ in range(2)] == ["taken", "points"]
        assert [take(tx, rich) for _ in range(3)] == ["taken", "taken", "cap"]
        tomorrow = NOON + dt.timedelta(days=1)
        assert [take(tx, rich, tomorrow) for _ in range(3)] == ["taken", "taken", "cap"]
        assert take(tx, rich, NOON + dt.timedelta(days=2)) == "stock"
        assert rewards.stock_of(tx, "candy") == 0
        assert rewards.credit(tx, rich.id) == 60
        assert ledger.points_of(tx, rich.id) == 100  # points are not spent


@pytest.mark.usefixtures("candy")
def test_a_bare_claim_buys_nothing(database: Database, key: SiteKey) -> None:
    with database.begin() as tx:
        who = make_participant(tx)
        play = make_play(tx, who, make_station(tx, key), make_task(tx, "hard"))
        assert scoring.claim(tx, play) is not None
        assert (take(tx, who), rewards.credit(tx, who.id)) == ("points", 0)
        scoring.review(tx, play, "confirm", 2)
        credit = rewards.credit(tx, who.id)
        assert (take(tx, who), credit) == ("taken", ledger.points_of(tx, who.id))


@pytest.mark.usefixtures("candy")
def test_who_comes_back_as_somebody_else_meets_the_cap_of_all(database: Database) -> None:
    with database.begin() as tx:
        tx.get_one(RewardItem, "candy").pieces_a_day = 3
        guests = [make_participant(tx) for _ in range(4)]
        for who in guests:
            give(tx, who, 100)
        assert [take(tx, who) for who in guests] == ["taken"] * 3 + ["day"]
        assert take(tx, guests[3], NOON + dt.timedelta(days=1)) == "taken"


@pytest.mark.usefixtures("candy")
def test_the_day_of_the_cap_is_the_sites(database: Database) -> None:
    late = dt.datetime(2026, 11, 18, 22, 59, tzinfo=dt.UTC)  # 23:59 in Berlin
    with database.begin() as tx:
        standings.set_zone(tx, "Europe/Berlin")
        who = make_participant(tx)
        give(tx, who, 100)
        assert [take(tx, who, late) for _ in range(3)] == ["taken", "taken", "cap"]
        assert take(tx, who, late + dt.timedelta(minutes=1)) == "taken"


def test_a_count_puts_the_books_right_once(database: Database, candy: str) -> None:
    with database.begin() as tx:
        for _ in range(2):
            entry = rewards.count(tx, item_id="candy", pieces=3, staff_id=candy, key="evening")
        assert entry.count == -2
        assert rewards.stock_of(tx, "candy") == 3
        assert tx.scalar(select(func.count(AuditEntry.id))) == 2  # stocked, counted
        for pieces in (0, 10_001):
            with pytest.raises(RewardError, match="stock 1 to"):
                rewards.stock(tx, item_id="candy", pieces=pieces, staff_id=candy, key="x")


@pytest.mark.usefixtures("candy")
def test_what_is_gone_is_not_handed_out(database: Database) -> None:
    with database.begin() as tx:
        who, erased = make_participant(tx), make_participant(tx, erased_at=NOON)
        give(tx, who, 100)
        give(tx, erased, 100)
        assert take(tx, erased) == "gone"
        tx.get_one(RewardItem, "candy").active = False
        tx.flush()
        assert take(tx, who) == "gone"
        assert rewards.offers(tx, who.id) == []
        with pytest.raises(RewardError, match="no reward"):
            rewards.hand(tx, item_id="gold", participant_id=who.id, key="x")


@pytest.mark.usefixtures("candy")
def test_many_hands_at_once_take_what_is_there(database: Database) -> None:
    with database.begin() as tx:
        crowd = [make_participant(tx) for _ in range(20)]
        for who in crowd:
            give(tx, who, 10)
    barrier = threading.Barrier(len(crowd))

    def grab(who: Participant) -> str:
        barrier.wait(30.0)
        with database.begin() as tx:
            return take(tx, who)

    with ThreadPoolExecutor(len(crowd)) as threads:
        results = list(threads.map(grab, crowd))
    assert sorted(results) == ["stock"] * 15 + ["taken"] * 5
    with database.read() as tx:
        assert rewards.stock_of(tx, "candy") == 0


@ONE_DATABASE
@pytest.mark.usefixtures("candy")
def test_a_form_sent_twice_takes_one(
    browser: Browser, database: Database, make_participant: object
) -> None:
    who = make_participant()  # type: ignore[operator]
    with database.begin() as tx:
        give(tx, tx.merge(who), 100)
    browser.sign_in(participant=who)
    page = browser.get("/rewards")
    assert "Hi-Chew" in page.text
    form = {"item": "candy", "key": new_id()}
    for _ in range(2):
        answer = browser.post("/rewards/take", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/rewards?took=candy")
    with database.read() as tx:
        taken = select(func.count(RewardEntry.id)).where(RewardEntry.kind == "handed")
        assert tx.scalar(taken) == 1
    browser.post("/rewards/take", data={**form, "key": new_id()})
    answer = browser.post("/rewards/take", data={**form, "key": new_id()})
    assert answer.headers["location"] == "/rewards?refused=cap"
    for reason in rewards.REASONS:
        assert 'role="alert"' in browser.get(f"/rewards?refused={reason}").text
    assert browser.get("/rewards?refused=%3Cb%3E&took=%3Cb%3E").status_code == 200


@ONE_DATABASE
def test_staff_keep_the_books(browser: Browser, database: Database, make_staff: object) -> None:
    browser.sign_in(staff=make_staff("operator"))  # type: ignore[operator]
    item = {"item": "gum", "name": "<i>Gum</i>", "points": "5", "daily_cap": "3"}
    assert browser.post("/staff/rewards/item", data=item).status_code == 303
    assert browser.post("/staff/rewards/item", data=item).status_code == 422  # there is one
    key = {"item": "gum", "key": new_id()}
    assert browser.post("/staff/rewards/stock", data={**key, "pieces": "40"}).status_code == 303
    assert browser.post("/staff/rewards/count", data={**key, "pieces": "38"}).status_code == 303
    assert browser.post("/staff/rewards/stock", data={**key, "pieces": "-1"}).status_code == 422
    page = browser.get("/staff/rewards")
    assert "&lt;i&gt;Gum" in page.text
    assert "<strong>38</strong>" in page.text
    assert "-2" in page.text
    form = {"item": "gum", "active": "false", "pieces_a_day": "7"}
    assert browser.post("/staff/rewards/offer", data=form).status_code == 303
    with database.read() as tx:
        gum = tx.get_one(RewardItem, "gum")
    assert (gum.active, gum.pieces_a_day) == (False, 7)


@ONE_DATABASE
@pytest.mark.usefixtures("candy")
def test_reviewers_and_participants_have_no_business_with_the_books(
    browser: Browser, make_staff: object, make_participant: object
) -> None:
    assert browser.get("/staff/rewards").headers["location"] == "/staff/signin"
    browser.sign_in(participant=make_participant())  # type: ignore[operator]
    assert browser.get("/staff/rewards").headers["location"] == "/staff/signin"
    browser.sign_in(staff=make_staff("reviewer"))  # type: ignore[operator]
    assert browser.get("/staff/rewards").status_code == 403
    form = {"item": "candy", "pieces": "1", "key": new_id()}
    assert browser.post("/staff/rewards/stock", data=form).status_code == 403
