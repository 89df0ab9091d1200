"""A child whose loop stands still is told from one that starts, or was adopted."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from robot_stack.processes import started_at
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
