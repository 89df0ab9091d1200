"""Incentive arms: drawn for good, each sees its own, each look logged once a visit."""

from __future__ import annotations

import collections
import datetime as dt
import json

import pytest
from sqlalchemy import select

from collect.crowd import consent, data_rights, experiment
from collect.crowd.tables import Consent, Exposure, Participant, WebSession, utc_now
from robot_stack.cli import main


@pytest.fixture
def arms(database):
    with database.begin() as tx:
        for name, weight in (("material", 1.0), ("intrinsic", 2.0), ("social", 1.0)):
            experiment.set_arm(tx, name, weight, active=True)


def newcomers(tx, count):
    """People who have just agreed to everything."""
    people = [Participant(kind="guest", pseudonym=f"New {n}", arm=None) for n in range(count)]
    tx.add_all(people)
    tx.flush()
    scopes = list(consent.SCOPES)
    tx.add_all(
        Consent(participant_id=who.id, version="1", language="en", scopes=scopes) for who in people
    )
    tx.flush()
    return people


def agree(tx, who, *scopes, version="1"):
    """What the page of the consent does; the arm that it gives."""
    consent.give(tx, who, version, "en", scopes)
    return experiment.assign(tx, who)


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
        people = newcomers(tx, 400)
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
        people = newcomers(tx, 20)
        assert {experiment.assign(tx, who) for who in people} == {"intrinsic"}


def test_nobody_is_studied_who_does_not_agree_to_research(database, arms, make_participant):
    """Nor later: by then they have seen everything."""
    ada, bob = make_participant(), make_participant()
    with database.begin() as tx:
        assert agree(tx, ada, "record", "clips") is None
        assert agree(tx, bob, "record", "research") is not None
        consent.add(tx, "2", {"en": ("Anew", "Some words.")})
        assert agree(tx, ada, "record", "research", version="2") is None
    assert all(experiment.shows(ada, what) for what in experiment.ARMS.values())


def test_who_takes_research_back_sees_everything_and_has_the_same_arm_later(
    database, arms, make_participant
):
    ada = make_participant()
    with database.begin() as tx:
        arm = agree(tx, ada, "record", "research")
    (other, *_) = (what for name, what in experiment.ARMS.items() if name != arm)
    assert not experiment.shows(ada, other)
    with database.begin() as tx:
        data_rights.withdraw(tx, ada, ["clips"])
        assert not experiment.shows(ada, other)
        data_rights.withdraw(tx, ada, ["research"])
        assert not experiment.expose(tx, ada, experiment.ARMS[arm])
    with database.read() as tx:
        known = tx.get(Participant, ada.id)
    assert all(experiment.shows(known, what) for what in experiment.ARMS.values())
    with database.begin() as tx:
        assert agree(tx, ada, "record", "research") == arm
    assert not experiment.shows(ada, other)
    with database.begin() as tx:
        consent.add(tx, "2", {"en": ("Anew", "Some words.")})
        agree(tx, ada, "record", version="2")
    assert experiment.shows(ada, other), "agreeing to less takes it back, too"
    with database.begin() as tx:
        first = tx.scalars(select(Consent).where(Consent.participant_id == ada.id)).first()
        tx.get_one(Participant, ada.id).no_research = False  # as a backup has it
        consent.withdraw_again(tx, first.id, first.withdrawn)
    with database.read() as tx:
        assert experiment.shows(tx.get(Participant, ada.id), other)


def test_a_page_loaded_earlier_cannot_draw_again(database, arms, make_participant, make_consent):
    ada = make_participant()
    make_consent(ada)
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
