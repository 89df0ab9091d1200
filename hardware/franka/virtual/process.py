"""The process of a stand-alone virtual Franka: its event loop, and starting it from a program.

The arm must not live in the client's process: libfranka's Python bindings wait for the robot
without releasing the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from hardware.franka.fci import Version
from hardware.franka.virtual.address import ADDRESSES, ANY, control_name
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.operations import operations
from hardware.franka.virtual.server import VirtualArm
from hardware.worlds.command_server import WorldServer
from hardware.worlds.control import WorldClient, socket_path
from robot_stack.errors import DeviceError, MissingDependencyError, RobotStackError
from robot_stack.realtime import setup

__all__ = ["FrankaProcess", "control_name", "main", "robot_model", "run", "serve", "stand_alone"]

PRIORITY = 60
IDLE_S = 0.01
_NS = 1_000_000_000


@lru_cache
def robot_model(version: Version) -> bytes:
    """What an arm alone answers when a client asks for its model."""
    if version == 10:
        from hardware.franka.virtual.urdf import fr3_urdf

        return fr3_urdf().encode()
    from hardware.franka.virtual.model_library import library

    return library()


def stand_alone(version: Version, address: str, *, lock_step: bool = False) -> VirtualArm:
    """An arm with nothing around it, listening at `address` (or ANY); DeviceError if it cannot."""
    body = Body.alone("fr3" if version == 10 else "fer")
    # Made before a client waits for it; without a compiler the FER serves all but its model.
    with contextlib.suppress(MissingDependencyError):
        robot_model(version)
    candidates = ADDRESSES if address == ANY else (address,)
    for candidate in candidates:
        try:
            return VirtualArm(
                body,
                version=version,
                address=candidate,
                robot_model=lambda: robot_model(version),
                lock_step=lock_step,
            )
        except DeviceError:
            if candidate == candidates[-1]:
                raise
    raise AssertionError("unreachable")


def run(
    arm: VirtualArm, stop: Callable[[], bool], server: WorldServer, watch_fd: int | None = None
) -> None:
    """Serve until `stop()` is true, or `watch_fd` becomes readable (its writer has gone).

    While nobody is connected the arm's time stands still.
    """
    watched = [] if watch_fd is None else [watch_fd]
    while not stop():
        now = time.monotonic_ns()
        if not arm.connected:
            arm.clock.restart(now)
        wait_s = IDLE_S
        if arm.connected:  # in lock-step the client may take long, and somebody may ask meanwhile
            wait_s = min(IDLE_S, max(0.0, (arm.due_ns() - now) / _NS))
        for fd in select.select([*arm.filenos(), *watched], (), (), wait_s)[0]:
            if fd == watch_fd:
                return
            arm.on_readable(fd)
        if arm.connected and arm.ready(time.monotonic_ns()):
            arm.turn()
        server.poll()


def serve(arm: VirtualArm, *, attached: bool, ready: Callable[[], None]) -> None:
    """Run a stand-alone arm until SIGTERM or SIGINT; if `attached`, until standard input closes."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server = WorldServer(socket_path(control_name(arm.address)), operations(arm))
    try:
        # Hardware does not wait for the host's other programs: above the drivers' priority.
        setup(PRIORITY)
        ready()
        run(arm, lambda: ended, server, sys.stdin.fileno() if attached else None)
    finally:
        server.close()
        arm.close()


class FrankaProcess:
    """A virtual arm in a child process; ends with the `with` block, or with this process.

    `address` is where it listens; `call` asks or tells it something (see `operations`).
    """

    def __init__(
        self,
        version: Version = 10,
        address: str = ANY,
        *,
        lock_step: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        command = [sys.executable, "-m", "hardware.franka.virtual.process"]
        command += ["--server-version", str(version), "--address", address, "--attached"]
        if lock_step:
            command.append("--lock-step")
        root = Path(__file__).resolve().parents[3]
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        )
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._client: WorldClient | None = None
        assert self._process.stdout is not None
        line = b""
        if select.select([self._process.stdout], (), (), timeout_s)[0]:
            line = self._process.stdout.readline()
        try:
            self.address: str = json.loads(line)["address"]
        except ValueError as error:
            self.close()
            raise DeviceError(
                f"the virtual Franka did not start within {timeout_s:g} s (its messages are on "
                "standard error)"
            ) from error
        self._client = WorldClient(control_name(self.address), timeout_s=20.0)

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One operation; ControlPlaneError with the arm's reason if it refuses."""
        assert self._client is not None
        return self._client.call(op, **arguments)

    def fault(self, kind: str, **arguments: Any) -> None:
        """One fault (see operations.FAULTS)."""
        self.call("fault", kind=kind, **arguments)

    def close(self) -> None:
        """End the child and wait for it."""
        if self._client is not None:
            self._client.close()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m hardware.franka.virtual.process`: prints one JSON line when it is ready."""
    parser = argparse.ArgumentParser(description="a virtual Franka arm")
    parser.add_argument("--server-version", type=int, choices=(5, 10), default=10)
    parser.add_argument("--address", default=ANY)
    parser.add_argument("--lock-step", action="store_true")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    args = parser.parse_args(arguments)
    try:
        arm = stand_alone(args.server_version, args.address, lock_step=args.lock_step)
        ready = {"address": arm.address, "server_version": arm.version, "pid": os.getpid()}
        serve(arm, attached=args.attached, ready=lambda: print(json.dumps(ready), flush=True))
    except RobotStackError as error:
        raise SystemExit(f"error: {error}") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
