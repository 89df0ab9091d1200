"""The crowd site as an ASGI application: routers of `routes/`, guards around them, errors.

Each module of `collect/crowd/routes` offers `router`, an APIRouter. What must run beside the
requests (a follower of the boards, a video worker) is the router's own `lifespan`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from collect.crowd import observe, routes
from collect.crowd.config import CONFIG_VARIABLE, CrowdConfig, load_config
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.deps import SignInError, guard_writes
from collect.crowd.keys import load_key
from collect.crowd.log import configure, log, where
from collect.crowd.security.guard import Guard, protect
from collect.crowd.security.rate_limit import RateLimiter, TooManyError
from collect.crowd.site import Site
from collect.crowd.templating import render
from robot_stack.processes import end_with

__all__ = ["create_app", "from_environment"]

STATIC = Path(__file__).parent / "static"
HTMX = ("js_lib_htmx", "static/htmx")  # a package that is nothing but htmx's files
BUSY_RETRY_S = 2
# What any route may answer besides its own; whatever else one answers, it declares.
ANYWHERE: dict[int | str, dict[str, Any]] = {
    303: {"description": "To another page: the next step, or the sign-in"},
    400: {"description": "No request that can be read"},
    401: {"description": "Nobody is signed in"},
    403: {"description": "Not for this role, or from a page that is not ours"},
    404: {"description": "Not there, or not yours"},
    413: {"description": "Too much"},
    421: {"description": "Not the name of this site"},
    422: {"description": "Something in it is missing or wrong"},
    429: {"description": "Too often; Retry-After says when again"},
    503: {"description": "Busy, full, or the database is away; Retry-After says when again"},
}


def create_app(config: CrowdConfig) -> FastAPI:
    """The application. Opens no connection; the database must have been migrated."""
    key = load_key(config.key_file)
    database = Database(config.database)
    limiter = RateLimiter(database, key, config.caps.writes_per_minute)

    pages = _pages()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        async with pages.lifespan_context(app) as state:
            yield state or {}
        database.close()
        observe.forget_worker()

    app = FastAPI(
        title="robot-stack crowd",
        routes=pages.routes,
        lifespan=lifespan,
        dependencies=[Depends(guard_writes)],  # of what is added to this one, too
        responses=ANYWHERE,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.site = Site(config, database, key, limiter)
    app.mount("/static", _Static(directory=STATIC, packages=[HTMX]), name="static")
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DataError, _not_kept)
    app.add_exception_handler(DatabaseBusyError, _busy)
    app.add_exception_handler(TooManyError, _too_many)
    app.add_exception_handler(Exception, _unexpected)
    # The last one added meets a request first.
    app.add_middleware(Guard, config=config)
    app.add_middleware(observe.Observe)
    if config.trusted_proxies:
        app.add_middleware(
            ProxyHeadersMiddleware,
            trusted_hosts=list(config.trusted_proxies),
        )
    return app


def from_environment() -> FastAPI:
    """The application of a worker process; its settings file is in the environment."""
    configure()
    if (parent := multiprocessing.parent_process()) is not None:
        # A worker ends with the process that started it, however and whenever that ended.
        assert parent.pid is not None
        if not end_with(parent.pid, signal.SIGTERM):
            raise SystemExit("the process that started this worker is gone")
    # Requests pass from the loop to a thread and back: each change waited up to 5 ms for whoever
    # computes meanwhile.
    sys.setswitchinterval(0.0005)
    app = create_app(load_config(os.environ[CONFIG_VARIABLE]))
    gc.collect()
    gc.freeze()  # nobody is answered while all that is loaded is looked through: 0.1 s and more
    return app


@functools.cache
def _pages() -> APIRouter:
    """All that the site answers. FastAPI works a route out when it is first asked for, which for
    all of them takes a quarter of a second: once a process, however many applications it makes."""
    pages = APIRouter(dependencies=[Depends(guard_writes)], responses=ANYWHERE)
    pages.include_router(observe.router)
    for router in _routers():
        pages.include_router(router)
    return pages


def _routers() -> list[APIRouter]:
    found = []
    for module in sorted(pkgutil.iter_modules(routes.__path__), key=lambda module: module.name):
        router = importlib.import_module(f"{routes.__name__}.{module.name}").router
        assert isinstance(router, APIRouter), f"{module.name}.router is no APIRouter"
        found.append(router)
    return found


class _Static(StaticFiles):
    """Files of the site itself; kept by browsers, asked again each time (ETag)."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "no-cache"
        return response


def _wants_json(request: Request) -> bool:
    if request.url.path.startswith("/api/"):
        return True
    return request.headers.get("accept", "").startswith("application/json")


def _error(request: Request, status: int, message: str, retry_s: int | None = None) -> Response:
    response: Response
    if _wants_json(request):
        response = JSONResponse({"error": status, "message": message}, status_code=status)
    else:
        response = render(request, "error.html", status, code=status, message=message)
    if retry_s is not None:
        response.headers["retry-after"] = str(retry_s)
    return response


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, SignInError) and not _wants_json(request):
        return RedirectResponse(error.where, status_code=303)
    response = _error(request, error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Names of fields and reasons only: what was sent is not sent back.
    wrong = [f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors()]
    return _error(request, 422, "; ".join(wrong)[:500])


def _not_kept(request: Request, _: Exception) -> Response:
    """PostgreSQL takes no NUL in a text and no number beyond its type's."""
    return _error(request, 422, "there is something in this that can't be kept")


def _busy(request: Request, _: Exception) -> Response:
    text = "the site is busy; try again in a moment"
    return _error(request, 503, text, BUSY_RETRY_S)


def _too_many(request: Request, error: Exception) -> Response:
    assert isinstance(error, TooManyError)
    return _error(request, 429, str(error), error.retry_s)


def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected", error=error, where=where(error.__traceback__))
    response = _error(request, 500, "the site has made a mistake; staff can see it in the log")
    # Starlette answers mistakes outside of all middleware, so outside of `Guard`.
    protect(response.headers, request.app.state.site.config)
    return response
