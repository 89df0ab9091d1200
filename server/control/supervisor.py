"""The supervisor (`robot-stack serve`): starts, watches and adopts the station's processes.

It serves the control plane and is in no command's path: when it dies the arms hold until a new
supervisor adopts them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import zmq

from robot_stack import __version__
from robot_stack.client import control_endpoint
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError, MessageError, RobotStackError
from robot_stack.messages import Message, decode, encode
from robot_stack.realtime import setup
from robot_stack.records import OrderKind
from robot_stack.shared_memory import runtime_dir
from robot_stack.types import Lifecycle, StopCategory

from .children import HANG_S, Child
from .control_plane import ControlPlane, Task
from .status import describe, status

__all__ = ["Supervisor", "add_arguments", "run"]

POLL_MS = 5
LINGER_MS = 2000
TRIM_S = 1.0  # between looks at the length of the children's logs
PRIORITY = 20  # below teleoperation and the arm processes: a stop request must not wait for a build


@dataclass(eq=False)
class Pending:
    """A request whose answer needs several turns of the loop."""

    identity: bytes
    message: Message
    task: Task


class Supervisor:
    """One station's supervisor. ``run`` serves until ``shutdown`` or a signal ends it."""

    def __init__(self, station: Station) -> None:
        self.station = station
        name = station.station
        directory = runtime_dir(name)
        self._lock = os.open(directory / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ControlPlaneError(
                f"station {name!r} already has a supervisor; see `robot-stack status {name}`, end "
                f"it with `robot-stack shutdown {name}`"
            ) from None
        self.plane = ControlPlane(station)
        self.children = self._children()
        self.pending: list[Pending] = []
        self.ending: Task | None = None
        self.winding_down = False
        self.ended = False
        self._signals = 0
        self._trim_at = 0.0
        (directory / "control.ipc").unlink(missing_ok=True)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.bind(control_endpoint(name))
        (directory / "control.ipc").chmod(0o600)

    def _children(self) -> dict[str, Child]:
        name, path = self.station.station, self.station.path
        python = [sys.executable, "-m"]
        children = {}
        for robot in self.station.robots:
            command = [*python, "server.control.arm_process", "--station-file", path]
            children[f"arm.{robot}"] = Child(
                name, f"arm.{robot}", [*command, "--robot", robot], "--after-crash"
            )
        for camera in self.station.cameras:
            command = [*python, "server.control.camera_process", "--station-file", path]
            children[f"camera.{camera}"] = Child(
                name, f"camera.{camera}", [*command, "--camera", camera]
            )
        for device in self.station.stop_devices:
            command = [*python, "robot_stack.cli", "stop-device", path, "--device", device]
            children[f"stopdevice.{device}"] = Child(name, f"stopdevice.{device}", command)
        command = [*python, "collect.flight_process", "--station-file", path]
        children["flight_recorder"] = Child(name, "flight_recorder", command)
        return children

    # -- the loop ----------------------------------------------------------------------------

    def run(self) -> None:
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        for child in self.children.values():
            if not child.adopt():
                child.start(after_crash=child.left_behind())
        print(f"supervisor: {setup(PRIORITY)}")
        self._announce()
        try:
            while not self.ended:
                self._turn()
        finally:
            # The last reply is on its way in a thread that a busy machine may not have let run.
            zmq.Context.instance().destroy(linger=LINGER_MS)
            self.plane.close()
            os.close(self._lock)

    def _turn(self) -> None:
        if self.socket.poll(POLL_MS):
            for _ in range(64):
                if not self.socket.poll(0):
                    break
                self._answer(self.socket.recv_multipart())
        for group in self.station.groups:
            self.plane.leases.holder(group)  # publishes expiry
        self._watch_children()
        self._trim_logs()
        self.plane.watch_stop_devices()
        for entry in list(self.pending):
            self._advance(entry)
        if self._signals and self.ending is None:
            self.ending = self._shutdown({})
        if self.ending is not None and not any(p.message.kind == "shutdown" for p in self.pending):
            try:
                next(self.ending)
            except StopIteration:
                self.ended = True

    def _on_signal(self, *_: object) -> None:
        self._signals += 1
        if self._signals > 1:
            print("second signal: leaving at once, the arms hold under torque", flush=True)
            self.ended = True
        else:
            print("lowering the arms to their sleep pose; once more to leave them holding")

    def _watch_children(self) -> None:
        if self.winding_down:
            return
        for key, child in self.children.items():
            kind, _, name = key.partition(".")
            if child.alive():
                if kind == "arm":
                    self._watch_loop(name, child)
                continue
            if kind == "arm":
                group = self.station.group_of(name).name
                self.plane.stops[group].set(
                    int(StopCategory.HOLD) + 1, f"{name}: its arm process {child.fate}"
                )
            fate = child.fate
            if child.revive():
                words = child.last_words(1)
                print(f"{key} {fate} and was started again. It last said: {words}", flush=True)

    def _trim_logs(self) -> None:
        if (now := time.monotonic()) >= self._trim_at:
            self._trim_at = now + TRIM_S
            for child in self.children.values():
                child.trim_log()

    def _watch_loop(self, name: str, child: Child) -> None:
        """A device library can wait for ever, beyond the reach of the loop that called it: an arm
        process that has stopped turning is killed, and started again in fault."""
        tick = self.plane.arms[name].newest()
        mark = None if tick is None else (int(tick["tick"]), int(tick["t_ns"]))
        if child.hangs(mark):
            child.kill(f"hung (no turn of its loop for {HANG_S:g} s or more)")

    def _announce(self) -> None:
        name = self.station.station
        print(f"robot-stack {__version__}: station {name}, {control_endpoint(name)}")
        for key, child in self.children.items():
            print(f"  {key:24} pid {child.pid}")
        print(f"`robot-stack status {name}` tells how they are; Ctrl-C lowers the arms and ends.")
        sys.stdout.flush()

    # -- requests ----------------------------------------------------------------------------

    def _answer(self, frames: list[bytes]) -> None:
        identity, *rest = frames
        try:
            message = decode(rest, max_bytes=1 << 20)
        except MessageError as error:
            self._reply(identity, Message("error", {"message": str(error)}))
            return
        handlers = {
            "describe": self._describe,
            "status": self._status,
            "shutdown": self._shutdown,
            **self.plane.handlers,
        }
        handler = handlers.get(message.kind)
        if handler is None:
            known = ", ".join(handlers)
            body = {"message": f"unknown request {message.kind!r} (known: {known})"}
            self._reply(identity, Message("error", body, id=message.id))
            return
        entry = Pending(identity, message, handler(message.body))
        self.pending.append(entry)
        self._advance(entry)

    def _advance(self, entry: Pending) -> None:
        try:
            next(entry.task)
            return
        except StopIteration as done:
            reply = Message("ok", done.value or {}, id=entry.message.id)
        except RobotStackError as error:
            reply = Message("error", {"message": str(error)}, id=entry.message.id)
        except Exception as error:  # noqa: BLE001  # whatever a client sends, the others go on
            text = f"{entry.message.kind}: bad argument: {error!r}"
            print(text, file=sys.stderr, flush=True)
            reply = Message("error", {"message": text}, id=entry.message.id)
        self.pending.remove(entry)
        self._reply(entry.identity, reply)
        if entry.message.kind == "shutdown" and reply.kind == "ok":
            self.ended = True

    def _reply(self, identity: bytes, message: Message) -> None:
        self.socket.send_multipart([identity, *encode(message)])

    def _describe(self, body: dict[str, Any]) -> Task:
        yield from ()
        return describe(self.plane)

    def _status(self, body: dict[str, Any]) -> Task:
        yield from ()
        return status(self.plane, self.children)

    # -- the end -----------------------------------------------------------------------------

    def _shutdown(self, body: dict[str, Any]) -> Task:
        """Lower the arms under torque, take torque away where they rest, end all children.

        With ``lower`` false nothing moves, and what holds goes on holding.
        """
        kept = (yield from self.plane.lower()) if body.get("lower", True) else []
        for line in kept:
            print(line, flush=True)
        self.winding_down = True  # children may end from here on
        for arm in self.plane.arms.values():
            if (tick := arm.newest()) is not None and tick["lifecycle"] != Lifecycle.ENDED:
                try:
                    yield from arm.order(OrderKind.SHUTDOWN)
                except RobotStackError as error:
                    print(f"{arm.name}: {error}", flush=True)
        for child in self.children.values():
            child.signal(signal.SIGTERM)
        for child in self.children.values():
            child.end(5.0)
        print("station ended", flush=True)
        return {"kept_torque": kept}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Start a station: one process an arm and a camera, the flight recorder, and the control "
        "plane on a local socket. Arms start disarmed: nothing moves until `home`, `teleop` or a "
        "client asks. Ctrl-C lowers the arms to the sleep pose and ends; Ctrl-C twice leaves them "
        "holding where they are."
    )
    parser.epilog = "example: robot-stack serve configs/aloha_virtual.yaml"
    parser.add_argument("station", help="station file (YAML)")


def run(args: argparse.Namespace) -> int:
    Supervisor(load_station(args.station)).run()
    return 0
