"""The virtual world's own page: a person moves the leader arms with mouse, keys or gamepad.

Serves on the loopback only and speaks to nobody whose Host or Origin is not this page. It is a
client of the world like any other: what it moves are the hands on the virtual leaders.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Mesa would start a thread a core.
os.environ.setdefault("MUJOCO_GL", "osmesa")  # hardware.worlds has taken EGL if there is one
os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, Response
from numpy.typing import NDArray

from hardware.worlds.control import WorldClient
from hardware.worlds.page_jog import LeaderJog
from hardware.worlds.page_view import View, WorldView
from robot_stack.config import load_station, parse, within
from robot_stack.errors import ConfigError, ControlPlaneError, RobotStackError

__all__ = ["LoopbackOnly", "create_app", "main"]

ASSETS = Path(__file__).parent / "page_assets"
PORT = 8720
FRAME_S, HAND_S, STATUS_S = 0.1, 1 / 30, 0.1
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:",
    "X-Content-Type-Options": "nosniff",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class LoopbackOnly:
    """ASGI middleware: refuses foreign Host headers (DNS rebinding) and, for WebSockets, any
    Origin but this page's own, so that no other web page can move the arms."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {key.lower(): value.decode("latin-1") for key, value in scope["headers"]}
        foreign = headers.get(b"host", "") not in self._hosts
        if scope["type"] == "websocket":
            if foreign or headers.get(b"origin", "") not in self._origins:
                await receive()
                await send({"type": "websocket.close", "code": 1008})
                return
        elif foreign:
            await Response("this page answers to 127.0.0.1 only\n", 421)(scope, receive, send)
            return
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Reset:
    seed: int = within(0, 2**31 - 1)


@dataclass(frozen=True)
class _Script:
    seed: int = within(0, 2**31 - 1, default=0)
    ritual: bool = False


# What the page may ask of the world, beside moving hands: all else is refused here.
ORDERS: Mapping[str, type] = {"reset": _Reset, "script": _Script, "release": _Nothing}


class _World:
    """The world from the page's event loop: requests and drawing, each in a thread of its own
    (a REQ socket and an OpenGL context both belong to one thread)."""

    def __init__(self, station: str) -> None:
        self._station = station
        self._requests = ThreadPoolExecutor(1, "world")
        self._drawing = ThreadPoolExecutor(1, "view")
        self._client: WorldClient | None = None
        self._view: WorldView | None = None

    async def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One operation of the world; ControlPlaneError when it refuses or is not there."""

        def run() -> dict[str, Any]:
            if self._client is None:
                self._client = WorldClient(self._station, timeout_s=1.0)
            return self._client.call(op, **arguments)

        return await asyncio.get_running_loop().run_in_executor(self._requests, run)

    async def draw(self, view: View, leaders: NDArray[np.float64]) -> bytes | None:
        """The newest picture as JPEG; None while no world runs."""

        def run() -> bytes | None:
            if self._view is None:
                self._view = WorldView(self._station)
            return self._view.draw(view, leaders)

        return await asyncio.get_running_loop().run_in_executor(self._drawing, run)

    def close(self) -> None:
        """Close the socket and the renderer where they were made."""
        if self._client is not None:
            self._requests.submit(self._client.close)
        if self._view is not None:
            self._drawing.submit(self._view.close)
        self._requests.shutdown()
        self._drawing.shutdown()


class _Session:
    """One open page."""

    def __init__(self, socket: WebSocket, world: _World, jog: LeaderJog) -> None:
        self._socket = socket
        self._world = world
        self._jog = jog
        self._view = View()
        self._orders: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(32)

    async def run(self) -> None:
        """Until the page is closed: pictures, status and orders in turn with its input."""
        tasks = [
            asyncio.create_task(part())
            for part in (self._receive, self._pictures, self._statuses, self._obey)
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                raise result

    async def _say(self, kind: str, **values: Any) -> None:
        await self._socket.send_text(json.dumps({"kind": kind, **values}))

    async def _receive(self) -> None:
        while True:
            text = await self._socket.receive_text()
            try:
                message = json.loads(text)
                if not isinstance(message, dict):
                    raise ConfigError("a message is a JSON object")
                self._take(message)
            except (ValueError, RecursionError, RobotStackError) as error:
                await self._say("error", message=str(error))

    def _take(self, message: dict[str, Any]) -> None:
        kind = str(message.pop("kind", ""))
        if kind == "view":
            self._view = parse(View, message, kind)
        elif kind in ORDERS:
            arguments = asdict(parse(ORDERS[kind], message, kind))
            with contextlib.suppress(asyncio.QueueFull):
                self._orders.put_nowait((kind, arguments))
        else:
            self._jog.message(kind, message)

    async def _obey(self) -> None:
        while True:
            op, arguments = await self._orders.get()
            try:
                await self._world.call(op, **arguments)
            except ControlPlaneError as error:
                await self._say("error", message=str(error))

    async def _pictures(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                picture = await self._world.draw(self._view, self._jog.leaders())
            except Exception as error:  # noqa: BLE001 - each OpenGL binding has its own
                await self._say(
                    "error",
                    message=f"cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); "
                    "install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa",
                )
                await asyncio.sleep(5.0)
                continue
            if picture is not None:
                await self._socket.send_bytes(picture)
            await asyncio.sleep(max(0.01, FRAME_S - (loop.time() - begun)))

    async def _statuses(self) -> None:
        while True:
            try:
                status = await self._world.call("status")
            except ControlPlaneError as error:
                await self._say("absent", message=str(error))
                await asyncio.sleep(1.0)
                continue
            self._jog.observe(status["robots"])
            await self._say("status", world=status, jog=self._jog.state())
            await asyncio.sleep(STATUS_S)


async def _move_hands(world: _World, jog: LeaderJog) -> None:
    """Carry the people's input to the leaders for as long as the page is served."""
    loop = asyncio.get_running_loop()
    last = loop.time()
    while True:
        await asyncio.sleep(HAND_S)
        now = loop.time()
        requests = jog.step(min(now - last, 0.1))
        last = now
        for request in requests:
            with contextlib.suppress(ControlPlaneError):
                await world.call(
                    "hand", robot=request.robot, joints=request.joints, gripper=request.gripper
                )


def create_app(station: str, port: int) -> FastAPI:
    """The page of ``station``'s world, to be served at ``port`` of the loopback."""
    world = _World(station)
    jog = LeaderJog()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        hands = asyncio.create_task(_move_hands(world, jog))
        try:
            yield
        finally:
            hands.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hands
            world.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    def asset(name: str) -> None:
        @app.get("/" if name == "index.html" else f"/{name}")
        async def serve() -> FileResponse:
            return FileResponse(ASSETS / name, headers=HEADERS)

    for name in ("index.html", "page.js", "page.css"):
        asset(name)

    @app.websocket("/session")
    async def session(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect, asyncio.CancelledError):
            await _Session(socket, world, jog).run()

    app.add_middleware(LoopbackOnly, port=port)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m hardware.worlds.page STATION.yaml [--port 8720]``."""
    parser = argparse.ArgumentParser(description="serve the page of a virtual station's world")
    parser.add_argument("station", help="station file (YAML) with a `world` section")
    parser.add_argument("--port", type=int, default=PORT, help=f"TCP port (default {PORT})")
    args = parser.parse_args(arguments)
    try:
        station = load_station(args.station)
    except RobotStackError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"world of {station.station}: http://127.0.0.1:{args.port}/", flush=True)
    uvicorn.run(
        create_app(station.station, args.port),
        host="127.0.0.1",
        port=args.port,
        log_level="warning",
        ws_max_size=1 << 16,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
