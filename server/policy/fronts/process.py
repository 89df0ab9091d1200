"""A front in a process of its own: unpacking images there takes no turn from the policy server."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Self

from robot_stack.errors import PolicyError

from .openpi import FrontOptions, OpenpiFront

__all__ = ["FrontProcess"]

START_S = 30.0
END_S = 5.0

log = logging.getLogger(__name__)


def _run(options: FrontOptions, pipe: Connection) -> None:
    """The process: serves until SIGTERM, or until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too; the parent ends it
    front = OpenpiFront(options)
    signal.signal(signal.SIGTERM, lambda *_: front.stop())

    def wait_for_parent() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            front.stop()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    try:
        asyncio.run(front.run(pipe.send))
    except PolicyError as error:
        pipe.send(str(error))


class FrontProcess:
    """Starts the front of ``options`` and ends it with the block; ``port`` is where it listens.

    PolicyError when it cannot listen. When it dies meanwhile that is logged: native clients go on.
    """

    def __init__(self, options: FrontOptions) -> None:
        self.options = options
        self.port = 0
        OpenpiFront(options)  # a wrong certificate is refused here, not in a process
        context = get_context("spawn")
        self._pipe, self._there = context.Pipe()
        self._process = context.Process(
            target=_run, args=(options, self._there), name="openpi-front", daemon=True
        )
        self._ending = False

    def __enter__(self) -> Self:
        self._process.start()
        self._there.close()
        try:
            said = self._pipe.recv() if self._pipe.poll(START_S) else "it did not start"
        except EOFError:
            said = "it ended at once"
        if not isinstance(said, int):
            self.__exit__()
            raise PolicyError(f"openpi front: {said}", "bad_endpoint")
        self.port = said
        scheme = "wss" if self.options.certificate else "ws"
        log.info("  openpi clients at %s://%s:%s", scheme, self.options.host, self.port)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self) -> None:
        wait([self._process.sentinel])
        if not self._ending:
            log.error("the openpi front has ended; native clients go on without it")

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._process.terminate()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
