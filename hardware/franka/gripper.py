"""The Franka hand as the driver sees it: a cached width with its age, and targets that never wait.

The hand takes one command at a time and cannot be hurried: while the fingers move the newest
target is waited with, and sent when they are done and it is still asked for. Closing onto
something: a move that ends short of its width while closing becomes a grasp there, and a target
below ``GRASP_BELOW_M`` is a grasp at once, which holds with the configured force. A command that
takes longer than its way at its speed and a deadline is named in ``notice``, stopped, and at last
its worker process is killed and started again; the arm goes on meanwhile.

It travels by itself, so a robot that stops must tell it: nothing is sent but in ``ask``, and
``halt`` stops what is under way. Only what a finished grasp holds stays held.
"""

from __future__ import annotations

import contextlib
import json
import math
import select
import socket
import subprocess
import sys
import time
from typing import Any, Literal

from hardware.franka.configuration import GripperConfig
from robot_stack.errors import DeviceError

__all__ = ["Gripper"]

WIDTH_M = 0.08  # of a Franka hand, until it says its own
NOT_HOMED_M = 0.01
GRASP_BELOW_M = 0.008
SAME_M = 0.0005
SHORT_M = 0.003  # a closing move that ends this far from its width has met something
OPENER_M = 0.002  # a target this much wider than what is held lets go
STOP_S = 1.0  # after which a command that was stopped and has not ended costs the worker its life
# A stop that overtakes its command in the worker stops nothing: it is sent until the command ends.
STOP_AGAIN_S = 0.1
START_S = 5.0
SILENT_S = 1.0
RESTART_S = (0.5, 2.0, 5.0, 10.0)
CALM_S = 60.0
LARGEST_MESSAGE = 4096


