"""OneRobot: a station of a single robot, served for as long as a set-up command moves it.

Set-up commands move joints before there is a station to serve. They take the one path all the
same: supervisor and arm process run as programs of their own, and the command is a client that
holds the lease. So limits, stop flag, stop buttons and `robot-stack stop` count as they always do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray

from robot_stack.client import Lease, StationClient
from robot_stack.errors import ControlPlaneError, DeviceError, RobotStackError, SharedMemoryError
from robot_stack.processes import living_pid
from robot_stack.records import STOP_DEVICE, ring_path
from robot_stack.shared_memory import Flag, Ring, runtime_dir
from robot_stack.types import Lifecycle, Source

__all__ = ["OneRobot"]

Array = NDArray[np.float64]

STEP_S = 0.02
START_S = 60.0
BUTTON_S = 10.0
ARRIVE_S = 5.0
ARRIVED = 1e-6
END_S = 15.0
POLL_S = 0.02


class OneRobot:
    """``with OneRobot(...) as robot:`` serves it; ``take``, ``step``, ``settle``, ``let_go``.

    ``station`` is the name by which `robot-stack stop` finds it; ``section`` is the robot's part
    of a station file, its limits included. A stop that still stands from before is put to the
    operator by ``confirm(text)``, which returns when it may be reset, and raises otherwise.

    Leaving the block ends the programs. Nothing moves then, and what is under torque goes on
    holding: only ``free`` takes torque away.
    """

    def __init__(
        self,
        station: str,
        robot: str,
        section: Mapping[str, Any],
        *,
        group: str,
        confirm: Callable[[str], object],
        stop_devices: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.station = station
        self.robot = robot
        self.group = group
        self.client = StationClient(station)
        self._confirm = confirm
        self._stop_devices = {key: dict(row) for key, row in (stop_devices or {}).items()}
        self._description = {
            "station": station,
            "robots": {robot: dict(section)},
            "groups": {group: {"robots": [robot]}},
            "stop_devices": self._stop_devices,
        }
        self._directory = Path()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._flag: Flag | None = None
        self._lease: Lease | None = None
        self._began_ns = 0
        self._next_s = 0.0

    # -- the programs ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Serve the robot; returns when it is connected and disarmed. Nothing has moved then.

        ControlPlaneError when the station is served already, DeviceError with the arm process's
        own words when the robot is not what ``section`` says.
        """
        runtime = runtime_dir(self.station)
        for path in runtime.glob("pid.*"):
            if living_pid(path) is not None:
                raise ControlPlaneError(
                    f"station {self.station!r} is running ({path.name}): end it first with "
                    f"`robot-stack shutdown {self.station}`"
                )
            path.unlink(missing_ok=True)  # of programs that were killed
        self._directory = Path(tempfile.mkdtemp(prefix="robot-stack-"))
        try:
            self._flag = Flag(ring_path(self.station, "stop", self.group))
            self._serve()
            self._wait_for_arm()
            self._wait_for_buttons()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _serve(self) -> None:
        file = self._directory / "station.yaml"
        # What the flight recorder keeps of a fault goes with the other files of this station.
        recording = {"group": self.group, "directory": str(self._directory)}
        file.write_text(yaml.safe_dump({**self._description, "recording": recording}))
        self._began_ns = time.monotonic_ns()
        with (self._directory / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", "serve", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is this command's: it ends them in order
            )

    def _wait_for_arm(self) -> None:
        deadline = time.monotonic() + START_S
        while (state := self._lifecycle()) in (Lifecycle.STARTING, Lifecycle.ENDED):
            self._check_supervisor()
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"{self.robot} has not started within {START_S:g} s: {self._last_words()}"
                )
            time.sleep(POLL_S)
        if state is Lifecycle.FAULT:
            raise DeviceError(f"{self.robot}: {self._trouble()}")
        while True:
            with contextlib.suppress(ControlPlaneError):
                self.client.request("status", timeout_s=1.0)
                break
            self._check_supervisor()
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"the supervisor does not answer: {self._last_words()}")
        if state is Lifecycle.STOPPED:
            self._confirm(
                f"{self.station} was stopped earlier ({self._trouble()}). Go on only when the "
                "cause is mended"
            )
            self.client.request("reset", timeout_s=30.0)

    def _lifecycle(self) -> Lifecycle:
        """What the arm process does; STARTING until the one of this session has run a turn."""
        try:
            tick = self.client.tick(self.robot)
        except SharedMemoryError:
            return Lifecycle.STARTING
        fresh = int(tick["t_ns"]) > self._began_ns
        return Lifecycle(int(tick["lifecycle"])) if fresh else Lifecycle.STARTING

    def _wait_for_buttons(self) -> None:
        """Stop buttons are heard before anything moves. One that is missing is told by ``take``."""
        deadline = time.monotonic() + BUTTON_S
        names = [name for name, row in self._stop_devices.items() if row.get("required", True)]
        while names and time.monotonic() < deadline:
            names = [name for name in names if not self._listens(name)]
            time.sleep(POLL_S)

    def _listens(self, name: str) -> bool:
        record = np.zeros((), STOP_DEVICE)
        with contextlib.suppress(SharedMemoryError):
            with Ring(ring_path(self.station, "stopdevice", name)) as ring:
                latest = ring.latest()
            record = record if latest is None else latest[1]
        return bool(record["connected"]) and int(record["t_ns"]) > self._began_ns

    def _check_supervisor(self) -> None:
        if self._supervisor is not None and self._supervisor.poll() is not None:
            raise ControlPlaneError(f"the supervisor has ended: {self._last_words()}")

    def _last_words(self) -> str:
        lines = []
        for path in (
            self._directory / "supervisor.log",
            runtime_dir(self.station) / f"arm.{self.robot}.log",
        ):
            with contextlib.suppress(OSError):
                lines += path.read_text(errors="replace").splitlines()[-1:]
        return " / ".join(lines) or "(it said nothing)"

    def __exit__(self, *_: object) -> None:
        with _undisturbed():
            with contextlib.suppress(RobotStackError):
                self.let_go()
            with contextlib.suppress(RobotStackError):
                self.client.request("shutdown", {"lower": False}, timeout_s=END_S)
            self._end_programs()
            self.client.close()
            if self._flag is not None:
                self._flag.close()
                self._flag = None
            shutil.rmtree(self._directory, ignore_errors=True)

    def _end_programs(self) -> None:
        """End what the request did not: the supervisor first, which would start the others again.
        An arm process that is killed leaves its servos holding."""
        if self._supervisor is not None:
            try:
                self._supervisor.wait(END_S)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()
            self._supervisor = None
            for number, wait_s in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
                deadline = time.monotonic() + wait_s
                for pid in self._left():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                while self._left() and time.monotonic() < deadline:
                    time.sleep(POLL_S)

    def _left(self) -> list[int]:
        pids = (living_pid(path) for path in runtime_dir(self.station).glob("pid.*"))
        return [pid for pid in pids if pid is not None]

    # -- moving ------------------------------------------------------------------------------

    def tick(self) -> Any:
        """The newest turn of the arm process (``records.tick_record``)."""
        return self.client.tick(self.robot)

    def take(self, joints: Sequence[bool], holder: str) -> Array:
        """Put the marked joints under torque where they are, and take the lease.

        Joints that are not marked stay as they are. Returns the targets (dof,) that the robot
        holds: where every motion begins. ControlPlaneError when a stop stands.
        """
        torque = self.tick()["torque"].astype(bool)
        missing = [marked and not on for marked, on in zip(joints, torque, strict=True)]
        if any(missing):
            self.client.torque(self.robot, missing, True)
        self.client.arm(self.group, torque=False)
        # A script yields to a person's program that asks for the lease.
        self._lease = self.client.lease(self.group, holder, source=Source.SCRIPTED)
        self._next_s = time.monotonic()
        return np.array(self.tick()["sent"])

    def step(self, target: Array) -> Any:
        """Ask for ``target`` (dof,) and return the arm process's turn of 20 ms later.

        DeviceError when the robot no longer follows: somebody stopped it, or it is in fault. It
        holds where it is then.
        """
        assert self._lease is not None
        tick = self.tick()
        stopped = self._flag is not None and self._flag.value
        if stopped or tick["lifecycle"] != Lifecycle.ARMED:
            raise DeviceError(
                f"{self.robot} was stopped: {self._trouble()}. It holds where it is, and what this "
                "command has put under torque stays so. When the cause is mended, switch the arm's "
                "power off and on while it rests, and start again"
            )
        self._check_supervisor()
        self._lease.send(target)
        self._next_s = max(self._next_s + STEP_S, time.monotonic())
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        return self.tick()

    def settle(self, target: Array) -> Any:
        """``step`` until joints under torque have been sent to ``target``; DeviceError if they
        are not within 5 s."""
        deadline = time.monotonic() + ARRIVE_S
        while True:
            tick = self.step(target)
            away = np.where(tick["torque"].astype(bool), np.abs(tick["sent"] - target), 0.0)
            if away.max() < ARRIVED:
                return tick
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"{self.robot} did not get to its target within {ARRIVE_S:g} s: value "
                    f"{int(away.argmax())} is {away.max():.4f} away; it holds where it is"
                )

    def let_go(self) -> None:
        """Give the lease back and disarm; the robot holds."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.release()
            self.client.disarm(self.group)

    def free(self, joints: Sequence[bool]) -> None:
        """Take torque away from the marked joints; ControlPlaneError where something would fall."""
        self.client.torque(self.robot, list(joints), False)

    def _trouble(self) -> str:
        flag = self._flag
        with contextlib.suppress(SharedMemoryError):
            if fault := self.tick()["fault"].decode(errors="replace"):
                return str(fault)
        return flag.reason if flag is not None and flag.value else "it is disarmed"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Being impatient must not leave programs behind: a second Ctrl-C waits for the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
