"""A served station of one virtual Franka, and a client that keeps it moving."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray

from hardware.franka.virtual.process import FrankaProcess
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ControlPlaneError, RobotStackError, SharedMemoryError
from robot_stack.processes import living_pid
from robot_stack.realtime import Rate
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle, Source

__all__ = ["FrankaStation", "Streamer", "franka_station", "until"]

NAME = "f"
ROOT = Path(__file__).resolve().parents[2]
SWING_RAD, SWING_RAD_S = 0.3, 2.0


def until(condition: Any, what: str, timeout_s: float = 40.0) -> None:
    """Poll until ``condition()``; TimeoutError names ``what`` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:g} s")
        time.sleep(0.01)


class FrankaStation:
    """Robot ``arm`` in group ``arm``; ``virtual`` is the arm on the other side of the wire."""

    def __init__(self, directory: Path, address: str, options: dict[str, Any]) -> None:
        self.directory = directory
        self.address = address
        self.file = directory / "station.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "station": NAME,
                    "robots": {
                        "arm": {
                            "driver": "franka",
                            "falls": False,
                            "options": {"address": address, "gripper": None, **options},
                        }
                    },
                    "groups": {"arm": {"robots": ["arm"]}},
                    "recording": {"group": "arm", "directory": str(directory / "episodes")},
                }
            )
        )
        self.station: Station = load_station(self.file)
        self.client = StationClient(NAME)
        self.virtual = self.plug_in()
        self.supervisor: subprocess.Popen[bytes] | None = None

    def plug_in(self) -> FrankaProcess:
        """A virtual arm at the station's address."""
        self.virtual = FrankaProcess(10, self.address)
        return self.virtual

    def serve(self) -> None:
        with (self.directory / "supervisor.log").open("ab") as log:
            self.supervisor = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", "serve", str(self.file)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        until(self._up, "the station coming up", 60.0)

    def _up(self) -> bool:
        if self.supervisor is not None and self.supervisor.poll() is not None:
            raise ControlPlaneError((self.directory / "supervisor.log").read_text())
        try:
            robots = self.client.request("status", timeout_s=1.0)["robots"].values()
        except ControlPlaneError:
            return False
        return all(robot["lifecycle"] != "starting" for robot in robots)

    def tick(self) -> Any:
        return self.client.tick("arm")

    def lifecycle(self) -> Lifecycle:
        try:
            return Lifecycle(int(self.tick()["lifecycle"]))
        except SharedMemoryError:
            return Lifecycle.STARTING

    def fault(self) -> str:
        """The arm process's fault in words, empty while there is no arm process."""
        try:
            return str(self.tick()["fault"].decode())
        except SharedMemoryError:
            return ""

    def ticks(self) -> NDArray[Any]:
        """All turns that the ring still holds, oldest first."""
        with Ring(ring_path(NAME, "arm", "arm")) as ring:
            return np.array(ring.since(max(0, ring.count - ring.slots + 64))[1])

    def pid(self) -> int:
        path = self.directory / "runtime" / NAME / "pid.arm.arm"
        return int(path.read_text().split()[0])

    def moves(self) -> bool:
        tick = self.tick()
        moving = np.nanmax(np.abs(tick["dq"])) > 0.1
        return bool(tick["lifecycle"] == Lifecycle.ARMED and tick["torque"].all() and moving)

    def end(self) -> None:
        with contextlib.suppress(RobotStackError):
            self.client.request("shutdown", {"lower": False}, timeout_s=30.0)
        if self.supervisor is not None:
            try:
                self.supervisor.wait(15.0)
            except subprocess.TimeoutExpired:
                self.supervisor.kill()
                self.supervisor.wait()
        for path in (self.directory / "runtime" / NAME).glob("pid.*"):
            pid = living_pid(path)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        self.virtual.close()
        self.client.close()


@contextlib.contextmanager
def franka_station(directory: Path, **options: Any) -> Iterator[FrankaStation]:
    """A served, disarmed station; ``ROBOT_STACK_RUNTIME`` points to ``directory / "runtime"``."""
    # An address that no other test's arm takes, though this one's may be gone for a while.
    pid = os.getpid()
    address = f"127.{100 + pid % 100}.{pid // 100 % 250}.{1 + pid // 25000 % 250}"
    station = FrankaStation(directory, address, options)
    try:
        station.serve()
        yield station
    finally:
        station.end()


class Streamer:
    """Sends joint 1 and 4 to and fro at 50 Hz while the block runs; ``recover`` arms again."""

    def __init__(self, station: FrankaStation) -> None:
        self.station = station
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.error is not None or self.station.moves(), "motion")
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20.0)

    def _run(self) -> None:
        try:
            with (
                StationClient(NAME) as client,
                client.lease("arm", "streamer", source=Source.DEMO) as lease,
            ):
                start = client.tick("arm")["sent"].copy()
                began, rate = time.monotonic(), Rate(50.0, spin_ns=0)
                while not self._ended.is_set():
                    target = start.copy()
                    phase = SWING_RAD_S * (time.monotonic() - began)
                    target[[0, 3]] += SWING_RAD * np.sin(phase)
                    lease.send(target)
                    rate.wait()
        except RobotStackError as error:
            self.error = error
