"""Leases with a fence, heartbeats in any order, and stations that are lost."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from collect.crowd import plays, queue, stations
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.routes import station as station_routes
from collect.crowd.stations import StationBusyError
from collect.crowd.tables import Participant, Play, Station, StationLease, utc_now

Make = Callable[..., Any]


def state(**values: Any) -> dict[str, Any]:
    """What an idle agent says of itself."""
    return {"phase": "idle", "play": None, "boot": "b", "n": 1, **values}


@pytest.fixture
def begin(database: Database, make_consent: Make, make_task: Make) -> Callable[..., Play]:
    """A play that a participant with a turn at a station has begun."""

    def begin(
        station: Station, participant: Participant, kind: plays.Kind = "task", **values: Any
    ) -> Play:
        consent = make_consent(participant)
        task = make_task() if kind == "task" else None
        with database.begin() as tx:
            stations.grant(tx, station, participant, values.get("now"))
            return plays.start(
                tx, station, participant, task=task, kind=kind, consent=consent, **values
            )

    return begin


def test_two_kiosks_on_one_station_get_one_turn(
    database: Database, make_station: Make, make_participant: Make
) -> None:
    station, ada, bob = make_station(), make_participant(), make_participant()
    with database.begin() as tx:
        lease = stations.grant(tx, station, ada)
        assert stations.grant(tx, station, ada).fence == lease.fence
        with pytest.raises(StationBusyError) as refusal:
            stations.grant(tx, station, bob)
        assert refusal.value.reason == "busy"
        stations.release(tx, station, bob)  # not theirs
        assert stations.holder(tx, station).participant_id == ada.id  # type: ignore[union-attr]
        stations.release(tx, station, ada)
        assert stations.grant(tx, station, bob).fence == lease.fence + 1


def test_nobody_has_two_turns(
    database: Database, make_station: Make, make_participant: Make
) -> None:
    here, there, ada = make_station(), make_station(), make_participant()
    now = utc_now()
    with database.begin() as tx:
        stations.grant(tx, here, ada, now)
        with pytest.raises(StationBusyError) as refusal:
            stations.grant(tx, there, ada, now)
        assert refusal.value.reason == "elsewhere"
    later = now + stations.LEASE_FOR + dt.timedelta(seconds=1)
    with database.begin() as tx:
        tx.get_one(Station, there.id).seen_at = later
        stations.grant(tx, there, ada, later)  # the turn here had expired
        assert stations.holder(tx, here, later) is None


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"closed": True}, "closed"),
        ({"seen_at": None}, "offline"),
        ({"seen_at": utc_now() - dt.timedelta(minutes=1)}, "offline"),
    ],
)
def test_a_closed_or_silent_station_gives_no_turn(
    database: Database,
    make_station: Make,
    make_participant: Make,
    columns: dict[str, Any],
    reason: str,
) -> None:
    station, ada = make_station(**columns), make_participant()
    with database.begin() as tx, pytest.raises(StationBusyError) as refusal:
        stations.grant(tx, station, ada)
    assert refusal.value.reason == reason


def test_a_turn_expires_unless_it_is_renewed(
    database: Database, make_station: Make, make_participant: Make
) -> None:
    station, ada = make_station(), make_participant()
    now = utc_now()
    with database.begin() as tx:
        stations.grant(tx, station, ada, now)
        almost = now + stations.LEASE_FOR - dt.timedelta(seconds=1)
        stations.renew(tx, station, ada, almost)
        assert stations.holder(tx, station, almost + stations.LEASE_FOR / 2) is not None
        gone = almost + stations.LEASE_FOR
        assert stations.due(tx, gone)
        stations.sweep(tx, gone)
        assert tx.get(StationLease, station.id) is None
        assert not stations.due(tx, gone)
        with pytest.raises(StationBusyError) as refusal:
            stations.renew(tx, station, ada, gone)
        assert refusal.value.reason == "over"


def test_a_long_turn_ends_when_others_wait(
    database: Database, make_station: Make, make_participant: Make
) -> None:
    station, ada, bob = make_station(), make_participant(), make_participant()
    now = utc_now()
    with database.begin() as tx:
        lease = stations.grant(tx, station, ada, now)
        lease.expires_at = now + 2 * stations.TURN
        stations.renew(tx, station, ada, now + stations.TURN)
        queue.join(tx, station, bob, now)
        with pytest.raises(StationBusyError) as refusal:
            stations.renew(tx, station, ada, now + stations.TURN)
        assert refusal.value.reason == "over"


def test_orders_are_the_difference_between_what_is_and_what_shall_be(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada = make_station(), make_participant(nickname="Ada Lovelace")
    play = begin(station, ada)
    with database.begin() as tx:
        told = stations.heartbeat(tx, station, state(), key=key)
        (order,) = told["orders"]
        assert (order["do"], order["play"], order["kind"]) == ("start", play.id, "task")
        assert order["fence"] == told["fence"] == play.fence
        assert "Ada" not in str(told) and ada.id not in str(told)
        # It is at it: nothing to be asked. Asked twice, it is told twice.
        at_it = state(phase="playing", play=play.id, n=2)
        assert stations.heartbeat(tx, station, at_it, key=key)["orders"] == []
        plays.finish(tx, play, by="button")
        stop = [{"do": "stop", "play": play.id}]
        assert stations.heartbeat(tx, station, {**at_it, "n": 3}, key=key)["orders"] == stop
        assert stations.heartbeat(tx, station, {**at_it, "n": 4}, key=key)["orders"] == stop
        assert stations.heartbeat(tx, station, state(n=5), key=key)["orders"] == []


def test_a_heartbeat_that_was_overtaken_changes_nothing(
    database: Database, key: SiteKey, make_station: Make
) -> None:
    station = make_station()
    with database.begin() as tx:
        stations.heartbeat(tx, station, state(n=7, phase="playing"), key=key)
        stations.heartbeat(tx, station, state(n=6, phase="homing"), key=key)
        assert tx.get_one(Station, station.id).state["phase"] == "playing"
        stations.heartbeat(tx, station, state(n=1, boot="after a restart"), key=key)
        assert tx.get_one(Station, station.id).state["phase"] == "idle"


def test_the_agent_ends_a_play_and_passes_a_tutorial(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada = make_station(), make_participant(tutorial_at=None)
    play = begin(station, ada, "tutorial")
    done = state(
        play=play.id,
        tutorial={"play": play.id, "step": "done", "done": ["home", "squeeze", "touch", "rest"]},
    )
    with database.begin() as tx:
        stations.heartbeat(tx, station, done, key=key)
        assert tx.get_one(Participant, ada.id).tutorial_at is not None
        assert plays.running(tx, station) is not None
        ended = {**done, "play": None, "ended": {"play": play.id, "by": "rest"}, "n": 2}
        assert stations.heartbeat(tx, station, ended, key=key)["orders"] == []
        assert tx.get_one(Play, play.id).ended_by == "rest"


def test_a_tutorial_of_another_play_passes_nobody(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada = make_station(), make_participant(tutorial_at=None)
    begin(station, ada, "tutorial")
    late = state(tutorial={"play": "of somebody before", "step": "done", "done": []})
    with database.begin() as tx:
        stations.heartbeat(tx, station, late, key=key)
        assert tx.get_one(Participant, ada.id).tutorial_at is None


def test_a_lost_station_loses_its_play_and_its_lease(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada, bob = make_station(), make_participant(), make_participant()
    now = utc_now()
    play = begin(station, ada, now=now)
    silent = now + stations.LOST_AFTER + dt.timedelta(seconds=5)
    with database.begin() as tx:
        assert not stations.due(tx, now)
        assert stations.due(tx, silent)
        stations.sweep(tx, silent)
        lost = tx.get_one(Play, play.id)
        assert (lost.state, lost.ended_by) == ("finished", "lost")
        assert tx.get(StationLease, station.id) is None
        # It comes back, still at the play: it shall end; and the next one gets a later fence.
        still = state(phase="playing", play=play.id)
        told = stations.heartbeat(tx, station, still, key=key, now=silent)
        assert told["orders"] == [{"do": "stop", "play": play.id}]
        assert stations.grant(tx, station, bob, silent).fence > play.fence
        # Its file is still welcome.
        result = plays.Result("rest", 50, {"seconds": 9.0}, sha256="0" * 64, file="a.hdf5")
        plays.result(tx, play, result)
        assert (lost.state, lost.ended_by) == ("synced", "lost")


def test_a_station_is_not_lost_by_the_sites_own_absence(
    database: Database,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    station, ada = make_station(), make_participant()
    play = begin(station, ada)
    back = utc_now() + dt.timedelta(minutes=1)
    with database.begin() as tx:
        assert stations.due(tx, back)
        assert not stations.due(tx, back, listening=back)
        stations.sweep(tx, back, listening=back)
        assert tx.get_one(Play, play.id).state == "running"
        assert stations.due(tx, back + stations.LOST_AFTER, listening=back)
        tx.get_one(Station, station.id).seen_at = play.started_at - dt.timedelta(minutes=1)
        tx.get_one(Play, play.id).started_at -= dt.timedelta(minutes=1)
    # Who had to wait for the database has not listened meanwhile.
    monkeypatch.setattr(station_routes, "PROMPT_S", -1.0)
    assert not station_routes._sweep_once(database, play.started_at)
    with database.read() as tx:
        assert tx.get_one(Play, play.id).state == "running"
    monkeypatch.setattr(station_routes, "PROMPT_S", 30.0)
    assert station_routes._sweep_once(database, play.started_at - dt.timedelta(minutes=1))
    with database.read() as tx:
        assert tx.get_one(Play, play.id).ended_by == "lost"


def test_silence_counts_from_when_the_site_could_listen_again(
    database: Database,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The database has been too slow for heartbeats for longer than after which a station is lost;
    then it is well, and no heartbeat comes."""
    play = begin(make_station(), make_participant())
    with database.begin() as tx:
        tx.get_one(Station, play.station_id).seen_at = utc_now() - dt.timedelta(hours=1)
        tx.get_one(Play, play.id).started_at -= dt.timedelta(hours=1)
    monkeypatch.setattr(station_routes, "SWEEP_S", 0.05)
    monkeypatch.setattr(station_routes, "LATE", 1000)
    monkeypatch.setattr(stations, "LOST_AFTER", dt.timedelta(seconds=1.0))

    def row() -> Play:
        with database.read() as tx:
            return tx.get_one(Play, play.id)

    async def story() -> dt.datetime:
        monkeypatch.setattr(station_routes, "PROMPT_S", -1.0)
        sweeping = asyncio.create_task(station_routes._sweep(database))
        await asyncio.sleep(1.5)  # the outage
        well = utc_now()
        monkeypatch.setattr(station_routes, "PROMPT_S", 30.0)
        while (await asyncio.to_thread(row)).state == "running":
            await asyncio.sleep(0.05)
        sweeping.cancel()
        return well

    well = asyncio.run(asyncio.wait_for(story(), 60))
    ended = row()
    assert ended.ended_by == "lost" and ended.ended_at is not None
    assert ended.ended_at - well > 0.8 * stations.LOST_AFTER


