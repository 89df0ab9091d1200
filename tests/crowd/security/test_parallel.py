"""The same thing at once, fifty times: it counts once. Threads through the real application."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from collect.crowd import pairing, phone, rewards, standings
from collect.crowd.ledger import award
from collect.crowd.security.rate_limit import TooManyError
from collect.crowd.tables import (
    LedgerEntry,
    Participant,
    Play,
    RewardEntry,
    RewardItem,
    Standing,
    Station,
    StationLease,
    new_id,
)
from tests.crowd import factories
from tests.crowd.security.conftest import Operation, World

MANY = 50
AT_ONCE = 16


def _at_once(work: Callable[[], Any], times: int = MANY) -> list[Any]:
    """``work()`` so many times, as many at once as the site has threads for them."""
    together = threading.Barrier(AT_ONCE)

    def one(number: int) -> Any:
        if number < AT_ONCE:
            together.wait(60)
        return work()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(times)))


def test_fifty_reports_are_one_award(world: World) -> None:
    with world.database.begin() as tx:
        play = factories.make_play(
            tx, world.ada, world.here, world.task, claimed=None, seconds=30.0
        ).id
    ada = world.as_("participant")
    form = {"play": play, "success": "true", "intuitive": 4, "fun": 5, "did": 3}
    answers = _at_once(lambda: ada.post("/report", data=form))
    assert {answer.status_code for answer in answers} == {303}
    assert {answer.headers["location"] for answer in answers} == {f"/report?done={play}"}
    with world.database.read() as tx:
        entries = tx.scalars(select(LedgerEntry).where(LedgerEntry.play_id == play)).all()
        assert len(entries) == 1 and entries[0].points >= 10
        scores = select(Standing.score).where(
            Standing.participant_id == world.ada.id,
            Standing.scope == "all",
            Standing.period == "all",
        )
        assert tx.scalar(scores) == entries[0].points


def test_fifty_finishes_and_results_are_one(world: World) -> None:
    """The button, the rest and the agent's result, all at once and all many times over."""
    with world.database.begin() as tx:
        here = tx.get_one(Station, world.here.id)
        factories.make_lease(tx, here, world.ada)
        play = factories.make_play(
            tx,
            world.ada,
            here,
            world.task,
            state="running",
            ended_at=None,
            ended_by=None,
            seconds=None,
            claimed=None,
        ).id
    ada, agent = world.as_("participant"), world.as_("agent")
    told = {"ended_by": "rest", "rows": 1500, "seconds": 30.0, "path_m": 4.0, "checked": True}
    result = Operation("POST", f"/api/station/play/{play}/result", frozenset())
    turns = iter(range(10**6))
    lock = threading.Lock()

    def one() -> int:
        with lock:
            turn = next(turns)
        if turn % 2:
            return ada.post("/play/stop").status_code
        return agent.send(result, result.path, json=told).status_code

    assert set(_at_once(one)) == {200, 303}
    with world.database.read() as tx:
        row = tx.get_one(Play, play)
        assert row.state == "finished" and row.ended_by in ("button", "rest")
        entries = tx.scalars(select(LedgerEntry).where(LedgerEntry.play_id == play)).all()
        assert len({entry.key for entry in entries}) == len(entries)
        points = sum(entry.points for entry in entries)
    form = {"play": play, "success": "true", "intuitive": 4, "fun": 5, "did": 3}
    _at_once(lambda: ada.post("/report", data=form))
    with world.database.read() as tx:
        total = tx.scalar(select(func.sum(LedgerEntry.points)).where(LedgerEntry.play_id == play))
        assert points <= total <= 30
        assert standings.differences(tx) == {}


def test_fifty_starts_are_one_play(world: World) -> None:
    kiosk = world.as_("kiosk").sign_in(participant=world.ada)
    answers = _at_once(lambda: kiosk.post("/tasks/sort/start"))
    assert {answer.headers["location"] for answer in answers} == {"/play"}
    with world.database.read() as tx:
        running = tx.scalars(select(Play).where(Play.state == "running")).all()
        assert len(running) == 1
        assert len(tx.scalars(select(StationLease)).all()) == 1


