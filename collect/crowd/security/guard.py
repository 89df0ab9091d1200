"""The first thing a request meets: Host, https, Origin, body and Range caps, security headers.

Plain ASGI, so that it holds for pages, files, streams and WebSockets alike.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException

from collect.crowd.config import CrowdConfig, is_loopback
from collect.crowd.security.csrf import SAFE_METHODS
from collect.crowd.security.sessions import cookie_name

__all__ = ["CONTENT_SECURITY_POLICY", "HEADERS", "Guard", "protect"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "media-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not "no-referrer": browsers would then send "Origin: null" with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
HSTS = "max-age=31536000; includeSubDomains"
# One range, as every video player asks. Anything else is answered with the whole file.
RANGE = re.compile(r"bytes=(\d{1,15}-\d{0,15}|-\d{1,15})")
UPLOAD = re.compile(r"/api/station/play/[0-9a-f-]{36}/file")
MACHINE = frozenset({"/health", "/metrics"})  # asked by monitors on this computer


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, config: CrowdConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        send = self._with_headers(scope, state, send)
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        if scope["type"] == "http":
            cap = self._cap(scope)
            length = Headers(scope=scope).get("content-length", "0")
            if not length.isdigit() or len(length) > 15 or int(length) > cap:
                await _refuse(scope, send, 413, f"a request may have {cap} bytes at most")
                return
            receive = _capped(receive, cap)
            scope["headers"] = _plain_range(scope["headers"])
        await self._app(scope, receive, send)

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        machine = scope["path"] in MACHINE and is_loopback(urlsplit(f"//{host}").hostname or "")
        if host != self._config.host and not machine:
            return 421, f"this is {self._config.origin}, not {host!r}; use that address"
        if self._config.https and scope["scheme"] not in ("https", "wss") and not machine:
            return 403, f"use {self._config.origin}; a proxy must send X-Forwarded-Proto: https"
        origin = headers.get("origin")
        if scope["type"] == "websocket":
            return None if origin == self._config.origin else (403, "a foreign page asked")
        if scope["method"] not in SAFE_METHODS:
            if origin is not None and origin != self._config.origin:
                return 403, f"a page of {origin[:100]!r} may not write here"
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "a page of another site may not write here"
        return None

    def _cap(self, scope: Message) -> int:
        caps = self._config.caps
        if scope["method"] == "PUT" and UPLOAD.fullmatch(scope["path"]):
            return caps.upload_mb << 20
        return caps.body_kb << 10

    def _with_headers(self, scope: Message, state: dict[str, Any], send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                protect(headers, self._config)
                if visit := state.get("new_visit"):
                    secure = "; Secure" if self._config.https else ""
                    name = cookie_name(self._config, "visit")
                    headers.append(
                        "set-cookie", f"{name}={visit}; Path=/; HttpOnly; SameSite=Strict{secure}"
                    )
            await send(message)

        return wrapped


def protect(headers: MutableHeaders, config: CrowdConfig) -> None:
    """Put the security headers on an answer."""
    for name, value in HEADERS.items():
        headers[name] = value
    if config.https:
        headers["strict-transport-security"] = HSTS
    # Nobody finds the last visitor's pages with the back button.
    headers.setdefault("cache-control", "no-store")


def _capped(receive: Receive, cap: int) -> Receive:
    taken = 0

    async def wrapped() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > cap:
                raise HTTPException(413, f"a request may have {cap} bytes at most")
        return message

    return wrapped


def _plain_range(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    ranges = [value for name, value in headers if name == b"range"]
    if not ranges or (len(ranges) == 1 and RANGE.fullmatch(ranges[0].decode("latin-1"))):
        return headers
    return [(name, value) for name, value in headers if name not in (b"range", b"if-range")]


async def _refuse(scope: Message, send: Send, status: int, text: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
