"""What the site tells its operators: a log line and two metrics a request, /health, /metrics."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from sqlalchemy import event, text
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from collect.crowd.config import is_loopback
from collect.crowd.database import DatabaseBusyError
from collect.crowd.deps import Db, address_of
from collect.crowd.log import log

__all__ = ["Observe", "awards", "count", "forget_worker", "plays", "router", "viewers"]

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

requests = Counter("crowd_requests", "Requests answered", ["method", "route", "status"])
seconds = Histogram(
    "crowd_request_seconds",
    "Time to the first byte",
    ["route"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
plays = Counter("crowd_plays", "Plays that ended", ["ended_by"])
awards = Counter("crowd_awards", "Ledger entries written", ["kind"])
viewers = Gauge("crowd_viewers", "Open live streams", multiprocess_mode="livesum")

router = APIRouter()


class Observe:
    """ASGI middleware: counts, times and logs each request by its route's pattern."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                seconds.labels(_route(scope)).observe(time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, wrapped)
        finally:
            route = _route(scope)
            requests.labels(scope["method"], route, str(status)).inc()
            if route not in ("/health", "/metrics", "static"):
                log.info(
                    "request",
                    method=scope["method"],
                    route=route,
                    status=status,
                    ms=round((time.perf_counter() - began) * 1e3, 1),
                    request_id=uuid.uuid4().hex[:12],
                )


def count(tx: Session, counter: Counter) -> None:
    """Count once more when ``tx`` is committed; what is undone was never there."""
    event.listen(tx, "after_commit", lambda _: counter.inc(), once=True)


def forget_worker() -> None:
    """Take this worker's live streams out of the sum; it ends."""
    if MULTIPROCESS in os.environ:
        multiprocess.mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def _route(scope: Message) -> str:
    # Never the raw path: that would be one time series a task, and whatever somebody typed.
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path", "static"))
    return "static" if scope["path"].startswith("/static/") else "none"


@router.get("/health", include_in_schema=False)
def health(db: Db) -> Response:
    """200 when pages can be served; 503 while the database is away."""
    try:
        with db.read() as tx:
            tx.execute(text("SELECT 1 FROM site_version"))
    except DatabaseBusyError:
        return JSONResponse({"ok": False, "database": "away"}, status_code=503)
    return JSONResponse({"ok": True, "database": "ok"})


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """For Prometheus on this computer; of all workers together."""
    if not is_loopback(address_of(request)):
        raise HTTPException(404)
    if MULTIPROCESS in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
