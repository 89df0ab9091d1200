"""Somebody at a browser who does what pages offer: reads one, fills its form in, follows where it
leads. Nothing is known to it but what is on the page."""

from __future__ import annotations

import html
import re
from urllib.parse import urlsplit

import httpx

from tests.crowd.browser import Browser

__all__ = ["Visitor"]


class Visitor:
    """``page`` is what is seen, ``path`` where. Redirects are followed."""

    def __init__(self, browser: Browser) -> None:
        self.client = browser.client
        self.site = browser.site
        self.page = ""
        self.path = "/"
        self.response: httpx.Response | None = None

    def go(self, path: str) -> Visitor:
        """Type an address."""
        self._seen(self.client.get(path, follow_redirects=True))
        return self

    def submit(self, action: str, data: dict[str, object] | None = None) -> Visitor:
        """Send the page's form of this action: its hidden fields, and ``data`` filled in."""
        found = re.search(
            rf'<form[^>]*action="{re.escape(action)}"[^>]*>(.*?)</form>', self.page, re.DOTALL
        )
        assert found, f"no form for {action} on {self.path}:\n{self.page}"
        hidden = {
            name: html.unescape(value)
            for name, value in re.findall(
                r'<input type="hidden" name="([^"]+)" value="([^"]*)"(?! disabled)', found[1]
            )
        }
        self._seen(self.client.post(action, data={**hidden, **(data or {})}, follow_redirects=True))
        return self

    def come(self, card: str = "0412345678") -> Visitor:
        """Tap a card at the kiosk."""
        return self.go("/signin").submit("/signin/card", {"card": card})

    def join(self, card: str = "0412345678") -> Visitor:
        """Tap, be grown up, agree to everything, keep the pseudonym."""
        self.come(card).submit("/age", {"adult": "true"})
        return self.submit("/consent", {"scope": ["record", "research", "clips"]})

    @property
    def error(self) -> int:
        assert self.response is not None
        return self.response.status_code

    def _seen(self, response: httpx.Response) -> None:
        self.response = response
        self.page = response.text
        self.path = urlsplit(str(response.url)).path
