"""Teleoperation from a web page, on this computer or, with a one-time link, from another.

The page is served by a process of its own, ``hardware.teleop.browser_page``, which this one starts,
watches and ends. Between them is a ring of packets: what is not in it, or is old, moves nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.browser_records import STATE, STATE_SLOTS, input_path, state_path
from hardware.teleop.cartesian import Array, CartesianTeleoperator, Clutch, Grasp, grasp
from hardware.teleop.mapper import Stick
from robot_stack.config import Station, TeleopConfig, parse
from robot_stack.errors import DeviceError, SharedMemoryError
from robot_stack.registry import missing_dependency
from robot_stack.shared_memory import Ring, RingWriter

__all__ = ["BrowserTeleoperator", "PageProcess"]

START_S = 30.0  # loading a web framework on a busy machine
END_S = 5.0
RETRY_S = 1.0
# Packets come every 25 ms. After three that did not, the hands rest, before `stale_s` lets go.
PAUSE_NS = 100_000_000
STATE_NS = 100_000_000
SWITCH = "hold the page's dead-man switch (its button, Space, or the gamepad's left trigger)"


class PageProcess:
    """The page's process. It ends with this one, whatever happened: its standard input does."""

    def __init__(self, station_file: str, group: str, config: BrowserConfig) -> None:
        self.url = ""
        options = json.dumps(dataclasses.asdict(config))
        self._command = [sys.executable, "-m", "hardware.teleop.browser_page", station_file]
        self._command += ["--group", group, "--options", options, "--attached"]
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._listening = False
        self._retry_s = 0.0

    def start(self) -> None:
        """Start it and wait until it listens; DeviceError says why it does not."""
        self._launch()
        deadline = time.monotonic() + START_S
        while not self._listens():
            if not self._runs():
                raise DeviceError(f"no teleoperation page: {self.last_words()}")
            if time.monotonic() > deadline:
                raise DeviceError(f"the teleoperation page was not served within {START_S:g} s")
            time.sleep(0.02)

    def serving(self) -> bool:
        """Whether it is there. One that died is started again, at the same port; never blocks."""
        if self._runs():
            return self._listens()
        now = time.monotonic()
        if now > self._retry_s:
            self._retry_s = now + RETRY_S
            self._reap()
            self._launch()
        return False

    def end(self) -> None:
        """End it; safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reap()

    @property
    def pid(self) -> int:
        """-1 when it has not been started."""
        return -1 if self._process is None else self._process.pid

    def _launch(self) -> None:
        port = [] if self._port is None else ["--port", str(self._port)]
        self._said, self._listening = b"", False
        self._process = subprocess.Popen(
            [*self._command, *port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the terminal's program's: it ends them in order
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _listens(self) -> bool:
        """Whether it has said, in its one line, that it listens."""
        if not self._listening and self._hear() and (answer := json.loads(self._said))["ok"]:
            self.url, self._port = answer["url"], answer["port"]
            self._listening = True
        return self._listening

    def _hear(self) -> bool:
        """Take in what it says; whether its line is whole."""
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._process.stdout.fileno(), 4096)
        return b"\n" in self._said

    def last_words(self) -> str:
        """Why it ended, as far as it said."""
        if self._process is not None and self._hear() and "error" in json.loads(self._said):
            return str(json.loads(self._said)["error"])
        return "its process ended; its output above says why"

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None


class BrowserTeleoperator(CartesianTeleoperator):
    """Moves one arm as the person does who controls by the page.

    A page that lets go, is closed, hidden or loses the keyboard says so and the motion ends; one
    that falls silent is noticed: its hands rest after 0.1 s, and after ``stale_s`` the dead-man
    switch has to be let go of and held anew.
    """

    def __init__(self, config: BrowserConfig, grasp: Grasp, page: PageProcess) -> None:
        super().__init__(grasp, config.motion, Clutch("hold"), invitation=SWITCH)
        self.config = config
        self.page = page
        self._input: Ring | None = None
        self._seen = 0
        self._newest: Any = None
        self._state: RingWriter | None = None
        self._state_due_ns = 0
        self._opening = math.nan

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> BrowserTeleoperator:
        options = parse(BrowserConfig, config.options, "teleop.options")
        page = PageProcess(station.path, config.group, options)
        return cls(options, grasp(config, station, options.robot), page)

    def _open(self) -> None:
        for package in ("fastapi", "uvicorn", "cv2"):  # of the page's process
            absent = importlib.util.find_spec(package) is None
            lack = missing_dependency("teleop 'browser'", ModuleNotFoundError(name=package))
            if absent and lack is not None:
                raise lack
        self._state = RingWriter(state_path(self.grasp.station), STATE, STATE_SLOTS)
        self.page.start()

    def _close(self) -> None:
        self.page.end()
        if self._input is not None:
            self._input.close()
            self._input = None
        if self._state is not None:
            self._state.close(unlink=True)
            self._state = None

    def read(self) -> tuple[int, Array] | None:
        reading = super().read()
        now_ns = time.monotonic_ns()
        if now_ns >= self._state_due_ns:
            self._state_due_ns = now_ns + STATE_NS
            self._tell(now_ns)
        return reading

    def _tell(self, now_ns: int) -> None:
        """Let the page know why nothing moves."""
        assert self._state is not None
        if math.isfinite(self.gripper):  # between two motions it stays where it was asked to be
            self._opening = self.gripper
        waiting = (self.waiting() or "").encode()[: STATE["waiting"].itemsize]
        self._state.publish((now_ns, not waiting, self._opening, waiting))

    def _poll(self, now_ns: int) -> Stick | None:
        if not self.page.serving():
            self.trouble = "the page's process has ended; it is being started again"
            return None
        released = self._take_packets()
        packet = self._newest
        if packet is None or packet["grant"] < 0:
            self.trouble = f"nobody controls by the page: open {self.page.url} and take control"
            return None
        age_ns = now_ns - int(packet["t_ns"])
        if age_ns > self.config.stale_s * 1e9:
            self.trouble = (
                f"the page has been silent for {self.config.stale_s:g} s or its connection is too "
                "slow: let go of its dead-man switch, then hold it again"
            )
            return None
        self.trouble = ""
        if age_ns > PAUSE_NS:
            return Stick(held=bool(packet["deadman"]) and not released)
        return Stick(
            twist=tuple(packet["twist"].tolist()),
            held=bool(packet["deadman"]) and not released,
            gripper_goal=float(packet["gripper"]),
            speed=float(packet["speed"]),
        )

    def _take_packets(self) -> bool:
        """Read what has come; True when the dead-man switch was let go of meanwhile, however
        briefly, or control changed hands."""
        try:
            if self._input is None:
                self._input = Ring(input_path(self.grasp.station))
            elif self._input.closed and self._input.reopen():
                self._seen, self._newest = 0, None
        except SharedMemoryError:
            self._newest = None
            return True
        first, packets = self._input.since(self._seen)
        lost = first > self._seen
        self._seen = first + len(packets)
        if packets:
            self._newest = packets[-1]
        return lost or not all(packet["deadman"] for packet in packets)
