"""Who may talk to a page of ours: loopback by default, a token for everything else.

A browser lets any web site send requests to 127.0.0.1, so being on loopback is not enough. The
Host header must name this machine (else a site that resolves its own name to 127.0.0.1, "DNS
rebinding", reads the cameras), and an Origin header must be this page's own (else a foreign page
opens our WebSocket, to which the same-origin policy does not apply).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from robot_stack.errors import ConfigError

__all__ = ["MIN_TOKEN", "RequestGuard", "check_bind"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MIN_TOKEN = 16
COOKIE = "robot_stack_token"
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:"),
]


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, no port) is this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, token: str | None) -> None:
    """ConfigError when a page would be open to the network without a token."""
    if token is not None and not re.fullmatch(rf"[A-Za-z0-9_-]{{{MIN_TOKEN},}}", token):
        raise ConfigError(
            f"--token must be {MIN_TOKEN} or more letters, digits, '-' and '_'; "
            "`openssl rand -hex 16` makes a good one"
        )
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} opens the cameras to the network: give a --token (`openssl rand -hex "
            "16` makes one), or leave --host out and use `ssh -L 8420:localhost:8420`"
        )


class RequestGuard:
    """ASGI middleware: checks Host, Origin and, where one is set, the token of each request.

    The token comes as ``?token=`` once, which sets a cookie and redirects to ``/``, or
    as ``Authorization: Bearer``. Without a token the Host must be a loopback name.
    """

    def __init__(self, app: App, token: str | None = None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._wrong_site(headers)
        if refusal is not None:
            await _refuse(scope, send, 403, refusal)
            return
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        if self._token is not None and not self._authorised(headers, given):
            await _refuse(
                scope, send, 401, "this page needs the token: open it with ?token=... once"
            )
            return
        if scope["type"] == "http" and self._token is not None and given is not None:
            await _set_cookie(send, self._token)
            return
        await self._app(scope, receive, _with_headers(send))

    def _wrong_site(self, headers: dict[str, str]) -> str | None:
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self._token is None and not is_loopback(name):
            return f"Host {host!r} is not this machine's loopback name; use http://localhost"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return f"a page of {origin} may not use this one"
        return None

    def _authorised(self, headers: dict[str, str], given: str | None) -> bool:
        candidates = [given, headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        candidates.append(cookie.value if cookie is not None else None)
        expected = (self._token or "").encode()
        return any(hmac.compare_digest(c.encode(), expected) for c in candidates if c)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return wrapped


async def _refuse(scope: Message, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


async def _set_cookie(send: Send, token: str) -> None:
    cookie = f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict"
    headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
