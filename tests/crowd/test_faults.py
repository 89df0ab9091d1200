"""What goes wrong between a station and its site: nothing is lost, nothing counts twice.

The site is served by uvicorn on a port; the agent's heartbeat, outbox and sync are the real ones.
Times are shortened; what waits for the robot is in `test_faults_station`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.orm import Session

from collect.crowd import agent_link, ledger, pairing, plays, standings, stations
from collect.crowd import database as database_module
from collect.crowd.agent_link import Heart, SiteLink, Sync
from collect.crowd.app import create_app
from collect.crowd.config import CrowdConfig, load_config
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey, load_key
from collect.crowd.outbox import Entry, Outbox
from collect.crowd.routes import station as station_routes
from collect.crowd.stations import StationBusyError
from collect.crowd.tables import (
    Participant,
    Play,
    Station,
    StationLease,
    Tombstone,
    utc_now,
)
from tests.crowd.site_process import free_port

Make = Callable[..., Any]
HDF5 = b"\x89HDF\r\n\x1a\n" + b"an episode" * 1000
WAIT_S = 30.0
LOST_S = 2.5  # a station that is silent for so long is lost


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {WAIT_S} s"
        time.sleep(0.02)


class Site:
    """The site on its own port, which can go away and come back."""

    def __init__(self, config: CrowdConfig) -> None:
        self.config = config
        self._server: uvicorn.Server | None = None

    def start(self) -> None:
        host, port = self.config.bind.split(":")
        settings = uvicorn.Config(
            create_app(self.config),
            host=host,
            port=int(port),
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until(lambda: self._server is not None and self._server.started, "the site's start")

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(WAIT_S)
            assert not self._thread.is_alive()
            self._server = None


class Cafe:
    """A site, its database, and a station with an agent whose robot plays as the test says."""

    def __init__(self, config: CrowdConfig, database: Database, folder: Path) -> None:
        self.config, self.database, self.folder = config, database, folder
        self.key: SiteKey = load_key(config.key_file)
        self.site = Site(config)
        with database.begin() as tx:
            code = pairing.new_code(tx, self.key, "cafe", "agent")
            self.token, self.station = pairing.pair_agent(tx, self.key, code)
        self.outbox = Outbox(folder / "outbox")
        self.state: dict[str, Any] = {"phase": "idle"}
        self._n = 0

    def link(self) -> SiteLink:
        return SiteLink(self.config.origin, self.token)

    def heart(self) -> Heart:
        return Heart(self.link(), self._told, back=lambda: None)

    def sync(self, outbox: Outbox | None = None, shared: Path | None = None) -> Sync:
        return Sync(self.link(), outbox or self.outbox, "cafe", shared)

    def _told(self) -> tuple[dict[str, Any], int]:
        self._n += 1
        return {**self.state, "boot": "b", "n": self._n}, self.outbox.fence

    def beats(self) -> None:
        """Returns after a heartbeat that the site has taken."""
        before = self.seen()
        until(lambda: self.seen() > before, "a heartbeat")

    def seen(self) -> dt.datetime:
        with self.database.read() as tx:
            return tx.get_one(Station, self.station.id).seen_at or dt.datetime.min.replace(
                tzinfo=dt.UTC
            )

    def record(self, play: Play, data: bytes = HDF5) -> Entry:
        """The robot has recorded a play: it is in the outbox."""
        name = f"{play.id}.hdf5"
        (self.outbox.episodes / name).write_bytes(data)
        result = {
            "ended_by": "rest",
            "rows": 1000,
            "seconds": 20.0,
            "path_m": 4.0,
            "jerk": 20.0,
            "idle_fraction": 0.1,
            "collisions": 0,
            "dropped_frames": 0,
            "sha256": hashlib.sha256(data).hexdigest(),
            "size": len(data),
        }
        entry = Entry(play.id, "ended", {}, ended_at=time.time(), result=result, file=name)
        self.outbox.put(entry)
        return entry

    def row(self, play: Play) -> Play:
        with self.database.read() as tx:
            return tx.get_one(Play, play.id)

    def report(self, play: Play) -> None:
        def report(tx: Session) -> None:
            plays.report(tx, tx.get_one(Play, play.id), claimed=True, likert=(4, 4, 4))

        self.database.run(report, wait_s=WAIT_S)

    def points(self, who: Participant) -> int:
        """A participant's points; what stands on the boards is what the ledger adds up to."""
        with self.database.read() as tx:
            assert standings.differences(tx) == {}
            return ledger.points_of(tx, who.id)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become seconds."""
    monkeypatch.setattr(station_routes, "SWEEP_S", 0.1)
    monkeypatch.setattr(stations, "LOST_AFTER", dt.timedelta(seconds=LOST_S))
    monkeypatch.setattr(agent_link, "BEAT_S", 0.05)
    monkeypatch.setattr(agent_link, "AWAY_S", 0.1)
    monkeypatch.setattr(agent_link, "SHORTEST_S", 0.05)
    monkeypatch.setattr(agent_link, "LONGEST_S", 0.2)
    monkeypatch.setattr(agent_link, "REFUSED_S", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a database that is away."""
    monkeypatch.setattr(database_module, "WAIT_S", 0.5)


