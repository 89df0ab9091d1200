"""The stop process as `serve` starts it: a button on the kernel's wire, flags in shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robot_stack.records import ring_path
from robot_stack.shared_memory import Flag, Ring
from tests.input.wire import KEY_B, SPACE, Button

STATION = """
station: lab
robots:
  left: {{driver: aloha}}
  right: {{driver: aloha}}
groups:
  one: {{robots: [left]}}
  two: {{robots: [right]}}
stop_devices:
  button: {{device: {device}, keys: [KEY_SPACE], category: {category}, required: {required}}}
"""


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.005)


class Lab:
    """A station file, its button and the processes under test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "lab.yaml"
        self.button = Button(path / "button")
        self.processes: list[subprocess.Popen[str]] = []
        self.write()
        self.flags = [Flag(ring_path("lab", "stop", group)) for group in ("one", "two")]

    def write(self, *, category: int = 2, required: bool = True) -> None:
        text = STATION.format(
            device=self.button.path, category=category, required=str(required).lower()
        )
        self.file.write_text(text)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "robot_stack.cli", "stop-device", str(self.file), *arguments],
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self.processes.append(process)
        return process

    def listen(self) -> Ring:
        """Start on the button; its heartbeat once it runs."""
        self.start("--device", "button")
        ring = Ring(ring_path("lab", "stopdevice", "button"), timeout_s=30)
        until(lambda: ring.count > 0, "the first heartbeat")
        return ring

    @property
    def values(self) -> list[int]:
        return [flag.value for flag in self.flags]

    def close(self) -> None:
        self.button.close()
        for flag in self.flags:
            flag.close()
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "run"))
    lab = Lab(tmp_path)
    yield lab
    lab.close()


def newest(ring: Ring) -> Any:
    found = ring.latest()
    assert found is not None
    return found[1]


def test_a_press_stops_every_group_and_latches(lab: Lab) -> None:
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        assert lab.values == [0, 0]
        lab.button.press(KEY_B)
        lab.button.press(SPACE)
        until(lambda: newest(ring)["pressed"], "the press")
        assert lab.values == [3, 3], "category 2 is flag value 3"
        assert [flag.reason for flag in lab.flags] == ["button: KEY_SPACE pressed"] * 2
        lab.button.release(SPACE)
        until(lambda: not newest(ring)["pressed"], "the release")
        assert newest(ring)["presses"] == 1
        assert lab.values == [3, 3], "a stop latches"


def test_a_key_that_is_not_named_does_nothing(lab: Lab) -> None:
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.press(KEY_B)
        lab.button.release(KEY_B)
        count = ring.count
        until(lambda: ring.count > count + 2, "some heartbeats")
        assert newest(ring)["presses"] == 0
        assert lab.values == [0, 0]


def test_the_category_of_the_station_file_is_set(lab: Lab) -> None:
    lab.write(category=1)
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.press()
        until(lambda: lab.values == [2, 2], "the stop")


def test_a_stop_that_is_cleared_while_pressed_comes_back(lab: Lab) -> None:
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.press()
        until(lambda: lab.values == [3, 3], "the stop")
        lab.flags[0].clear()
        until(lambda: lab.values == [3, 3], "the stop again")
        assert lab.flags[0].reason == "button: still pressed"
        lab.button.release()
        until(lambda: not newest(ring)["pressed"], "the release")
        for flag in lab.flags:
            flag.clear()
        count = ring.count
        until(lambda: ring.count > count + 2, "some heartbeats")
        assert lab.values == [0, 0], "after a reset the button is free again"
        lab.button.press()
        until(lambda: lab.values == [3, 3], "the next stop")


@pytest.mark.parametrize("required", [True, False])
def test_unplugging_stops_only_where_the_button_is_required(lab: Lab, required: bool) -> None:
    lab.write(required=required)
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.pull()
        until(lambda: not newest(ring)["connected"], "the loss to be seen")
        assert lab.values == ([3, 3] if required else [0, 0])
        if required:
            assert "unplugged" in lab.flags[0].reason
        lab.button.plug()
        until(lambda: newest(ring)["connected"], "the button to be found again")
        for flag in lab.flags:
            flag.clear()
        lab.button.press()
        until(lambda: lab.values == [3, 3], "the stop of the replugged button")


def test_a_missing_button_is_told_by_the_heartbeat(lab: Lab) -> None:
    with lab.listen() as ring:
        count = ring.count
        until(lambda: ring.count > count + 2, "heartbeats without a device")
        record = newest(ring)
        assert not record["connected"]
        assert not record["pressed"]
        assert time.monotonic_ns() - int(record["t_ns"]) < 30e9
        assert lab.values == [0, 0], "nothing runs yet that could be stopped"
        assert ring.meta["required"] is True


def test_sigterm_ends_it_in_order_and_leaves_the_stop(lab: Lab) -> None:
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.press()
        until(lambda: lab.values == [3, 3], "the stop")
        lab.processes[0].terminate()
        out, err = lab.processes[0].communicate(timeout=30)
        assert (lab.processes[0].returncode, err) == (0, "")
        assert "KEY_SPACE pressed: stopped" in out
        assert ring.closed
        assert lab.values == [3, 3]


def test_killed_while_pressed_leaves_the_stop_and_another_takes_over(lab: Lab) -> None:
    lab.button.plug()
    with lab.listen() as ring:
        until(lambda: newest(ring)["connected"], "the button to be found")
        lab.button.press()
        until(lambda: lab.values == [3, 3], "the stop")
        os.kill(lab.processes[0].pid, signal.SIGKILL)
        lab.processes[0].wait(timeout=30)
        assert lab.values == [3, 3]
        lab.start("--device", "button")
        until(ring.reopen, "the next stop process")
        until(lambda: ring.count and newest(ring)["connected"], "the button to be found")


def test_wrong_usage_is_explained(lab: Lab) -> None:
    for arguments, words in (
        (("--device", "pedal"), "has no stop device 'pedal' (stop_devices: button)"),
        ((), "standard input is no terminal"),
    ):
        process = lab.start(*arguments, stdin=subprocess.DEVNULL)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (1, "")
        assert err.startswith("error: ")
        assert words in err
    lab.file.write_text(lab.file.read_text().replace("KEY_SPACE", "KEY_SPCE"))
    process = lab.start("--device", "button")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "did you mean 'KEY_SPACE'" in err


def test_any_key_in_the_terminal_stops_and_q_leaves(lab: Lab) -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)
    process = lab.start(stdin=slave)
    try:
        assert process.stdout is not None
        assert "any key stops station lab" in process.stdout.readline()
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        os.write(master, b"\x1b[A")  # an arrow key is a key
        until(lambda: lab.values == [3, 3], "the stop")
        assert "robot-stack reset lab" in process.stdout.readline()
        os.write(master, b"q")
        assert process.wait(timeout=30) == 0
        assert termios.tcgetattr(slave)[3] == before[3], "the terminal was not restored"
    finally:
        os.close(slave)
        os.close(master)
