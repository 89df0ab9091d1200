"""A station on virtual servo buses in a directory of its own, for benchmarks and tests.

The buses stand in one child process, without physics behind them; the station is the real
supervisor with its real arm processes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hardware.aloha.rig import arm_model
from hardware.aloha.virtual import bus_description
from hardware.dynamixel.process import BusProcess, spawn
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError, RobotStackError, SharedMemoryError
from robot_stack.processes import living_pid
from robot_stack.types import Lifecycle

__all__ = ["ALOHA", "VirtualStation", "virtual_station", "wait_until"]

ALOHA = {
    "leader_left": "wx250s",
    "leader_right": "wx250s",
    "follower_left": "vx300s",
    "follower_right": "vx300s",
}


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Poll until ``condition``; TimeoutError names ``what`` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.01)


@dataclass
class VirtualStation:
    """What a test or benchmark holds of a running station."""

    directory: Path
    file: Path
    station: Station
    buses: BusProcess
    client: StationClient
    environment: dict[str, str]
    supervisor: subprocess.Popen[bytes] | None = None
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def serve(self) -> None:
        """Start the supervisor and wait until every arm has run a tick."""
        log = (self.directory / "supervisor.log").open("ab")
        self.supervisor = subprocess.Popen(
            [sys.executable, "-m", "robot_stack.cli", "serve", str(self.file)],
            stdout=log,
            stderr=log,
            env=self.environment,
        )
        log.close()
        wait_until(self._up, "the station coming up", 60.0)

    def _up(self) -> bool:
        if self.supervisor is not None and self.supervisor.poll() is not None:
            raise ControlPlaneError(f"the supervisor ended: {self.log('supervisor')}")
        try:
            robots = self.client.request("status", timeout_s=1.0)["robots"].values()
        except ControlPlaneError:
            return False
        return all(robot["lifecycle"] != "starting" for robot in robots)

    def log(self, name: str) -> str:
        """The output of a process so far."""
        for path in (
            self.directory / f"{name}.log",
            self.directory / self.station.station / f"{name}.log",
        ):
            if path.exists():
                return path.read_text(errors="replace")
        return ""

    def lifecycle(self, robot: str) -> Lifecycle:
        """What the robot's arm process does; STARTING before its first tick."""
        try:
            return Lifecycle(int(self.client.tick(robot)["lifecycle"]))
        except SharedMemoryError:
            return Lifecycle.STARTING

    def fault(self, robot: str) -> str:
        text: str = self.client.tick(robot)["fault"].decode()
        return text

    def pid(self, process: str) -> int:
        """Process id of a child of the supervisor, for example ``arm.follower_left``."""
        text = (self.directory / self.station.station / f"pid.{process}").read_text()
        return int(text.split()[0])

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run a robot-stack subcommand beside the station, its output in ``log``; ended with it."""
        with (self.directory / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.others.append(process)
        return process

    def hand(self, robot: str, joints: Mapping[int, float | None]) -> None:
        """Put joints (index to rad) of a robot where a hand would; None lets go."""
        model = arm_model(ALOHA[robot])
        for joint, angle in joints.items():
            for servo in model.of_joint(joint):
                self.buses.control.call("hand", robot, servo_id=servo.id, position_rad=angle)

    def goals(self, robot: str, since: int = 0) -> tuple[NDArray[np.int64], ...]:
        """(t_ns, servo id, ticks) of every goal-position write since row ``since``."""
        parts = []
        while True:
            rows = self.buses.control.goal_log(since, robot)
            if len(rows.t_ns) == 0:
                break
            parts.append(rows)
            since = int(rows.seq[-1]) + 1
        if not parts:
            empty = np.zeros(0, np.int64)
            return empty, empty, empty
        position = [rows.kind == 0 for rows in parts]
        return (
            np.concatenate([r.t_ns[p] for r, p in zip(parts, position, strict=True)]),
            np.concatenate([r.servo_id[p] for r, p in zip(parts, position, strict=True)]),
            np.concatenate([r.value[p] for r, p in zip(parts, position, strict=True)]),
        )

    def end(self) -> None:
        """End everything that runs in this station's directory."""
        for process in self.others:
            if process.poll() is None:
                process.terminate()
        for process in self.others:
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.supervisor is not None and self.supervisor.poll() is None:
            # Nothing here is heavy: arms that hold fall nowhere. To lower them takes five seconds.
            with contextlib.suppress(RobotStackError):
                self.client.post("shutdown", {"lower": False})
            try:
                self.supervisor.wait(30.0)  # also for one that dies meanwhile: it answers nothing
            except subprocess.TimeoutExpired:
                self.supervisor.kill()
                self.supervisor.wait()
        for path in (self.directory / self.station.station).glob("pid.*"):
            pid = living_pid(path)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self.client.close()


@contextlib.contextmanager
def virtual_station(
    *,
    robots: Mapping[str, str] = ALOHA,
    baud: int = 1_000_000,
    rate_hz: float | None = 200.0,
    guard: bool = False,
    serve: bool = True,
    changes: Mapping[str, Any] | None = None,
    each: Mapping[str, Any] | None = None,
    step_hz: float = 500.0,
) -> Iterator[VirtualStation]:
    """A station named ``v`` with the given arms (name to model), up and disarmed.

    ``step_hz`` is the rate of the servos' motion; ``changes`` are merged over the station file's
    top level, ``each`` over every robot's section.
    """
    directory = Path(tempfile.mkdtemp(prefix="rs-", dir="/dev/shm"))
    before = os.environ.get("ROBOT_STACK_RUNTIME")
    os.environ["ROBOT_STACK_RUNTIME"] = str(directory)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    try:
        file = directory / "station.yaml"
        description = _description(robots, baud, rate_hz, guard)
        for row in description["robots"].values():
            row.update(each or {})
        description["recording"] = {"group": "followers", "directory": str(directory / "episodes")}
        file.write_text(yaml.safe_dump({**description, **(changes or {})}))
        tty = directory / "v" / "tty"
        tty.mkdir(parents=True)
        descriptions = [
            bus_description(name, arm_model(model), link=tty / name, baud=baud)
            for name, model in robots.items()
        ]
        with spawn(descriptions, directory, step_hz=step_hz) as buses:
            station = VirtualStation(
                directory, file, load_station(file), buses, StationClient("v"), environment
            )
            try:
                if serve:
                    station.serve()
                yield station
            finally:
                station.end()
    finally:
        if before is None:
            os.environ.pop("ROBOT_STACK_RUNTIME", None)
        else:
            os.environ["ROBOT_STACK_RUNTIME"] = before
        shutil.rmtree(directory, ignore_errors=True)


def _description(
    robots: Mapping[str, str],
    baud: int,
    rate_hz: float | None,
    guard: bool,
) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    for name, model in robots.items():
        role = "leader" if name.startswith("leader") else "follower"
        options = {"role": role, "model": model, "port": f"virtual:{name}", "baud": baud}
        rows[name] = {"driver": "aloha", "options": options, "falls": role == "follower"}
        if rate_hz is not None:
            rows[name]["rate_hz"] = rate_hz
        groups.setdefault(f"{role}s", {"robots": []})["robots"].append(name)
    if guard:
        groups["followers"]["guard"] = "aloha_cell"
    description: dict[str, Any] = {"station": "v", "robots": rows, "groups": groups}
    if "leaders" in groups:
        pairs = {n: n.replace("leader", "follower") for n in robots if n.startswith("leader")}
        description["teleop"] = {
            "driver": "leader_arms",
            "group": "followers",
            "options": {"pairs": pairs},
        }
    return description
