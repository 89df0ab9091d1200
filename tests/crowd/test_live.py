"""Live boards: the last state reaches everybody, in few frames, and nobody who is hidden."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session
from starlette.types import Message

from collect.crowd import boards, ledger, live
from collect.crowd.app import create_app
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.live import Frames, Hub
from collect.crowd.standings import NEWCOMER
from collect.crowd.tables import Participant, Task, new_id, utc_now
from tests.crowd.factories import make_participant, make_task

WAIT_S = 30.0


class Viewer:
    """The far end of one stream: what was sent to it, and a way to leave."""

    def __init__(self, hub: Hub, scope: str = "all", last: str | None = None) -> None:
        self.frames: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.raw = b""
        self.reads = asyncio.Event()
        self.reads.set()
        self._gone = asyncio.Event()
        self._asked = False
        self.task = asyncio.create_task(hub.stream(scope, "all", last, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        body = message.get("body", b"")
        self.raw += body
        for line in body.decode().splitlines():
            if line.startswith("data: "):
                self.frames.append(json.loads(line.removeprefix("data: ")))
            if line.startswith("id: "):
                self.ids.append(line.removeprefix("id: "))

    async def leave(self) -> bool:
        self._gone.set()
        return await asyncio.wait_for(self.task, WAIT_S)

    def scores(self) -> dict[str, int]:
        return {place["name"]: place["score"] for place in self.frames[-1]["places"]}


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {WAIT_S} s"
        await asyncio.sleep(0.02)


def give(tx: Session, who: str, points: int) -> None:
    ledger.award(
        tx,
        key=new_id(),
        participant_id=who,
        play_id=None,
        task_id=None,
        kind="staff",
        points=points,
    )


@pytest.fixture
def ada(database: Database) -> str:
    with database.begin() as tx:
        who = make_participant(tx, "Ada").id
        give(tx, who, 10)
    return who


@contextlib.asynccontextmanager
async def running(database: Database, capacity: int = 10) -> AsyncIterator[Hub]:
    async with Hub(database, capacity).running() as hub:
        yield hub


def play(story: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(story, 4 * WAIT_S))  # type: ignore[arg-type]


def test_a_burst_is_few_frames_and_its_last_state_arrives(database: Database, ada: str) -> None:
    def burst() -> None:
        for _ in range(30):
            with database.begin() as tx:
                give(tx, ada, 1)

    async def story() -> None:
        async with running(database) as hub:
            viewers = [Viewer(hub) for _ in range(5)]
            await until(lambda: all(v.frames for v in viewers), "the first frame")
            began = time.monotonic()
            await asyncio.to_thread(burst)
            await until(lambda: all(v.scores() == {"Ada": 40} for v in viewers), "the last state")
            taken = time.monotonic() - began
            for viewer in viewers:
                # The first one, one at once, and then at most one a second.
                assert len(viewer.frames) <= 2 + taken / live.APART_S
                versions = [frame["version"] for frame in viewer.frames]
                assert versions == sorted(versions)
                assert await viewer.leave()
            assert hub.viewers == 0

    play(story())


def test_who_is_slow_gets_the_latest_and_holds_nobody_up(database: Database, ada: str) -> None:
    async def story() -> None:
        async with running(database) as hub:
            slow, quick = Viewer(hub), Viewer(hub)
            await until(lambda: bool(slow.frames and quick.frames), "the first frame")
            slow.reads.clear()
            for score in (20, 30, 40):
                await asyncio.to_thread(_give, database, ada, 10)
                await until(lambda score=score: quick.scores() == {"Ada": score}, "a frame")
            slow.reads.set()
            await until(lambda: slow.scores() == {"Ada": 40}, "the latest")
            assert len(slow.frames) <= 3  # the first, one that was on its way, the latest
            await slow.leave()
            await quick.leave()

    play(story())


def test_who_comes_back_gets_a_whole_board_or_what_is_missing(database: Database, ada: str) -> None:
    async def story() -> None:
        async with running(database) as hub:
            first = Viewer(hub)
            await until(lambda: bool(first.frames), "the first frame")
            await first.leave()
            same = Viewer(hub, last=first.ids[-1])
            await until(lambda: b"retry:" in same.raw, "the beginning")
            await asyncio.to_thread(_give, database, ada, 5)
            await until(lambda: bool(same.frames), "news")
            assert [frame["places"][0]["score"] for frame in same.frames] == [15]
            other = Viewer(hub, last=first.ids[-1])  # missed it
            await until(lambda: bool(other.frames), "a snapshot")
            assert other.scores() == {"Ada": 15}
            await same.leave()
            await other.leave()

    play(story())


@pytest.mark.parametrize("change", [{"hidden": True}, {"on_board": False}], ids=str)
def test_who_is_hidden_leaves_the_screens(
    database: Database, ada: str, change: dict[str, bool]
) -> None:
    def hide() -> None:
        with database.begin() as tx:
            for name, value in change.items():
                setattr(tx.get_one(Participant, ada), name, value)

    async def story() -> None:
        async with running(database) as hub:
            viewer = Viewer(hub)
            await until(lambda: bool(viewer.frames), "the first frame")
            await asyncio.to_thread(hide)
            await until(lambda: viewer.frames[-1]["places"] == [], "an empty board")
            assert viewer.frames[-1]["count"] == 0
            await viewer.leave()

    play(story())


def test_a_full_worker_refuses_and_takes_again(database: Database, ada: str) -> None:
    async def story() -> None:
        async with running(database, capacity=2) as hub:
            viewers = [Viewer(hub), Viewer(hub)]
            await until(lambda: all(v.frames for v in viewers), "the first frame")
            third = Viewer(hub)
            assert await asyncio.wait_for(third.task, WAIT_S) is False
            assert third.raw == b""
            await viewers[0].leave()
            fourth = Viewer(hub)
            await until(lambda: bool(fourth.frames), "a frame")
            for viewer in (viewers[1], fourth):
                await viewer.leave()

    play(story())


def test_viewers_of_other_boards_are_not_disturbed(database: Database, ada: str) -> None:
    with database.begin() as tx:
        task = make_task(tx).id

    async def story() -> None:
        async with running(database) as hub:
            everything, one = Viewer(hub), Viewer(hub, f"task:{task}")
            await until(lambda: bool(everything.frames and one.frames), "the first frame")
            await asyncio.to_thread(_give, database, ada, 10)
            await until(lambda: everything.scores() == {"Ada": 20}, "news")
            assert len(one.frames) == 1
            await everything.leave()
            await one.leave()

    play(story())


def test_two_workers_show_the_same(database: Database, database_url: str, ada: str) -> None:
    async def story() -> None:
        with contextlib.closing(Database(database_url)) as second:
            async with running(database) as here, running(second) as there:
                viewers = [Viewer(here), Viewer(there)]
                await until(lambda: all(v.frames for v in viewers), "the first frame")
                await asyncio.to_thread(_give, second, ada, 7)
                await until(lambda: all(v.scores() == {"Ada": 17} for v in viewers), "news")
                assert viewers[0].ids[-1] == viewers[1].ids[-1]
                for viewer in viewers:
                    await viewer.leave()

    play(story())


def test_a_frame_is_made_once_a_version(database: Database, ada: str) -> None:
    frames = Frames(database)
    first = frames.get("all", "all")
    assert frames.get("all", "all") is first
    _give(database, ada, 1)
    second = frames.get("all", "all")
    assert second.version > first.version
    assert second.tag != first.tag
    with database.begin() as tx:
        kept = make_task(tx).id
    assert frames.get(f"task:{kept}", "all").version == second.version
    with database.begin() as tx:
        tx.get_one(Task, kept).active = False
    with pytest.raises(LookupError):
        frames.get(f"task:{kept}", "all")


def test_who_polls_sees_at_once_what_this_process_wrote(
    database: Database, database_url: str, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another one wrote a moment later."""
    frames = Frames(database)
    first = frames.recent("all", "all")
    monkeypatch.setattr(live, "RECENT_S", WAIT_S)  # however slow this machine is
    with database.begin() as tx:
        give(tx, ada, 1)
    mine = frames.recent("all", "all")
    assert mine.version > first.version
    with contextlib.closing(Database(database_url)) as other, other.begin() as tx:
        give(tx, ada, 1)
    assert frames.recent("all", "all") is mine
    monkeypatch.setattr(live, "RECENT_S", 0.0)
    assert frames.recent("all", "all").version > mine.version