def test_two_at_two_kiosks_of_one_station_are_one_turn(world: World) -> None:
    """ASVS 2.3.4: no double booking."""
    people = [world.as_("kiosk").sign_in(participant=who) for who in (world.ada, world.bob)]
    turns = iter(range(10**6))
    lock = threading.Lock()

    def one() -> int:
        with lock:
            who = people[next(turns) % 2]
        return who.post("/tasks/sort/start").status_code

    assert set(_at_once(one)) == {303}
    with world.database.read() as tx:
        assert tx.scalar(select(func.count()).where(Play.state == "running")) == 1


def test_fifty_takes_of_the_last_piece_are_one(world: World) -> None:
    with world.database.begin() as tx:
        rewards.stock(
            tx, item_id="candy", pieces=1, staff_id=world.staff["operator"].id, key=new_id()
        )
        for who in (world.ada, world.bob):
            award(
                tx,
                key=f"staff:{who.id}",
                participant_id=who.id,
                kind="staff",
                points=100,
                play_id=None,
                task_id=None,
            )
    people = [world.as_("participant"), world.as_("other participant")]
    turns = iter(range(10**6))
    lock = threading.Lock()

    def one() -> str:
        with lock:
            who = people[next(turns) % 2]
        form = {"item": "candy", "key": new_id()}
        return str(who.post("/rewards/take", data=form).headers["location"])

    places = _at_once(one)
    assert places.count("/rewards?took=candy") == 1
    with world.database.read() as tx:
        assert tx.scalar(select(func.sum(RewardEntry.count))) == 0
        assert tx.get(RewardItem, "candy") is not None


def test_a_pairing_code_and_a_phones_link_are_used_once(world: World) -> None:
    with world.database.begin() as tx:
        code = pairing.new_code(tx, world.key, "here", "agent")
        link = phone.new_link(tx, world.key, tx.merge(world.here), None, "en")
        people = tx.scalar(select(func.count()).select_from(Participant))
    nobody = world.as_("nobody")
    nobody.csrf()
    paired = _at_once(
        lambda: nobody.post("/api/station/pair", csrf=None, json={"code": code}).status_code,
        AT_ONCE,
    )
    assert paired.count(200) == 1 and set(paired) <= {200, 403, 429}
    came = _at_once(
        lambda: nobody.post("/signin/phone", data={"link": link}).headers["location"], AT_ONCE
    )
    assert came.count("/signin?problem=link") == AT_ONCE - 1
    with world.database.read() as tx:
        assert tx.scalar(select(func.count()).select_from(Participant)) == people + 1


def test_a_limit_counts_all_that_come_at_once(world: World) -> None:
    """CTFd 3.8.7: attempts that race each other were not counted."""
    limiter = world.app.state.site.limiter

    def one() -> bool:
        try:
            limiter.hit("test", "5 per hour", "account:ada")
        except TooManyError:
            return False
        return True

    assert _at_once(one).count(True) == 5


def test_guesses_of_a_second_factor_that_race_are_few(world: World) -> None:
    staff = world.staff["operator"]
    nobody = world.as_("nobody")
    nobody.csrf("/staff/signin")
    form = {"name": staff.name, "password": factories.PASSWORD, "code": "000000"}
    answers = _at_once(lambda: nobody.post("/staff/signin", data=form).status_code, AT_ONCE)
    assert answers.count(401) == 5 and answers.count(429) == AT_ONCE - 5


@pytest.mark.parametrize("name", ["Grace", "Gгасе", "g r a c e"])
def test_one_name_is_one_persons(name: str, world: World) -> None:
    """Two who ask at once for names that look alike: one has it."""
    with world.database.begin() as tx:
        for who in (world.ada, world.bob):
            row = tx.get_one(Participant, who.id)
            row.nickname = row.skeleton = None
    people = [world.as_("participant"), world.as_("other participant")]
    names = iter(["Grace", name])
    with ThreadPoolExecutor(2) as pool:
        answers = [
            future.result().status_code
            for future in [
                pool.submit(who.post, "/nickname", data={"nickname": next(names)}) for who in people
            ]
        ]
    assert sorted(answers) == [303, 422]
    with world.database.read() as tx:
        forms = tx.scalars(select(Participant.skeleton).where(Participant.skeleton.is_not(None)))
        assert len(list(forms)) == 1
