"""Plays: begun in the right order of steps, ended once, reported once, synced once."""

from __future__ import annotations

import datetime as dt
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from collect.crowd import ledger, plays, standings, stations
from collect.crowd.database import Database
from collect.crowd.plays import PlayError, Result
from collect.crowd.tables import (
    Consent,
    LedgerEntry,
    Participant,
    Play,
    Station,
    Task,
    Tombstone,
    utc_now,
)

Make = Callable[..., Any]
GOOD = {
    "seconds": 20.0,
    "path_m": 4.0,
    "jerk": 20.0,
    "idle_fraction": 0.1,
    "collisions": 0.0,
    "dropped_frames": 0.0,
}
FILE = {"sha256": "a" * 64, "file": "cafe/x.hdf5"}


class Scene:
    """A participant whose turn it is at a station, and what they do there."""

    def __init__(
        self, database: Database, station: Station, who: Participant, consent: Consent, task: Task
    ) -> None:
        self.database = database
        self.station, self.who, self.consent, self.task = station, who, consent, task
        with database.begin() as tx:
            stations.grant(tx, station, who)

    def start(self, **values: Any) -> Play:
        given: dict[str, Any] = {"task": self.task, "kind": "task", "consent": self.consent}
        with self.database.begin() as tx:
            return plays.start(tx, self.station, self.who, **{**given, **values})

    def refused(self, **values: Any) -> str:
        with pytest.raises(PlayError) as refusal:
            self.start(**values)
        return refusal.value.reason

    def finish(self, play: Play, by: plays.EndedBy = "button") -> bool:
        with self.database.begin() as tx:
            return plays.finish(tx, play, by=by)

    def report(self, play: Play, *, claimed: bool = True) -> LedgerEntry | None:
        with self.database.begin() as tx:
            return plays.report(tx, play, claimed=claimed, likert=(5, 4, 3))

    def result(self, play: Play, **values: Any) -> None:
        told: dict[str, Any] = {"ended_by": "rest", "rows": 1000, "metrics": GOOD, **FILE}
        with self.database.begin() as tx:
            plays.result(tx, play, Result(**{**told, **values}))

    def row(self, play: Play) -> Play:
        with self.database.read() as tx:
            return tx.get_one(Play, play.id)

    def points(self) -> int:
        with self.database.read() as tx:
            assert standings.differences(tx) == {}
            return ledger.points_of(tx, self.who.id)

    def change(self, what: type[Any], row_id: str, **columns: Any) -> None:
        with self.database.begin() as tx:
            row = tx.get_one(what, row_id)
            for name, value in columns.items():
                setattr(row, name, value)


@pytest.fixture
def scene(
    database: Database,
    make_station: Make,
    make_participant: Make,
    make_consent: Make,
    make_task: Make,
) -> Scene:
    who = make_participant()
    return Scene(database, make_station(), who, make_consent(who), make_task())


def test_a_play_from_start_to_points(scene: Scene) -> None:
    play = scene.start()
    assert scene.start().id == play.id, "a second press of the button is the same play"
    assert scene.finish(play, "rest")
    assert not scene.finish(play, "button")
    assert scene.row(play).ended_by == "rest"
    assert scene.report(play) is not None
    assert scene.report(play) is None
    assert scene.points() == 10
    scene.result(play)
    scene.result(play)
    done = scene.row(play)
    assert (done.state, done.metrics, done.file) == ("synced", GOOD, "cafe/x.hdf5")
    assert scene.points() == 12  # believed, and in half the par time


def test_the_file_may_be_faster_than_the_participant(scene: Scene) -> None:
    play = scene.start()
    scene.result(play)  # and faster than the heartbeat that would have ended it
    assert (scene.row(play).state, scene.row(play).ended_by) == ("synced", "rest")
    assert scene.points() == 0
    scene.report(play)
    assert scene.points() == 12


def test_a_failure_that_is_told_late_earns_nothing(scene: Scene) -> None:
    play = scene.start()
    scene.result(play)
    scene.report(play, claimed=False)
    assert scene.points() == 0


def test_what_was_not_recorded_is_void_and_its_points_go(scene: Scene) -> None:
    play = scene.start()
    scene.finish(play)
    scene.report(play)
    assert scene.points() == 10
    for _ in range(2):
        scene.result(play, rows=0, metrics={}, sha256=None, file=None)
    assert scene.row(play).state == "void"
    assert scene.points() == 0
    scene.result(play)  # reordered: there is a recording after all
    scene.result(play, rows=0, metrics={}, sha256=None, file=None)
    assert (scene.row(play).state, scene.points()) == ("synced", 12)


def test_one_play_has_one_file(scene: Scene) -> None:
    play = scene.start()
    scene.result(play)
    with pytest.raises(PlayError) as refusal:
        scene.result(play, sha256="b" * 64)
    assert refusal.value.reason == "file"
    assert scene.row(play).sha256 == "a" * 64


