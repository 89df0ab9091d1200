"""The driver of a chain of X-series servos on one serial port.

One process and one thread per port; nothing here starts a thread, and nothing waits but in
select. Vectors are over `ids`, in the order given. Units are counts of the control table: ticks,
0.229 rpm, 2.69 mA (or 0.1 % load).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from dynamixel_sdk import COMM_SUCCESS

from hardware.dynamixel.control_table import (
    MODELS,
    TICKS_PER_REV,
    ControlTable,
    HardwareError,
    Register,
)
from hardware.dynamixel.group import SyncRead, SyncWrite
from hardware.dynamixel.packet import BROADCAST_ID, Decoder, Instruction, StatusError, encode
from hardware.dynamixel.port import LatencyIssue, Port, Protocol, check_usb_latency, usb_latency_s
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

UNKNOWN_TICKS = int(np.iinfo(np.int32).min)

_STATE_ADDRESS = 126  # present current (load), velocity, position: 126..135
_STATE_LENGTH = 10
_GOAL_POSITION = 116
_GOAL_CURRENT = 102
_TRIES = 3
_MISSES_UNTIL_SUSPECT = 3
_PROBE_EVERY_NS = 500_000_000
_FAST_FAILURES = 5
_NS = 1_000_000_000

_STATUS_TEXT = {
    StatusError.RESULT_FAIL: "could not do it (torque on after a shutdown needs a reboot first)",
    StatusError.INSTRUCTION: "does not know the instruction",
    StatusError.CRC: "received a damaged packet",
    StatusError.DATA_RANGE: "refuses a value outside the register's range (or its bus watchdog "
    "has run out: clear it first)",
    StatusError.DATA_LENGTH: "refuses data of the wrong length",
    StatusError.DATA_LIMIT: "refuses a value beyond one of its limit registers",
    StatusError.ACCESS: "refuses access: a read-only register, or EEPROM while torque is on",
}


@dataclass(frozen=True, slots=True)
class PingResult:
    """What a servo says of itself. `alert`: its hardware error register is not zero."""

    model_number: int
    firmware: int
    alert: bool = False

    @property
    def model(self) -> str:
        """The model's name, or its number where the control table is not known here."""
        table = MODELS.get(self.model_number)
        return table.model if table else f"model {self.model_number}"


@dataclass(frozen=True, slots=True)
class BusState:
    """One reading of all servos; read-only vectors over the bus's `ids`.

    t_ns            monotonic time at which the last byte of the read instruction left (hand-over
                    to the kernel plus its time on the wire): servos sample then or later, within
                    the duration of the answer. Of the last attempt, when there were several.
    position_ticks  int32; UNKNOWN_TICKS for a servo that has never answered
    velocity_raw    int32, 0.229 rpm
    current_raw     int16, 2.69 mA; for XL430 and XC430 the load in 0.1 %
    age_s           float64; 0 for values of this reading, else how much older than `t_ns` they
                    are, inf for a servo that has never answered
    alert           bool; the hardware error register of that servo is not zero
    missing         ids that did not answer this time
    """

    t_ns: int
    position_ticks: npt.NDArray[np.int32]
    velocity_raw: npt.NDArray[np.int32]
    current_raw: npt.NDArray[np.int16]
    age_s: npt.NDArray[np.float64]
    alert: npt.NDArray[np.bool_]
    missing: tuple[int, ...]


def unwrap_ticks(
    ticks: npt.NDArray[np.integer], reference: npt.NDArray[np.integer] | npt.NDArray[np.floating]
) -> npt.NDArray[np.int32]:
    """`ticks` shifted by whole turns to lie within half a turn of `reference` (same shape).

    A servo forgets full turns when it loses power or enters position mode; the joint has not
    moved, only its count is 4096 off.
    """
    turns = np.rint((np.asarray(reference) - ticks) / TICKS_PER_REV).astype(np.int32)
    unwrapped: npt.NDArray[np.int32] = (ticks + turns * TICKS_PER_REV).astype(np.int32)
    return unwrapped


