"""What agents tell over HTTP: once, twice, late, in any order; and what they must not tell."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from collect.crowd import data_rights, ledger, plays, standings, stations
from collect.crowd.agent import checked_order
from collect.crowd.app import create_app
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.pairing import new_code
from collect.crowd.tables import Participant, Play, Station, Tombstone, new_id
from tests.crowd.browser import Browser

Make = Callable[..., Any]
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 40
SHA = hashlib.sha256(HDF5).hexdigest()
TOKEN = "the agent's token"
RESULT = {
    "ended_by": "rest",
    "rows": 1000,
    "seconds": 20.0,
    "path_m": 4.0,
    "jerk": 20.0,
    "idle_fraction": 0.1,
    "collisions": 0,
    "dropped_frames": 0,
    "sha256": SHA,
    "size": len(HDF5),
}


class Agent:
    """Talks to the site as a station's agent does."""

    def __init__(self, browser: Browser, token: str | None) -> None:
        self._client = browser.client
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def result(self, play: Play, **changes: Any) -> Any:
        return self.post(f"/api/station/play/{play.id}/result", {**RESULT, **changes})

    def post(self, path: str, body: Any) -> Any:
        return self._client.post(path, json=body, headers=self._headers)

    def file(self, play: Play, data: bytes = HDF5, sha256: str | None = None) -> Any:
        headers = {**self._headers, "x-sha256": sha256 or hashlib.sha256(data).hexdigest()}
        path = f"/api/station/play/{play.id}/file"
        return self._client.put(path, content=data, headers=headers)

    def heartbeat(self, fence: int = 0, **state: Any) -> Any:
        told = {"phase": "idle", "boot": "b", "n": 1, **state}
        return self.post("/api/station/heartbeat", {"state": told, "fence": fence})


@pytest.fixture
def station(make_station: Make) -> Station:
    made = make_station(token=TOKEN)
    assert isinstance(made, Station)
    return made


@pytest.fixture
def ada(make_participant: Make) -> Participant:
    made = make_participant()
    assert isinstance(made, Participant)
    return made


@pytest.fixture
def play(station: Station, ada: Participant, make_play: Make, make_task: Make) -> Play:
    made = make_play(ada, station, make_task())
    assert isinstance(made, Play)
    return made


@pytest.fixture
def agent(browser: Browser, station: Station) -> Agent:
    return Agent(browser, TOKEN)


@pytest.fixture
def now(database: Database, play: Play) -> Callable[[], Play]:
    def now() -> Play:
        with database.read() as tx:
            return tx.get_one(Play, play.id)

    return now


def points(database: Database, who: Participant) -> int:
    with database.read() as tx:
        assert standings.differences(tx) == {}
        return ledger.points_of(tx, who.id)


def leftovers(config: CrowdConfig) -> list[Path]:
    return [path for path in config.episodes.rglob("*") if path.is_file()]


@pytest.mark.parametrize("order", ["result file", "file result", "result file result file file"])
def test_an_episode_arrives_once_in_any_order(
    agent: Agent,
    play: Play,
    order: str,
    now: Callable[[], Play],
    config: CrowdConfig,
    database: Database,
    ada: Participant,
) -> None:
    for what in order.split():
        answer = agent.result(play) if what == "result" else agent.file(play)
        assert answer.status_code == 200, answer.text
    assert agent.result(play).json() == {"file": "here"}
    there = now()
    assert there.state == "synced" and there.file is not None
    assert (config.episodes / there.file).read_bytes() == HDF5
    assert leftovers(config) == [config.episodes / there.file]
    assert points(database, ada) == 12


@pytest.mark.parametrize(
    ("data", "sha256", "status"),
    [
        (b"MZ" + HDF5, None, 422),  # another kind of file
        (b"\x89HDF", None, 422),
        (HDF5, "0" * 64, 409),  # not the one that was told of
        (HDF5[:-1] + b"!", SHA, 422),  # changed on the way
        (HDF5, "../../etc/passwd", 422),
    ],
)
def test_a_crafted_upload_leaves_nothing(
    agent: Agent,
    play: Play,
    config: CrowdConfig,
    now: Callable[[], Play],
    data: bytes,
    sha256: str | None,
    status: int,
) -> None:
    if sha256 is not None:
        agent.result(play)
    assert agent.file(play, data, sha256).status_code == status
    assert leftovers(config) == []
    assert now().file is None
    assert agent.result(play).json() == {"file": "wanted"}