def test_parallel_finishes_give_one_award(scene: Scene) -> None:
    play = scene.start()
    barrier = threading.Barrier(50)
    ended: list[bool] = []

    def finish() -> None:
        barrier.wait(30)
        with scene.database.begin() as tx:
            mine = tx.get_one(Play, play.id)
            ended.append(plays.finish(tx, mine, by="button"))
            plays.report(tx, mine, claimed=True, likert=(3, 3, 3))

    threads = [threading.Thread(target=finish) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ended) == [False] * 49 + [True]
    assert scene.points() == 10
    with scene.database.read() as tx:
        assert tx.scalar(select(func.count()).where(LedgerEntry.play_id == play.id)) == 1


def test_the_steps_before_a_play(scene: Scene, make_participant: Make, make_task: Make) -> None:
    someone = make_participant()
    scene.change(Participant, scene.who.id, tutorial_at=None)
    scene.who.tutorial_at = None
    assert scene.refused() == "tutorial"
    assert scene.refused(task=None, kind="free") == "tutorial"
    scene.who.tutorial_at = utc_now()
    scene.who.adult = None
    assert scene.refused() == "age"
    scene.who.adult = True
    assert scene.refused(task=None) == "task"
    assert scene.refused(kind="free") == "task"
    assert scene.refused(task=make_task(active=False)) == "task"
    scene.consent.withdrawn_at = utc_now()
    assert scene.refused() == "consent"
    scene.consent.withdrawn_at = None
    scene.consent.scopes = ["research"]
    assert scene.refused() == "consent"
    scene.consent.scopes = ["record"]
    me, scene.who = scene.who, someone
    assert scene.refused() == "lease"
    scene.who = me
    play = scene.start()
    assert scene.refused(task=None, kind="free") == "running"
    scene.finish(play)
    assert scene.refused() == "unreported"
    scene.report(play)
    scene.start()


def test_a_station_that_cannot_play_is_not_asked_to(scene: Scene) -> None:
    scene.change(Station, scene.station.id, closed=True)
    assert scene.refused() == "closed"
    scene.change(Station, scene.station.id, closed=False, state={"phase": "fault"})
    assert scene.refused() == "fault"
    scene.change(Station, scene.station.id, state={}, seen_at=utc_now() - dt.timedelta(seconds=20))
    assert scene.refused() == "offline"


def test_plays_a_day_are_capped_and_void_ones_are_free(scene: Scene) -> None:
    for _ in range(2):
        play = scene.start(per_day=2)
        scene.finish(play)
        scene.report(play)
    assert scene.refused(per_day=2) == "cap"
    scene.result(play, rows=0, metrics={}, sha256=None, file=None)
    scene.start(per_day=2)
    with scene.database.read() as tx:
        assert plays.today(tx, scene.who, utc_now() + dt.timedelta(days=1)) == 0


def test_nobody_is_asked_about_yesterday(scene: Scene) -> None:
    play = scene.start()
    scene.finish(play)
    with scene.database.read() as tx:
        now = utc_now()
        found = plays.unreported(tx, scene.who, now)
        assert found is not None and found.id == play.id
        assert plays.unreported(tx, scene.who, now + plays.REPORT_WITHIN) is None


def test_a_running_play_is_not_reported(scene: Scene) -> None:
    play = scene.start()
    with pytest.raises(PlayError) as refusal:
        scene.report(play)
    assert refusal.value.reason == "running"


@pytest.mark.parametrize("likert", [(0, 3, 3), (3, 6, 3)])
def test_answers_are_one_to_five(scene: Scene, likert: tuple[int, int, int]) -> None:
    play = scene.start()
    scene.finish(play)
    with scene.database.begin() as tx, pytest.raises(ValueError, match="1 to 5"):
        plays.report(tx, play, claimed=True, likert=likert)


def test_an_erased_play_is_left_alone(scene: Scene) -> None:
    play = scene.start()
    with scene.database.begin() as tx:
        assert not plays.erased(tx, play.id)
        tx.add(Tombstone(id=play.id, kind="play", reason="asked"))
        tx.get_one(Play, play.id).state = "void"
        assert plays.erased(tx, play.id)
    scene.result(play)
    assert (scene.row(play).state, scene.row(play).file) == ("void", None)


@pytest.mark.parametrize(
    ("told", "heard_s", "state"),
    [
        ({"boot": "b", "play": None}, 2.0, "void"),
        ({"boot": "b", "play": "another"}, 2.0, "void"),
        ({"boot": "b", "play": None}, 1.0, "finished"),  # it had not heard of it yet
        ({"boot": "b", "play": None}, -1.0, "finished"),
        ({}, 2.0, "finished"),  # no agent has ever spoken
        ({"boot": "b", "play": "this"}, 2.0, "finished"),
        ({"boot": "b", "play": None, "ended": {"play": "this", "by": "rest"}}, 2.0, "finished"),
    ],
)
def test_what_ended_before_the_robot_began_is_void(
    scene: Scene, told: dict[str, Any], heard_s: float, state: str
) -> None:
    play = scene.start()
    text = json.dumps(told).replace("this", play.id)
    heard = play.started_at + dt.timedelta(seconds=heard_s)
    scene.change(Station, scene.station.id, state=json.loads(text), seen_at=heard)
    with scene.database.begin() as tx:
        assert plays.finish(tx, play, by="button", now=play.started_at + dt.timedelta(seconds=4))
    assert scene.row(play).state == state
    scene.result(play)  # and if it was recorded all the same, it counts
    assert scene.row(play).state == "synced"
