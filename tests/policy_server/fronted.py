"""An openpi front in a thread, and a server written as openpi writes its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from openpi_client import msgpack_numpy
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from server.policy.fronts.openpi import FrontOptions, OpenpiFront
from tests.policy_server.served import HANG_S


class Fronted:
    """The front of these options, serving until ``close``."""

    def __init__(self, **options: Any) -> None:
        self.front = OpenpiFront(FrontOptions(**{"port": 0, **options}))
        self.port = 0
        started = threading.Event()

        def listening(port: int) -> None:
            self.port = port
            started.set()

        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.front.run(listening)), daemon=True
        )
        self._thread.start()
        assert started.wait(HANG_S)

    def close(self) -> None:
        self.front.stop()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


class AsOpenpi:
    """openpi's way to serve: metadata, then ``infer`` on the event loop; errors as a traceback."""

    def __init__(self, infer: Callable[[dict[str, Any]], Any], metadata: dict[str, Any]) -> None:
        self.port = 0
        self._infer, self._metadata = infer, metadata
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(HANG_S)

    async def _run(self) -> None:
        self._ended, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(self._handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            self._started.set()
            await self._ended.wait()

    async def _handle(self, connection: Any) -> None:
        await connection.send(msgpack_numpy.packb(self._metadata))
        while True:
            try:
                observation = msgpack_numpy.unpackb(await connection.recv())
                began = time.monotonic()
                action = self._infer(observation)
                if isinstance(action, dict):
                    action["server_timing"] = {"infer_ms": (time.monotonic() - began) * 1e3}
                await connection.send(msgpack_numpy.packb(action))
            except ConnectionClosed:
                return
            except Exception as error:  # noqa: BLE001 - as openpi does
                await connection.send(f"Traceback\n{type(error).__name__}: {error}")
                await connection.close(1011, "Internal server error.")
                return

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
