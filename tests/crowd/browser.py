"""A browser of the tests: cookies, the CSRF token, a sign-in by the site's own code."""

from __future__ import annotations

import secrets
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.testclient import TestClient

from collect.crowd.security.csrf import HEADER
from collect.crowd.security.sessions import Kind, NewSession, cookie_name, sign_in
from collect.crowd.site import Site
from collect.crowd.tables import Participant, Staff, Station

__all__ = ["Browser"]


class Browser:
    """Talks to the application in this process; follows no redirect.

    ``get(path)`` and ``post(path, data={...})`` / ``post(path, json={...})`` answer the response;
    writes carry the CSRF token that the page of ``path`` would have, unless ``csrf=None`` (none)
    or another text is given. ``client`` is starlette's TestClient underneath.
    """

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        self.site: Site = app.state.site
        self.client = client
        self._app = app
        self._sessions: dict[Kind, NewSession] = {}

    def sign_in(
        self,
        *,
        participant: Participant | None = None,
        staff: Staff | None = None,
        kiosk: Station | None = None,
    ) -> Browser:
        """Be the kiosk of a station, then a participant (at that kiosk, if it is one) or staff."""
        if kiosk is not None:
            self._begin("kiosk", station_id=kiosk.id)
            self._kiosk_id = kiosk.id
        if participant is not None:
            station_id = getattr(self, "_kiosk_id", None)
            self._begin("participant", participant_id=participant.id, station_id=station_id)
        if staff is not None:
            self._begin("staff", staff_id=staff.id)
        return self

    def csrf(self, path: str = "/") -> str:
        """The token that forms of the page at ``path`` carry."""
        staff = path.startswith(("/staff", "/api/staff"))
        for kind in ("staff",) if staff else ("participant", "kiosk"):
            if kind in self._sessions:
                return self._sessions[kind].csrf
        name = cookie_name(self.site.config, "visit")
        visit = self.client.cookies.get(name)
        if visit is None:
            visit = secrets.token_urlsafe(32)
            self.client.cookies.set(name, visit)
        return self.site.key.mac("csrf", visit)

    def set_cookie(self, name: str, value: str) -> None:
        """Have this cookie, whatever the site has set by that name."""
        for cookie in list(self.client.cookies.jar):
            if cookie.name == name:
                self.client.cookies.jar.clear(cookie.domain, cookie.path, cookie.name)
        self.client.cookies.set(name, value)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, *, csrf: str | None = "right", **options: Any) -> httpx.Response:
        return self.request("POST", path, csrf=csrf, **options)

    def request(
        self, method: str, path: str, *, csrf: str | None = "right", **options: Any
    ) -> httpx.Response:
        """Any method; see the class."""
        headers = dict(options.pop("headers", None) or {})
        if method not in ("GET", "HEAD", "OPTIONS") and csrf is not None:
            headers.setdefault(HEADER, self.csrf(path) if csrf == "right" else csrf)
        return self.client.request(method, path, headers=headers, **options)

    def _begin(self, kind: Kind, **of: str | None) -> None:
        scope = {"type": "http", "app": self._app, "headers": [], "path": "/", "method": "GET"}
        with self.site.database.begin() as tx:
            session = sign_in(tx, Request(scope), kind, **of)
        self._sessions[kind] = session
        self.set_cookie(cookie_name(self.site.config, kind), session.token)
