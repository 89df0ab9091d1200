"""A child whose loop stands still is told from one that starts, or was adopted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from robot_stack.errors import SharedMemoryError
from robot_stack.processes import started_at
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle
from server.control import children
from server.control.children import Child

LONG_S = 3600.0


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    child = Child("s", "arm.a", [sys.executable, "-c", f"import time; time.sleep({LONG_S})"])
    child.start(after_crash=False)
    yield child
    child.end(0.0)


def hangs_at_last(child: Child, mark: object) -> bool:
    deadline = time.monotonic() + 10.0
    while not child.hangs(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_a_loop_that_turned_and_stands_still_hangs(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "HANG_S", 0.05)
    monkeypatch.setattr(children, "START_HANG_S", LONG_S)
    for turn in range(3):
        assert not child.hangs(turn)
        time.sleep(0.06)  # longer than a turn may take, and each has come all the same
    assert hangs_at_last(child, 2)


def test_what_a_predecessor_left_is_no_turn_of_the_successor(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "HANG_S", 0.0)
    monkeypatch.setattr(children, "START_HANG_S", LONG_S)
    assert not child.hangs(None), "no tick yet"
    child.end(0.0)
    child.start(after_crash=True)
    for _ in range(3):
        assert not child.hangs(4711), "the old ring's last tick, seen again and again"
        time.sleep(0.01)


def test_a_start_that_never_ends_hangs_in_the_end(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "START_HANG_S", 0.05)
    assert hangs_at_last(child, None)


def test_killing_one_that_was_stopped_ends_it_and_says_why(child: Child) -> None:
    pid = child.pid
    child.signal(signal.SIGSTOP)
    child.kill("hung")
    deadline = time.monotonic() + 10.0
    while child.alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert started_at(pid) is None
    assert child.fate == "hung"
    while not child.revive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert child.fate == "died", "how its successor ends is another matter"


WRITING = """
import time
while True:
    print("alive", flush=True)
    time.sleep(0.005)
"""


def test_a_log_is_cut_down_to_its_end_at_the_start_and_while_the_child_writes(child: Child) -> None:
    lines = [f"turn {i} of a child that says something in each" for i in range(30_000)]
    text = "\n".join(lines) + "\n"
    assert len(text) > 1_048_576
    child.end(0.0)
    child.command = [sys.executable, "-c", WRITING]
    child.log.write_text(text)
    child.start(after_crash=True)
    left = child.log.read_text().splitlines()
    assert lines[-1] in left, "the end stays, for whoever looks why its predecessor died"
    assert left[0] in lines, "whole lines"
    assert child.log.stat().st_size < 100_000

    with child.log.open("a") as log:
        log.write(text)
    child.trim_log()
    cut = child.log.stat().st_size
    assert cut < 100_000
    deadline = time.monotonic() + 10.0
    while child.log.stat().st_size < cut + 20:
        assert time.monotonic() < deadline, "the child does not write on"
        time.sleep(0.005)
    assert "\0" not in child.log.read_text()
    assert child.last_words(1) == "alive"


def test_last_words_are_few_however_long_the_log_is(child: Child) -> None:
    """The supervisor's one loop reads them, and renews leases."""
    child.log.write_text("é" * 1_000_000 + "\nits last words\n")
    assert child.last_words(1) == "its last words"
    assert len(child.last_words(100)) <= 4096
    child.log.unlink()
    assert child.last_words(1) == ""


def test_an_arm_process_whose_log_takes_no_more_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its robot is not there, which it says; it must be there when the robot is."""
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    options = {"role": "follower", "model": "vx300s", "port": str(tmp_path / "none")}
    file = tmp_path / "station.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "station": "v",
                "robots": {"a": {"driver": "aloha", "options": options}},
                "groups": {"arms": {"robots": ["a"]}},
            }
        )
    )

    def turns_in_fault() -> int:
        try:
            with Ring(ring_path("v", "arm", "a")) as ring:
                latest = ring.latest()
        except SharedMemoryError:
            return 0
        fault = latest is not None and latest[1]["lifecycle"] == Lifecycle.FAULT
        return int(latest[1]["tick"]) if latest is not None and fault else 0

    command = [sys.executable, "-m", "server.control.arm_process"]
    with Path("/dev/full").open("wb") as full:  # every write fails: no space left on device
        process = subprocess.Popen(
            [*command, "--station-file", str(file), "--robot", "a"],
            stdout=full,
            stderr=full,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    try:
        deadline = time.monotonic() + 60.0
        while turns_in_fault() < 20:
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait(30.0)
