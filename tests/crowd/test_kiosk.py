"""The tablet beside a station: paired by a code, it sees the robot and nothing of anybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from collect.crowd import pairing, stations
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.routes import kiosk as kiosk_routes
from collect.crowd.security.sessions import end_all
from collect.crowd.tables import Station, WebSession
from tests.crowd.browser import Browser

Make = Callable[..., Any]


@pytest.fixture
def code(database: Database, key: SiteKey) -> str:
    with database.begin() as tx:
        return pairing.new_code(tx, key, "cafe", "kiosk")


def test_a_code_makes_a_kiosk(browser: Browser, code: str, make_participant: Make) -> None:
    assert browser.get("/api/kiosk/state").status_code == 403
    page = browser.get("/pair")
    assert page.status_code == 200 and 'name="code"' in page.text
    answer = browser.post("/pair", data={"code": code})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    state = browser.get("/api/kiosk/state")
    assert state.json()["station"] == "cafe"
    again = browser.post("/pair", data={"code": code}, csrf=None)
    assert again.status_code == 403
    tag = {"if-none-match": state.headers["etag"]}
    assert browser.get("/api/kiosk/state", headers=tag).status_code == 304


def test_a_wrong_code_is_refused_in_words_and_not_for_ever(browser: Browser) -> None:
    for _ in range(10):
        answer = browser.post("/pair", data={"code": "0000-0000"})
        assert answer.status_code == 403 and 'role="alert"' in answer.text
    assert browser.post("/pair", data={"code": "0000-0000"}).status_code == 429


def test_pairing_a_tablet_ends_its_participants_session(
    browser: Browser, database: Database, make_participant: Make, code: str
) -> None:
    browser.sign_in(participant=make_participant())
    browser.post("/pair", data={"code": code})
    with database.read() as tx:
        assert tx.scalars(select(WebSession.kind)).all() == ["kiosk"]


def test_a_kiosk_shows_the_robot_and_nobody(
    browser: Browser,
    database: Database,
    key: SiteKey,
    make_station: Make,
    make_participant: Make,
    make_play: Make,
    make_task: Make,
) -> None:
    station = make_station()
    ada = make_participant(nickname="Ada")
    with database.begin() as tx:
        stations.grant(tx, station, ada)
    running = {"state": "running", "ended_at": None, "ended_by": None}
    play = make_play(ada, station, make_task(), **running)
    told = {
        "phase": "playing",
        "play": play.id,
        "elapsed_s": 3.5,
        "seconds": 120,
        "warning": {"level": 2, "distance_m": 0.01, "between": "follower_left"},
        "fault": "servo 9: overload",
        "boot": "b",
        "n": 1,
    }
    with database.begin() as tx:
        stations.heartbeat(tx, station, told, key=key)
    browser.sign_in(kiosk=station)
    answer = browser.get("/api/kiosk/state")
    shown = answer.json()
    assert shown == shown | {
        "online": True,
        "phase": "playing",
        "running": True,
        "kind": "task",
        "elapsed_s": 3.5,
        "warning": {"level": 2, "arm": "left"},
        "fault": False,
        "taken": True,
    }
    for secret in ("Ada", ada.id, play.id, ada.pseudonym, "overload"):
        assert secret not in answer.text


def test_a_silent_station_is_offline_for_its_kiosk(browser: Browser, make_station: Make) -> None:
    station = make_station(seen_at=None, state={"phase": "playing", "elapsed_s": 3.0})
    browser.sign_in(kiosk=station)
    shown = browser.get("/api/kiosk/state").json()
    assert (shown["online"], shown["phase"], shown["elapsed_s"]) == (False, "offline", None)


def test_the_stream_tells_news_and_ends_with_the_pairing(
    browser: Browser, database: Database, make_station: Make
) -> None:
    station = make_station()
    browser.sign_in(kiosk=station)
    with database.read() as tx:
        session = tx.scalars(select(WebSession.token_hash)).one()

    def change(work: Callable[[Any], None]) -> None:
        with database.begin() as tx:
            work(tx)

    def close(tx: Any) -> None:
        tx.get_one(Station, station.id).closed = True

    async def story() -> None:
        parts = kiosk_routes._stream(database, station.id, session)
        assert await anext(parts) == b"retry: 2000\n\n"
        first = json.loads((await anext(parts)).split(b"data: ")[1])
        assert first["station"] == station.name and not first["closed"]
        await asyncio.to_thread(change, close)
        assert json.loads((await anext(parts)).split(b"data: ")[1])["closed"]
        await asyncio.to_thread(change, lambda tx: end_all(tx, station_id=station.id))
        with pytest.raises(StopAsyncIteration):
            await anext(parts)
        assert not kiosk_routes._open

    asyncio.run(asyncio.wait_for(story(), 30))


def test_streams_have_an_end(
    browser: Browser, make_station: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser.sign_in(kiosk=make_station())
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)
    answer = browser.get("/api/kiosk/live")
    assert answer.status_code == 503 and answer.headers["retry-after"]
