"""Clients of the crowd benchmark: readers of a board over HTTP, and viewers of its live stream."""

from __future__ import annotations

import asyncio
import re
import time

__all__ = ["Viewer", "open_viewers", "read_boards"]

VERSION = re.compile(rb'"version": (\d+)')
END = b"}\n\n"  # of an event with data; a beat has none
AT_ONCE = 100  # connections being opened


async def read_boards(
    port: int, readers: int, seconds: float, hz: float | None = None
) -> list[float]:
    """Ask for the top 50 on ``readers`` kept connections; seconds of each.

    ``hz``: so often, all together, and each counts from when it was due; by default again and
    again, which tells how many there can be.
    """
    asked = f"GET /api/board/all HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    deadline = time.monotonic() + seconds

    async def read(number: int) -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        mine = []
        due = time.monotonic() + (number / hz if hz else 0.0)
        while due < deadline:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            began = due
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(f"a board was answered with {head[:40]!r}")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            mine.append(time.monotonic() - began)
            due = due + readers / hz if hz else time.monotonic()
        writer.close()
        return mine

    return [
        each
        for some in await asyncio.gather(*(read(number) for number in range(readers)))
        for each in some
    ]


class Viewer(asyncio.Protocol):
    """One live stream; ``seen``: when which version was wholly here (monotonic seconds)."""

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[float, int]] = []
        self.opened = asyncio.Event()
        self.lost = False
        self._port = port
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    @property
    def version(self) -> int:
        return self.seen[-1][1] if self.seen else -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(
            f"GET /api/board/all/live HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(END)) >= 0:
            found = VERSION.search(self._buffer, 0, end)
            assert found is not None, self._buffer[:200]
            self.seen.append((time.monotonic(), int(found[1])))
            self._buffer = self._buffer[end + len(END) :]
            self.opened.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.opened.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def open_viewers(port: int, number: int) -> list[Viewer]:
    """So many viewers, each with its first frame."""
    loop = asyncio.get_running_loop()
    turn = asyncio.Semaphore(AT_ONCE)

    async def view() -> Viewer:
        async with turn:
            viewer = Viewer(port)
            await loop.create_connection(lambda: viewer, "127.0.0.1", port)
            async with asyncio.timeout(120.0):
                await viewer.opened.wait()
            return viewer

    viewers = await asyncio.gather(*(view() for _ in range(number)))
    refused = sum(viewer.lost for viewer in viewers)
    if refused:
        raise ConnectionError(f"{refused} of {number} streams were refused")
    return viewers
