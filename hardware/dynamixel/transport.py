"""Requests and answers on a servo bus: sync reads, single requests, pings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dynamixel_sdk import COMM_SUCCESS

from hardware.dynamixel.group import SyncRead
from hardware.dynamixel.packet import BROADCAST_ID, Decoder, Instruction, StatusError, encode
from hardware.dynamixel.port import PacketProtocol, Port, usb_latency_s
from hardware.dynamixel.state import PingResult
from robot_stack.errors import BusError, DeviceError

__all__ = ["TRIES", "Transport"]

TRIES = 3
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


class Transport:
    """One serial port with servos on it. The constructor opens nothing.

    `found` remembers what servos have said of themselves.
    """

    def __init__(
        self, port: str, ids: Sequence[int], baud: int, latency_s: float | None, slack_s: float
    ) -> None:
        self.port_name = port
        self.ids = tuple(int(servo_id) for servo_id in ids)
        if not self.ids or len(set(self.ids)) != len(self.ids):
            raise DeviceError(f"servo ids must be given, each once; got {list(ids)}")
        if not all(0 <= servo_id <= 252 for servo_id in self.ids):
            raise DeviceError(f"servo ids are 0..252; got {list(ids)}")
        self.baud = baud
        self.found: dict[int, PingResult] = {}
        self._latency_wanted = latency_s
        self._slack_s = slack_s
        self._port = Port(port, baud, 0.001, slack_s)
        self._packets = PacketProtocol()
        self._return_delay_s = 0.0
        self._reads: dict[tuple[tuple[int, ...], int, int, bool], SyncRead] = {}
        self._pending: tuple[SyncRead, int] | None = None  # asked, not yet gathered
        self._line_free_ns = 0  # when the last byte handed to the kernel has left
        self._port.before_use = self._before_use

    @property
    def connected(self) -> bool:
        """Whether the port is open."""
        return bool(self._port.is_open)

    def _open(self, baud: int) -> None:
        latency = self._latency_wanted
        self._port.latency_s = usb_latency_s(self.port_name) if latency is None else latency
        if not self._port.setBaudRate(baud):
            raise BusError(f"{baud} baud is no speed that dynamixel_sdk can set")

    def close(self) -> None:
        """Close the port; torque and goals stay as they are. Harmless when closed."""
        self._pending = None
        if self._port.is_open:
            self._port.closePort()

    def _require_open(self) -> None:
        if not self._port.is_open:
            raise BusError(f"{self.port_name} is not connected: call connect() first")

    def _send(self, packet: bytes) -> int:
        """Hand a packet to the kernel; the monotonic time at which its last byte leaves."""
        # From before the write: this process may be held up right behind it.
        handed_ns = time.monotonic_ns()
        if self._port.writePort(packet) != len(packet):
            raise BusError(f"{self.port_name} takes no more bytes: the adapter is stuck; replug it")
        byte_ns = 10.0 * _NS / self._port.baudrate
        self._line_free_ns = max(handed_ns, self._line_free_ns) + int(len(packet) * byte_ns)
        return self._line_free_ns

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
        limit_ns = time.monotonic_ns() + int(limit_s * _NS)
        asked_ns = self._ask(read)
        complete = self._gather(read, asked_ns, limit_ns)
        if complete is None:
            read.finish()
        return bool(read.got.all()), asked_ns

    def _ask(self, read: SyncRead) -> int:
        """Send the request of a sync read; t_ns of its last byte."""
        self._port.clearPort()
        read.start()
        return self._send(read.request)

    def _gather(self, read: SyncRead, asked_ns: int, limit_ns: int) -> bool | None:
        """Hear the answers to a sync read: True when all came, False when their time is up, None
        when `limit_ns` came first; they may then be gathered on."""
        port = self._port
        byte_ns = 10.0 * _NS / port.baudrate
        allowed_ns = (read.expected + 4) * byte_ns + (
            self._return_delay_s + 2 * port.latency_s + self._slack_s
        ) * _NS
        end_ns = asked_ns + int(allowed_ns)
        heard = 0
        while True:
            left_s = (min(end_ns, limit_ns) - time.monotonic_ns()) / _NS
            data = port.read_some(4096, max(0.0, left_s))
            if data:
                heard += len(data)
                if time.monotonic_ns() - asked_ns < heard * byte_ns:
                    # Sooner than the wire allows: a late answer to an earlier request. Taken as
                    # this one's, every reading from here on could be one behind.
                    read.start()
                    heard = 0
                elif read.parse(data):
                    return bool(read.got.all())
            elif left_s <= 0.0:
                if limit_ns < end_ns:
                    return None
                read.finish()
                return bool(read.got.all())

    def _before_use(self, *, clear: bool) -> None:
        """A request is under way and somebody else wants the line: hear the answer out if its
        bytes would be thrown away, else only let them pass. They may be late in the kernel when
        they have long left the wire."""
        if self._pending is None:
            return
        read, asked_ns = self._pending
        if clear:
            self._pending = None
            self._gather(read, asked_ns, asked_ns + _NS)
            return
        byte_ns = 10.0 * _NS / self._port.baudrate
        free_ns = asked_ns + (read.expected + 4) * byte_ns + self._return_delay_s * _NS
        time.sleep(max(0.0, (free_ns - time.monotonic_ns()) / _NS))

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
        for _ in range(TRIES):
            try:
                data, result, error = exchange()
            finally:
                self._port.is_using = False
            if result != COMM_SUCCESS:
                self._settle()
                continue
            self._note_alert(servo_id, bool(error & StatusError.ALERT))
            code = error & 0x7F
            if code == StatusError.CRC:
                continue
            if code:
                text = _STATUS_TEXT.get(StatusError(code), f"answers with error {code}")
                raise DeviceError(f"{self._name(servo_id)} {text}: {what}")
            return data
        raise BusError(
            f"{self._name(servo_id)} gave no whole answer in {TRIES} attempts: {what}. "
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

    def _try_ping(self, servo_id: int, tries: int = TRIES) -> PingResult | None:
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

    def _note_alert(self, servo_id: int, alert: bool) -> None:
        """Called with the alert bit of every answer to a single request or register sync read."""
