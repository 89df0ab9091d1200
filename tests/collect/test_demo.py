"""`robot-stack demo` and the operator's Ctrl-C: in order at the first, at once at the second."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collect.demo_programs import Ending
from robot_stack.client import StationClient
from robot_stack.errors import RobotStackError
from robot_stack.types import Source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

MARK = "ROBOT_STACK_TEST_DEMO"


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.02)


class Demo:
    """The program in a session of its own; everything it starts carries ``mark``."""

    def __init__(self, directory: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.output = directory / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", "demo", "--directory", str(directory)],
                cwd=Path(__file__).parents[2],
                env={**os.environ, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def environments(self) -> dict[int, dict[str, str]]:
        """Of every living process that carries the mark, by process id."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                pairs = path.read_bytes().decode(errors="replace").split("\0")
                environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
                if environment.get(MARK) == self.mark:
                    found[int(path.parent.name)] = environment
        return found

    def living(self) -> list[str]:
        """The command lines of all that runs still."""
        found = []
        for pid in self.environments():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def runtime(self) -> Path:
        """The directory of shared memory that its programs use."""
        inner = [e for pid, e in self.environments().items() if pid != self.process.pid]
        return Path(inner[0]["ROBOT_STACK_RUNTIME"])


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Demo]:
    """A demo in its start ritual, with this process looking into its shared memory."""
    demo = Demo(tmp_path)
    try:
        until(
            lambda: "start ritual" in demo.output.read_text() or demo.process.poll() is not None,
            "the start ritual",
        )
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(demo.runtime()))
        yield demo
    finally:
        print(demo.output.read_text())
        for pid in demo.environments():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        demo.process.wait()


def lowering(client: StationClient) -> bool:
    """Whether the supervisor moves the arms: to their sleep pose."""
    try:
        return int(client.tick("follower_left")["source"]) == Source.SUPERVISOR
    except RobotStackError:
        return False


def test_an_interrupt_that_a_finaliser_swallowed_is_heeded_later() -> None:
    ending = Ending()
    ending.heed()
    with contextlib.suppress(KeyboardInterrupt):  # as Python does in a weak reference's callback
        ending(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        ending.heed()


def test_a_second_interrupt_ends_everything_at_once(demo: Demo) -> None:
    with StationClient("aloha_virtual") as client:
        until(lambda: int(client.tick("follower_left")["source"]) == Source.DEMO, "the ritual")
        runtime = demo.runtime()
        demo.interrupt()
        until(lambda: lowering(client), "the arms being lowered")
        assert demo.process.poll() is None
        demo.interrupt()
        assert demo.process.wait(10) == 130
    assert demo.living() == []
    assert "ended at once" in demo.output.read_text()
    assert not runtime.exists()


@pytest.mark.exhaustive
def test_one_interrupt_lowers_the_arms_and_ends_everything(demo: Demo) -> None:
    with StationClient("aloha_virtual") as client:
        until(lambda: int(client.tick("follower_left")["source"]) == Source.DEMO, "the ritual")
        runtime = demo.runtime()
        demo.interrupt()
        until(lambda: lowering(client), "the arms being lowered")
        shoulder = 0.0
        while demo.process.poll() is None:
            with contextlib.suppress(RobotStackError):
                shoulder = float(client.tick("follower_left")["q"][1])
            time.sleep(0.02)
    assert demo.process.returncode == 130
    assert shoulder < -1.7  # rad: the sleep pose has -1.85
    assert demo.living() == []
    assert not runtime.exists()