@pytest.fixture
def cafe(
    config_file: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cafe]:
    address = f"127.0.0.1:{free_port()}"
    written = config_file.read_text().replace("trusted_proxies:\n- 192.0.2.1\n", "")
    config_file.write_text(f"{written}development: true\nbind: {address}\n")
    config = load_config(config_file, {"ROBOT_STACK_CROWD_ORIGIN": f"http://{address}"})
    cafe = Cafe(config, database, tmp_path)
    try:
        cafe.site.start()
        yield cafe
    finally:
        cafe.site.stop()


@contextlib.contextmanager
def working(*workers: Heart | Sync) -> Iterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.close()


@contextlib.contextmanager
def away(database: Database) -> Iterator[None]:
    """The database is gone for everybody but the test: SQLite's file is locked, PostgreSQL takes no
    connection."""
    if database.sqlite:
        engine = create_engine(database.url)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.isolation_level = None
            raw.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                raw.execute("ROLLBACK")
        engine.dispose()
        return
    name = database.url.database
    url = make_url(database.url).set(database="postgres")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{name}' AND pid <> pg_backend_pid()"
            )
        )
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    engine.dispose()


@pytest.fixture
def ada(make_participant: Make) -> Participant:
    made = make_participant()
    assert isinstance(made, Participant)
    return made


@pytest.fixture
def begin(cafe: Cafe, make_consent: Make, make_task: Make) -> Callable[[Participant], Play]:
    def begin(who: Participant) -> Play:
        """A participant has their turn and begins a play."""
        consent, task = make_consent(who), make_task()

        def start(tx: Session) -> Play:
            stations.grant(tx, cafe.station, who)
            return plays.start(tx, cafe.station, who, task=task, kind="task", consent=consent)

        return cafe.database.run(start, wait_s=WAIT_S)

    return begin


@pytest.mark.usefixtures("impatient")
def test_the_database_is_gone_for_a_while(
    cafe: Cafe, ada: Participant, begin: Callable[[Participant], Play]
) -> None:
    heart, sync = cafe.heart(), cafe.sync()
    with working(heart, sync):
        cafe.beats()
        play = begin(ada)
        cafe.state = {"phase": "playing", "play": play.id}
        cafe.beats()
        with away(cafe.database):
            until(lambda: heart.trouble is not None, "the heartbeats failing")
            cafe.record(play)
            sync.nudge()
            until(lambda: sync.trouble is not None, "the sync failing")
            began = time.monotonic()
            until(lambda: time.monotonic() - began > LOST_S + 0.5, "a long silence")
        cafe.beats()
        assert cafe.row(play).ended_by in (None, "rest"), "the site was away, not the station"
        until(lambda: cafe.row(play).state == "synced", "the episode's arrival")
    assert cafe.row(play).ended_by == "rest"
    cafe.report(play)
    assert cafe.points(ada) == 12