class DynamixelBus:
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
        self.port_name = port
        self.ids = tuple(int(servo_id) for servo_id in ids)
        if not self.ids or len(set(self.ids)) != len(self.ids):
            raise DeviceError(f"servo ids must be given, each once; got {list(ids)}")
        if not all(0 <= servo_id <= 252 for servo_id in self.ids):
            raise DeviceError(f"servo ids are 0..252; got {list(ids)}")
        self.baud = baud
        self.fast = bool(fast)
        self.found: dict[int, PingResult] = {}
        self._fast_wanted = fast
        self._latency_wanted = latency_s
        self._slack_s = slack_s
        self._port = Port(port, baud, 0.001, slack_s)
        self._packets = Protocol()
        self._return_delay_s = 0.0
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
        self._reads: dict[tuple[tuple[int, ...], int, int, bool], SyncRead] = {}
        self._writes: dict[tuple[tuple[int, ...], int], SyncWrite] = {}

    # -- connection ------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the port is open."""
        return bool(self._port.is_open)

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
            delays = self.sync_read("return_delay_time", present)
            self._return_delay_s = sum(delays.values()) * 2e-6
            self._misses[:] = 0
            for servo_id in self.ids:
                if servo_id not in self.found:
                    self._misses[self._index[servo_id]] = _MISSES_UNTIL_SUSPECT
            if self._fast_wanted is None:
                probe = self._sync_read(present, _STATE_ADDRESS, _STATE_LENGTH, True)
                self.fast = self._exchange(probe, 0.05)[0]
        except BaseException:
            self.close()
            raise

    def _open(self, baud: int) -> None:
        latency = self._latency_wanted
        self._port.latency_s = usb_latency_s(self.port_name) if latency is None else latency
        if not self._port.setBaudRate(baud):
            raise BusError(f"{baud} baud is no speed that dynamixel_sdk can set")

    def close(self) -> None:
        """Close the port; torque and goals stay as they are. Harmless when closed."""
        if self._port.is_open:
            self._port.closePort()

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if not self._port.is_open:
            raise BusError(f"{self.port_name} is not connected: call connect() first")

    # -- the loop's two calls ---------------------------------------------------------------------

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
        wanted = self._whom_to_ask(start)
        missing = list(wanted)
        silent: set[int] = set(self.ids) - set(wanted)
        strikes = {s: _TRIES - 1 for s in wanted if self._is_suspect(s)}
        sent_ns = start
        attempt = 0
        heard_any = False
        while missing:
            # A retry is a plain read: a damaged fast packet takes all servos behind it along.
            fast = self.fast and attempt == 0
            now = time.monotonic_ns()
            if attempt and now + int(self._least_s(len(missing)) * _NS) > end:
                break
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
                if strikes[servo_id] >= _TRIES:
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
        return self._state(sent_ns, silent)

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

    def _sync_read(self, ids: tuple[int, ...], address: int, length: int, fast: bool) -> SyncRead:
        key = (ids, address, length, fast)
        read = self._reads.get(key)
        if read is None:
            if len(self._reads) > 128:
                self._reads.clear()
            read = self._reads[key] = SyncRead(ids, address, length, fast=fast)
        return read

    def _exchange(self, read: SyncRead, limit_s: float) -> tuple[bool, int]:
        """Send a sync read and gather answers; (all there, t_ns of the request's last byte).

        Around the SDK's GroupSyncRead: see `group`.
        """
        port = self._port
        byte_ns = 10.0 * _NS / port.baudrate
        request = read.request
        port.clearPort()
        read.start()
        handed_ns = time.monotonic_ns()
        self._send(request)
        sent_ns = time.monotonic_ns()
        allowed_ns = (len(request) + read.expected + 4) * byte_ns + (
            self._return_delay_s + 2 * port.latency_s + self._slack_s
        ) * _NS
        end_ns = sent_ns + int(min(allowed_ns, limit_s * _NS))
        heard = 0
        complete = False
        while not complete:
            left_s = (end_ns - time.monotonic_ns()) / _NS
            data = port.read_some(4096, max(0.0, left_s))
            if data:
                heard += len(data)
                if time.monotonic_ns() - handed_ns < (len(request) + heard) * byte_ns:
                    # Sooner than the wire allows: a late answer to an earlier request. Taken as
                    # this one's, every reading from here on could be one behind.
                    read.start()
                    heard = 0
                    continue
                complete = read.parse(data)
            elif left_s <= 0.0:
                read.finish()
                break
        return bool(read.got.all()), sent_ns + int(len(request) * byte_ns)

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

    def _send(self, packet: bytes) -> None:
        if self._port.writePort(packet) != len(packet):
            raise BusError(f"{self.port_name} takes no more bytes: the adapter is stuck; replug it")

    # -- registers ---------------------------------------------------------------------------------

    def table(self, servo_id: int) -> ControlTable:
        """The control table of a servo, by its model number (asked for once).

        Raises DeviceError for a model that is not known here.
        """
        result = self.found.get(servo_id)
        if result is None:
            result = self.found[servo_id] = self.ping(servo_id)
        table = MODELS.get(result.model_number)
        if table is None:
            known = ", ".join(f"{t.model} ({n})" for n, t in MODELS.items())
            raise DeviceError(
                f"servo {servo_id} on {self.port_name} is model {result.model_number}, whose "
                f"control table is not known here; known are {known}"
            )
        return table

    def _name(self, servo_id: int) -> str:
        result = self.found.get(servo_id)
        model = f" ({result.model})" if result else ""
        return f"servo {servo_id}{model} on {self.port_name}"

    def _talk(
        self, servo_id: int, what: str, exchange: Callable[[], tuple[list[int], int, int]]
    ) -> list[int]:
        """Do one request of the SDK, up to three times; its data. Raises on silence or error."""
        self._require_open()
        error = 0
        for _ in range(_TRIES):
            try:
                data, result, error = exchange()
            finally:
                self._port.is_using = False
            if result != COMM_SUCCESS:
                self._settle()
                continue
            row = self._index.get(servo_id)
            if row is not None:
                self._alert[row] = bool(error & StatusError.ALERT)
            code = error & 0x7F
            if code == StatusError.CRC:
                continue
            if code:
                text = _STATUS_TEXT.get(StatusError(code), f"answers with error {code}")
                raise DeviceError(f"{self._name(servo_id)} {text}: {what}")
            return data
        raise BusError(
            f"{self._name(servo_id)} gave no whole answer in {_TRIES} attempts: {what}. "
            "Check its cable, id and power (a rebooting servo is silent for a while)"
        )

    def _settle(self) -> None:
        """Hear out what is left of a failed exchange, so that it answers no later request."""
        while self._port.read_some(4096, self._port.latency_s + 0.001):
            pass

    def ping(self, servo_id: int) -> PingResult:
        """Model number and firmware version. Raises BusError if it does not answer."""
        result = self._try_ping(servo_id)
        if result is None:
            raise BusError(
                f"servo {servo_id} does not answer a ping on {self.port_name} at "
                f"{self._port.baudrate} baud: check its cable, id, speed and power"
            )
        return result

    def _try_ping(self, servo_id: int, tries: int = _TRIES) -> PingResult | None:
        self._require_open()
        for _ in range(tries):
            packet = [0] * 10
            packet[4], packet[5], packet[7] = servo_id, 3, Instruction.PING
            try:
                # The SDK's `ping` drops the firmware version.
                answer, result, error = self._packets.txRxPacket(self._port, packet)
            finally:
                self._port.is_using = False
            if result == COMM_SUCCESS and len(answer) >= 14:
                number = answer[9] | answer[10] << 8
                return PingResult(number, answer[11], bool(error & StatusError.ALERT))
        return None

    def is_alive(self, servo_id: int) -> bool:
        """Whether the servo answers one ping, without trying again."""
        return self._try_ping(servo_id, tries=1) is not None

    def scan(
        self, ids: Sequence[int] | None = None, bauds: Sequence[int] | None = None
    ) -> dict[tuple[int, int], PingResult]:
        """Find servos: {(baud, id): PingResult}. Changes nothing.

        Without `ids` a broadcast ping asks 0..252 at once (0.2 s at 1 Mbaud, more at slower
        speeds); with them each is pinged. `bauds` defaults to the bus's speed. A
        closed bus is opened for the scan; an open one goes back to its speed.
        """
        was_open = self.connected
        found: dict[tuple[int, int], PingResult] = {}
        try:
            for baud in bauds if bauds is not None else (self.baud,):
                self._open(baud)
                if ids is None:
                    answers = self._broadcast_ping()
                else:
                    answers = {}
                    for servo_id in ids:
                        result = self._try_ping(servo_id, tries=2)
                        if result is not None:
                            answers[servo_id] = result
                found.update({(baud, servo_id): result for servo_id, result in answers.items()})
        finally:
            if was_open:
                self._open(self.baud)
            else:
                self.close()
        return found

    def _broadcast_ping(self) -> dict[int, PingResult]:
        """All servos at once. The SDK waits 0.8 s whatever comes; here silence ends it.

        A servo answers in its turn by id, after the time that the ones before it would take.
        """
        port = self._port
        port.clearPort()
        self._send(encode(BROADCAST_ID, Instruction.PING))
        found: dict[int, PingResult] = {}
        decoder = Decoder()
        # 253 slots of 14 bytes and the default return delay of 0.5 ms.
        longest = 253 * (140.0 / port.baudrate + 0.0005) + port.latency_s + self._slack_s
        end = time.monotonic() + longest
        while (left := end - time.monotonic()) > 0:
            for packet in decoder.feed(port.read_some(4096, left)):
                if packet.crc_ok and len(packet.parameters) == 4:
                    error, low, high, firmware = packet.parameters
                    found[packet.servo_id] = PingResult(
                        low | high << 8, firmware, bool(error & StatusError.ALERT)
                    )
        return found

    def read(self, servo_id: int, register: str) -> int:
        """One register, in counts, with its sign.

        Raises BusError on silence, DeviceError for an unknown register or a refusal.
        """
        row = self.table(servo_id)[register]

        def exchange() -> tuple[list[int], int, int]:
            data, result, error = self._packets.readTxRx(
                self._port, servo_id, row.address, row.size
            )
            # A late answer to an earlier request has another length.
            if result == COMM_SUCCESS and not error & 0x7F and len(data) != row.size:
                return data, COMM_SUCCESS - 1, 0
            return data, result, error

        return row.unpack(bytes(self._talk(servo_id, f"reading {register}", exchange)))

    def write(self, servo_id: int, register: str, value: int) -> None:
        """Write one register, in counts, and wait for the servo's confirmation.

        Raises DeviceError if the value is out of range or the servo refuses, BusError on silence.
        """
        row = self._writable(servo_id, register, value)
        data = list(row.pack(value))

        def exchange() -> tuple[list[int], int, int]:
            result, error = self._packets.writeTxRx(
                self._port, servo_id, row.address, row.size, data
            )
            return [], result, error

        self._talk(servo_id, f"writing {register} = {value}", exchange)

    def _writable(self, servo_id: int, register: str, value: int) -> Register:
        row = self.table(servo_id)[register]
        if not row.writable:
            raise DeviceError(f"{register} of {self._name(servo_id)} is read-only")
        if not row.minimum <= value <= row.maximum:
            raise DeviceError(
                f"{register} = {value} for {self._name(servo_id)}: "
                f"allowed is {row.minimum}..{row.maximum} {row.unit}"
            )
        return row

    def write_verified(self, servo_id: int, register: str, value: int) -> None:
        """Write and read back; for EEPROM only while torque is off.

        A register that already holds the value is not written: EEPROM wears out. Raises
        DeviceError if torque is on, or another value comes back.
        """
        row = self._writable(servo_id, register, value)
        if self.read(servo_id, register) == value:
            return
        if row.eeprom and self.read(servo_id, "torque_enable"):
            raise DeviceError(
                f"{register} of {self._name(servo_id)} is EEPROM and its torque is on: "
                "support the arm, switch torque off, then write"
            )
        self.write(servo_id, register, value)
        back = self.read(servo_id, register)
        if back != value:
            raise DeviceError(
                f"{register} of {self._name(servo_id)} was set to {value} and reads {back}: "
                "try again; if it persists, replace the servo"
            )

    def sync_write(self, register: str, values: Mapping[int, int]) -> None:
        """Write one register of several servos in one packet; they do not confirm.

        Raises DeviceError if the register or value does not suit every servo.
        """
        self._require_open()
        if not values:
            return
        rows = {
            servo_id: self._writable(servo_id, register, value)
            for servo_id, value in values.items()
        }
        first = next(iter(rows.values()))
        body = b"".join(bytes((s,)) + rows[s].pack(value) for s, value in values.items())
        head = bytes((first.address & 0xFF, first.address >> 8, first.size, 0))
        self._send(encode(BROADCAST_ID, Instruction.SYNC_WRITE, head + body))

    def sync_read(
        self, register: str, ids: Sequence[int] | None = None, deadline_s: float = 0.05
    ) -> dict[int, int]:
        """One register of several servos; only those that answered before the deadline.

        Raises BusError if none did.
        """
        self._require_open()
        targets = tuple(self.ids if ids is None else ids)
        row = self.table(targets[0])[register]
        missing = list(targets)
        values: dict[int, int] = {}
        end = time.monotonic() + deadline_s
        while missing:
            read = self._sync_read(tuple(missing), row.address, row.size, False)
            self._exchange(read, max(0.0, end - time.monotonic()))
            for k, servo_id in enumerate(read.ids):
                if read.got[k]:
                    values[servo_id] = row.unpack(read.data[k].tobytes())
                    if servo_id in self._index:
                        self._alert[self._index[servo_id]] = read.errors[k] & StatusError.ALERT
            missing = [servo_id for servo_id in missing if servo_id not in values]
            if missing:
                missing = [*missing[1:], missing[0]]
            if time.monotonic() >= end:
                break
        if not values:
            raise BusError(
                f"none of the servos {list(targets)} on {self.port_name} answered within "
                f"{deadline_s * 1e3:.0f} ms: reading {register}"
            )
        return {servo_id: values[servo_id] for servo_id in targets if servo_id in values}

    # -- torque, errors, watchdog ------------------------------------------------------------------

    def torque(self, ids: Sequence[int], on: bool) -> None:
        """Switch torque of `ids` together, and read back that it is so.

        An arm without torque falls: support it first. Raises DeviceError naming the servos that
        did not follow (after a shutdown they need `recover`).
        """
        targets = tuple(ids)
        if not targets:
            return
        want = int(on)
        wrong: list[int] = []
        for _ in range(_TRIES):
            self.sync_write("torque_enable", dict.fromkeys(targets, want))
            values = self.sync_read("torque_enable", targets)
            wrong = [servo_id for servo_id in targets if values.get(servo_id) != want]
            if not wrong:
                return
        raise DeviceError(
            f"torque of servos {wrong} on {self.port_name} is not {'on' if on else 'off'} after "
            f"{_TRIES} attempts: read hardware_error of each; a servo that shut down needs recover"
        )

    def hardware_error(self, servo_id: int) -> HardwareError:
        """What the servo complains of; HardwareError.NONE when nothing."""
        return HardwareError(self.read(servo_id, "hardware_error_status") & 0x3D)

    def reboot(self, servo_id: int) -> None:
        """Restart a servo: torque drops, RAM registers are lost, and it is silent for a while."""

        def exchange() -> tuple[list[int], int, int]:
            result, error = self._packets.reboot(self._port, servo_id)
            return [], result, error

        self._talk(servo_id, "rebooting", exchange)

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