def test_a_turn_does_not_end_while_its_play_runs(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada, bob = make_station(), make_participant(), make_participant()
    now = utc_now()
    play = begin(station, ada, now=now)
    with database.begin() as tx:
        late = now + stations.LEASE_FOR + dt.timedelta(seconds=30)
        tx.get_one(Station, station.id).seen_at = late
        with pytest.raises(StationBusyError):
            stations.grant(tx, station, bob, late)
        stations.heartbeat(tx, station, state(play=play.id), key=key, now=late)
        assert tx.get_one(StationLease, station.id).expires_at > late


def test_an_agent_that_never_ends_is_ended(
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    begin: Callable[..., Play],
) -> None:
    station, ada = make_station(), make_participant()
    now = utc_now()
    play = begin(station, ada, now=now)
    far = now + dt.timedelta(seconds=120) + stations.OVERDUE + dt.timedelta(seconds=1)
    with database.begin() as tx:
        stations.heartbeat(tx, station, state(play=play.id), key=key, now=far)
        assert tx.get_one(Play, play.id).ended_by == "time"


def test_logging_out_ends_the_play(
    database: Database, make_station: Make, make_participant: Make, begin: Callable[..., Play]
) -> None:
    station, ada = make_station(), make_participant()
    play = begin(station, ada)
    with database.begin() as tx:
        stations.release(tx, station, ada)
        assert tx.get_one(Play, play.id).ended_by == "button"
        assert stations.holder(tx, station) is None
