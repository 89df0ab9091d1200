"""The incentive report: ranks by hand and by SciPy, who counts and who doesn't."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from collect.crowd import data_rights, review
from collect.crowd.config import PointsConfig
from collect.crowd.experiment_report import Person, Sample, analyse, as_text, gather
from collect.crowd.ledger import award
from collect.crowd.rank_test import (
    EXACT,
    holm,
    least_p,
    mann_whitney,
    superiority_interval,
)
from collect.crowd.segments import Segment
from collect.crowd.tables import Exposure, Play, utc_now
from robot_stack.cli import main
from tests.crowd import factories

# -- ranks -----------------------------------------------------------------------------------------


def by_enumeration(a, b):
    """Two-sided p by going through all ways to divide the people, with ranks that average ties."""
    everybody = [*a, *b]
    rank = {
        value: sum(x < value for x in everybody) + (everybody.count(value) + 1) / 2
        for value in everybody
    }
    observed = sum(rank[x] for x in a)
    sums = [
        sum(rank[everybody[i]] for i in chosen)
        for chosen in itertools.combinations(range(len(everybody)), len(a))
    ]
    below = sum(s <= observed + 1e-9 for s in sums) / len(sums)
    above = sum(s >= observed - 1e-9 for s in sums) / len(sums)
    return min(1.0, 2.0 * min(below, above))


def test_by_hand():
    # All of one below all of the other: 1 of 20 ways, twice.
    test = mann_whitney([1, 2, 3], [4, 5, 6])
    assert (test.u, test.superiority, test.method) == (0.0, 0.0, "exact")
    assert test.p == pytest.approx(0.1)
    # Mann and Whitney's U counts pairs: 3 of 6 and a half for the tie.
    test = mann_whitney([1, 5], [2, 5, 4])
    assert test.u == 2.5
    assert test.superiority == pytest.approx(2.5 / 6)
    assert mann_whitney([7, 7], [7, 7, 7]).p == 1.0
    with pytest.raises(ValueError, match="both groups"):
        mann_whitney([], [1.0])


@pytest.mark.parametrize("seed", range(6))
def test_small_groups_are_exact_with_ties(seed):
    random = np.random.default_rng(seed)
    a, b = random.integers(0, 4, 5).tolist(), (random.integers(0, 4, 6) + seed % 3).tolist()
    assert mann_whitney(a, b).p == pytest.approx(by_enumeration(a, b))


@pytest.mark.parametrize(("n", "m", "method"), [(8, 9, "exact"), (20, 20, "exact"),
                                                (60, 70, "asymptotic")])  # fmt: skip
def test_as_scipy_says(n, m, method):
    random = np.random.default_rng(n)
    a, b = random.normal(0.4, 1.0, n), random.normal(0.0, 1.0, m)
    mine, theirs = mann_whitney(a.tolist(), b.tolist()), stats.mannwhitneyu(a, b, method=method)
    assert mine.u == theirs.statistic
    assert mine.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mine.method == ("exact" if n + m <= EXACT else "normal")


def test_many_ties_of_large_groups_as_scipy_says():
    random = np.random.default_rng(1)
    a, b = random.poisson(3.5, 80), random.poisson(2.6, 75)  # episodes a visitor, as in a cafe
    theirs = stats.mannwhitneyu(a, b, method="asymptotic")
    assert mann_whitney(a.tolist(), b.tolist()).p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mann_whitney([0.0] * 30, [0.0] * 30).p == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_least_p_is_that_of_complete_separation():
    for n, m in ((1, 1), (2, 3), (4, 4)):
        a, b = list(range(n)), list(range(100, 100 + m))
        assert mann_whitney(a, b).p == pytest.approx(least_p(n, m))
    assert least_p(0, 5) == 1.0


def test_the_interval_holds_what_it_is_of():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(20):
        a, b = random.normal(1.0, 1.0, 40).tolist(), random.normal(0.0, 1.0, 40).tolist()
        low, high = superiority_interval(a, b)
        assert 0.0 <= low <= mann_whitney(a, b).superiority <= high <= 1.0
        held += low <= 0.7602 <= high  # Phi(1 / sqrt 2)
    assert held >= 16  # of 19 expected
    assert superiority_interval([1.0, 2.0], [0.0]) == (1.0, 1.0)


# -- report ----------------------------------------------------------------------------------------


def people(**groups):
    rows = [Person(arm, True, False, n, q) for arm, rows in groups.items() for n, q in rows]
    return Sample(rows, {}, 0)


def test_the_numbers_by_hand():
    report = analyse(
        people(
            material=[(1, 1.0), (2, 2.0), (0, None)],
            intrinsic=[(3, 3.0), (4, 2.5), (5, 3.0)],
            social=[(2, None), (2, 1.0), (2, None)],
        )
    )
    assert report["participants"] == 9
    arm = report["arms"]["material"]
    assert (arm["participants"], arm["with_episode"], arm["episodes"]["total"]) == (3, 2, 3)
    assert arm["episodes"]["mean"] == pytest.approx(1.0)
    low, high = arm["episodes"]["ci95"]
    assert (low, high) == (0.0, 2.0)  # of 27 resamples' means the outermost
    assert arm["quality"]["known"] == 2
    assert arm["quality"]["mean"] == pytest.approx(1.5)
    assert report["arms"]["social"]["episodes"]["ci95"] is None  # all alike: no certainty
    pairs = {(p["first"], p["second"]): p for p in report["outcomes"]["episodes"]}
    first = pairs["material", "intrinsic"]
    assert (first["u"], first["superiority"], first["n"]) == (0.0, 0.0, [3, 3])
    assert first["p"] == pytest.approx(0.1)
    assert first["p_holm"] == pytest.approx(0.3)
    assert len(pairs) == 3
    said = "\n".join(report["warnings"])
    assert "Too few people for episodes" in said
    assert "no result of episodes whatever" in said
    text = as_text(report)
    assert "| material | 3 | 0 | 3 | 2 | 3 | 1.00 (0.00 to 2.00) | 2 |" in text
    assert "whatever could have been significant" in text
    json.dumps(report, allow_nan=False)


def test_a_difference_that_is_there_is_found_and_no_warning_given():
    random = np.random.default_rng(3)

    def arm(mean):
        return [(int(n), float(1 + i % 3)) for i, n in enumerate(random.poisson(mean, 70))]

    report = analyse(people(material=arm(3.0), intrinsic=arm(3.0), social=arm(5.0)))
    assert report["warnings"] == []
    pairs = {(p["first"], p["second"]): p for p in report["outcomes"]["episodes"]}
    assert pairs["material", "social"]["p_holm"] < 0.001
    assert pairs["material", "intrinsic"]["p_holm"] > 0.05
    assert pairs["material", "social"]["superiority_ci95"][1] < 0.5
    assert all(p["p_holm"] > 0.05 for p in report["outcomes"]["quality"])


def test_with_nobody_it_says_so():
    report = analyse(people())
    assert report["warnings"] == ["Nobody is in material and intrinsic and social."]
    assert "Nothing to compare" in as_text(report)
    alone = analyse(people(material=[(1, None)]))
    assert alone["outcomes"] == {"episodes": [], "quality": []}
    assert alone["arms"]["material"]["quality"] == {"known": 0, "mean": None, "ci95": None}


def test_only_what_is_confirmed_counts(database, make_participant, make_consent, make_station,
                                       make_task, make_staff):  # fmt: skip
    station, task, staff = make_station(), make_task(), make_staff("reviewer")
    ada = make_participant(arm="social")
    idle = make_participant(arm="social", kind="card")
    make_consent(idle)
    make_participant()  # in no arm
    hidden = make_participant(arm="material", hidden=True)
    erased = make_participant(arm="material", erased_at=utc_now())

    def play(tx, who, *kinds, state="synced", kind="task", quality=None, points=10):
        row = factories.make_play(tx, who, station, task, state=state, kind=kind)
        row.file = "x"
        for n, name in enumerate(kinds):
            award(
                tx,
                key=f"{name}:{row.id}",
                participant_id=who.id,
                play_id=row.id,
                task_id=task.id,
                kind=name,
                points=points if n == len(kinds) - 1 else 0,
            )
        if quality is not None:
            look = review.Review(play_id=row.id, staff_id=staff.id)
            tx.add(look)
            tx.flush()
            marks = [Segment(0, 1, "task", quality)]
            desk = review.ReviewConfig(double_share=0.0)
            review.commit(tx, look, "confirm", quality, marks, PointsConfig(), rows=2, desk=desk)
        return row

    with database.begin() as tx:
        play(tx, ada, "claim", "evidence")
        play(tx, ada, quality=3)
        play(tx, ada, quality=2)
        play(tx, ada, "claim")  # nobody has confirmed it
        play(tx, ada, "claim", "evidence", points=0)  # refuted
        play(tx, ada, "evidence", state="void")
        play(tx, ada, "evidence", state="finished")
        for who in (hidden, erased):
            play(tx, who, "evidence")
        tx.add(Exposure(participant_id=ada.id, arm="social", page="board"))
        tx.add(Exposure(participant_id=idle.id, arm="material", page="rewards"))  # another arm's
    with database.read() as tx:
        found = gather(tx)
        assert tx.query(Play).count() == 9
    assert sorted(found.people, key=lambda person: -person.episodes) == [
        Person("social", True, True, 3, 2.5),
        Person("social", False, False, 0, None),
    ]
    assert (found.left_out, found.erased) == ({("material", "hidden"): 1}, 0)


def test_who_is_gone_is_counted_and_not_compared(database):
    """Nor who never agreed to research; who agrees anew is there again."""
    with database.begin() as tx:
        people = [factories.make_participant(tx, arm="social") for _ in range(6)]
        stays, recorded, no_record, no_research, again, erased = people
        for who in people:
            scopes = ["record", "clips"] if who is recorded else ["record", "research"]
            factories.make_consent(tx, who, scopes=scopes)
        data_rights.withdraw(tx, no_record, ["record"])
        for who in (no_research, again):
            data_rights.withdraw(tx, who, ["research"])
        factories.make_consent(tx, again)
        data_rights.erase(tx, erased)
        stays.kind = "card"
    with database.read() as tx:
        sample = gather(tx)
    assert sorted(person.guest for person in sample.people) == [False, True]
    assert sample.left_out == {("social", "withdrawn"): 2, ("social", "not agreed"): 1}
    report = analyse(sample)
    assert report["left_out"]["social"] == {"withdrawn": 2, "not agreed": 1, "hidden": 0}
    said = as_text(report)
    assert "social 2 withdrawn, 1 not agreed, 0 hidden. Erased, of whatever arm: 1." in said
    assert "1 of 2 are guests" in said
    assert "taken back by 2, and 1 were erased" in said


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command_writes_report_and_plots(config_file, database, tmp_path, capsys):
    with database.begin() as tx:
        for n in range(6):
            who = factories.make_participant(tx, arm=("material", "social")[n % 2])
            factories.make_consent(tx, who)
    out = tmp_path / "report"
    words = ["crowd", "report", "--out", str(out), "--config", str(config_file)]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.json",
        "episodes.png", "episodes.svg", "quality.png", "quality.svg",
    }  # fmt: skip
    assert len(said["files"]) == 6
    assert said["arms"]["social"]["participants"] == 3
    assert "Nobody is in intrinsic." in said["warnings"]
    assert (out / "episodes.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "report.json").read_text())["participants"] == 6
    assert math.isclose(said["outcomes"]["episodes"][0]["p"], 1.0)
