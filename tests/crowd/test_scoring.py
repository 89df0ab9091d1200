"""Claim, evidence and review: one result in any order, whoever says it twice; badges and levels."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd import badges, ledger, scoring, standings
from collect.crowd.badges import Level
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.scoring import Points, Verdict
from collect.crowd.tables import LedgerEntry, Participant, Play, Standing, Station, Task
from tests.crowd.factories import make_participant, make_play, make_station, make_task

NOON = dt.datetime(2026, 11, 18, 12, tzinfo=dt.UTC)
SMOOTH = {
    "seconds": 20.0,
    "path_m": 3.0,
    "jerk": 10.0,
    "idle_fraction": 0.1,
    "collisions": 0,
    "dropped_frames": 0,
}


class Visit:
    """Somebody at a station with an easy and a hard task, par 40 s each."""

    def __init__(self, tx: Session, key: SiteKey) -> None:
        self.tx = tx
        self.who: Participant = make_participant(tx, tutorial_at=None, created_at=NOON)
        self.station: Station = make_station(tx, key)
        self.easy: Task = make_task(tx, "easy")
        self.hard: Task = make_task(tx, "hard")

    def play(self, task: Task | None = None, **columns: Any) -> Play:
        values: dict[str, Any] = {"metrics": SMOOTH, "state": "synced", "seconds": 20.0}
        values |= {"started_at": NOON, "ended_at": NOON}
        return make_play(
            self.tx, self.who, self.station, task or self.easy, **{**values, **columns}
        )

    def points(self) -> Points:
        return scoring.points(self.tx, self.who.id)

    def quality(self) -> int:
        standing = self.tx.get(Standing, ("quality", "all", self.who.id))
        return 0 if standing is None else standing.score


@pytest.fixture
def visit(database: Database, key: SiteKey) -> Any:
    with database.begin() as tx:
        made = Visit(tx, key)
        yield made
        assert standings.differences(tx) == {}


def test_a_claim_is_provisional_and_counts_once(visit: Visit) -> None:
    play = visit.play(visit.hard, state="finished", metrics={})
    assert scoring.claim(visit.tx, play) is not None
    assert scoring.claim(visit.tx, play) is None
    assert visit.points() == Points(confirmed=0, provisional=20)
    assert visit.points().total == 20


@pytest.mark.parametrize(
    "columns",
    [
        {"claimed": False},
        {"claimed": None},
        {"kind": "tutorial"},
        {"kind": "free"},
        {"state": "void"},
    ],
)
def test_what_earns_no_points(visit: Visit, columns: dict[str, Any]) -> None:
    play = visit.play(**columns)
    assert scoring.claim(visit.tx, play) is None
    if columns.keys() != {"claimed"}:
        assert scoring.evidence(visit.tx, play) is None
        assert scoring.review(visit.tx, play, "confirm", 3) is None
    assert visit.points().total == 0


def test_evidence_confirms_and_adds_for_speed(visit: Visit) -> None:
    play = visit.play()  # half of par: a quarter more, of 10
    scoring.claim(visit.tx, play)
    entry = scoring.evidence(visit.tx, play)
    assert entry is not None and entry.points == 2
    assert scoring.evidence(visit.tx, play) is None
    assert visit.points() == Points(confirmed=12, provisional=0)


def test_evidence_takes_back_what_the_check_has_not_seen(visit: Visit) -> None:
    play = visit.play(checked=False)
    scoring.claim(visit.tx, play)
    scoring.evidence(visit.tx, play)
    assert visit.points() == Points(0, 0)
    kinds = visit.tx.scalars(select(LedgerEntry.kind).order_by(LedgerEntry.id)).all()
    assert kinds == ["claim", "reversal", "evidence"]


def test_a_success_that_was_seen_counts_though_it_was_not_claimed(visit: Visit) -> None:
    play = visit.play(checked=True, claimed=False)
    scoring.evidence(visit.tx, play)
    assert visit.points() == Points(12, 0)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.CONFIRMED),
        ({"seconds": 3.9}, Verdict.REFUTED),  # of 40 s par
        ({"seconds": 4.1}, Verdict.CONFIRMED),
        ({"seconds": 126.0}, Verdict.UNCLEAR),  # the task ends after 120 s
        ({"path_m": 0.29}, Verdict.REFUTED),
        ({"path_m": None}, Verdict.UNCLEAR),
        ({"path_m": "long"}, Verdict.UNCLEAR),
        ({"idle_fraction": 0.91}, Verdict.REFUTED),
        ({"idle_fraction": 0.51}, Verdict.UNCLEAR),
        ({"dropped_frames": 501}, Verdict.REFUTED),  # 25 a second
        ({"dropped_frames": 51}, Verdict.UNCLEAR),
        ({"jerk": 61.0}, Verdict.UNCLEAR),
        ({"jerk": float("nan")}, Verdict.UNCLEAR),
        ({"collisions": 4}, Verdict.UNCLEAR),
        ({"collisions": True}, Verdict.UNCLEAR),  # no number
    ],
    ids=str,
)
def test_what_measurements_say(change: dict[str, Any], verdict: Verdict) -> None:
    task = Task(id="t", difficulty="easy", seconds=120, par_s=40.0)
    play = Play(metrics={**SMOOTH, **change}, checked=None, seconds=None)
    assert scoring.judge(play, task).verdict is verdict
    for checked, certain in ((True, Verdict.CONFIRMED), (False, Verdict.REFUTED)):
        play.checked = checked
        assert scoring.judge(play, task).verdict is certain


def test_nothing_is_judged_before_the_measurements_have_come(visit: Visit) -> None:
    play = visit.play(state="finished")
    assert scoring.evidence(visit.tx, play) is None
    unclear = visit.play(metrics={})
    assert scoring.evidence(visit.tx, unclear) is None
    assert visit.points().total == 0


def test_staff_stand_over_evidence_and_may_change_their_minds(visit: Visit) -> None:
    play = visit.play(visit.hard)
    scoring.claim(visit.tx, play)
    scoring.review(visit.tx, play, "reverse", 1)
    assert scoring.evidence(visit.tx, play) is None
    assert (visit.points(), visit.quality()) == (Points(0, 0), 0)
    scoring.review(visit.tx, play, "confirm", 3)
    assert (visit.points(), visit.quality()) == (Points(25, 0), 6)
    assert scoring.review(visit.tx, play, "confirm", 3) is None
    assert scoring.review(visit.tx, play, "unclear", 0) is None
    scoring.review(visit.tx, play, "confirm", 1)
    assert (visit.points(), visit.quality()) == (Points(25, 0), 2)
    scoring.review(visit.tx, play, "reverse", 1)
    assert (visit.points(), visit.quality()) == (Points(0, 0), 0)


@pytest.mark.parametrize("arguments", [("maybe", 1), ("confirm", 4), ("confirm", -1)])
def test_reviews_are_of_the_closed_list(visit: Visit, arguments: tuple[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        scoring.review(visit.tx, visit.play(), *arguments)


STEPS: dict[str, Callable[[Session, Play], LedgerEntry | None]] = {
    "claim": scoring.claim,
    "evidence": scoring.evidence,
    "review": lambda tx, play: scoring.review(tx, play, "confirm", 2),
}


@pytest.mark.parametrize("order", list(itertools.permutations(STEPS)), ids="-".join)
def test_any_order_and_any_repetition_give_the_same(visit: Visit, order: tuple[str, ...]) -> None:
    play = visit.play(visit.hard)
    for _ in range(2):
        for step in order:
            STEPS[step](visit.tx, play)
        assert (visit.points(), visit.quality()) == (Points(25, 0), 4)
    assert ledger.points_of(visit.tx, visit.who.id) == 25


def test_points_count_for_the_day_of_the_play(visit: Visit) -> None:
    play = visit.play()
    scoring.claim(visit.tx, play, at=NOON + dt.timedelta(hours=1))
    scoring.review(visit.tx, play, "confirm", 3, at=NOON + dt.timedelta(days=9))
    days = visit.tx.execute(
        select(Standing.period, func.max(Standing.score)).group_by(Standing.period)
    ).all()
    assert sorted(map(tuple, days)) == [("2026-11-18", 12), ("2026-W47", 12), ("all", 12)]


@pytest.mark.parametrize(
    ("seconds", "extra"),
    [(0.1, 4), (20.0, 2), (39.9, 0), (40.0, 0), (80.0, 0), (0.0, 0), (float("nan"), 0)],
)
def test_faster_than_par_earns_up_to_half_as_much_again(seconds: float, extra: int) -> None:
    assert scoring.bonus(10, seconds, 40.0) == extra
    assert scoring.bonus(20, 1e-9, 40.0) <= 10


# -- badges ------------------------------------------------------------------------------------


def test_badges_rest_on_confirmed_plays_and_go_with_them(visit: Visit) -> None:
    first = visit.play(seconds=20.0)
    scoring.claim(visit.tx, first)
    assert badges.of_participant(visit.tx, visit.who.id) == []
    scoring.evidence(visit.tx, first)
    assert badges.of_participant(visit.tx, visit.who.id) == ["first_success", "swift"]
    second = visit.play(visit.hard, seconds=30.0)
    scoring.review(visit.tx, second, "confirm", 3)
    assert badges.of_participant(visit.tx, visit.who.id) == [
        "first_success",
        "hard_success",
        "swift",
        "explorer",
        "smooth",
    ]
    scoring.review(visit.tx, second, "reverse", 3)
    assert badges.of_participant(visit.tx, visit.who.id) == ["first_success", "swift"]


@pytest.mark.parametrize(
    ("seconds", "measured", "swift"), [(55.0, 20.0, True), (15.0, 21.0, False), (15.0, None, True)]
)
def test_swift_is_by_the_time_that_points_are_given_for(
    visit: Visit, seconds: float, measured: float | None, swift: bool
) -> None:
    """From the request on there are the robot's way home and the squeeze, too. Par is 40 s."""
    play = visit.play(seconds=seconds, metrics={**SMOOTH, "seconds": measured})
    scoring.review(visit.tx, play, "confirm", 1)
    assert ("swift" in badges.of_participant(visit.tx, visit.who.id)) == swift


def test_badges_of_many_plays(visit: Visit) -> None:
    for number in range(10):
        day = NOON + dt.timedelta(days=number // 4)
        play = visit.play(seconds=35.0, started_at=day, ended_at=day)
        scoring.claim(visit.tx, play)
        scoring.evidence(visit.tx, play)
        held = badges.of_participant(visit.tx, visit.who.id)
        assert ("ten" in held, "regular" in held) == (number >= 9, number >= 8)
    visit.who.tutorial_at = NOON
    assert badges.update(visit.tx, visit.who.id) == ["tutorial"]
    assert badges.update(visit.tx, visit.who.id) == []


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (-5, Level(1, 0, 30)),
        (0, Level(1, 0, 30)),
        (29, Level(1, 0, 30)),
        (30, Level(2, 30, 90)),
        (89, Level(2, 30, 90)),
        (90, Level(3, 90, 180)),
        (180, Level(4, 180, 300)),
    ],
)
def test_levels(points: int, expected: Level) -> None:
    assert badges.level(points) == expected


def test_each_level_begins_where_the_last_one_ended() -> None:
    for points in range(20_000):
        level = badges.level(points)
        assert level.floor <= points < level.ceiling
