"""The driver of a chain of X-series servos on one serial port.

One process and one thread per port; nothing here starts a thread, and nothing waits but in
select. Vectors are over `ids`, in the order given. Units are counts of the control table: ticks,
0.229 rpm, 2.69 mA (or 0.1 % load).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from hardware.dynamixel.group import SyncRead, SyncWrite
from hardware.dynamixel.packet import StatusError
from hardware.dynamixel.port import LatencyIssue, check_usb_latency
from hardware.dynamixel.recovery import Recovery
from hardware.dynamixel.registers import RegisterAccess
from hardware.dynamixel.state import UNKNOWN_TICKS, BusState, PingResult, unwrap_ticks
from hardware.dynamixel.transport import TRIES
from robot_stack.errors import BusError, DeviceError

__all__ = [
    "UNKNOWN_TICKS",
    "BusState",
    "DynamixelBus",
    "LatencyIssue",
    "PingResult",
    "Recovery",
    "check_usb_latency",
    "unwrap_ticks",
]

_STATE_ADDRESS = 126  # present current (load), velocity, position: 126..135
_STATE_LENGTH = 10
_RETURN_DELAY = 9
_FACTORY_RETURN_DELAY_S = 500e-6
_GOAL_POSITION = 116
_GOAL_CURRENT = 102
_MISSES_UNTIL_SUSPECT = 3
_PROBE_EVERY_NS = 500_000_000
_FAST_FAILURES = 5
_NS = 1_000_000_000


class DynamixelBus(RegisterAccess):
    """The servos `ids` on serial port `port`, through dynamixel_sdk.

    The constructor only remembers; `connect` (or `with`) opens the port and asks who is there.

    `fast`: True uses fast sync reads, False plain ones, None tries once at connect and takes fast
    reads if every servo answers them. `latency_s`: the adapter's latency timer, None to ask the
    system. `slack_s`: what an answer may be late beyond wire time and latency before it counts as
    lost. Errors: BusError when nothing answers or the port is gone, DeviceError when a servo
    refuses.
    """

    def __init__(
        self,
        port: str,
        ids: Sequence[int],
        baud: int = 1_000_000,
        *,
        fast: bool | None = None,
        latency_s: float | None = None,
        slack_s: float = 0.004,
    ) -> None:
        super().__init__(port, ids, baud, latency_s, slack_s)
        self.fast = bool(fast)
        self._fast_wanted = fast
        n = len(self.ids)
        self._index = {servo_id: k for k, servo_id in enumerate(self.ids)}
        self._position = np.full(n, UNKNOWN_TICKS, dtype=np.int32)
        self._velocity = np.zeros(n, dtype=np.int32)
        self._current = np.zeros(n, dtype=np.int16)
        self._alert = np.zeros(n, dtype=np.bool_)
        self._seen_ns = np.full(n, -1, dtype=np.int64)
        self._misses = np.zeros(n, dtype=np.int64)
        self._away: set[int] = set()
        self._next_probe_ns = 0
        self._fast_failures = 0
        self._writes: dict[tuple[tuple[int, ...], int], SyncWrite] = {}
        self._last: BusState | None = None

    def connect(self) -> None:
        """Open the port and ping every id; moves and changes nothing.

        Servos that do not answer are left out of `found`, and `read_state` keeps asking for them.
        Raises BusError if the port cannot be opened or no servo answers.
        """
        self._open(self.baud)
        try:
            self.found = {}
            for servo_id in self.ids:
                result = self._try_ping(servo_id)
                if result is not None:
                    self.found[servo_id] = result
            if not self.found:
                raise BusError(
                    f"no servo answers on {self.port_name} at {self.baud} baud (asked for ids "
                    f"{list(self.ids)}). Check the servos' power, the cable and the baud rate; "
                    "`scan` finds servos at other ids and speeds"
                )
            present = tuple(self.found)
            self._learn_return_delays(present)
            self._misses[:] = 0
            for servo_id in self.ids:
                if servo_id not in self.found:
                    self._misses[self._index[servo_id]] = _MISSES_UNTIL_SUSPECT
            if self._fast_wanted is None:
                probe = self._sync_read(present, _STATE_ADDRESS, _STATE_LENGTH, True)
                self.fast = any(self._exchange(probe, 0.05)[0] for _ in range(TRIES))
        except BaseException:
            self.close()
            raise

    def _learn_return_delays(self, present: tuple[int, ...]) -> None:
        """How long servos pause before they answer; the factory's 0.5 ms where unknown."""
        self._return_delay_s = _FACTORY_RETURN_DELAY_S * len(present)
        read = self._sync_read(present, _RETURN_DELAY, 1, False)
        for _ in range(TRIES):
            if self._exchange(read, 0.1)[0]:
                self._return_delay_s = float(read.data.sum()) * 2e-6
                return

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_state(self, deadline_s: float = 0.02) -> BusState:
        """Current, velocity and position of every servo.

        Servos that stay silent while others answer are asked up to three times, as long as
        `deadline_s` seconds from the call allow; then what there is comes back, older values with
        their age. A servo that
        has missed three readings is asked only twice a second from then on, until it answers.
        Raises BusError if no servo answered, and at once if the port has gone.
        """
        self._require_open()
        start = time.monotonic_ns()
        end = start + int(deadline_s * _NS)
        pending, self._pending = self._pending, None
        wanted = self._whom_to_ask(start) if pending is None else pending[0].ids
        missing = list(wanted)
        silent: set[int] = set(self.ids) - set(wanted)
        strikes = {s: TRIES - 1 for s in wanted if self._is_suspect(s)}
        sent_ns = start
        attempt = 0
        heard_any = False
        while missing:
            # A retry is a plain read: a damaged fast packet takes all servos behind it along.
            fast = self.fast and attempt == 0
            now = time.monotonic_ns()
            if attempt and now + int(self._least_s(len(missing)) * _NS) > end:
                break
            if attempt == 0 and pending is not None:
                read, sent_ns = pending
                heard = self._gather(read, sent_ns, end)
                if heard is None and self._last is not None:
                    self._pending = pending  # late: the next reading takes it up
                    return self._last
                complete = bool(heard)
            else:
                read = self._sync_read(tuple(missing), _STATE_ADDRESS, _STATE_LENGTH, fast)
                complete, sent_ns = self._exchange(read, max(0.0, (end - now) / _NS))
            self._keep(read, sent_ns)
            if fast:
                self._judge_fast(bool(read.got.any()))
            attempt += 1
            if complete:
                missing = []
                break
            got = {s for s, ok in zip(read.ids, read.got, strict=True) if ok}
            missing = [s for s in missing if s not in got]
            # Servos behind a silent one may only have waited for it: the first of the silent is to
            # blame, and goes to the end of the next request. If none answered, all are, unless
            # it is the line: then only the deadline ends it.
            heard_any = heard_any or bool(got)
            blamed = missing[:1] if got else missing if heard_any else []
            for servo_id in blamed:
                strikes[servo_id] = strikes.get(servo_id, 0) + 1
                if strikes[servo_id] >= TRIES:
                    silent.add(servo_id)
            missing = [s for s in (*missing[1:], missing[0]) if s not in silent]
        silent |= set(missing)
        for servo_id in wanted:
            row = self._index[servo_id]
            self._misses[row] = self._misses[row] + 1 if servo_id in silent else 0
        if len(silent) == len(self.ids):
            self._next_probe_ns = 0
            raise BusError(
                f"no servo on {self.port_name} answered within {deadline_s * 1e3:.1f} ms "
                f"({attempt} attempts). Check the servos' power and the cable"
            )
        self._last = self._state(sent_ns, silent)
        return self._last

    def request_state(self) -> None:
        """Ask for the state that the next `read_state` gathers: the wire works meanwhile.

        If the answer is not there by the deadline of that reading, it returns the state of the
        reading before once more, and the next one takes the answer up. Anything else that uses
        the bus first hears the answer out. Raises BusError if the port has gone.
        """
        self._require_open()
        if self._pending is not None:
            return
        wanted = self._whom_to_ask(time.monotonic_ns())
        read = self._sync_read(wanted, _STATE_ADDRESS, _STATE_LENGTH, self.fast)
        self._pending = (read, self._ask(read))

    def _is_suspect(self, servo_id: int) -> bool:
        return bool(self._misses[self._index[servo_id]] >= _MISSES_UNTIL_SUSPECT)

    def _whom_to_ask(self, now_ns: int) -> tuple[int, ...]:
        """All ids; those silent for long only now and then, and last, where they hold up nobody."""
        if not self._away and self._misses.max() < _MISSES_UNTIL_SUSPECT:
            return self.ids
        asked = [s for s in self.ids if s not in self._away]
        good = [s for s in asked if not self._is_suspect(s)]
        if good and now_ns < self._next_probe_ns:
            return tuple(good)
        self._next_probe_ns = now_ns + _PROBE_EVERY_NS
        return (*good, *(s for s in asked if self._is_suspect(s)))

    def _least_s(self, n: int) -> float:
        wire = (14 + n + n * (11 + _STATE_LENGTH)) * 10.0 / self.baud
        return wire + self._return_delay_s

    def _judge_fast(self, answered: bool) -> None:
        """Go back to plain reads when fast ones, which nobody asked for, stay unanswered."""
        self._fast_failures = 0 if answered else self._fast_failures + 1
        if self._fast_wanted is None and self._fast_failures >= _FAST_FAILURES:
            self.fast = False

    def _keep(self, read: SyncRead, t_ns: int) -> None:
        data = read.data
        if read.ids == self.ids and read.got.all():
            rows: npt.NDArray[np.intp] | slice = slice(None)
            taken = data
            errors = read.errors
        else:
            rows = np.array(
                [self._index[s] for s, ok in zip(read.ids, read.got, strict=True) if ok],
                dtype=np.intp,
            )
            taken = data[read.got]
            errors = read.errors[read.got]
        self._current[rows] = taken[:, 0:2].view("<i2")[:, 0]
        self._velocity[rows] = taken[:, 2:6].view("<i4")[:, 0]
        self._position[rows] = taken[:, 6:10].view("<i4")[:, 0]
        self._alert[rows] = errors & StatusError.ALERT
        self._seen_ns[rows] = t_ns

    def _state(self, t_ns: int, silent: set[int]) -> BusState:
        n = len(self.ids)
        age = np.zeros(n)
        if silent:
            rows = [self._index[servo_id] for servo_id in silent]
            seen = self._seen_ns[rows]
            age[rows] = np.where(seen < 0, np.inf, (t_ns - seen) / _NS)
        state = BusState(
            t_ns,
            self._position.copy(),
            self._velocity.copy(),
            self._current.copy(),
            age,
            self._alert.copy(),
            tuple(servo_id for servo_id in self.ids if servo_id in silent),
        )
        for vector in (
            state.position_ticks, state.velocity_raw, state.current_raw, state.age_s, state.alert
        ):  # fmt: skip
            vector.flags.writeable = False
        return state

    def write_goals(
        self, ticks: npt.NDArray[np.integer], ids: Sequence[int] | None = None
    ) -> npt.NDArray[np.int32]:
        """Sync-write goal positions, in ticks over `ids` (default: the bus's). Returns what was
        sent, int32. Servos do not confirm: what one refuses it refuses silently.

        Raises BusError if the port has gone, DeviceError for a wrong shape or type.
        """
        return self._write_group(_GOAL_POSITION, 4, ticks, ids).astype(np.int32)

    def write_goal_currents(
        self, counts: npt.NDArray[np.integer], ids: Sequence[int] | None = None
    ) -> npt.NDArray[np.int32]:
        """Sync-write goal currents (2.69 mA), as `write_goals`. Only for servos that have them."""
        return self._write_group(_GOAL_CURRENT, 2, counts, ids).astype(np.int32)

    def _write_group(
        self, address: int, size: int, values: npt.NDArray[np.integer], ids: Sequence[int] | None
    ) -> npt.NDArray[np.integer]:
        self._require_open()
        targets = self.ids if ids is None else tuple(ids)
        values = np.asarray(values)
        if values.shape != (len(targets),) or values.dtype.kind not in "iu":
            raise DeviceError(
                f"goals must be integers of shape ({len(targets)},), one for each of "
                f"{list(targets)}; got {values.dtype} {values.shape}"
            )
        key = (targets, address)
        write = self._writes.get(key)
        if write is None:
            if len(self._writes) > 128:
                self._writes.clear()
            write = self._writes[key] = SyncWrite(targets, address, size)
        self._send(write.packet(values))
        return values

    def set_bus_watchdog(self, ms: float, ids: Sequence[int] | None = None) -> None:
        """Let servos stop by themselves when nobody speaks to them for `ms` (20..2540, in steps
        of 20, rounded up). They then hold under torque until `clear_bus_watchdog`.
        """
        steps = int(np.ceil(ms / 20.0))
        if not 1 <= steps <= 127:
            raise DeviceError(f"bus watchdog of {ms} ms: allowed is 20..2540 ms")
        for servo_id in self.ids if ids is None else ids:
            self.write(servo_id, "bus_watchdog", steps)

    def clear_bus_watchdog(self, ids: Sequence[int] | None = None) -> None:
        """Switch the watchdog off, also one that has run out."""
        for servo_id in self.ids if ids is None else ids:
            self.write(servo_id, "bus_watchdog", 0)

    def recover(
        self,
        servo_id: int,
        restore: Callable[[DynamixelBus, int], None],
        timeout_s: float = 3.0,
    ) -> None:
        """Bring back a servo that shut down, and return when it holds again (blocks ~0.5 s).

        Torque off, reboot, wait, `restore(bus, servo_id)` (RAM registers and operating mode), goal
        := present, torque on. Raises DeviceError if the error comes back at once. In a control
        loop use `begin_recovery`, which does not block.
        """
        recovery = self.begin_recovery(servo_id, restore, timeout_s)
        while not recovery.poll():
            recovery.wait()

    def begin_recovery(
        self,
        servo_id: int,
        restore: Callable[[DynamixelBus, int], None],
        timeout_s: float = 3.0,
    ) -> Recovery:
        """`recover` in steps: call `poll` of what this returns once a loop until it is True.

        Meanwhile `read_state` leaves the servo out (it is in `missing`).
        """
        return Recovery(self, servo_id, restore, timeout_s)

    def leave_out(self, servo_id: int, out: bool) -> None:
        """Leave a servo of the bus out of `read_state` (it counts as missing), or take it in."""
        if servo_id not in self._index:
            return
        if out:
            self._away.add(servo_id)
        else:
            self._away.discard(servo_id)
            self._misses[self._index[servo_id]] = 0

    def _note_alert(self, servo_id: int, alert: bool) -> None:
        row = self._index.get(servo_id)
        if row is not None:
            self._alert[row] = alert
