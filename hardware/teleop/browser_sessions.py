"""The two sockets of an open teleoperation page: hands in and status out; pictures out.

They are apart so that a slow picture never stands before a beat, by which packets prove their age.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from hardware.teleop.browser_control import Control, Hands, Page, PageClock, read_message
from hardware.teleop.browser_video import LARGE, SMALL, CameraView
from robot_stack.config import parse
from robot_stack.errors import ConfigError

__all__ = ["ControlSession", "RobotsNow", "VideoSession"]

BEAT_S = 0.05
BEATS_A_STATUS = 2
BEHIND_MS, BEHIND_S = 1000.0, 0.5  # a page that far behind gets so few, until it has caught up
FRAME_S = 0.04
SMALL_S = 0.5
IN_FLIGHT = 3  # frames that a page has not drawn yet; a slow one gets fewer, always the newest
MAX_RATE = 300  # messages a second; the page sends 40
MAX_JUNK = 20
REFUSED = 1008  # WebSocket close code: policy violation


@dataclass(slots=True)
class RobotsNow:
    """What the robots were doing a moment ago (``RobotsView.describe``), kept fresh by one task."""

    description: dict[str, Any]


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Run until the first part ends, then end the others; an error of any is raised."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        # RuntimeError: starlette's word for a send after the other side has closed.
        if isinstance(result, Exception) and not isinstance(
            result, WebSocketDisconnect | RuntimeError
        ):
            raise result


class _Session:
    """One socket: its messages, and who sends too many or too foolish ones is shown the door."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._junk = 0
        self._second = 0.0
        self._messages = 0

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            now = time.monotonic()
            if now - self._second > 1.0:
                self._second, self._messages = now, 0
            self._messages += 1
            if self._messages > MAX_RATE:
                await self._socket.close(REFUSED, f"more than {MAX_RATE} messages a second")
                return
            try:
                kind, values = read_message(message.get("text") or "")
                await self._take(kind, values)
            except ConfigError as error:
                self._junk += 1
                if self._junk > MAX_JUNK:
                    await self._socket.close(REFUSED, "too many messages that are none")
                    return
                await self._say("error", message=str(error))

    async def _take(self, kind: str, values: dict[str, Any]) -> None:
        raise NotImplementedError

    async def _say(self, kind: str, **values: Any) -> None:
        await self._socket.send_text(json.dumps({"kind": kind, **values}, allow_nan=False))


@dataclass(frozen=True)
class _Nothing:
    """Arguments of a message that has none."""


class ControlSession(_Session):
    """Hands, control and STOP of one page. It loses control when its socket closes."""

    def __init__(
        self,
        socket: WebSocket,
        control: Control,
        robots: RobotsNow,
        stop: Callable[[str], list[str]],
    ) -> None:
        super().__init__(socket)
        client = socket.client
        self._page = Page("another page" if client is None else f"a page at {client.host}")
        self._control = control
        self._robots = robots
        self._stop = stop

    async def run(self) -> None:
        """Until the page is closed or gone."""
        try:
            await _together(self._listen(), self._tell())
        finally:
            self._control.leave(self._page, time.monotonic_ns())

    async def _take(self, kind: str, values: dict[str, Any]) -> None:
        now_ns = time.monotonic_ns()
        if kind == "hands":
            self._control.hear(self._page, Hands.from_message(values), now_ns)
            return
        if kind not in ("stop", "take", "leave"):
            raise ConfigError(f"no message is called {kind!r} (hands, take, leave, stop)")
        parse(_Nothing, values, kind)
        if kind == "stop":
            await self._say("stopped", groups=self._stop(self._page.name))
        elif kind == "leave":
            self._control.leave(self._page, now_ns)
        elif (refusal := self._control.take(self._page, now_ns)) is not None:
            await self._say("error", message=refusal)

    async def _tell(self) -> None:
        turn = 0
        begun_ms = self._now_ms()
        while True:
            if turn % BEATS_A_STATUS == 0:
                await self._say("status", t=self._now_ms(), **self._status())
            else:
                await self._say("beat", t=self._now_ms())
            turn += 1
            behind = self._now_ms() - max(begun_ms, self._page.echo_ms) > BEHIND_MS
            await asyncio.sleep(BEHIND_S if behind else BEAT_S)

    def _now_ms(self) -> float:
        return self._control.clock.ms(time.monotonic_ns())

    def _status(self) -> dict[str, Any]:
        page, control = self._page, self._control
        holder = control.holder
        trip_s = page.round_trip_s
        return {
            "control": "none" if holder is None else "you" if holder is page else "other",
            "refusal": control.refusal(page, time.monotonic_ns()),
            "round_trip_ms": None if math.isnan(trip_s) else trip_s * 1e3,
            "max_round_trip_ms": control.config.max_round_trip_s * 1e3,
            "late": page.late,
            **self._robots.description,
        }


@dataclass(frozen=True)
class _Main:
    camera: str


class VideoSession(_Session):
    """Pictures of all cameras, the chosen one large. A message is a line of JSON and a JPEG: the
    line has ``camera``, ``t`` (its capture, by ``PageClock``) and ``large``."""

    def __init__(
        self,
        socket: WebSocket,
        cameras: dict[str, CameraView],
        clock: PageClock,
        drawing: ThreadPoolExecutor,
    ) -> None:
        super().__init__(socket)
        self._cameras = cameras
        self._clock = clock
        self._drawing = drawing
        self._main = next(iter(cameras), "")
        self._flying = 0
        self._landed = asyncio.Event()

    async def run(self) -> None:
        """Until the page is closed or gone."""
        await self._say("cameras", names=list(self._cameras))
        await _together(self._listen(), self._send())

    async def _take(self, kind: str, values: dict[str, Any]) -> None:
        if kind == "drawn":
            parse(_Nothing, values, kind)
            self._flying = max(0, self._flying - 1)
            self._landed.set()
        elif kind == "main":
            camera = parse(_Main, values, kind).camera
            if camera not in self._cameras:
                raise ConfigError(f"no camera {camera!r} (cameras: {', '.join(self._cameras)})")
            self._main = camera
        else:
            raise ConfigError(f"no message is called {kind!r} (drawn, main)")

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        shown: dict[tuple[str, bool], int] = {}
        smalls_due = 0.0
        while True:
            begun = loop.time()
            smalls = begun >= smalls_due
            if smalls:
                smalls_due = begun + SMALL_S
            for name, camera in self._cameras.items():
                large = name == self._main
                if not (large or smalls):
                    continue
                while self._flying >= IN_FLIGHT:
                    self._landed.clear()
                    await self._landed.wait()
                picture = await loop.run_in_executor(
                    self._drawing,
                    camera.newest,
                    LARGE if large else SMALL,
                    shown.get((name, large), -1),
                )
                if picture is None:
                    continue
                shown[name, large] = picture.t_ns
                self._flying += 1
                line = {"camera": name, "t": self._clock.ms(picture.t_ns), "large": large}
                await self._socket.send_bytes(json.dumps(line).encode() + b"\n" + picture.jpeg)
            await asyncio.sleep(max(0.005, FRAME_S - (loop.time() - begun)))
