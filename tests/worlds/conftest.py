"""A running world of a station of its own, and the real serial protocol to its arms."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dynamixel_sdk import COMM_SUCCESS, GroupSyncRead, PacketHandler, PortHandler

from hardware.worlds.control import WorldClient
from robot_stack.errors import ControlPlaneError

ROOT = Path(__file__).resolve().parents[2]
ATTEMPTS = 20  # the machine may be busy: the SDK gives up on an answer after 34 ms

STATION = """
schema: 1
station: cell
world: {scene: aloha_transfer_cube, seed: 3, usb_latency_ms: 1.0}
robots:
  follower_left: {driver: aloha, options: {model: vx300s, port: "virtual:follower_left"}}
  follower_right: {driver: aloha, options: {model: vx300s, port: "virtual:follower_right"}}
  leader_left: {driver: aloha, options: {model: wx250s, port: "virtual:leader_left"}}
  leader_right: {driver: aloha, options: {model: wx250s, port: "virtual:leader_right"}}
groups:
  all: {robots: [follower_left, follower_right, leader_left, leader_right]}
"""


def until(condition: Callable[[], Any], what: str, timeout_s: float = 90.0) -> Any:
    """The first true answer of ``condition``; fails when none came in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")


class RunningWorld:
    """A world process, its client, and where its ports are."""

    def __init__(self, directory: Path) -> None:
        self.station = "cell"
        self.directory = directory
        self.file = directory / "station.yaml"
        self.file.write_text(STATION)
        self.environment = {**os.environ, "ROBOT_STACK_RUNTIME": str(directory)}
        self.process = self.start()
        self.client = WorldClient(self.station, timeout_s=5.0)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "hardware.worlds.world_process"),
                *(str(self.file), "--attached"),
            ],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,  # when this process dies the world ends with it
            stdout=subprocess.DEVNULL,
        )

    def answers(self) -> bool:
        assert self.process.poll() is None, "the world ended"
        if not (self.directory / self.station / "world.ipc").exists():
            return False
        try:
            self.client.call("status")
        except ControlPlaneError:
            return False
        return True

    def tty(self, robot: str) -> Path:
        return self.directory / self.station / "tty" / robot

    def status(self, robot: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.call("status")["robots"][robot]
        return answer

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class Chain:
    """The servos of one arm, through the real dynamixel_sdk."""

    def __init__(self, tty: Path) -> None:
        self.port = PortHandler(str(tty))
        assert self.port.openPort()
        assert self.port.setBaudRate(1_000_000)
        self.packets = PacketHandler(2.0)

    def write(self, servo: int, address: int, size: int, value: int) -> None:
        send = {1: self.packets.write1ByteTxRx, 2: self.packets.write2ByteTxRx,
                4: self.packets.write4ByteTxRx}[size]  # fmt: skip
        for _ in range(ATTEMPTS):
            result, error = send(self.port, servo, address, value)
            if result == COMM_SUCCESS:
                assert error == 0, f"servo {servo} register {address}: error {error}"
                return
        raise AssertionError(f"servo {servo} does not answer: {result}")

    def positions(self) -> list[int]:
        read = GroupSyncRead(self.port, self.packets, 132, 4)
        for servo in range(1, 10):
            read.addParam(servo)
        for _ in range(ATTEMPTS):
            if read.txRxPacket() == COMM_SUCCESS:
                return [read.getData(servo, 132, 4) for servo in range(1, 10)]
        raise AssertionError("the servos do not answer")

    def close(self) -> None:
        self.port.closePort()


def start_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWorld]:
    # A socket's path has 107 characters at most, and pytest's own directories are deep.
    with tempfile.TemporaryDirectory(prefix="world-") as directory:
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", directory)
        world = RunningWorld(Path(directory))
        try:
            until(world.answers, "the world answers")
            yield world
        finally:
            world.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningWorld]:
    yield from start_world(monkeypatch)


@pytest.fixture(scope="module")
def shared_world() -> Iterator[RunningWorld]:
    """For tests that leave it as they found it, or do not care."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from start_world(monkeypatch)