def test_the_site_is_gone_for_a_while(
    cafe: Cafe, ada: Participant, begin: Callable[[Participant], Play]
) -> None:
    heart, sync = cafe.heart(), cafe.sync()
    with working(heart, sync):
        cafe.beats()
        play = begin(ada)
        cafe.state = {"phase": "playing", "play": play.id}
        cafe.beats()
        cafe.site.stop()
        until(lambda: heart.trouble is not None, "the heartbeats failing")
        cafe.state = {"phase": "lowering", "ended": {"play": play.id, "by": "rest", "ago_s": 1.5}}
        began = time.monotonic()
        until(lambda: time.monotonic() - began > LOST_S + 0.5, "a long silence")
        cafe.site.start()
        until(lambda: cafe.row(play).state == "finished", "the end of the play")
        cafe.record(play)
        sync.nudge()
        until(lambda: cafe.row(play).state == "synced", "the episode's arrival")
    ended = cafe.row(play)
    assert ended.ended_by == "rest" and ended.ended_at is not None
    assert ended.ended_at >= ended.started_at


def test_two_syncs_bring_one_episode(
    cafe: Cafe, ada: Participant, begin: Callable[[Participant], Play]
) -> None:
    """A computer was restored from its backup: the same outbox twice, at the same time."""
    with working(cafe.heart()):
        cafe.beats()
        play = begin(ada)
        with cafe.database.begin() as tx:
            plays.finish(tx, tx.get_one(Play, play.id), by="button")
        cafe.report(play)
        cafe.record(play)
        shutil.copytree(cafe.outbox.directory, cafe.folder / "copy")
        copy = Outbox(cafe.folder / "copy")
        with working(cafe.sync(), cafe.sync(copy)):
            until(
                lambda: not cafe.outbox.entries("ended") and not copy.entries("ended"),
                "both outboxes being emptied",
            )
    files = [path for path in cafe.config.episodes.rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [HDF5]
    assert cafe.points(ada) == 12


def test_a_station_is_lost_with_its_lease_and_comes_back(
    cafe: Cafe, ada: Participant, make_participant: Make, begin: Callable[[Participant], Play]
) -> None:
    bob = make_participant()
    with working(cafe.heart()):
        cafe.beats()
        play = begin(ada)
        cafe.state = {"phase": "playing", "play": play.id}
        cafe.beats()
    until(lambda: cafe.row(play).ended_by == "lost", "the loss")
    with cafe.database.read() as tx:
        assert tx.get(StationLease, cafe.station.id) is None
    cafe.report(play)
    assert cafe.points(ada) == 10  # on her word, for the time being
    # Back, with the play still going on: it is told to end, and the next one has the turn.
    heart, sync = cafe.heart(), cafe.sync()
    with working(heart, sync):
        cafe.beats()
        order = heart.orders.get(timeout=WAIT_S)
        assert (order["do"], order["play"]) == ("stop", play.id)
        cafe.state = {"phase": "idle", "ended": {"play": play.id, "by": "button"}}
        cafe.record(play)
        sync.nudge()
        with cafe.database.begin() as tx:
            lease = stations.grant(tx, cafe.station, bob)
            assert lease.fence > play.fence
        until(lambda: cafe.row(play).state == "synced", "the episode's arrival")
    assert cafe.row(play).ended_by == "lost"
    assert cafe.points(ada) == 12


def test_two_kiosks_ask_for_one_station_at_once(cafe: Cafe, make_participant: Make) -> None:
    people = [make_participant() for _ in range(8)]
    barrier = threading.Barrier(len(people))
    told: list[str] = []

    def ask(who: Participant) -> None:
        kiosk = Database(cafe.config.database)  # another process would have its own
        barrier.wait(WAIT_S)
        try:
            kiosk.run(lambda tx: stations.grant(tx, cafe.station, who), wait_s=WAIT_S)
            told.append("granted")
        except StationBusyError as error:
            told.append(error.reason)
        finally:
            kiosk.close()

    with working(cafe.heart()):
        cafe.beats()
        threads = [threading.Thread(target=ask, args=(who,)) for who in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
    assert sorted(told) == ["busy"] * 7 + ["granted"]


def play_out(cafe: Cafe, begin: Callable[[Participant], Play], who: Participant) -> Play:
    """A play of somebody until its time is over; the robot is free again."""
    cafe.beats()
    play = begin(who)
    with cafe.database.begin() as tx:
        plays.finish(tx, tx.get_one(Play, play.id), by="time")
        stations.release(tx, cafe.station, who)
    return play


def test_late_results_come_in_any_order_and_one_that_is_refused_holds_up_no_other(
    cafe: Cafe, make_participant: Make, begin: Callable[[Participant], Play]
) -> None:
    people = [make_participant() for _ in range(3)]
    begun = []
    with working(cafe.heart()):
        for who in people:
            play = play_out(cafe, begin, who)
            begun.append(play)
            cafe.report(play)
        wrong = cafe.record(begun[0])
        cafe.outbox.put(Entry(**{**vars_of(wrong), "result": {**wrong.result, "sha256": "0" * 64}}))
        for play in reversed(begun[1:]):
            cafe.record(play)
        sync = cafe.sync()
        with working(sync):
            for play in begun[1:]:
                until(lambda play=play: cafe.row(play).state == "synced", "the arrival")  # type: ignore[misc]
            until(lambda: len(cafe.outbox.entries("ended")) == 1, "the outbox being emptied")
            assert [entry.play for entry in cafe.outbox.entries("ended")] == [begun[0].id]
            until(lambda: begun[0].id in str(sync.trouble), "what was refused being told")
    assert [cafe.points(who) for who in people] == [10, 12, 12]


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_disk_that_fails_holds_up_no_other_play_and_may_come_back(
    cafe: Cafe, make_participant: Make, begin: Callable[[Participant], Play]
) -> None:
    begun = []
    with working(cafe.heart()):
        for who in (make_participant(), make_participant()):
            play = play_out(cafe, begin, who)
            begun.append(play)
            cafe.record(play)
    lost = cafe.outbox.episodes / f"{begun[0].id}.hdf5"
    lost.rename(cafe.folder / "lost")
    sync = cafe.sync()
    with working(sync):
        until(lambda: cafe.row(begun[1]).state == "synced", "the arrival of the other")
        until(lambda: begun[0].id in str(sync.trouble), "the trouble being told")
        (cafe.folder / "lost").rename(lost)
        until(lambda: cafe.row(begun[0]).state == "synced", "the arrival of what was lost")
        until(lambda: sync.trouble is None, "the trouble's end")


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_shared_disk_that_is_away_is_waited_for(
    cafe: Cafe, ada: Participant, begin: Callable[[Participant], Play]
) -> None:
    with working(cafe.heart()):
        cafe.beats()
        play = begin(ada)
    cafe.record(play)
    (cafe.folder / "mounts").write_bytes(b"")
    sync = cafe.sync(shared=cafe.folder / "mounts" / "episodes")
    with working(sync):
        until(lambda: play.id in str(sync.trouble), "the trouble being told")
        (cafe.folder / "mounts").unlink()
        (cafe.folder / "mounts").mkdir()
        (cafe.folder / "mounts" / "episodes").symlink_to(cafe.config.episodes)
        until(lambda: cafe.row(play).state == "synced", "the arrival")
    assert [path.name for path in cafe.config.episodes.rglob("*") if path.is_file()] == [
        f"{play.id}.hdf5"
    ]


def test_what_was_erased_goes_from_the_station_too(
    cafe: Cafe, ada: Participant, begin: Callable[[Participant], Play]
) -> None:
    with working(cafe.heart(), cafe.sync()):
        cafe.beats()
        play = begin(ada)
        with cafe.database.begin() as tx:
            tx.add(Tombstone(id=play.id, kind="play", reason="asked", erased_at=utc_now()))
            tx.get_one(Play, play.id).state = "void"
        cafe.record(play)
        until(lambda: not cafe.outbox.entries("ended"), "the answer")
    assert list(cafe.outbox.episodes.iterdir()) == []
    assert [path for path in cafe.config.episodes.rglob("*") if path.is_file()] == []


def vars_of(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__slots__}
