"""Incentive arms: drawn for good, each sees its own, each look logged once a visit."""

from __future__ import annotations

import collections
import datetime as dt
import json

import pytest
from sqlalchemy import select

from collect.crowd import experiment
from collect.crowd.tables import Exposure, Participant, WebSession, utc_now
from robot_stack.cli import main


@pytest.fixture
def arms(database):
    with database.begin() as tx:
        for name, weight in (("material", 1.0), ("intrinsic", 2.0), ("social", 1.0)):
            experiment.set_arm(tx, name, weight, active=True)


def exposures(database):
    with database.read() as tx:
        return tx.scalars(select(Exposure).order_by(Exposure.id)).all()


def test_without_an_experiment_everybody_sees_everything(database, make_participant):
    ada = make_participant()
    with database.begin() as tx:
        assert experiment.assign(tx, ada) is None
        assert not experiment.expose(tx, ada, "board")
    assert all(experiment.shows(who, w) for who in (ada, None) for w in experiment.ARMS.values())


def test_an_arm_sees_its_own_only(database, arms, make_participant):
    for arm, sees in {"material": "rewards", "intrinsic": "badges", "social": "board"}.items():
        who = make_participant(arm=arm)
        assert [w for w in ("rewards", "badges", "board") if experiment.shows(who, w)] == [sees]


def test_the_arm_is_drawn_by_weight_and_stays(database, arms):
    with database.begin() as tx:
        people = [Participant(kind="guest", pseudonym=f"Drawn {n}", arm=None) for n in range(400)]
        tx.add_all(people)
        tx.flush()
        drawn = [experiment.assign(tx, who) for who in people]
        experiment.set_arm(tx, "intrinsic", active=False)
        assert [experiment.assign(tx, who) for who in people] == drawn
    counts = collections.Counter(drawn)
    assert set(counts) == set(experiment.ARMS)
    # 200 of 400 expected, standard deviation 10.
    assert 140 <= counts["intrinsic"] <= 260


def test_nobody_new_gets_an_arm_that_is_off(database, arms):
    with database.begin() as tx:
        for name in ("material", "social"):
            experiment.set_arm(tx, name, active=False)
        people = [Participant(kind="guest", pseudonym=f"New {n}") for n in range(20)]
        tx.add_all(people)
        tx.flush()
        assert {experiment.assign(tx, who) for who in people} == {"intrinsic"}


def test_a_page_loaded_earlier_cannot_draw_again(database, arms, make_participant):
    ada = make_participant()
    with database.read() as tx:
        stale = tx.get(Participant, ada.id)
    with database.begin() as tx:
        first = experiment.assign(tx, ada)
    with database.begin() as tx:
        for _ in range(20):
            stale.arm = None
            assert experiment.assign(tx, stale) == first
    assert stale.arm == first


def test_a_look_is_logged_once_a_page_and_visit(database, arms, make_participant):
    ada = make_participant(arm="social")
    start = utc_now()

    def sign_in(name, at):
        with database.begin() as tx:
            tx.add(
                WebSession(
                    token_hash=name,
                    kind="participant",
                    participant_id=ada.id,
                    csrf="x",
                    created_at=at,
                    expires_at=at + dt.timedelta(days=1),
                )
            )

    def look(page, minutes):
        with database.begin() as tx:
            return experiment.expose(tx, ada, page, start + dt.timedelta(minutes=minutes))

    sign_in("first", start)
    assert [look("board", m) for m in (0, 1, 59, 600)] == [True, False, False, False]
    sign_in("second", start + dt.timedelta(minutes=700))
    assert look("board", 701)
    assert not look("board", 702)
    assert not look("rewards", 703)  # another arm's
    assert [(row.arm, row.page) for row in exposures(database)] == [("social", "board")] * 2


def test_pages_that_only_read_log_too(database, arms, make_participant):
    ada = make_participant(arm="material")
    for _ in range(3):
        experiment.log_exposure(database, ada, "rewards")
        experiment.log_exposure(database, ada, "board")
        experiment.log_exposure(database, None, "rewards")
    assert [(row.participant_id, row.page) for row in exposures(database)] == [(ada.id, "rewards")]


def test_arms_and_weights_that_cannot_be_are_refused(database):
    with database.begin() as tx:
        with pytest.raises(ValueError, match="no arm is called"):
            experiment.set_arm(tx, "threats", 1.0)
        with pytest.raises(ValueError, match="must be 0 to 1000"):
            experiment.set_arm(tx, "social", float("nan"))


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command_sets_and_ends(config_file, capsys):
    def command(*words):
        code = main(["crowd", "arms", *words, "--json", "--config", str(config_file)])
        return code, capsys.readouterr()

    _, said = command("--set", "material=1", "social=3")
    arms = {arm["name"]: arm for arm in json.loads(said.out)["arms"]}
    assert arms["social"]["weight"] == 3.0
    _, said = command("--off", "social")
    assert [arm["active"] for arm in json.loads(said.out)["arms"]] == [True, False]
    code, said = command("--set", "social=zero")
    assert code != 0
    assert "ARM=WEIGHT" in said.err


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_pages_show_and_log_by_arm(database, browser, make_participant):
    """Whose arm is about something else is led away, from a page and from taking a reward."""
    for arm, own in (("social", "/board"), ("material", "/rewards"), ("intrinsic", None)):
        browser.sign_in(participant=make_participant(arm=arm))
        for page in ("/board", "/rewards"):
            for _ in range(2):
                answer = browser.get(page)
                shown = (answer.status_code, answer.headers.get("location"))
                assert shown == ((200, None) if page == own else (303, "/me")), (arm, page)
        if own != "/rewards":
            form = {"item": "candy", "key": "0" * 36}
            assert browser.post("/rewards/take", data=form).headers["location"] == "/me"
    assert [(row.arm, row.page) for row in exposures(database)] == [
        ("social", "board"),
        ("material", "rewards"),
    ]
    browser.sign_in(participant=make_participant())
    assert browser.get("/board").status_code == browser.get("/rewards").status_code == 200
    assert len(exposures(database)) == 2