def test_many_people_are_counted_now_and_then_and_in_the_end(
    database: Database, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count() -> int:
        found: int = json.loads(frames.get("all", "all").body)["count"]
        return found

    def one_more(name: str) -> None:
        with database.begin() as tx:
            give(tx, make_participant(tx, name).id, 5)

    frames = Frames(database)
    assert count() == 1
    one_more("Ben")
    assert count() == 2  # few are counted each time
    monkeypatch.setattr(live, "MANY", 1)
    one_more("Cleo")
    assert count() == 2
    now = time.monotonic()
    monkeypatch.setattr(live.time, "monotonic", lambda: now + live.COUNT_S + 1.0)
    assert count() == 3, "nothing was written since"


def test_newcomers_leave_the_kept_frame_by_the_clock_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = utc_now()
    with database.begin() as tx:
        came = now - NEWCOMER + dt.timedelta(minutes=10)
        give(tx, make_participant(tx, "Ada", created_at=came).id, 10)
    frames = Frames(database)
    first = frames.get("newcomers", "all")
    assert json.loads(first.body)["count"] == 1
    for module in (live, boards):
        monkeypatch.setattr(module, "utc_now", lambda: now + dt.timedelta(minutes=30))
    second = frames.get("newcomers", "all")
    assert second.version == first.version
    assert (json.loads(second.body)["count"], json.loads(second.body)["places"]) == (0, [])


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_full_site_says_when_to_come_back(config: CrowdConfig) -> None:
    """Through the whole application, with its guards and headers."""
    app = create_app(config)

    async def story() -> None:
        hub = Hub(app.state.site.database, 0)
        transport = httpx.ASGITransport(_with_state(app, {"boards": hub}))
        async with httpx.AsyncClient(transport=transport, base_url=config.origin) as client:
            answer = await client.get("/api/board/all/live")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            for method in ("HEAD", "PUT"):
                answer = await client.request(method, "/api/board/all/live")
                assert answer.status_code == 405, method

    play(story())
    app.state.site.database.close()


def _with_state(app: Any, state: dict[str, Any]) -> Any:
    """What a server does with what the lifespan yields."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = dict(state)
        await app(scope, receive, send)

    return wrapped


def _give(database: Database, who: str, points: int) -> None:
    with database.begin() as tx:
        give(tx, who, points)
