"""`next=` leads to pages of this site and nowhere else."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collect.crowd.security.redirects import PAGES, local_path, redirect
from tests.crowd.pages import pages_of

GOOD = [
    "/",
    "/tasks",
    "/tasks/pick-cube",
    "/board/day?page=2&sort=score",
    "/board/task:pick-cube?period=week",
    "/signin/phone?link=aB3_-x",
    "/pair",
    "/staff/review/1-2_3",
]
HOSTILE = [
    "",
    "//evil.test",
    "///evil.test",
    "/\\evil.test",
    "\\\\evil.test",
    "/\t/evil.test",
    "/\n/evil.test",
    "/%09/evil.test",
    "/%2f/evil.test",
    "/%5cevil.test",
    "/tasks/../..//evil.test",
    "/./evil",
    "https://evil.test",
    "HTTPS:evil.test",
    "https:/evil.test",
    "javascript:alert(1)",
    "data:text/html,x",
    "tasks",
    " /tasks",
    "/tasks ",
    "/tasks\r\nset-cookie: a=b",
    "/tasks\0",
    "/@evil.test",
    "/tasks:8430/x",
    "/:8430",
    "/tasks@evil.test",
    "/tasks#//evil.test",
    "/tasks?next=//evil.test",
    "/tasks?next=https://evil.test",
    "/static/x",
    "/api/station/pair",
    "/health",
    "/\u2215evil.test",
    "/\uff0fevil.test",
    "/ta\u200bsks",
    "/" + "a" * 400,
    "/tasks?" + "a" * 400,
]


@pytest.mark.parametrize("target", GOOD)
def test_own_pages(target):
    assert local_path(target) == target
    response = redirect(target)
    assert (response.status_code, response.headers["location"]) == (303, target)


@pytest.mark.parametrize("target", HOSTILE)
def test_everything_else_is_the_fallback(target):
    assert local_path(target, "/me") == "/me"
    assert redirect(target).headers["location"] == "/"


@given(st.text(max_size=60) | st.from_regex(r"[/\\a-z:@?#%\t\r\n.]{0,40}"))
@example("//tasks")
@example("/tasks//evil.test")
def test_nothing_leaves_the_site(text):
    path = local_path(text)
    assert path.startswith("/") and not path.startswith("//") and path.isascii()
    assert not set(path) & set("\\\t\r\n\0%@# ") and ":" not in path.split("/")[1]
    there = urlsplit(urljoin("https://crowd.test/signin", path))
    assert (there.scheme, there.netloc) == ("https", "crowd.test")
    assert there.path.split("/")[1] in PAGES | {""}


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_every_page_of_ours_is_one(app):
    """A page that is left out loses its reader when the language is changed."""
    paths = [re.sub(r"{\w+}", "task:pick-cube", path) for path in pages_of(app)]
    assert len(paths) > 30
    assert [path for path in paths if local_path(path, "lost") != path] == []


def test_none_is_the_fallback():
    assert local_path(None) == "/"
