"""The process that talks to a Franka hand: states and answers out, one command at a time in.

Both client libraries block in a command for as long as the fingers move, and in a state until the
hand sends one (10 Hz); a hand that does not answer blocks them for ever, in C++ threads that
nothing can end but the end of their process. So they live in one of their own, which the driver
may kill at any moment (``hardware.franka.gripper``). It is no device loop, and uses threads.

Messages are one JSON object each, on a socket (SOCK_SEQPACKET) inherited as ``--fd``. In:
``{"seq", "do": "move" | "grasp", "width", "speed", "force"}`` and ``{"do": "stop"}``. Out:
``{"t_ns", "width", "max_width", "grasped"}``, ``{"done", "ok", "text"}`` and ``{"failed"}``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import Any

from robot_stack.processes import end_with

__all__ = ["main"]

WHOLE_STROKE_M = 0.08
# panda-py waits for a state (10 Hz) with Python's lock held, and a stop must not wait with it.
PANDA_PAUSE_S = 0.08
LARGEST_MESSAGE = 4096


def _gripper(library: str, address: str) -> Any:
    """The connected hand; both libraries name its commands alike."""
    if library == "franky":
        import franky

        return franky.Gripper(address)
    from panda_py import libfranka

    return libfranka.Gripper(address)


class _Worker:
    def __init__(self, link: socket.socket, library: str, address: str) -> None:
        self._link = link
        self._library = library
        self._gripper = _gripper(library, address)
        self._mover = 0
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(self) -> None:
        threading.Thread(target=self._states, daemon=True).start()
        mover = threading.Thread(target=self._commands, daemon=True)
        mover.start()
        self._mover = mover.native_id or 0
        while True:
            data = self._link.recv(LARGEST_MESSAGE)
            if not data:  # the driver has gone, or wants no more
                os._exit(0)
            order = json.loads(data)
            if order["do"] == "stop":
                self._stop()  # before any later order; should it hang, so does the command
            else:
                self._orders.put(order)

    def _tell(self, **message: Any) -> None:
        try:
            self._link.send(json.dumps(message).encode())
        except OSError:
            os._exit(0)

    def _states(self) -> None:
        read = self._gripper.read_once if self._library == "panda" else lambda: self._gripper.state
        while True:
            try:
                state = read()
            except Exception as error:  # noqa: BLE001  # the libraries' errors share no base
                self._tell(failed=f"no state: {error}")
                os._exit(1)
            self._tell(
                t_ns=time.monotonic_ns(),
                width=state.width,
                max_width=state.max_width,
                grasped=bool(state.is_grasped),
            )
            if self._library == "panda":
                time.sleep(PANDA_PAUSE_S)

    def _commands(self) -> None:
        while True:
            order = self._orders.get()
            ok, text = False, ""
            try:
                if order["do"] == "grasp":
                    ok = self._gripper.grasp(
                        order["width"],
                        order["speed"],
                        order["force"],
                        WHOLE_STROKE_M,  # whatever is between the fingers is what was meant
                        WHOLE_STROKE_M,
                    )
                else:
                    ok = self._gripper.move(order["width"], order["speed"])
            except Exception as error:  # noqa: BLE001
                text = str(error)
            self._tell(done=order["seq"], ok=bool(ok), text=text[:200])

    def _stop(self) -> None:
        """On the core of the thread that moves. That one lets go of the library's lock and takes it
        again, a hundred times a second, and from another core a stop comes in between only by
        chance: on a busy computer after a second. On the same core it is next."""
        anywhere = os.sched_getaffinity(0)
        core = {ctypes.CDLL(None).sched_getcpu()} & anywhere or anywhere
        try:
            for thread in (0, self._mover):
                os.sched_setaffinity(thread, core)
            with contextlib.suppress(Exception):  # the driver sees by the command what came of it
                self._gripper.stop()
        finally:
            for thread in (0, self._mover):
                os.sched_setaffinity(thread, anywhere)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One Franka hand's commands and states.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--library", choices=("franky", "panda"), required=True)
    parser.add_argument("--address", required=True)
    options = parser.parse_args(arguments)
    parent = os.getppid()
    if not end_with(parent, signal.SIGKILL):
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # not where the arm's loop is pinned
    with socket.socket(fileno=options.fd) as link:
        try:
            worker = _Worker(link, options.library, options.address)
        except Exception as error:  # noqa: BLE001
            link.send(json.dumps({"failed": str(error)[:400]}).encode())
            return 1
        worker.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
