"""What the browser tests share: an arm whose ticks the test publishes, a session around the
Teleoperator such as `robot-stack teleop` runs, and a person at the page's socket."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hardware.teleop.browser import BrowserTeleoperator, PageProcess
from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.browser_records import input_path
from hardware.teleop.cartesian import Grasp
from robot_stack.records import ring_path, tick_record
from robot_stack.shared_memory import Flag, Ring, RingWriter
from robot_stack.types import Difference, Lifecycle

HANG_S = 90.0
STATION = "bench"
ARM = "arm"
HOME = np.array([0.4, 0.0, 0.3, 0.0, 1.0, 0.0, 0.0, 0.6])  # a hand that points down, half open
PACKET_S = 0.02
CAMERA = "cam: {driver: test_pattern, width: 160, height: 120}"

Array = NDArray[np.float64]


def write_station(directory: Path, cameras: str = CAMERA) -> Path:
    """A station file of one arm; the page comes by ``--device browser``."""
    path = directory / "bench.yaml"
    path.write_text(
        f"schema: 1\nstation: {STATION}\n"
        f"robots: {{{ARM}: {{driver: franka}}}}\n"
        f"groups: {{arms: {{robots: [{ARM}]}}}}\n"
        f"cameras: {{{cameras}}}\n"
    )
    return path


class Bench:
    """An arm that is at once where it is asked to be, its stop flag, and the teleoperator."""

    def __init__(self, directory: Path, cameras: str = CAMERA, **options: Any) -> None:
        config = BrowserConfig(**{"port": 0, "stale_s": 0.4, **options})
        page = PageProcess(str(write_station(directory, cameras)), "arms", config)
        self.flag = Flag(ring_path(STATION, "stop", "arms"))
        self.ticks = RingWriter(ring_path(STATION, "arm", ARM), tick_record(8), 64)
        self.tick: Any = np.zeros((), tick_record(8))
        self.people: list[Person] = []
        self.readings: list[tuple[int, Array]] = []
        self.clear()
        self.teleop = BrowserTeleoperator(config, Grasp(STATION, ARM, slice(0, 8)), page)

    def clear(self) -> None:
        """The arm armed and at home, nobody at the page, no stop."""
        for person in self.people:
            person.close()
        self.people.clear()
        self.readings.clear()
        self.flag.clear()
        self.pose = HOME.copy()
        self.tick["lifecycle"] = Lifecycle.ARMED
        self.tick["difference"] = Difference.NONE
        self.tick["command_t_ns"] = -1
        self.beat()

    def __enter__(self) -> Self:
        self.teleop.connect()
        self.packets = Ring(input_path(STATION))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        self.packets.close()
        self.teleop.disconnect()
        self.ticks.close()
        self.flag.close()

    @property
    def url(self) -> str:
        return self.teleop.page.url.rstrip("/")

    def beat(self, fault: str = "") -> None:
        """One tick of the arm process, now."""
        self.tick["t_ns"] = self.tick["sent_t_ns"] = time.monotonic_ns()
        self.tick["ee_pose"] = self.pose[:7]
        self.tick["fault"] = fault.encode()
        self.ticks.publish(self.tick)

    def turn(self) -> None:
        """One turn of the session, with an arm that follows at once."""
        for person in self.people:
            person.act()
        self.beat()
        if self.teleop.waiting() is not None:
            self.teleop.engage(self.pose, time.monotonic_ns())
        reading = self.teleop.read()
        if reading is not None:
            self.readings.append(reading)
            self.pose = reading[1].copy()
            self.tick["command_t_ns"] = reading[0]
        time.sleep(0.001)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Turn until ``condition`` is true, and return it."""
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            self.turn()
            answer = condition()
            if answer:
                return answer
        why = self.teleop.waiting()
        raise AssertionError(f"{what}: not within {HANG_S:g} s; it waits for {why!r}")

    def push(self, person: Person, condition: Callable[[], Any], what: str, **hands: Any) -> None:
        """``person`` holds the switch until ``condition``, and presses it anew when told to: a
        busy machine can make anybody fall silent."""

        def done() -> Any:
            waiting = self.teleop.waiting() or ""
            person.hands["deadman"] = "let go" not in waiting
            return condition()

        person.hands = {"speed": 1.0, **hands}
        self.until(done, what)

    def run(self, seconds: float) -> list[tuple[int, Array]]:
        """Turn for a while; the readings of that time."""
        first = len(self.readings)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.turn()
        return self.readings[first:]

    def person(self, **options: Any) -> Person:
        """Somebody who opens the page; has heard a status when this returns."""
        person = Person(self.url, **options)
        self.people.append(person)
        self.until(lambda: person.status, "the page's first status")
        return person

    def moving(self, twist: tuple[float, ...] = (0.5, 0, 0, 0, 0, 0)) -> Person:
        """Somebody who has control, holds the switch and pushes; the arm follows already."""
        person = self.person()
        person.say("take")
        self.until(lambda: person.status["control"] == "you", "control")
        self.push(
            person, lambda: abs(self.pose[:3] - HOME[:3]).max() > 0.005, "motion", twist=twist
        )
        return person


class Person:
    """One open page by its socket: sends what ``hands`` says, every 20 ms, while not ``silent``."""

    def __init__(self, url: str, **options: Any) -> None:
        options.setdefault("origin", url)
        self._open = contextlib.ExitStack()
        self.socket: ClientConnection = self._open.enter_context(
            connect(f"ws{url.removeprefix('http')}/control", open_timeout=HANG_S, **options)
        )
        self.status: dict[str, Any] = {}
        self.errors: list[str] = []
        self.stopped: list[list[str]] = []
        self.hands: dict[str, Any] = {"deadman": False}
        self.silent = False
        self.late_ms = 0.0
        self.seq = 0
        self._beat = (0.0, 0.0)
        self._due = 0.0

    def act(self) -> None:
        self.listen()
        now = time.monotonic()
        if not self.silent and now > self._due and self._beat[1]:
            self._due = now + PACKET_S
            self.send(late_ms=self.late_ms)

    def listen(self) -> None:
        """Take in all that has come."""
        with contextlib.suppress(TimeoutError):
            while True:
                message = json.loads(self.socket.recv(timeout=0))
                if "t" in message:
                    self._beat = (message["t"], time.monotonic())
                if message["kind"] == "status":
                    self.status = message
                if message["kind"] == "error":
                    self.errors.append(message["message"])
                if message["kind"] == "stopped":
                    self.stopped.append(message["groups"])

    def packet(self, *, late_ms: float = 0.0, **values: Any) -> dict[str, Any]:
        """The next packet; with ``late_ms`` as if it had been on its way for so long."""
        t, at = self._beat
        self.seq += 1
        since = (time.monotonic() - at) * 1e3
        fresh = {"seq": self.seq, "echo": max(0.0, t - late_ms), "since": since}
        return {"kind": "hands", **fresh, **self.hands, **values}

    def send(self, **values: Any) -> None:
        """One packet, now; ``values`` go before those of ``hands``."""
        self.socket.send(json.dumps(self.packet(**values)))

    def say(self, kind: str) -> None:
        self.socket.send(json.dumps({"kind": kind}))

    def close(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            self._open.close()
