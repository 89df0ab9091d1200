"""Who may talk to the teleoperation page: this computer's own browsers, or holders of a session.

Any web site may make a browser send requests to 127.0.0.1 or to a robot's address. The Host header
must therefore name this computer (a site that resolves its own name to this address, "DNS
rebinding", sends its own), an Origin must be this page's (the same-origin policy does not hold for
WebSockets), and where the network can reach us a session is needed: a one-time link sets its
cookie and is spent.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hardware.teleop.browser_config import BrowserConfig, is_loopback

__all__ = ["PageGuard", "Sessions"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

SESSION_S = 12 * 3600.0
MAX_SESSIONS = 32
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
# The cookie is SameSite=Strict. A redirect that began on another site (a link in a chat) would not
# carry it; this page's own reload does.
ENTER = b'<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>Opening</title>'


class Sessions:
    """One-time tokens and the sessions that they were exchanged for, in this process's memory.

    ``announce`` gets each new token: at once, and when one was spent the next.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._sessions: dict[str, float] = {}
        self._renew()

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        self._announce(self._token)

    def enter(self, token: str) -> str | None:
        """Spend a token: the new session's id, None when it is not the one that was announced."""
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        session = secrets.token_urlsafe(32)
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key])]
        self._sessions[session] = time.monotonic() + SESSION_S
        self._renew()
        return session

    def known(self, session: str) -> bool:
        """Whether a session is valid; takes equally long for all that are not."""
        now = time.monotonic()
        found = False
        for own, until in self._sessions.items():
            found |= hmac.compare_digest(session.encode(), own.encode()) and until > now
        return found


class PageGuard:
    """ASGI middleware: checks Host, Origin and, with ``sessions``, the session of each request."""

    def __init__(self, app: App, config: BrowserConfig, sessions: Sessions | None) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = f"robot_stack_teleop_{config.port}"
        self._secure = bool(config.certificate)
        own = socket.gethostname().lower()
        self._names = {own, f"{own}.local", *(name.lower() for name in config.names)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._wrong_site(scope["type"], headers)
        if refusal is not None:
            await _refuse(scope, send, 403, refusal)
            return
        if self._sessions is not None:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            token = query.get("token", [None])[0]
            if scope["type"] == "http" and token is not None:
                session = self._sessions.enter(token)
                if session is not None:
                    await self._let_in(send, session)
                    return
            if not self._sessions.known(self._session(headers)):
                text = (
                    "This page moves a robot: open it with the one-time link that "
                    "`robot-stack teleop` printed (each link works once; it prints the next)."
                )
                await _refuse(scope, send, 401, text)
                return
        await self._app(scope, receive, _with_headers(send))

    def _wrong_site(self, kind: str, headers: dict[str, str]) -> str | None:
        host = headers.get("host", "").lower()
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if not self._own(name):
            return f"Host {host!r} is not a name of this computer; add it to teleop.options.names"
        origin = headers.get("origin")
        if origin is None:  # browsers send it with every WebSocket and every POST
            return "a WebSocket needs an Origin" if kind == "websocket" else None
        if origin not in (f"http://{host}", f"https://{host}"):
            return f"a page of {origin} may not use this one"
        return None

    def _own(self, name: str) -> bool:
        if is_loopback(name):
            return True
        if self._sessions is None:
            return False
        try:
            ipaddress.ip_address(name)  # no name that somebody could have resolve to us
        except ValueError:
            return name in self._names
        return True

    def _session(self, headers: dict[str, str]) -> str:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if cookie is None else cookie.value

    async def _let_in(self, send: Send, session: str) -> None:
        cookie = f"{self._cookie}={session}; Path=/; Max-Age={SESSION_S:.0f}; HttpOnly"
        cookie += "; SameSite=Strict" + ("; Secure" if self._secure else "")
        headers = [(b"content-type", b"text/html; charset=utf-8"), *HEADERS]
        headers.append((b"set-cookie", cookie.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ENTER})


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return wrapped


async def _refuse(scope: Message, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
