"""Parts of a file for who asks by one Range: what a video player does, and nothing costlier.

Of many ranges at once, and of what is no range, the whole file is the answer, as RFC 9110 allows:
the header is looked at once and never split (Starlette's CVE-2025-62727 was about that).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["FileRange", "byte_range"]

ONE_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
CHUNK = 256 << 10


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that ``header`` asks for of ``size``; None for the whole file.

    ValueError when it asks for bytes that there are not (416).
    """
    match = ONE_RANGE.fullmatch(header or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        wanted = min(int(last), size)
        if wanted == 0:
            raise ValueError(f"no bytes of {size}")
        return size - wanted, size - 1
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise ValueError(f"byte {start} of {size}")
    return start, end


class FileRange(Response):
    """200, 206 or 416 of a file, in pieces. FileNotFoundError from the constructor.

    Browsers may keep it and ask each time whether it is still the same.
    """

    def __init__(self, request: Request, path: Path, media_type: str) -> None:
        self._file: BinaryIO = path.open("rb")
        self.background = None
        about = os.fstat(self._file.fileno())
        size = about.st_size
        tag = f'"{about.st_mtime_ns:x}-{size:x}"'
        self._start, self._left, self.status_code = 0, size, 200
        headers = {
            "accept-ranges": "bytes",
            "cache-control": "private, no-cache",
            "content-type": media_type,
            "etag": tag,
        }
        condition = request.headers.get("if-range")
        if request.headers.get("if-none-match") == tag:
            self._left, self.status_code = 0, 304
        elif condition is None or condition == tag:
            try:
                part = byte_range(request.headers.get("range"), size)
            except ValueError:
                self._left, self.status_code = 0, 416
                headers["content-range"] = f"bytes */{size}"
            else:
                if part is not None:
                    self._start, self._left, self.status_code = part[0], part[1] - part[0] + 1, 206
                    headers["content-range"] = f"bytes {part[0]}-{part[1]}/{size}"
        if self.status_code != 304:
            headers["content-length"] = str(self._left)
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._file as file:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            file.seek(self._start)
            while self._left > 0:
                data = await run_in_threadpool(file.read, min(CHUNK, self._left))
                if not data:
                    raise OSError("a video became shorter while it was sent")
                self._left -= len(data)
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
