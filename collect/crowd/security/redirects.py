"""Where the site sends a browser: to its own pages and nowhere else."""

from __future__ import annotations

import re

from starlette.responses import RedirectResponse

__all__ = ["PAGES", "local_path", "redirect"]

# The first segment of every page that `next=` may name.
PAGES = frozenset(
    [
        "signin",
        "age",
        "consent",
        "nickname",
        "tutorial",
        "tasks",
        "queue",
        "play",
        "report",
        "me",
        "back",
        "board",
        "rewards",
        "help",
        "pair",
        "staff",
        "free",
    ]
)
# Letters, digits and - _ only, and : after the first segment (/board/task:cube): no %, \, //, ., @,
# control or white space that browsers and servers read in different ways.
PATH = re.compile(r"/(?:[A-Za-z0-9_-]+(?:/[A-Za-z0-9_:-]+)*)?")
QUERY = re.compile(r"(?:[A-Za-z0-9_=&+-]|%[0-9A-F]{2}){0,200}")  # as browsers and we encode it
MAX = 300


def local_path(target: str | None, fallback: str = "/") -> str:
    """``target`` if it is a page of this site, else ``fallback``. Never raises."""
    if not target or len(target) > MAX:
        return fallback
    path, mark, query = target.partition("?")
    if not PATH.fullmatch(path) or not QUERY.fullmatch(query):
        return fallback
    first = path.split("/")[1]
    if first and first not in PAGES:
        return fallback
    return path + mark + query


def redirect(target: str | None, fallback: str = "/") -> RedirectResponse:
    """303 to a page of this site: the browser asks for it with GET."""
    return RedirectResponse(local_path(target, fallback), status_code=303)
