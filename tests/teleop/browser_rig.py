"""What the browser tests share: an arm whose ticks the test publishes, and a session around the
Teleoperator such as `robot-stack teleop` runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hardware.teleop.browser import BrowserTeleoperator
from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.cartesian import Grasp
from robot_stack.config import load_station, parse
from robot_stack.records import ring_path, tick_record
from robot_stack.shared_memory import Flag, RingWriter
from robot_stack.types import Difference, Lifecycle

HANG_S = 60.0
STATION = "bench"
ARM = "arm"
HOME = np.array([0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0, 0.6])  # a hand that points down, half open

Array = NDArray[np.float64]


def write_station(directory: Path, options: str = "", cameras: str = "") -> Path:
    """A station file of one arm, teleoperated by a page at a free port."""
    path = directory / "bench.yaml"
    path.write_text(
        f"schema: 1\nstation: {STATION}\n"
        f"robots: {{{ARM}: {{driver: franka}}}}\n"
        f"groups: {{arms: {{robots: [{ARM}]}}}}\n"
        f"cameras: {{{cameras}}}\n"
        f"teleop:\n  driver: browser\n  group: arms\n  options: {{port: 0{options}}}\n"
    )
    return path


class Bench:
    """An arm that is where it is asked to be, its ticks, its stop flag and the teleoperator."""

    def __init__(self, directory: Path, options: str = "", cameras: str = "") -> None:
        station = load_station(write_station(directory, options, cameras))
        assert station.teleop is not None
        config = parse(BrowserConfig, station.teleop.options, "teleop.options")
        self.flag = Flag(ring_path(STATION, "stop", "arms"))
        self.ticks = RingWriter(ring_path(STATION, "arm", ARM), tick_record(8), 64)
        self.pose = HOME.copy()
        self.tick: Any = np.zeros((), tick_record(8))
        self.tick["lifecycle"] = Lifecycle.ARMED
        self.tick["command_t_ns"] = -1
        self.tick["ee_pose"] = HOME[:7]
        self.readings: list[tuple[int, Array]] = []
        self.beat()
        self.teleop = BrowserTeleoperator(config, Grasp(STATION, ARM, slice(0, 8)), station.path)

    def __enter__(self) -> Self:
        self.teleop.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.teleop.disconnect()
        self.ticks.close()
        self.flag.close()

    @property
    def url(self) -> str:
        return self.teleop.page.url.rstrip("/")

    def beat(
        self, *, lifecycle: Lifecycle | None = None, fault: str = "", why: Difference | None = None
    ) -> None:
        """One tick of the arm process, now."""
        now_ns = time.monotonic_ns()
        self.tick["t_ns"] = self.tick["sent_t_ns"] = now_ns
        self.tick["ee_pose"] = self.pose[:7]
        self.tick["fault"] = fault.encode()
        if lifecycle is not None:
            self.tick["lifecycle"] = lifecycle
        if why is not None:
            self.tick["difference"] = why
        self.ticks.publish(self.tick)

    def turn(self) -> None:
        """One turn of a teleoperation session with an arm that follows at once."""
        self.beat()
        if self.teleop.waiting() is not None:
            self.teleop.engage(self.pose, time.monotonic_ns())
        reading = self.teleop.read()
        if reading is not None:
            self.readings.append(reading)
            self.pose = reading[1].copy()
            self.tick["command_t_ns"] = reading[0]
        time.sleep(0.002)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Turn until ``condition`` is true, and return it."""
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            self.turn()
            answer = condition()
            if answer:
                return answer
        raise AssertionError(
            f"{what}: not within {HANG_S:g} s; it waits for {self.teleop.waiting()!r}"
        )

    def run(self, seconds: float) -> list[tuple[int, Array]]:
        """Turn for a while; the readings of that time."""
        first = len(self.readings)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()
        return self.readings[first:]
