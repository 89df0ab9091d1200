"""The process behind the teleoperation page: what hands do goes to a ring, pictures come back.

It commands nothing. The Teleoperator reads the ring, so a page, its network or this process can
stall or die and the robot stops because nothing new comes. The one thing that it does to robots is
to raise the stop flags, for whoever may see the page.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse

from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.browser_control import Control, PageClock
from hardware.teleop.browser_guard import PageGuard, Sessions
from hardware.teleop.browser_records import INPUT, INPUT_SLOTS, input_path
from hardware.teleop.browser_sessions import REFUSED, ControlSession, RobotsNow, VideoSession
from hardware.teleop.browser_status import RobotsView
from hardware.teleop.browser_video import CameraView
from robot_stack.client import stop_all
from robot_stack.config import Station, load_station, parse
from robot_stack.errors import ConfigError, RobotStackError
from robot_stack.shared_memory import RingWriter

__all__ = ["PageService", "create_app", "main"]

ASSETS = Path(__file__).parent / "browser_assets"
FILES = ("index.html", "page.css", "page.js", "hands.js", "video.js")
LOOK_S = 0.05
MAX_SOCKETS = 16
MAX_MESSAGE = 2048
GONE_S = 5.0  # a page that answers no ping for so long is gone
SHUTDOWN_S = 1


class PageService:
    """All that the open pages share, and the ring that their hands go to."""

    def __init__(self, station: Station, group: str, config: BrowserConfig) -> None:
        self.station = station.station
        self.clock = PageClock()
        self.ring = RingWriter(input_path(station.station), INPUT, INPUT_SLOTS)
        self.control = Control(config, self.ring, self.clock)
        self.cameras = {name: CameraView(station.station, name) for name in station.cameras}
        self.drawing = ThreadPoolExecutor(1, "pictures")
        self.sockets = 0
        self._view = RobotsView(station, group)
        self.robots = RobotsNow(self._view.describe())

    async def follow(self) -> None:
        """Keep ``robots`` fresh for as long as the page is served."""
        while True:
            self.robots.description = self._view.describe()
            await asyncio.sleep(LOOK_S)

    def stop(self, who: str) -> list[str]:
        """Raise every stop flag of the station; returns the groups that were told."""
        return stop_all(self.station, f"STOP pressed on {who}")

    def close(self) -> None:
        self.drawing.shutdown()
        for camera in self.cameras.values():
            camera.close()
        self._view.close()
        self.ring.close(unlink=True)


def create_app(service: PageService, sessions: Sessions | None) -> PageGuard:
    """The ASGI application: ``/`` the page, ``/control`` and ``/video`` its WebSockets, and
    ``POST /stop``. It closes the service when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            service.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    for name in FILES:
        app.add_api_route(
            "/" if name == "index.html" else f"/{name}",
            lambda name=name: FileResponse(ASSETS / name),
            methods=["GET"],
        )

    @app.post("/stop")
    async def stop(request: Request) -> JSONResponse:
        """STOP by a way of its own, should the page's socket be stuck."""
        host = "" if request.client is None else f" at {request.client.host}"
        return JSONResponse({"groups": service.stop(f"a page{host}")})

    async def serve(socket: WebSocket, session: ControlSession | VideoSession) -> None:
        if service.sockets >= MAX_SOCKETS:
            await socket.close(REFUSED)
            return
        await socket.accept()
        service.sockets += 1
        try:
            await session.run()
        finally:
            service.sockets -= 1

    @app.websocket("/control")
    async def control(socket: WebSocket) -> None:
        await serve(socket, ControlSession(socket, service.control, service.robots, service.stop))

    @app.websocket("/video")
    async def video(socket: WebSocket) -> None:
        await serve(socket, VideoSession(socket, service.cameras, service.clock, service.drawing))

    return PageGuard(app, service.control.config, sessions)


def _listen(config: BrowserConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot serve the teleoperation page at {config.host}:{config.port}: {error}; choose "
            "another teleop.options.port (0 takes a free one) or host"
        ) from error


def _url(config: BrowserConfig) -> str:
    """What a browser opens; everybody's address is shown as this computer's name."""
    host = config.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if config.certificate else 'http'}://{shown}:{config.port}/"


async def _serve(server: uvicorn.Server, listener: socket.socket, *, attached: bool) -> None:
    if attached:  # standard input is a pipe from the Teleoperator: it ends when that does

        def parent_gone() -> None:
            if not os.read(0, 64):
                server.should_exit = True
                asyncio.get_running_loop().remove_reader(0)

        asyncio.get_running_loop().add_reader(0, parent_gone)
    await server.serve(sockets=[listener])


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m hardware.teleop.browser_page STATION.yaml --group GROUP``: one JSON line when it
    listens, or says why not."""
    parser = argparse.ArgumentParser(description="serve the teleoperation page of a station")
    parser.add_argument("station", help="station file (YAML)")
    parser.add_argument("--group", required=True, help="the group that the hands move")
    parser.add_argument("--options", default="{}", help="BrowserConfig as JSON")
    parser.add_argument("--port", type=int, help="instead of the options'")
    parser.add_argument("--attached", action="store_true", help="end when standard input does")
    args = parser.parse_args(arguments)
    try:
        station = load_station(args.station)
        config = parse(BrowserConfig, json.loads(args.options), "teleop.options")
        if args.port is not None:
            config = replace(config, port=args.port)
        listener = _listen(config)
        config = replace(config, port=listener.getsockname()[1])
        url = _url(config)
        sessions = None
        if config.authenticate:

            def announce(token: str) -> None:
                print(f"teleoperation page, works once: {url}?token={token}", file=sys.stderr)

            sessions = Sessions(announce)
        else:
            print(f"teleoperation page: {url}", file=sys.stderr)
        settings = uvicorn.Config(
            create_app(PageService(station, args.group, config), sessions),
            log_level="warning",
            ws_max_size=MAX_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=GONE_S / 2,
            ws_ping_timeout=GONE_S / 2,
            limit_concurrency=4 * MAX_SOCKETS,
            timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
            ssl_certfile=config.certificate or None,
            ssl_keyfile=config.key or None,
        )
        try:
            settings.load()
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"teleop.options.certificate and key: {error}; both are PEM files that this user "
                "can read"
            ) from error
    except RobotStackError as error:
        print(json.dumps({"ok": False, "error": str(error)}), flush=True)
        return 1
    print(json.dumps({"ok": True, "url": url, "port": config.port}), flush=True)
    asyncio.run(_serve(uvicorn.Server(settings), listener, attached=args.attached))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
