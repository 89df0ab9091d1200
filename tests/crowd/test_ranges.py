"""Ranges: one is served exactly; everything else costs no more than the file itself."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from collect.crowd.ranges import FileRange, byte_range

SIZE = 1000
HOSTILE = (
    "bytes=0-0,1-1",
    "bytes=" + ",".join(f"{i}-{i}" for i in range(5000)),
    "bytes=" + ",".join(["0-"] * 20000),
    "bytes=" + "0-999," * 1000,
    "bytes=-1-2",
    "bytes=--1",
    "bytes=5-2",
    "bytes=1e3-",
    "bytes=0x10-",
    "bytes=٣-٥",
    "bytes=0 - 5",
    "bytes= 0-5",
    "bytes=",
    "bytes=-",
    "bytes",
    "items=0-5",
    "bytes=0-5;",
    "bytes=" + "9" * 5000 + "-",
    "bytes=-" + "9" * 5000,
    "\x00",
    "",
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 999)),
        ("bytes=0-0", (0, 0)),
        ("bytes=10-19", (10, 19)),
        ("bytes=999-5000", (999, 999)),
        ("bytes=-1", (999, 999)),
        ("bytes=-5000", (0, 999)),
    ],
)
def test_a_range_is_what_it_says(header, expected):
    assert byte_range(header, SIZE) == expected


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=999999999999999-", "bytes=-0"])
def test_bytes_that_there_are_not_are_refused(header):
    with pytest.raises(ValueError):
        byte_range(header, SIZE)


@pytest.mark.parametrize("header", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_single_range_is_the_whole_file(header):
    assert byte_range(header, SIZE) is None


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80) | st.from_regex(r"bytes=\d{0,18}-\d{0,18}", fullmatch=True))
def test_no_header_leaves_the_file(header):
    for size in (0, 1, SIZE):
        try:
            found = byte_range(header, size)
        except ValueError:
            continue
        assert found is None or 0 <= found[0] <= found[1] < size


def test_a_long_header_takes_no_longer_than_a_short_one():
    header = "bytes=" + "0-0," * 2_000_000
    start = time.process_time()
    for _ in range(1000):
        assert byte_range(header, SIZE) is None
    assert time.process_time() - start < 1.0


def answer(path, **headers):
    """Status, headers and body of a file asked for with ``headers``."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": raw}
    sent = []

    async def send(message):
        sent.append(message)

    async def ask():
        await FileRange(Request(scope), path, "video/mp4")(scope, None, send)

    asyncio.run(ask())
    assert sent[0]["type"] == "http.response.start"
    assert [m.get("more_body", False) for m in sent[1:]] == [True] * (len(sent) - 2) + [False]
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, b"".join(message["body"] for message in sent[1:])


def test_a_file_comes_whole_in_part_or_not_at_all(tmp_path):
    content = bytes(range(256)) * 4000
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    status, head, body = answer(path)
    assert (status, body, head["content-length"]) == (200, content, str(len(content)))
    assert head["accept-ranges"] == "bytes"
    tag = head["etag"]
    status, head, body = answer(path, range="bytes=1000-600000")
    assert (status, body) == (206, content[1000:600001])
    assert head["content-range"] == f"bytes 1000-600000/{len(content)}"
    assert head["content-length"] == str(len(body))
    status, head, body = answer(path, range=f"bytes={len(content)}-")
    assert (status, body, head["content-range"]) == (416, b"", f"bytes */{len(content)}")
    assert answer(path, if_none_match=tag)[0] == 304
    assert answer(path, range="bytes=0-5", if_range=tag)[0] == 206
    assert answer(path, range="bytes=0-5", if_range='"another"')[0] == 200
    path.write_bytes(b"")
    assert answer(path)[::2] == (200, b"")
    with pytest.raises(FileNotFoundError):
        answer(tmp_path / "none.mp4")
