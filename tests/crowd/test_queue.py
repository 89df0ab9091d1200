"""The queue: in the order of coming, called when it is free, and lost by who doesn't come."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from collect.crowd import queue, stations
from collect.crowd.config import SessionsConfig
from collect.crowd.database import Database
from collect.crowd.i18n import translator
from collect.crowd.stations import StationBusyError
from collect.crowd.tables import Participant, Station, utc_now

Make = Callable[..., Any]
SECOND = dt.timedelta(seconds=1)


@pytest.fixture
def people(make_participant: Make) -> list[Participant]:
    return [make_participant() for _ in range(4)]


def place(tx: Any, who: Participant, now: dt.datetime | None = None) -> queue.Place:
    found = queue.place(tx, who, now)
    assert found is not None
    return found


def test_first_come_first_served(
    database: Database, make_station: Make, people: list[Participant]
) -> None:
    station = make_station()
    ada, bob, eve, dan = people
    with database.begin() as tx:
        stations.grant(tx, station, ada)
        for who in (bob, eve):
            queue.join(tx, station, who)
        assert queue.join(tx, station, bob).ahead == 0  # a place is kept, not taken again
        assert [place(tx, who).ahead for who in (bob, eve)] == [0, 1]
        assert not place(tx, bob).called
        stations.release(tx, station, ada)
        assert place(tx, bob).called and not place(tx, eve).called
        for pushing in (eve, dan):
            with pytest.raises(StationBusyError) as refusal:
                stations.grant(tx, station, pushing)
            assert refusal.value.reason == "queue"
        stations.grant(tx, station, bob)
        assert queue.place(tx, bob) is None
        assert place(tx, eve).ahead == 0


def test_a_no_show_loses_the_place(
    database: Database, make_station: Make, people: list[Participant]
) -> None:
    station = make_station()
    ada, bob = people[:2]
    now = utc_now()
    with database.begin() as tx:
        assert queue.join(tx, station, ada, now).called
        queue.join(tx, station, bob, now)
        late = now + queue.CALL_FOR
        tx.get_one(Station, station.id).seen_at = late
        assert place(tx, ada, late - SECOND).called
        assert not stations.due(tx, late - SECOND)
        assert queue.place(tx, ada, late) is None
        assert stations.due(tx, late)
        stations.sweep(tx, late)
        assert place(tx, bob, late).called and queue.length(tx, station) == 1
        with pytest.raises(StationBusyError):
            stations.grant(tx, station, ada, late)
        stations.grant(tx, station, bob, late)


def test_who_is_called_has_time_to_walk_wait_for_the_kiosk_and_scan() -> None:
    walk_s, scan_s = 60, 30
    assert queue.CALL_FOR.total_seconds() >= walk_s + SessionsConfig().kiosk_idle_s + scan_s
    minutes = {"en": "three minutes", "de": "drei Minuten"}
    assert dt.timedelta(minutes=3) == queue.CALL_FOR, "as the texts say"
    for language, told in minutes.items():
        for text in ("called_text", "called_scan"):
            assert told in translator(language)(f"participant.queue.{text}")


def test_leaving_calls_the_next(
    database: Database, make_station: Make, people: list[Participant]
) -> None:
    station = make_station()
    ada, bob = people[:2]
    with database.begin() as tx:
        for who in (ada, bob):
            queue.join(tx, station, who)
        queue.leave(tx, ada)
        queue.leave(tx, ada)
        assert place(tx, bob).called


def test_nobody_waits_twice(
    database: Database, make_station: Make, people: list[Participant]
) -> None:
    here, there = make_station(), make_station()
    ada, bob = people[:2]
    with database.begin() as tx:
        queue.join(tx, here, ada)
        queue.join(tx, here, bob)
        assert queue.join(tx, there, ada).station_id == there.id
        assert place(tx, bob).called, "the place here went to the next"


def test_a_closed_or_silent_station_calls_nobody(
    database: Database, make_station: Make, people: list[Participant]
) -> None:
    silent = make_station(seen_at=None)
    closed = make_station(closed=True)
    ada, bob = people[:2]
    now = utc_now()
    with database.begin() as tx:
        assert not queue.join(tx, silent, ada, now).called
        with pytest.raises(StationBusyError):
            queue.join(tx, closed, bob, now)
        assert not stations.due(tx, now)
        tx.get_one(Station, silent.id).seen_at = now
        assert stations.due(tx, now)
        stations.sweep(tx, now)
        assert place(tx, ada, now).called


def test_the_wait_is_learnt_from_the_last_turns(
    database: Database, make_station: Make, make_play: Make, people: list[Participant]
) -> None:
    station = make_station()
    ada, bob, eve, dan = people
    now = utc_now()
    for fence in (1, 2):  # turns of 100 s
        began = now - dt.timedelta(hours=fence)
        ended = began + dt.timedelta(seconds=100 - queue.BETWEEN_S)
        make_play(dan, station, fence=fence, started_at=began, ended_at=ended)
    with database.begin() as tx:
        assert queue.turn_s(tx, station) == pytest.approx(100.0)
        stations.grant(tx, station, ada, now)
        for who in (bob, eve):
            queue.join(tx, station, who, now)
        later = now + 40 * SECOND
        assert place(tx, bob, later).expected_s == pytest.approx(60.0)
        assert place(tx, eve, later).expected_s == pytest.approx(160.0)
        assert queue.turn_s(tx, make_new(tx)) == queue.USUAL_TURN_S


def make_new(tx: Any) -> Station:
    station = Station(name="new", state={})
    tx.add(station)
    tx.flush()
    return station


def test_the_queue_has_an_end(
    database: Database,
    make_station: Make,
    make_participant: Make,
    people: list[Participant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 2)
    station = make_station()
    with database.begin() as tx:
        for who in people[:2]:
            queue.join(tx, station, who)
        with pytest.raises(StationBusyError) as refusal:
            queue.join(tx, station, people[2])
        assert refusal.value.reason == "queue"