def test_an_upload_has_a_size_and_keeps_it(
    agent: Agent, play: Play, config: CrowdConfig, browser: Browser
) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "x-sha256": SHA}
    path = f"/api/station/play/{play.id}/file"
    for length, status in ((len(HDF5) - 5, 413), (len(HDF5) + 5, 400), (1 << 50, 413)):
        told = {**headers, "content-length": str(length)}
        answer = browser.client.put(path, content=HDF5, headers=told)
        assert answer.status_code == status
    assert browser.client.put(path, content=iter([HDF5]), headers=headers).status_code == 422
    assert leftovers(config) == []


def test_a_play_of_another_station_is_not_there(
    browser: Browser, play: Play, make_station: Make, now: Callable[[], Play]
) -> None:
    make_station(token="another")
    other = Agent(browser, "another")
    assert other.result(play).status_code == 404
    assert other.file(play).status_code == 404
    assert now().metrics == {}


def test_a_play_of_after_the_backup_is_not_known(
    agent: Agent, browser: Browser, database: Database, config: CrowdConfig, make_staff: Make
) -> None:
    """The station is told so, staff too; nothing of it is taken."""
    lost = Play(id=new_id())
    for _ in range(2):
        assert agent.result(lost).json() == {"file": "unknown"}
    assert agent.file(lost).status_code == 404
    assert leftovers(config) == []
    browser.sign_in(staff=make_staff("operator"))
    assert "knows nothing of" not in browser.get("/staff/stations").text
    agent.heartbeat(waiting=3, unknown=2)
    assert "knows nothing of: 2." in browser.get("/staff/stations").text
    with database.begin() as tx:  # its owner had asked for that before the database was lost
        assert not data_rights.erase_again(tx, Tombstone(id=lost.id, kind="play", reason="asked"))
    assert agent.result(lost).json() == {"file": "erased"}


@pytest.mark.parametrize("token", [None, "", "wrong", "x" * 1000])
def test_only_agents_speak(browser: Browser, play: Play, token: str | None) -> None:
    stranger = Agent(browser, token)
    for answer in (stranger.heartbeat(), stranger.result(play), stranger.file(play)):
        assert answer.status_code == 401


def test_pairing_by_a_code_gives_the_token(
    browser: Browser, database: Database, key: SiteKey
) -> None:
    with database.begin() as tx:
        code = new_code(tx, key, "cafe", "agent")
    told = Agent(browser, None).post("/api/station/pair", {"code": code.lower()}).json()
    assert told["station"] == "cafe"
    assert Agent(browser, told["token"]).heartbeat().status_code == 200
    assert Agent(browser, None).post("/api/station/pair", {"code": code}).status_code == 403


def test_codes_are_not_guessed(browser: Browser) -> None:
    statuses = [
        Agent(browser, None).post("/api/station/pair", {"code": f"AAAA-{n:04}"}).status_code
        for n in range(12)
    ]
    assert statuses == [403] * 10 + [429] * 2


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_site_from_a_backup_gives_turns_that_its_agent_takes(
    agent: Agent,
    database: Database,
    station: Station,
    ada: Participant,
    make_consent: Make,
    make_task: Make,
) -> None:
    consent, task = make_consent(ada), make_task()
    assert agent.heartbeat(fence=41).json()["fence"] == 41
    with database.begin() as tx:
        stations.grant(tx, station, ada)
        plays.start(tx, station, ada, task=task, kind="task", consent=consent)
    (order,) = agent.heartbeat(fence=41).json()["orders"]
    assert checked_order(order, 41).fence == 42
    assert agent.heartbeat(fence=0).json()["fence"] == 42, "never back"
    assert agent.heartbeat(fence=2**53).status_code == 422, "an agent can't use them up"


@pytest.mark.parametrize(
    "state",
    [
        {"phase": "flying"},
        {"play": "not an id"},
        {"warning": {"level": 9}},
        {"fault": "x" * 1000},
        {"n": -1},
        {"ended": {"play": "0" * 36, "by": "magic"}},
    ],
)
def test_nonsense_is_refused(agent: Agent, state: dict[str, Any]) -> None:
    assert agent.heartbeat(**state).status_code == 422


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": -1.0},
        {"idle_fraction": 1.5},
        {"rows": -1},
        {"sha256": "short"},
        {"ended_by": "staff"},
        {"path_m": "far"},
    ],
)
def test_results_that_cannot_be_are_refused(
    agent: Agent, play: Play, changes: dict[str, Any], now: Callable[[], Play]
) -> None:
    assert agent.result(play, **changes).status_code == 422
    assert now().metrics == {}


