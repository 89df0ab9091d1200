"""Virtual ALOHA arms: nine servos on a pty each, in a child process, as Interbotix ships them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.aloha.arm import AlohaArm
from hardware.aloha.configuration import AlohaArmConfig
from hardware.dynamixel.process import BusProcess, spawn
from robot_stack.processes import living_pid

IDS = tuple(range(1, 10))
# Restated by hand: models, reversed servos and position limits of the two arms.
MODELS = {
    "vx300s": ["XM540-W270"] * 7 + ["XM430-W350"] * 2,
    "wx250s": ["XM430-W350"] * 7 + ["XL430-W250", "XC430-W150"],
}
REVERSED = {"vx300s": (2, 4, 7), "wx250s": (3, 5, 7)}
RANGES = {
    "vx300s": {2: (841, 2867), 3: (841, 2867), 4: (898, 3094), 5: (898, 3094), 7: (830, 3504)},
    "wx250s": {2: (819, 3345), 3: (819, 3345), 4: (648, 3094), 5: (648, 3094), 7: (910, 3447)},
}
SLEEP = {
    "vx300s": (0.0, -1.85, -1.85, 1.55, 1.55, 0.0, 0.8, 0.0, 0.4),
    "wx250s": (0.0, -1.80, -1.80, 1.55, 1.55, 0.0, 0.8, 0.0, -0.2),
}


def servo_rows(model: str) -> list[dict[str, Any]]:
    """The servos of an arm that a technician has set up, lying in its sleep pose."""
    rows = []
    for servo_id, name, angle in zip(IDS, MODELS[model], SLEEP[model], strict=True):
        low, high = RANGES[model].get(servo_id, (0, 4095))
        registers = {
            "return_delay_time": 0,
            "drive_mode": 1 if servo_id in REVERSED[model] else 0,
            "secondary_id": {3: 2, 5: 4}.get(servo_id, 255),
            "velocity_limit": 131,
            "min_position_limit": low,
            "max_position_limit": high,
        }
        rows.append(
            {"id": servo_id, "model": name, "position_rad": angle, "registers": registers,
             "boot_s": 0.1}
        )  # fmt: skip
    return rows


class Bench:
    """Virtual arms, and drivers for them."""

    def __init__(self, process: BusProcess) -> None:
        self.process = process
        self.control = process.control

    def config(self, name: str, **options: Any) -> AlohaArmConfig:
        role, _, _ = name.partition("_")
        model = "vx300s" if role == "follower" else "wx250s"
        values: dict[str, Any] = {"role": role, "model": model, "port": self.process.ports[name]}
        # A test machine stalls for longer than a robot's may.
        values |= {"bus_watchdog_ms": 2540}
        return AlohaArmConfig(**{**values, **options})

    def arm(self, name: str, **options: Any) -> AlohaArm:
        return AlohaArm(self.config(name, **options))

    def get(self, name: str, servo_id: int, register: str) -> int:
        return int(self.control.call("get", name, servo_id=servo_id, name=register))

    def set(self, name: str, servo_id: int, register: str, value: int) -> None:
        self.control.call("set", name, servo_id=servo_id, name=register, value=value)

    def positions(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(self.control.call("positions_rad", name))

    def goals(self, name: str, servo_id: int) -> list[int]:
        """Goal positions that a servo accepted, in order."""
        log = self.control.goal_log(bus=name)
        chosen = (log.servo_id == servo_id) & (log.kind == 0)
        return [int(value) for value in log.value[chosen]]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Poll until true; fails with ``what`` after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.002)


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """``make_bench(names, edit=None)``; ``edit(name, rows)`` may change the servos before."""
    processes: list[BusProcess] = []

    def make(
        *names: str, edit: Callable[[str, list[dict[str, Any]]], None] | None = None, **bus: Any
    ) -> Bench:
        buses = []
        for name in names:
            rows = servo_rows("vx300s" if name.startswith("follower") else "wx250s")
            if edit is not None:
                edit(name, rows)
            buses.append({"name": name, "servos": rows, "usb_latency_s": 0.0, **bus})
        processes.append(spawn(buses, tmp_path, timeout_s=90.0))
        return Bench(processes[-1])

    yield make
    for process in processes:
        process.close()


@pytest.fixture
def wait() -> Callable[..., None]:
    """``until`` as a fixture."""
    return until


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of shared memory with a name short enough for a socket; nothing is left in it."""
    directory = Path(tempfile.mkdtemp(prefix="rs-", dir="/dev/shm"))
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(directory))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    yield directory
    left = [path for path in directory.glob("*/pid.*") if living_pid(path) is not None]
    for path in left:
        os.kill(int(path.read_text().split()[0]), signal.SIGKILL)
    shutil.rmtree(directory)
    assert left == []
