"""Live leaderboards: one frame a board and worker, sent to all who look, the latest only.

    database ── version ──► Follower ──► Hub ── builds one frame a board, at most one a second
                                          └──► viewers: each sends what is latest when it can

A commit moves the boards' version; PostgreSQL notifies (the version's number and nothing else),
SQLite is asked four times a second. A viewer that is slow or away misses frames in between, never
the last one: whenever it can send, it sends the newest, and after a reconnect it gets a whole
board. No viewer holds a database session.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy.orm import Session

from collect.crowd.boards import Board, check_board, open_board
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.log import log
from collect.crowd.observe import viewers
from collect.crowd.standings import CHANNEL, QUARTER_S, site_version
from collect.crowd.tables import utc_now

__all__ = ["Frame", "Frames", "Hub"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

APART_S = 1.0  # frames of a worker are at least so far apart
ASK_S = 0.25  # SQLite tells nobody of a commit
BEAT_S = 15.0  # proxies close what is silent for longer (nginx: 60 s)
RECENT_S = 0.1  # who polls a board needs no later one
# Counting people takes PostgreSQL longer than anything else of a board, and of so many nobody sees
# whether it is one more.
COUNT_S = 5.0
MANY = 1000
RECONNECT_S = 2.0
RETRY_MS = 3000  # browsers come back so long after a lost stream
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold frames back
]
BEAT = b": still here\n\n"


@dataclass(frozen=True, slots=True)
class Frame:
    """A board as everybody sees it: JSON, its tag by content, the version that it is of, and the
    quarter of an hour: days begin and newcomers cease to be without any change of the version.
    ``until``: when its count of people will be too old (monotonic seconds)."""

    version: int
    quarter: int
    tag: str
    body: bytes
    until: float

    @property
    def event(self) -> bytes:
        return b"id: %s\nevent: board\ndata: %s\n\n" % (self.tag.encode(), self.body)


class Frames:
    """The frames of one process: made again when the version or the clock has moved."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[tuple[str, str], Frame] = {}
        self._counts: dict[tuple[str, str], tuple[float, int]] = {}
        self._looked: dict[tuple[str, str], tuple[float, int, Frame]] = {}
        self._making = threading.Lock()

    def recent(self, scope: str, period: str) -> Frame:
        """The frame as it was ``RECENT_S`` ago or later, however many ask; what this process has
        written itself is in it. Raises as ``get`` does."""
        looked = self._looked.get((scope, period))
        now, writes = time.monotonic(), self._database.writes
        if looked is not None and now - looked[0] < RECENT_S and looked[1] == writes:
            return looked[2]
        frame = self.get(scope, period)
        self._looked[scope, period] = now, writes, frame
        return frame

    def get(self, scope: str, period: str) -> Frame:
        """The frame of ``scope`` and ``period`` as it is now. Blocks for the database.

        LookupError for a board that there isn't, DatabaseBusyError.
        """
        with self._database.read() as tx:
            check_board(tx, scope, period)
            kept = self._newest(tx, scope, period)
        if kept is not None:
            return kept
        with self._making, self._database.read() as tx:  # one makes it, others wait for it
            kept = self._newest(tx, scope, period)
            if kept is not None:
                return kept
            version, _ = site_version(tx)
            quarter = _quarter()  # before the board asks for the time: rather too old than too new
            board = open_board(tx, scope, period)
            count, until = self._count(tx, board, (scope, period))
            shown = {
                "scope": scope,
                "period": period,
                "key": board.period,
                "count": count,
                "places": [
                    {"rank": place.rank, "name": place.name, "score": place.score}
                    for place in board.top(tx)
                ],
            }
            tag = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:20]
            body = json.dumps({"version": version, **shown}, ensure_ascii=False).encode()
            frame = Frame(version, quarter, tag, body, until)
            self._kept[scope, period] = frame
            return frame

    def _newest(self, tx: Session, scope: str, period: str) -> Frame | None:
        """The frame that was made already, if it is of this version and quarter of an hour."""
        kept = self._kept.get((scope, period))
        now = (site_version(tx)[0], _quarter())
        if kept is None or (kept.version, kept.quarter) != now or time.monotonic() > kept.until:
            return None
        return kept

    def _count(self, tx: Session, board: Board, key: tuple[str, str]) -> tuple[int, float]:
        """How many are on a board, and until when a frame may say so."""
        now = time.monotonic()
        counted = self._counts.get(key)
        if counted is not None and counted[1] > MANY and now - counted[0] < COUNT_S:
            return counted[1], counted[0] + COUNT_S
        count = board.count(tx)
        self._counts[key] = now, count
        return count, math.inf


