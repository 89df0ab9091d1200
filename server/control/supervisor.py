"""The supervisor (`robot-stack serve`): starts, watches and adopts the station's processes.

It owns the control plane: leases, arming, poses, stop and reset. It is in no command's path: when
it dies the arms hold until a new supervisor adopts them.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zmq

from robot_stack import __version__, registry
from robot_stack.client import control_endpoint
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError, MessageError, RobotStackError, SharedMemoryError
from robot_stack.interfaces import Robot
from robot_stack.messages import Message, decode, encode
from robot_stack.realtime import setup
from robot_stack.records import OrderKind, ring_path
from robot_stack.shared_memory import Flag, Ring, runtime_dir
from robot_stack.types import Difference, Lifecycle, Source, StopCategory

from .children import Child
from .lease import LeaseTable
from .motion import move_group
from .view import ArmView

__all__ = ["Supervisor", "add_arguments", "run"]

POLL_MS = 5
PRIORITY = 20  # below teleoperation and the arm processes: a stop request must not wait for a build
REST_TOLERANCE = 0.2  # rad from the sleep pose at which torque may be taken away
START_TIMEOUT_S = 30.0
STOP_DEVICE_SILENCE_S = 1.0

Task = Generator[None, None, "dict[str, Any] | None"]


@dataclass
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
        self.robots: dict[str, Robot] = {
            key: registry.load("robot", config.driver).from_config(config, station)
            for key, config in station.robots.items()
        }
        self.specs = {key: robot.spec for key, robot in self.robots.items()}
        self.stops = {group: Flag(ring_path(name, "stop", group)) for group in station.groups}
        self.leases = LeaseTable(name, list(station.groups))
        self.arms = {
            key: ArmView(name, config, self.specs[key]) for key, config in station.robots.items()
        }
        self.children = self._children()
        self.pending: list[Pending] = []
        self.ending: Task | None = None
        self.winding_down = False
        self.ended = False
        self._signals = 0
        (directory / "control.ipc").unlink(missing_ok=True)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
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
            self.socket.close(linger=200)
            self.leases.close()
            for arm in self.arms.values():
                arm.close()
            os.close(self._lock)

    def _turn(self) -> None:
        if self.socket.poll(POLL_MS):
            for _ in range(64):
                if not self.socket.poll(0):
                    break
                self._answer(self.socket.recv_multipart())
        for group in self.station.groups:
            self.leases.holder(group)  # publishes expiry
        self._watch_children()
        self._watch_stop_devices()
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
            if child.alive():
                continue
            kind, _, name = key.partition(".")
            if kind == "arm":
                group = self.station.group_of(name).name
                self.stops[group].set(int(StopCategory.HOLD) + 1, f"{name}: its arm process died")
            if child.revive():
                words = child.last_words(1)
                print(f"{key} died and was started again. It last said: {words}", flush=True)

    def _watch_stop_devices(self) -> None:
        """A required stop device that is missing or silent is a fault: every group stops."""
        for name, config in self.station.stop_devices.items():
            if not config.required:
                continue
            trouble = self._stop_device_trouble(name)
            if trouble is None:
                continue
            for group, flag in self.stops.items():
                armed = any(
                    tick is not None and tick["lifecycle"] == Lifecycle.ARMED
                    for tick in (self.arms[r].newest() for r in self.station.groups[group].robots)
                )
                if armed and not flag.value:
                    flag.set(config.category + 1, trouble)

    def _stop_device_trouble(self, name: str) -> str | None:
        try:
            with Ring(ring_path(self.station.station, "stopdevice", name)) as ring:
                latest = ring.latest()
        except SharedMemoryError:
            return f"required stop device {name} is not running"
        if latest is None or time.monotonic_ns() - int(latest[1]["t_ns"]) > (
            STOP_DEVICE_SILENCE_S * 1e9
        ):
            return f"required stop device {name} is silent"
        if not latest[1]["connected"]:
            return f"required stop device {name} is unplugged"
        if latest[1]["pressed"]:
            return f"stop device {name} is pressed"
        return None

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
            "lease.acquire": self._acquire,
            "lease.renew": self._renew,
            "lease.release": self._release,
            "arm": self._arm,
            "disarm": self._disarm,
            "home": self._home,
            "sleep": self._sleep,
            "stop": self._stop,
            "reset": self._reset,
            "torque": self._torque,
            "shutdown": self._shutdown,
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
        except (KeyError, TypeError, ValueError) as error:
            text = f"{entry.message.kind}: bad argument: {error!r}"
            reply = Message("error", {"message": text}, id=entry.message.id)
        self.pending.remove(entry)
        self._reply(entry.identity, reply)
        if entry.message.kind == "shutdown" and reply.kind == "ok":
            self.ended = True

    def _reply(self, identity: bytes, message: Message) -> None:
        self.socket.send_multipart([identity, *encode(message)])

    def _groups(self, body: dict[str, Any]) -> list[str]:
        """The groups that a request names; all of them when it names none."""
        wanted = body.get("group")
        if wanted is None:
            return list(self.station.groups)
        if wanted not in self.station.groups:
            known = ", ".join(self.station.groups)
            raise ControlPlaneError(f"no group {wanted!r} in this station (groups: {known})")
        return [str(wanted)]

    def _members(self, group: str) -> list[ArmView]:
        return [self.arms[robot] for robot in self.station.groups[group].robots]

    def _describe(self, body: dict[str, Any]) -> Task:
        station = self.station
        yield from ()
        return {
            "station": station.station,
            "version": __version__,
            "file": station.path,
            "rate_hz": station.rate_hz,
            "task": station.task,
            "groups": {
                key: {"robots": list(group.robots), "dof": self._dof(key)}
                for key, group in station.groups.items()
            },
            "robots": {
                key: {
                    "embodiment": spec.embodiment,
                    "joints": list(spec.names),
                    "units": [joint.unit for joint in spec.joints],
                }
                for key, spec in self.specs.items()
            },
            "cameras": {
                key: {"width": c.width, "height": c.height, "fps": c.fps}
                for key, c in station.cameras.items()
            },
        }

    def _dof(self, group: str) -> int:
        return sum(self.specs[robot].dof for robot in self.station.groups[group].robots)

    def _status(self, body: dict[str, Any]) -> Task:
        yield from ()
        return {
            "station": self.station.station,
            "groups": {key: self._group_status(key) for key in self.station.groups},
            "robots": {key: self._robot_status(arm) for key, arm in self.arms.items()},
            "cameras": {key: self._camera_status(key) for key in self.station.cameras},
            "processes": {
                key: {"pid": child.pid, "alive": child.alive(), "restarts": child.restarts}
                for key, child in self.children.items()
            },
        }

    def _group_status(self, group: str) -> dict[str, Any]:
        lease, stop = self.leases.holder(group), self.stops[group]
        return {
            "holder": None if lease is None else lease.holder,
            "token": -1 if lease is None else lease.token,
            "stop": stop.reason if stop.value else None,
        }

    def _robot_status(self, arm: ArmView) -> dict[str, Any]:
        tick = arm.newest()
        if tick is None:
            return {"lifecycle": "starting", "fault": "", "rate_hz": 0.0}
        age_s = (time.monotonic_ns() - int(tick["t_ns"])) / 1e9
        distance = float(tick["distance"])
        return {
            "lifecycle": Lifecycle(int(tick["lifecycle"])).name.lower(),
            "fault": tick["fault"].decode(errors="replace"),
            "rate_hz": float(arm.ring.meta["rate_hz"]),
            "age_s": age_s,
            "torque": bool(tick["torque"].all()),
            "q": [None if not np.isfinite(v) else float(v) for v in tick["q"]],
            "difference": [
                flag.name.lower()
                for flag in Difference
                if flag & int(tick["difference"]) and flag.name is not None
            ],
            "distance": None if not np.isfinite(distance) else distance,
            "overruns": int(tick["overruns"]),
            "retries": int(tick["retries"]),
        }

    def _camera_status(self, name: str) -> dict[str, Any]:
        try:
            with Ring(ring_path(self.station.station, "camera", name)) as ring:
                index = ring.count - 1
                record = ring.view(index) if index >= 0 else None
                if record is None:
                    return {"frames": 0, "age_s": None}
                return {
                    "frames": index + 1,
                    "age_s": (time.monotonic_ns() - int(record["t_ns"])) / 1e9,
                }
        except SharedMemoryError:
            return {"frames": 0, "age_s": None}

    def _acquire(self, body: dict[str, Any]) -> Task:
        yield from ()
        group = self._groups({"group": body["group"]})[0]
        source = Source(body.get("source", int(Source.HUMAN)))
        lease = self.leases.acquire(group, str(body["holder"]), source, float(body["ttl_s"]))
        return {"token": lease.token, "dof": self._dof(group), "ttl_s": lease.ttl_s}

    def _renew(self, body: dict[str, Any]) -> Task:
        yield from ()
        self.leases.renew(str(body["group"]), int(body["token"]))
        return None

    def _release(self, body: dict[str, Any]) -> Task:
        yield from ()
        self.leases.release(str(body["group"]), int(body["token"]))
        return None

    def _arm(self, body: dict[str, Any]) -> Task:
        for group in self._groups(body):
            yield from self._arm_group(group)
        return None

    def _arm_group(self, group: str) -> Generator[None, None, None]:
        """Torque on (goal = present, so nothing moves), then follow commands."""
        flag = self.stops[group]
        if flag.value:
            raise ControlPlaneError(
                f"group {group!r} is stopped ({flag.reason}); mend that, then "
                f"`robot-stack reset {self.station.station}`"
            )
        for name in self.station.stop_devices:
            trouble = self._stop_device_trouble(name)
            if trouble is not None and self.station.stop_devices[name].required:
                raise ControlPlaneError(f"group {group!r} may not be armed: {trouble}")
        deadline = time.monotonic() + START_TIMEOUT_S
        for arm in self._members(group):
            while not arm.ready():
                if time.monotonic() > deadline:
                    raise ControlPlaneError(f"{arm.name} has not started; see its log")
                yield
            if not arm.tick()["torque"].all():
                yield from arm.order(OrderKind.TORQUE, [True] * arm.spec.dof, 1)
        for arm in self._members(group):
            yield from arm.order(OrderKind.ARM)
        for arm in self._members(group):
            tick = arm.tick()
            if tick["lifecycle"] != Lifecycle.ARMED:
                raise ControlPlaneError(f"{arm.name} could not be armed: {arm.trouble(tick)}")

    def _disarm(self, body: dict[str, Any]) -> Task:
        for group in self._groups(body):
            for arm in self._members(group):
                yield from arm.order(OrderKind.DISARM)
        return None

    def _home(self, body: dict[str, Any]) -> Task:
        for group in self._groups(body):
            yield from self._to_pose(group, "home")
        return None

    def _sleep(self, body: dict[str, Any]) -> Task:
        for group in self._groups(body):
            yield from self._to_pose(group, "sleep")
        return None

    def _to_pose(self, group: str, pose: Literal["home", "sleep"]) -> Generator[None, None, float]:
        yield from self._arm_group(group)
        robots = [self.robots[name] for name in self.station.groups[group].robots]
        return (yield from move_group(self.leases, group, self._members(group), robots, pose))

    def _stop(self, body: dict[str, Any]) -> Task:
        yield from ()
        category = StopCategory(body.get("category", int(StopCategory.HOLD)))
        reason = str(body.get("reason", "stop requested"))
        for group in self._groups(body):
            self.stops[group].set(int(category) + 1, reason)
        return None

    def _reset(self, body: dict[str, Any]) -> Task:
        """Clear stops and faults; what cannot be cleared is named. Leaves the groups disarmed."""
        for name in self.station.stop_devices:
            trouble = self._stop_device_trouble(name)
            if trouble is not None and "pressed" in trouble:
                raise ControlPlaneError(f"not reset: {trouble}; release it first")
        left = []
        for group in self._groups(body):
            self.stops[group].clear()
            for arm in self._members(group):
                yield from arm.order(OrderKind.RESET)
            left += [
                f"{arm.name}: {arm.trouble(tick)}"
                for arm in self._members(group)
                if (tick := arm.tick())["lifecycle"] in (Lifecycle.FAULT, Lifecycle.STOPPED)
            ]
        if left:
            raise ControlPlaneError("still faulty after reset: " + "; ".join(left))
        return None

    def _torque(self, body: dict[str, Any]) -> Task:
        name, on = str(body["robot"]), bool(body["on"])
        if name not in self.arms:
            raise ControlPlaneError(f"no robot {name!r} (robots: {', '.join(self.arms)})")
        arm = self.arms[name]
        joints = [bool(joint) for joint in body["joints"]]
        if len(joints) != arm.spec.dof:
            raise ControlPlaneError(f"{name} has {arm.spec.dof} joints, {len(joints)} were named")
        if not on and arm.config.falls and not arm.at_pose(arm.spec.sleep, REST_TOLERANCE):
            raise ControlPlaneError(
                f"{name} would fall: torque is only taken away at the sleep pose; run "
                f"`robot-stack sleep {self.station.station}` first"
            )
        yield from arm.order(OrderKind.TORQUE, joints, int(on))
        return None

    # -- the end -----------------------------------------------------------------------------

    def _shutdown(self, body: dict[str, Any]) -> Task:
        """Lower the arms under torque, take torque away where they rest, end all children."""
        kept = []
        for group in self.station.groups:
            arms = self._members(group)
            powered = [
                arm
                for arm in arms
                if arm.config.falls and (t := arm.newest()) is not None and t["torque"].any()
            ]
            if not powered:
                continue
            try:
                yield from self._to_pose(group, "sleep")
                for arm in powered:
                    if arm.at_pose(arm.spec.sleep, REST_TOLERANCE):
                        yield from arm.order(OrderKind.TORQUE, [True] * arm.spec.dof, 0)
                    else:
                        kept.append(f"{arm.name} is not at rest and keeps its torque")
            except RobotStackError as error:
                kept.append(f"{group} was not lowered and keeps its torque: {error}")
        for line in kept:
            print(line, flush=True)
        self.winding_down = True  # children may end from here on
        for arm in self.arms.values():
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
