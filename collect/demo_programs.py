"""The programs of a demonstration: a virtual station's world and supervisor, and further ones.

All of them end with the block that started them, however that ends.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from hardware.worlds.control import WorldClient
from robot_stack.client import StationClient
from robot_stack.config import Station
from robot_stack.errors import ControlPlaneError, RobotStackError
from robot_stack.processes import living_pid
from robot_stack.shared_memory import runtime_dir

__all__ = ["Ending", "Start", "announced", "last_words", "programs", "runtime"]

START_S = 60.0
END_S = 40.0


class Ending:
    """A handler of SIGINT and SIGTERM that raises, and remembers: Python drops an exception raised
    while a finaliser runs, so loops ask ``heed`` too."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: object) -> None:
        self.number = number
        self.heed()

    def heed(self) -> None:
        """KeyboardInterrupt or SystemExit once a signal has come."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.number:
            sys.exit(128 + self.number)


@contextlib.contextmanager
def runtime() -> Iterator[dict[str, str]]:
    """A directory of shared memory of our own, so that a running station is left alone."""
    directory = tempfile.mkdtemp(prefix="robot-stack-demo-", dir="/dev/shm")
    before = os.environ.get("ROBOT_STACK_RUNTIME")
    os.environ["ROBOT_STACK_RUNTIME"] = directory
    try:
        yield dict(os.environ)
    finally:
        if before is None:
            del os.environ["ROBOT_STACK_RUNTIME"]
        else:
            os.environ["ROBOT_STACK_RUNTIME"] = before
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def announced(
    console: Console, what: str, total: int
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A progress bar of ``total`` episodes: what says what goes on, and what ends an episode."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} episodes"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task(what, total=total)

        def say(text: str) -> None:
            progress.update(bar, description=text)
            if not console.is_terminal:
                console.print(text)

        yield say, lambda: progress.advance(bar)


Start = Callable[[str, list[str]], "subprocess.Popen[bytes]"]


@contextlib.contextmanager
def programs(
    station: Station, environment: dict[str, str], say: Callable[[str], None]
) -> Iterator[Start]:
    """World and supervisor, up; yields what starts further subcommands. All end with the block."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    logs = runtime_dir(station.station)

    def start(name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (logs / f"{name}.log").open("ab") as log:
            started[name] = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours: we end them in order
            )
        return started[name]

    try:
        start("world", ["virtual", station.path])
        say("starting the world")
        with WorldClient(station.station) as world:
            _await(lambda: _answers(lambda: world.call("status")), "the world", started, logs)
        start("serve", ["serve", station.path])
        say("starting the control server")
        with StationClient(station.station) as client:
            _await(lambda: _up(client, station), "the station", started, logs)
        yield start
    finally:
        _end(station, started, logs)


def _end(station: Station, started: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    """Lower the arms and end all programs in order; a further Ctrl-C ends them all at once."""

    def hurry(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hurry)
    try:
        with StationClient(station.station) as client, contextlib.suppress(RobotStackError):
            client.request("shutdown", timeout_s=END_S)
        for process in reversed(started.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10.0)
    except KeyboardInterrupt:  # being impatient must not leave arms behind
        print("demo: ended at once", file=sys.stderr)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for process in started.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for path in logs.glob("pid.*"):  # of a supervisor that did not come to ending its own
            pid = living_pid(path)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


def _answers(call: Callable[[], Any]) -> bool:
    try:
        call()
    except RobotStackError:
        return False
    return True


def _up(client: StationClient, station: Station) -> bool:
    """Every arm runs and every camera has shown a frame."""
    try:
        status = client.request("status", timeout_s=1.0)
    except ControlPlaneError:
        return False
    for robot in status["robots"].values():
        if robot["fault"]:
            raise ControlPlaneError(robot["fault"])
    arms = all(robot["lifecycle"] == "disarmed" for robot in status["robots"].values())
    return arms and all(camera["frames"] > 0 for camera in status["cameras"].values())


def _await(
    condition: Callable[[], bool],
    what: str,
    started: dict[str, subprocess.Popen[bytes]],
    logs: Path,
    timeout_s: float = START_S,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        for name, process in started.items():
            if process.poll() is not None:
                raise ControlPlaneError(f"{what} did not start: {last_words(logs, name)}")
        if time.monotonic() > deadline:
            words = " / ".join(last_words(logs, path.stem) for path in sorted(logs.glob("*.log")))
            raise ControlPlaneError(f"{what} was not up within {timeout_s:g} s; logs say: {words}")
        time.sleep(0.05)


def last_words(logs: Path, name: str) -> str:
    """The last line of a program's log."""
    try:
        lines = (logs / f"{name}.log").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return f"{name}: {lines[-1] if lines else '(said nothing)'}"
