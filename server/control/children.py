"""Child processes of the supervisor: started in sessions of their own, adopted by its successor."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from robot_stack.processes import living_pid, started_at
from robot_stack.shared_memory import runtime_dir

__all__ = ["HANG_S", "Child"]

BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
CALM_S = 30.0  # a child that ran this long starts again without back-off
# A loop that stands still for longer hangs in a library or was stopped by a signal. The longest
# that one may stand and be well: a new connection to a robot whose hand is slow to answer.
HANG_S = 12.0
START_HANG_S = 60.0  # likewise until its first turn: imports, and a first connection
LOG_BYTES = 1 << 20  # a log is memory, in /dev/shm: a longer one is cut down to
KEPT_BYTES = 1 << 16  # its end
LAST_BYTES = 4096  # of a log are looked at for last words: the supervisor's loop waits meanwhile


@dataclass
class Child:
    """One program under supervision. It outlives its supervisor, and a new one adopts it.

    ``command`` starts it; ``crash_option`` is added when it is started again after dying. ``fate``
    is how it ended last, for messages.
    """

    station: str
    name: str
    command: list[str]
    crash_option: str | None = None
    restarts: int = 0
    pid: int = -1
    popen: subprocess.Popen[bytes] | None = None
    _started: str | None = None
    _since: float = 0.0
    _retry_at: float = 0.0
    _streak: int = 0
    _mark: object = None
    _marked: float = 0.0
    _turning: bool = False
    fate: str = "died"
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = runtime_dir(self.station) / f"{self.name}.log"
        self._pid_file = runtime_dir(self.station) / f"pid.{self.name}"

    def adopt(self) -> bool:
        """Take over a living process that an earlier supervisor started."""
        pid = living_pid(self._pid_file)
        if pid is None:
            return False
        self.pid, self._started, self._since = pid, started_at(pid), time.monotonic()
        self._forget_marks()
        return True

    def left_behind(self) -> bool:
        """Whether an earlier incarnation died without being ended (its pid file is still there)."""
        return self._pid_file.exists()

    def start(self, *, after_crash: bool) -> None:
        command = list(self.command)
        if after_crash and self.crash_option:
            command.append(self.crash_option)
        self.trim_log()
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self.popen.pid
        self._started = started_at(self.pid)
        self._since = time.monotonic()
        self._forget_marks()
        self._pid_file.write_text(f"{self.pid} {self._started}")

    def _forget_marks(self) -> None:
        self._mark, self._marked, self._turning = None, time.monotonic(), False

    def alive(self) -> bool:
        if self.popen is not None and self.popen.poll() is not None:
            return False
        return self.pid > 0 and started_at(self.pid) == self._started

    def hangs(self, mark: object) -> bool:
        """Whether ``mark``, which the child's loop changes in every turn, has stood too long.

        Until it changes for the first time since the start, start-up's own, longer limit counts.
        """
        now = time.monotonic()
        if mark != self._mark:
            # What is seen first may be the last word of a predecessor.
            self._turning = self._turning or self._mark is not None
            self._mark, self._marked = mark, now
            return False
        return now - self._marked > (HANG_S if self._turning else START_HANG_S)

    def kill(self, fate: str) -> None:
        """End it at once, whatever it does; ``fate`` is why, as in "hung in ..."."""
        self.signal(signal.SIGKILL)
        self.fate = fate

    def revive(self) -> bool:
        """Start a dead child again, with growing pauses; True when it was started just now."""
        now = time.monotonic()
        if self._retry_at == 0.0:
            self._streak = 0 if now - self._since > CALM_S else self._streak + 1
            self._retry_at = now + BACKOFF_S[min(self._streak, len(BACKOFF_S) - 1)]
        if now < self._retry_at:
            return False
        self._retry_at = 0.0
        self.restarts += 1
        self.start(after_crash=True)
        self.fate = "died"
        return True

    def signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def end(self, timeout_s: float) -> None:
        """Wait for the child to end; SIGTERM half-way, SIGKILL at the end of ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        told = False
        while self.alive():
            left = deadline - time.monotonic()
            if left < timeout_s / 2 and not told:
                self.signal(signal.SIGTERM)
                told = True
            if left < 0:
                self.signal(signal.SIGKILL)
            time.sleep(0.01)
        if self.popen is not None:
            self.popen.wait()
        self._pid_file.unlink(missing_ok=True)

    def last_words(self, lines: int = 3) -> str:
        """The end of the child's log, for messages about its death."""
        try:
            return "\n".join(self._log_end(LAST_BYTES).splitlines()[-lines:])
        except OSError:
            return ""

    def _log_end(self, limit: int) -> str:
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - limit))
            return log.read().decode(errors="replace")

    def trim_log(self) -> None:
        """Cut a log that has become long down to its end.

        The child goes on appending to it; what it writes at this very moment may be lost.
        """
        try:
            if self.log.stat().st_size <= LOG_BYTES:
                return
            end = self._log_end(KEPT_BYTES)
            with self.log.open("r+b") as log:  # over what is there: /dev/shm may be full
                log.write((end.partition("\n")[2] or end).encode())
                log.truncate()
        except OSError:  # without a log a robot holds as well
            return
