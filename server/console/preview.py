"""`robot-stack preview`: live cameras of a station in a browser page, or one contact sheet.

The page only reads the cameras' rings: it can be opened, closed and killed while robots move.
One WebSocket carries all cameras (a browser opens six connections to a host, so a stream each
would end at five); a slow browser gets fewer frames, always the newest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cv2
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse

from robot_stack.config import load_station
from robot_stack.errors import ConfigError
from server.console.contact_sheet import contact_sheet
from server.console.feed import CameraFeed, CameraStatus, FeedState, camera_rings
from server.console.guard import RequestGuard, check_bind

__all__ = ["PreviewHub", "add_arguments", "create_app", "run"]

STATIC = Path(__file__).parent / "static"
RATE_HZ = 15.0
STATUS_S = 0.2
DISCOVER_S = 1.0
PORT = 8420


class PreviewHub:
    """The feeds of a station, polled at ``RATE_HZ`` while anybody watches.

    ``names`` are the cameras to expect; without it every camera that publishes is shown.
    """

    def __init__(self, station: str, names: list[str] | None) -> None:
        self.station = station
        self.status: list[CameraStatus] = []
        self.viewers = 0
        self._names = names
        self._feeds: dict[str, CameraFeed] = {}
        self._discovered = float("-inf")
        self._tick = asyncio.Condition()

    def poll(self, *, encode: bool = True) -> list[CameraStatus]:
        """Look at every camera once."""
        names = self._names
        if names is None and time.monotonic() - self._discovered > DISCOVER_S:
            self._discovered = time.monotonic()
            names = camera_rings(self.station)
        for name in names or ():
            self._feeds.setdefault(name, CameraFeed(self.station, name))
        self.status = [feed.poll(encode=encode) for feed in self._feeds.values()]
        return self.status

    @property
    def feeds(self) -> list[CameraFeed]:
        return list(self._feeds.values())

    async def follow(self) -> None:
        """Poll for ever; each turn wakes those who wait in ``next``."""
        while True:
            due = time.monotonic() + 1 / RATE_HZ
            # Reading and encoding leave the interpreter for OpenCV: in a thread, sockets go on.
            await asyncio.to_thread(self.poll, encode=self.viewers > 0)
            async with self._tick:
                self._tick.notify_all()
            await asyncio.sleep(max(due - time.monotonic(), 0.005))

    async def next(self) -> None:
        async with self._tick:
            await self._tick.wait()

    def close(self) -> None:
        for feed in self._feeds.values():
            feed.close()

    def summary(self) -> dict[str, Any]:
        """The station and its cameras as JSON."""
        return {"station": self.station, "cameras": [s.to_json() for s in self.status]}


def create_app(hub: PreviewHub, token: str | None = None) -> RequestGuard:
    """The ASGI application: ``/`` the page, ``/api/cameras`` JSON, ``/frames`` the WebSocket.

    A text message of the WebSocket is ``PreviewHub.summary``; a binary one is a frame: the length
    of the camera's name in one byte, the name, a JPEG.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(hub.follow())
        yield
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        hub.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    for path, name in (
        ("/", "preview.html"),
        ("/preview.js", "preview.js"),
        ("/preview.css", "preview.css"),
    ):
        app.add_api_route(path, lambda name=name: FileResponse(STATIC / name), methods=["GET"])

    @app.get("/api/cameras")
    def cameras() -> dict[str, Any]:
        return hub.summary()

    @app.websocket("/frames")
    async def frames(socket: WebSocket) -> None:
        await socket.accept()
        hub.viewers += 1
        try:
            await _send_frames(hub, socket)
        except WebSocketDisconnect:
            return
        finally:
            hub.viewers -= 1

    return RequestGuard(app, token)


async def _send_frames(hub: PreviewHub, socket: WebSocket) -> None:
    sent: dict[str, int] = {}
    status_due = 0.0
    while True:
        if time.monotonic() >= status_due:
            status_due = time.monotonic() + STATUS_S
            await socket.send_text(json.dumps(hub.summary()))
        for feed in hub.feeds:
            if feed.jpeg is not None and sent.get(feed.name) != feed.version:
                sent[feed.name] = feed.version
                name = feed.name.encode()
                await socket.send_bytes(bytes([len(name)]) + name + feed.jpeg)
        await hub.next()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the live cameras of a station in a browser page, with rate, age and lost frames of "
        "each. Only reads: safe while robots move. Reachable from this computer only, unless "
        "--host and --token say otherwise."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack preview configs/aloha_virtual.yaml        the cameras of a station file\n"
        "  robot-stack preview aloha_virtual                     whatever that station publishes\n"
        "  robot-stack preview aloha_virtual --snapshot now.png  one picture of all, and exit\n"
        "  ssh -L 8420:localhost:8420 ROBOT_PC                   to look at it from elsewhere\n"
        "\n--snapshot exits with 1 unless every camera is live."
    )
    parser.add_argument("station", help="station name, or station file")
    parser.add_argument("--snapshot", type=Path, metavar="FILE", help="write a PNG and exit")
    parser.add_argument(
        "--wait", type=float, default=3.0, metavar="S", help="with --snapshot: for cameras (3 s)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback)")
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one ({PORT})")
    parser.add_argument("--token", help="what a browser must show once as ?token=")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    hub = _hub(args.station)
    if args.snapshot is not None:
        return _snapshot(hub, args)
    check_bind(args.host, args.token)
    with _listen(args.host, args.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}/" + (f"?token={args.token}" if args.token else "")
        if args.json:
            print(json.dumps({"ok": True, "station": hub.station, "url": url}), flush=True)
        else:
            print(f"cameras of {hub.station}: {url}  (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(
            create_app(hub, args.token), log_level="warning", timeout_graceful_shutdown=3
        )
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _hub(text: str) -> PreviewHub:
    if Path(text).suffix not in (".yaml", ".yml"):
        return PreviewHub(text, None)
    station = load_station(text)
    if not station.cameras:
        raise ConfigError(f"{text} has no cameras; add them under `cameras:`")
    return PreviewHub(station.station, list(station.cameras))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {_reason(error)}; choose another --port (0 takes a "
            "free one) or --host"
        ) from error


def _reason(error: OSError) -> str:
    # Failures of name resolution have negative numbers, which os.strerror doesn't know.
    number = error.errno or -1
    return os.strerror(number) if number > 0 else str(error.strerror)


def _snapshot(hub: PreviewHub, args: argparse.Namespace) -> int:
    deadline = time.monotonic() + args.wait
    while True:
        status = hub.poll(encode=False)
        live = [s for s in status if s.state == FeedState.LIVE]
        if (status and len(live) == len(status)) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if not status:
        raise ConfigError(
            f"no camera of station {hub.station!r} has published; start it with `robot-stack "
            "serve`, or give a station file"
        )
    sheet = contact_sheet([(s, f.image()) for s, f in zip(status, hub.feeds, strict=True)])
    if not cv2.imwrite(str(args.snapshot), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)):
        raise ConfigError(f"cannot write {args.snapshot}; name a .png file in a writable folder")
    hub.close()
    if args.json:
        print(
            json.dumps(
                {"ok": len(live) == len(status), "snapshot": str(args.snapshot)} | hub.summary()
            )
        )
    else:
        for s in status:
            age = "no frame" if s.age_s is None else f"{s.age_s:.2f} s old"
            print(f"{s.name:20} {s.state:8} {age}")
        print(f"wrote {args.snapshot}")
    return 0 if len(live) == len(status) else 1