class Gripper:
    """One hand. ``poll`` costs a system call when nothing is new; nothing here but ``start`` waits.

    ``fraction`` of its stroke (0 closed, 1 open) as measured, NaN before the first state, and
    ``speed`` (1/s) between the last two; ``held`` as last asked for, after ``halt`` where the
    fingers are; ``age_s`` of the measured width; ``notice`` in words what is wrong, empty when
    nothing.
    """

    def __init__(
        self, config: GripperConfig, address: str, library: Literal["franky", "panda"]
    ) -> None:
        self._config = config
        self._command = [sys.executable, "-m", "hardware.franka.gripper_worker"]
        self._command += ["--library", library, "--address", address]
        self._address = address
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._width = math.nan
        self._speed = math.nan
        self._max_width = WIDTH_M
        self._state_t_ns = -1
        self._target = math.nan
        self._stand = math.nan
        self._sent = math.nan
        self._kind = ""
        self._seq = 0
        self._gripping = False
        self._closed_ns = -1
        self._closed_ok = self._met = False
        self._refused = math.nan
        self._deadline_s = math.inf
        self._sent_s = math.inf
        self._stopped = False
        self._halted = False
        self._halt_s = -math.inf
        self._started_s = 0.0
        self._restart_s = math.inf
        self._restarts = 0
        self._trouble = ""
        self._failed = ""

    # -- the worker --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker and wait for the first state; DeviceError with the reason if none
        comes."""
        self._launch()
        deadline = time.monotonic() + START_S
        while math.isnan(self._width):
            left = deadline - time.monotonic()
            if self._link is None or left <= 0 or self._failed:
                reason = self._failed or f"no state within {START_S:g} s"
                self.close()
                raise DeviceError(
                    f"gripper at {self._address}: {reason}. Is the hand mounted and switched on in "
                    "Desk, and homed? Without a hand set gripper: null in the station file"
                )
            select.select([self._link], (), (), left)
            self._receive()
        if self._max_width < NOT_HOMED_M:
            self.close()
            raise DeviceError(
                f"gripper at {self._address} has not been homed since it was switched on: home it "
                "in Desk (end effector), with nothing between its fingers"
            )
        self._stand = self._width

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, "--fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._link = ours
        self._failed = ""
        self._started_s = time.monotonic()
        self._restart_s = math.inf
        self._idle()

    def _idle(self) -> None:
        self._kind, self._deadline_s, self._stopped = "", math.inf, False
        self._halted, self._halt_s = False, -math.inf

    def close(self) -> None:
        """End the worker; the hand holds what it holds. Safe to call twice."""
        if self._link is not None:
            self._link.close()
            self._link = None
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # it may hang in its library
            process.wait()
        self._idle()

    # -- what the driver asks ----------------------------------------------------------------

    @property
    def fraction(self) -> float:
        return self._width / self._max_width

    @property
    def speed(self) -> float:
        return self._speed / self._max_width

    @property
    def held(self) -> float:
        if not math.isnan(self._target):
            return self._target / self._max_width
        return (self._sent if self._gripping else self._stand) / self._max_width

    def age_s(self, now_ns: int) -> float:
        return math.inf if self._state_t_ns < 0 else (now_ns - self._state_t_ns) / 1e9

    def notice(self, now_s: float) -> str:
        if self._trouble:
            return self._trouble
        if self._link is not None and now_s - self._started_s > START_S:
            age_s = self.age_s(time.monotonic_ns())
            if age_s > SILENT_S:
                return f"gripper: no state for {age_s:.1f} s"
        return ""

    def ask(self, fraction: float, now_s: float) -> None:
        """The fingers should be this far open: sent at once when they are free, otherwise the
        newest target counts once they are. To be said again and again."""
        self._target = min(max(fraction, 0.0), 1.0) * self._max_width
        if self._link is not None and not self._kind and not math.isnan(self._width):
            self._send_next(now_s)

    def halt(self, now_s: float) -> None:
        """Nobody moves the fingers now: they stop where they are, and what was asked is forgotten.
        What a finished grasp holds stays held. To be said for as long as that is so."""
        self._target, self._closed_ns, self._met = math.nan, -1, False
        if not abs(self._width - self._stand) < SAME_M:  # clients wait until what is held rests
            self._stand = self._width
        if not self._kind:
            if not self._gripping:
                self._sent = self._refused = math.nan
            return
        if not self._halted:
            self._halted = True
            self._deadline_s = min(self._deadline_s, now_s + STOP_S)
        if now_s >= self._halt_s:
            self._halt_s = now_s + STOP_AGAIN_S
            self._tell({"do": "stop"})

    def poll(self, now_s: float) -> None:
        """Take up what the worker says, and see to one that hangs."""
        if self._link is None:
            if now_s >= self._restart_s:
                self._launch()
            return
        self._receive()
        if self._link is not None and self._kind:
            self._watch(now_s)

    # -- messages ----------------------------------------------------------------------------

    def _receive(self) -> None:
        while self._link is not None:
            try:
                data = self._link.recv(LARGEST_MESSAGE)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._lost(self._failed or "its worker process ended")
                return
            self._take(json.loads(data))

    def _take(self, message: dict[str, Any]) -> None:
        if "t_ns" in message:
            if self._state_t_ns >= 0:
                passed_s = (message["t_ns"] - self._state_t_ns) / 1e9
                self._speed = (message["width"] - self._width) / max(passed_s, 1e-3)
            first = self._state_t_ns < 0
            self._width, self._state_t_ns = message["width"], message["t_ns"]
            if message["max_width"] >= NOT_HOMED_M or first:
                self._max_width = message["max_width"]
            if not self._kind and not self._stopped:
                self._trouble = ""
            if 0 <= self._closed_ns < self._state_t_ns:
                self._closed()
            if time.monotonic() - self._started_s > CALM_S:
                self._restarts = 0
        elif "done" in message:
            if message["done"] == self._seq:
                self._done(bool(message["ok"]), message["text"])
        else:
            self._failed = str(message["failed"])

    def _done(self, ok: bool, text: str) -> None:
        halted, closing = self._halted, self._kind == "close"
        self._gripping = ok and self._kind == "grasp"
        self._refused = math.nan
        self._idle()
        if halted:  # its end says nothing about what is between the fingers
            self._trouble = ""
            if not self._gripping:
                self._sent = math.nan
            return
        if closing:  # the width is as old as 0.1 s: the next one tells what came of it
            self._closed_ns, self._closed_ok = time.monotonic_ns(), ok
            return
        self._trouble = f"gripper: {text}" if text else ""
        if not ok and not self._gripping:
            self._not_there()

    def _closed(self) -> None:
        """Whether the closing move that has ended met something."""
        self._closed_ns = -1
        self._met = self._width > self._sent + SHORT_M
        if not self._closed_ok and not self._met:
            self._not_there()

    def _not_there(self) -> None:
        """It is asked again when the target changes."""
        self._refused, self._sent = self._sent, self._width

    # -- commands ----------------------------------------------------------------------------

    def _send_next(self, now_s: float) -> None:
        target = self._target
        if self._met and target <= self._sent + SAME_M:
            self._send("grasp", self._sent, now_s)
            return
        here = min(max(self._width, 0.0), self._max_width)
        last = here if math.isnan(self._sent) else self._sent
        if abs(target - last) < SAME_M or abs(target - self._refused) < SAME_M:
            return
        if self._gripping and target <= self._width + OPENER_M:
            self._sent = target  # it holds already
            return
        if target <= GRASP_BELOW_M:
            self._send("grasp", target, now_s)
        else:
            self._send("close" if target < self._width else "open", target, now_s)

    def _send(self, kind: str, width: float, now_s: float) -> None:
        self._closed_ns, self._met = -1, False
        self._seq += 1
        self._kind, self._sent, self._sent_s = kind, width, now_s
        if kind == "open":
            self._gripping = False
        way = abs(self._width - width)
        self._deadline_s = now_s + way / self._config.speed + self._config.deadline_s
        order = {
            "seq": self._seq,
            "do": "grasp" if kind == "grasp" else "move",
            "width": width,
            "speed": self._config.speed,
            "force": self._config.force,
        }
        self._tell(order)

    def _tell(self, order: dict[str, Any]) -> None:
        assert self._link is not None
        with contextlib.suppress(BlockingIOError, ConnectionError):  # the deadline sees to it
            self._link.send(json.dumps(order).encode())

    def _watch(self, now_s: float) -> None:
        if now_s < self._deadline_s:
            return
        what = "grasp" if self._kind == "grasp" else "move"
        hangs = (
            f"hangs in a {what} to {1e3 * self._sent:.0f} mm for {now_s - self._sent_s:.1f} s now"
        )
        self._trouble = f"gripper: {hangs}"
        if not self._stopped:
            self._stopped = True
            self._tell({"do": "stop"})
        elif now_s > self._deadline_s + STOP_S:
            self._lost(hangs)

    def _lost(self, why: str) -> None:
        """The worker is of no use any more: another one, after a pause."""
        pause = RESTART_S[min(self._restarts, len(RESTART_S) - 1)]
        self._restarts += 1
        self.close()
        self._sent = math.nan
        self._gripping = False
        self._restart_s = time.monotonic() + pause
        self._trouble = f"gripper: {why}; worker started again ({self._restarts})"
        print(self._trouble, file=sys.stderr, flush=True)