def _quarter() -> int:
    """Every zone's midnight is at the beginning of one."""
    return int(utc_now().timestamp() // QUARTER_S)


@dataclass(eq=False)
class _Channel:
    """A board that somebody looks at. ``moved`` is set, and replaced, when there is news."""

    frame: Frame
    event: bytes
    viewers: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()


class Hub:
    """The live boards of one worker process; ``running()`` beside the requests."""

    def __init__(self, database: Database, capacity: int) -> None:
        self.frames = Frames(database)
        self._database = database
        self._capacity = capacity
        self._channels: dict[tuple[str, str], _Channel] = {}
        self._viewers = 0
        self._dirty = asyncio.Event()
        self._opened = asyncio.Event()

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return self._viewers

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Hub]:
        follow = self._ask if self._database.sqlite else self._listen
        tasks = [asyncio.create_task(work()) for work in (follow, self._publish)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(
        self, scope: str, period: str, last: str | None, receive: Receive, send: Send
    ) -> bool:
        """Send a board and what becomes of it until the viewer goes; False when this is full.

        ``last``: the Last-Event-ID of a viewer that comes back; it gets nothing that it has.
        LookupError for a board that there isn't; nothing is sent then, nor when full.
        """
        if self._viewers >= self._capacity:
            return False
        viewers.inc()
        self._viewers += 1  # counted before the first await: two can't take the last place
        try:
            channel = await self._channel(scope, period)
            channel.viewers += 1
            try:
                await _until_left(receive, _send_frames(channel, last, send))
            finally:
                channel.viewers -= 1
        finally:
            self._viewers -= 1
            viewers.dec()
        return True

    async def _channel(self, scope: str, period: str) -> _Channel:
        """The channel of a board with a frame that is not older than this call's."""
        frame = await asyncio.to_thread(self.frames.get, scope, period)
        channel = self._channels.get((scope, period))
        if channel is None:
            channel = self._channels[scope, period] = _Channel(frame, frame.event)
        elif not channel.viewers:
            channel.frame, channel.event = frame, frame.event
        self._opened.set()
        return channel

    async def _publish(self) -> None:
        """Make and spread frames, at most one a second; the first one at once."""
        beaten = time.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dirty.wait(), BEAT_S)
            self._dirty.clear()
            began = time.monotonic()
            for key, channel in list(self._channels.items()):
                if not channel.viewers:
                    continue
                try:
                    frame = await asyncio.to_thread(self.frames.get, *key)
                except LookupError:
                    continue  # the task was closed; who looks keeps what was last
                except DatabaseBusyError:
                    self._dirty.set()
                    continue
                if frame.tag != channel.frame.tag:
                    channel.frame, channel.event = frame, frame.event
                    channel.wake()
                elif began - beaten >= BEAT_S:
                    channel.wake()
            if began - beaten >= BEAT_S:
                beaten = began
            await asyncio.sleep(max(0.0, began + APART_S - time.monotonic()))

    async def _ask(self) -> None:
        """SQLite: look at the version again and again while anybody looks at a board."""
        known = -1
        while True:
            if not self._viewers:
                self._opened.clear()
                await self._opened.wait()
            with contextlib.suppress(DatabaseBusyError):
                version = await asyncio.to_thread(self._version)
                if version != known:
                    known = version
                    self._dirty.set()
            await asyncio.sleep(ASK_S)

    def _version(self) -> int:
        with self._database.read() as tx:
            return site_version(tx)[0]

    async def _listen(self) -> None:
        """PostgreSQL: be told. After a lost connection something may have been missed."""
        url = self._database.url.set(drivername="postgresql")
        address = url.render_as_string(hide_password=False)
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(address, autocommit=True)
                async with connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    self._dirty.set()
                    async for _ in connection.notifies():
                        self._dirty.set()
            except psycopg.OperationalError:
                log.warning("boards are not followed: the database is away")
            await asyncio.sleep(RECONNECT_S)


async def _send_frames(channel: _Channel, last: str | None, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send(_part(b"retry: %d\n\n" % RETRY_MS))
    sent = last
    while True:
        moved = channel.moved  # before the look at the frame: no news falls between
        if channel.frame.tag != sent:
            sent = channel.frame.tag
            await send(_part(channel.event))
        else:
            await moved.wait()
            if channel.frame.tag == sent:
                await send(_part(BEAT))


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


async def _until_left(receive: Receive, sending: Coroutine[Any, Any, None]) -> None:
    """Run ``sending`` until the viewer has gone: a server doesn't tell the one who sends."""
    tasks = [asyncio.create_task(sending), asyncio.create_task(_left(receive))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
