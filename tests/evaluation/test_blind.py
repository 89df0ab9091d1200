"""Blind comparisons: order, what the person and the file are told, going on, and the figures."""

from __future__ import annotations

import json

import pytest

from collect.evaluation.aloha import AlohaTransferWorld
from collect.evaluation.blind import BlindSession, order, table
from collect.evaluation.world import WorldOptions
from robot_stack.errors import ConfigError, EpisodeError
from tests.evaluation.transfer import transfer

POLICIES = ("tcp://one#good", "tcp://two#bad")


class Person:
    """Judges as told, and remembers what they were told."""

    def __init__(self, *answers, patience=10**6):
        self.answers = list(answers)
        self.patience = patience
        self.told = []

    def ready(self, trial, trials):
        self.told.append((trial, trials))
        self.patience -= 1
        return self.patience >= 0

    def judge(self, trial):
        return self.answers.pop(0) if self.answers else "success"


def session(directory, person, run=lambda policy, trial: {}, pairs=3, seed=1, policies=POLICIES):
    return BlindSession(
        directory,
        policies,
        pairs=pairs,
        seed=seed,
        run=run,
        ready=person.ready,
        judge=person.judge,
    )


def test_each_pair_holds_both_in_random_order():
    drawn = order(POLICIES, 200, 4)
    pairs = [tuple(drawn[i : i + 2]) for i in range(0, 400, 2)]
    assert set(pairs) == {POLICIES, POLICIES[::-1]}
    assert 60 < sum(pair == POLICIES for pair in pairs) < 140
    assert drawn == order(POLICIES, 200, 4) != order(POLICIES, 200, 5)


def test_two_policies_in_the_virtual_cell_judged_by_what_happened(tmp_path):
    world = AlohaTransferWorld(WorldOptions())
    outcome = {}

    def run(policy, trial):
        rewards = transfer(world, seed=trial // 2, grip=policy.endswith("good"))
        outcome[trial] = world.success
        return {"steps": len(rewards)}

    person = Person()
    person.judge = lambda trial: "success" if outcome[trial] else "failure"
    with session(tmp_path, person, run, pairs=2) as blind:
        blind.conduct()
        report = blind.report()
    assert report["policies"][POLICIES[0]]["successes"] == 2
    assert report["policies"][POLICIES[1]]["successes"] == 0
    assert report["pairs"] == 2
    assert report["paired_p"] == pytest.approx(0.5)  # 2 of 4 patterns are as extreme
    assert report["complete"]
    assert [trial["policy"] for trial in report["trials"]] == order(POLICIES, 2, 1)
    assert report["trials"][0]["steps"] > 100
    assert "good" in "".join(str(cell) for cell in table(report).columns[0].cells)


def test_neither_the_person_nor_a_verdict_names_the_policy(tmp_path):
    person = Person("success", "failure")
    with session(tmp_path, person) as blind:
        blind.conduct()
    assert person.told == [(n, 6) for n in range(6)]
    header, *lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert all("good" not in line and "bad" not in line for line in lines)
    assert [json.loads(line)["success"] for line in lines[:2]] == [True, False]
    assert json.loads(header)["seed"] == 1


def test_a_session_goes_on_where_it_was_ended(tmp_path):
    ran = []

    def run(policy, trial):
        ran.append((trial, policy))
        return {}

    with session(tmp_path, Person(patience=2), run) as blind:
        blind.conduct()
        assert blind.next_trial == 2
        assert not blind.report()["complete"]
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": 2, "succ')  # killed while it wrote
    with session(tmp_path, Person("success", "quit"), run) as blind:
        blind.conduct()
    with session(tmp_path, Person(), run) as blind:
        blind.conduct()
        assert blind.report()["complete"]
    assert [trial for trial, _ in ran] == [0, 1, 2, 3, 3, 4, 5]
    assert [policy for _, policy in ran] == [order(POLICIES, 3, 1)[trial] for trial, _ in ran]


def test_again_runs_a_trial_anew_and_undo_the_one_before(tmp_path):
    ran = []
    person = Person("again", "success", "undo", "failure", "failure", "success")
    with session(tmp_path, person, lambda policy, trial: ran.append(trial) or {}, pairs=1) as blind:
        blind.conduct()
        report = blind.report()
    # 0 again, 0 success; 1: first take back 0, then failure; 0 anew, failure.
    assert ran == [0, 0, 1, 0]
    assert [trial["success"] for trial in report["trials"]] == [False, False]


def test_pairs_that_are_not_complete_do_not_count_as_pairs(tmp_path):
    with session(tmp_path, Person(patience=3)) as blind:
        blind.conduct()
        report = blind.report()
    assert report["pairs"] == 1
    assert sum(row["trials"] for row in report["policies"].values()) == 3


def test_another_comparison_is_not_mixed_in(tmp_path):
    with (
        session(tmp_path, Person()),
        pytest.raises(EpisodeError, match="another evaluation writes"),
    ):
        session(tmp_path, Person())
    with pytest.raises(EpisodeError, match="seed was 1, is now 2"):
        session(tmp_path, Person(), seed=2)
    with pytest.raises(ConfigError, match="two policies"):
        session(tmp_path / "other", Person(), policies=("a", "a"))