def test_numbers_that_are_none_are_refused(agent: Agent, play: Play, browser: Browser) -> None:
    body = json.dumps({**RESULT, "jerk": float("nan")})
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    path = f"/api/station/play/{play.id}/result"
    assert browser.client.post(path, content=body, headers=headers).status_code == 422


def test_a_shared_directory_is_believed_within_its_walls(
    agent: Agent, play: Play, station: Station, config: CrowdConfig, now: Callable[[], Play]
) -> None:
    right = f"{station.name}/{play.id}.hdf5"
    outside = config.episodes.parent / "secret.hdf5"
    outside.write_bytes(HDF5)
    assert agent.result(play, file=right).status_code == 409, "it is not there yet"
    folder = config.episodes / station.name
    folder.mkdir()
    for wrong in ("../secret.hdf5", str(outside), f"{station.name}/other.hdf5", "."):
        assert agent.result(play, file=wrong).status_code == 400
    (config.episodes / right).symlink_to(outside)
    assert agent.result(play, file=right).status_code == 400
    (config.episodes / right).unlink()
    (config.episodes / right).write_bytes(b"no HDF5, but as long" + HDF5[20:])
    assert agent.result(play, file=right).status_code == 422
    (config.episodes / right).write_bytes(HDF5 + b"more")
    assert agent.result(play, file=right).status_code == 409
    assert now().metrics == {}
    (config.episodes / right).write_bytes(HDF5)
    assert agent.result(play, file=right).json() == {"file": "here"}
    assert now().state == "synced"
    (config.episodes / right).write_bytes(HDF5[::-1])
    assert agent.result(play, file=right).json() == {"file": "here"}, "it is read once"
    assert agent.result(play, file=right, sha256="0" * 64).status_code == 422
    assert agent.result(play, file=right, sha256=None).status_code == 422


def test_an_erased_play_stays_erased(
    agent: Agent, play: Play, database: Database, config: CrowdConfig
) -> None:
    with database.begin() as tx:
        tx.add(Tombstone(id=play.id, kind="play", reason="asked"))
        tx.get_one(Play, play.id).state = "void"
    assert agent.result(play).json() == {"file": "erased"}
    assert agent.file(play).json() == {"file": "erased"}
    assert leftovers(config) == []


def test_a_play_that_was_not_recorded_wants_no_file(
    agent: Agent, play: Play, now: Callable[[], Play]
) -> None:
    nothing = {name: None for name in RESULT if name not in ("ended_by", "rows")}
    assert agent.result(play, rows=0, **nothing).json() == {"file": "none"}
    assert now().state == "void"


def test_the_sites_clock_decides(
    agent: Agent,
    database: Database,
    station: Station,
    ada: Participant,
    make_play: Make,
    make_task: Make,
) -> None:
    """An agent whose clock is a decade off; its play ended a minute ago, the site was away."""
    running = {"state": "running", "ended_at": None, "ended_by": None, "seconds": None}
    play = make_play(ada, station, make_task(), **running)
    told = agent.heartbeat(
        t="2036-01-01T00:00:00Z", ended={"play": play.id, "by": "rest", "ago_s": 1e6}
    )
    assert told.json()["orders"] == []
    with database.read() as tx:
        row = tx.get_one(Play, play.id)
        assert row.ended_at == row.started_at, "not before it began"
    agent.result(play, ended_ago_s=0.0)
    agent.file(play)
    with database.read() as tx:
        row = tx.get_one(Play, play.id)
        assert (row.state, row.ended_by) == ("synced", "rest")
        assert row.synced_at is not None and row.ended_at == row.started_at


def test_what_an_upload_left_behind_is_cleared(config: CrowdConfig) -> None:
    folder = config.episodes / ".incoming"
    folder.mkdir()
    old, new = folder / "old", folder / "new"
    for path in (old, new):
        path.write_bytes(HDF5)
    os.utime(old, (0, 0))
    with TestClient(create_app(config)):
        assert leftovers(config) == [new]