class Recovery:
    """A servo's way back from a shutdown, one short exchange a `poll`."""

    _PING_EVERY_NS = 20_000_000

    def __init__(
        self,
        bus: DynamixelBus,
        servo_id: int,
        restore: Callable[[DynamixelBus, int], None],
        timeout_s: float,
    ) -> None:
        self.servo_id = servo_id
        self.stage: Literal["off", "boot", "restore", "hold", "done"] = "off"
        self._bus = bus
        self._restore = restore
        self._timeout_s = timeout_s
        self._end_ns = 0
        self._next_ping_ns = 0

    def poll(self) -> bool:
        """Do the next step; True when the servo holds again.

        Raises BusError if it does not come back, DeviceError if it fails again at once; the servo
        is then read (and missed) as before.
        """
        bus, servo_id = self._bus, self.servo_id
        try:
            if self.stage == "off":
                bus.leave_out(servo_id, True)
                bus.write(servo_id, "torque_enable", 0)
                bus.reboot(servo_id)
                now = time.monotonic_ns()
                self._end_ns = now + int(self._timeout_s * _NS)
                self._next_ping_ns = now + self._PING_EVERY_NS
                self.stage = "boot"
            elif self.stage == "boot":
                self._poll_boot()
            elif self.stage == "restore":
                self._restore(bus, servo_id)
                self.stage = "hold"
            elif self.stage == "hold":
                bus.write(servo_id, "goal_position", bus.read(servo_id, "present_position"))
                bus.write(servo_id, "torque_enable", 1)
                bus.leave_out(servo_id, False)
                self.stage = "done"
        except BaseException:
            bus.leave_out(servo_id, False)
            raise
        return self.stage == "done"

    def _poll_boot(self) -> None:
        bus, servo_id = self._bus, self.servo_id
        now = time.monotonic_ns()
        if now < self._next_ping_ns:
            return
        self._next_ping_ns = now + self._PING_EVERY_NS
        if bus.is_alive(servo_id):
            error = bus.hardware_error(servo_id)
            if error:
                raise DeviceError(
                    f"servo {servo_id} on {bus.port_name} reports {error!r} again right after a "
                    "reboot: relieve the joint, check voltage and temperature, then recover"
                )
            self.stage = "restore"
        elif now > self._end_ns:
            raise BusError(
                f"servo {servo_id} on {bus.port_name} did not come back within "
                f"{self._timeout_s:.1f} s of its reboot: check its power"
            )

    def wait(self) -> None:
        """Sleep until the next `poll` has something to do."""
        if self.stage == "boot":
            time.sleep(max(0.0, (self._next_ping_ns - time.monotonic_ns()) / _NS))
