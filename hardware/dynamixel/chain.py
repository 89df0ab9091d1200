"""A chain of virtual servos: what each instruction packet does, and the status packets it earns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from hardware.dynamixel.dynamics import ServoBank
from hardware.dynamixel.log import Log, LogKind
from hardware.dynamixel.packet import (
    BROADCAST_ID,
    HEADER,
    CrcTable,
    Instruction,
    Packet,
    StatusError,
    crc16,
    encode_status,
)
from hardware.dynamixel.servo import VirtualServo

__all__ = ["Chain", "Reply"]

# A status packet and the pause in seconds before it.
Reply = tuple[float, bytes]

_MARK = b"\xff\xff\xfd"
_GOAL_POSITION = 116
_GOAL_CURRENT = 102


class Chain:
    """The servos of one bus, electrically.

    `after_missing` says what servos later in a sync read do when one before them is silent:
    "silent" (they wait for it in vain: the harder case for a driver) or "answer".
    """

    def __init__(
        self,
        servos: Sequence[VirtualServo],
        goals: Log,
        samples: Log,
        after_missing: Literal["silent", "answer"] = "silent",
    ) -> None:
        self.servos = tuple(servos)
        self.after_missing = after_missing
        self._goals = goals
        self._samples = samples
        self.bank = ServoBank.joined([servo.bank for servo in servos])
        for row, servo in enumerate(self.servos):
            servo.attach(self.bank, row)
        self._plans: dict[bytes, _SyncReadPlan | None] = {}
        self._baud = 0
        self._whole = False
        self._handlers: dict[int, Callable[[Packet, int], list[Reply]]] = {
            Instruction.PING: self._ping,
            Instruction.READ: self._read,
            Instruction.WRITE: self._write,
            Instruction.REG_WRITE: self._reg_write,
            Instruction.ACTION: self._action,
            Instruction.FACTORY_RESET: self._factory_reset,
            Instruction.REBOOT: self._reboot,
            Instruction.CLEAR: self._clear,
            Instruction.SYNC_READ: self._sync_read,
            Instruction.SYNC_WRITE: self._sync_write,
            Instruction.FAST_SYNC_READ: self._fast_read,
            Instruction.BULK_READ: self._bulk_read,
            Instruction.BULK_WRITE: self._bulk_write,
            Instruction.FAST_BULK_READ: self._fast_read,
        }

    def execute(self, packet: Packet, t_ns: int, baud: int, *, whole: bool = False) -> list[Reply]:
        """Let all servos that listen at `baud` act on `packet`, whose last byte arrived at
        `t_ns`; the answers in the order they go onto the wire. `whole` allows the packets of
        one answer to come joined, when nothing on the line will want them one by one."""
        self._baud = baud
        self._whole = whole
        if packet.instruction == Instruction.STATUS:
            return []
        if not packet.crc_ok:
            return self._one(packet.servo_id, t_ns, lambda _: StatusError.CRC)
        handler = self._handlers.get(packet.instruction)
        if handler is None:
            return self._one(packet.servo_id, t_ns, lambda _: StatusError.INSTRUCTION)
        return handler(packet, t_ns)

    # -- who listens ---------------------------------------------------------------------------

    def _awake(self, t_ns: int) -> Iterator[VirtualServo]:
        for servo in self.servos:
            if servo.baud == self._baud and servo.answers(t_ns):
                yield servo

    def _find(self, servo_id: int, t_ns: int) -> VirtualServo | None:
        for servo in self._awake(t_ns):
            if servo.servo_id == servo_id:
                servo.heard(t_ns)
                return servo
        return None

    def _listeners(self, servo_id: int, t_ns: int) -> list[VirtualServo]:
        """The servo of that id first, then those that follow it by their secondary id."""
        found = [
            servo
            for servo in self._awake(t_ns)
            if servo_id in (BROADCAST_ID, servo.servo_id, servo.secondary_id)
        ]
        found.sort(key=lambda servo: servo.servo_id != servo_id)
        for servo in found:
            servo.heard(t_ns)
        return found

    def _one(
        self, servo_id: int, t_ns: int, act: Callable[[VirtualServo], int], level: int = 2
    ) -> list[Reply]:
        """`act` on every listener; the servo that owns the id reports its error byte."""
        replies: list[Reply] = []
        for servo in self._listeners(servo_id, t_ns):
            own = servo.servo_id == servo_id
            # As it was before: a write to register 68 is still answered by the old level.
            answer_level = servo.status_return_level
            delay = servo.return_delay_s
            error = act(servo)
            if own and answer_level >= level:
                replies.append((delay, encode_status(servo_id, error)))
        return replies

    # -- instructions ----------------------------------------------------------------------------

    def _ping(self, packet: Packet, t_ns: int) -> list[Reply]:
        if packet.servo_id == BROADCAST_ID:
            servos = sorted(self._awake(t_ns), key=lambda servo: servo.servo_id)
        else:
            found = self._find(packet.servo_id, t_ns)
            servos = [found] if found else []
        replies: list[Reply] = []
        for servo in servos:
            servo.heard(t_ns)
            number = servo.get("model_number")
            data = bytes((number & 0xFF, number >> 8, servo.get("firmware_version")))
            status = encode_status(servo.servo_id, servo.error_bit, data)
            replies.append((servo.return_delay_s, status))
        return replies

    def _read(self, packet: Packet, t_ns: int) -> list[Reply]:
        servo = self._find(packet.servo_id, t_ns)
        if servo is None or servo.status_return_level < 1:
            return []
        if len(packet.parameters) != 4:
            error, data = StatusError.DATA_LENGTH | servo.error_bit, b""
        else:
            address, length = _words(packet.parameters)
            error, data = self._sample(servo, address, length, t_ns)
        return [(servo.return_delay_s, encode_status(servo.servo_id, error, data))]

    def _sample(
        self, servo: VirtualServo, address: int, length: int, t_ns: int
    ) -> tuple[int, bytes]:
        error, data = servo.read(address, length)
        if data and address <= 132 and address + length >= 136:
            position = int.from_bytes(data[132 - address : 136 - address], "little", signed=True)
            self._samples.add(t_ns, servo.servo_id, position, LogKind.SAMPLE)
        return error, data

    def _write(self, packet: Packet, t_ns: int) -> list[Reply]:
        parameters = packet.parameters
        if len(parameters) < 3:
            return self._one(packet.servo_id, t_ns, lambda _: StatusError.DATA_LENGTH)
        address = parameters[0] | parameters[1] << 8
        data = parameters[2:]
        return self._one(packet.servo_id, t_ns, lambda servo: self._put(servo, address, data, t_ns))

    def _put(self, servo: VirtualServo, address: int, data: bytes, t_ns: int) -> int:
        error = servo.write(address, data)
        if not error & 0x7F:
            self._log_goals(servo, address, data, t_ns)
        return error

    def _log_goals(self, servo: VirtualServo, address: int, data: bytes, t_ns: int) -> None:
        # From the registers, not the packet: so goals written by indirect addresses count too.
        end = address + len(data)
        indirect = 224 <= address < 252 or 634 <= address < 662
        if indirect or (address < _GOAL_POSITION + 4 and end > _GOAL_POSITION):
            goal = servo.get("goal_position")
            self._goals.add(t_ns, servo.servo_id, goal, LogKind.GOAL_POSITION)
        if servo.table.has_current and address < _GOAL_CURRENT + 2 and end > _GOAL_CURRENT:
            goal = servo.get("goal_current")
            self._goals.add(t_ns, servo.servo_id, goal, LogKind.GOAL_CURRENT)

    def _reg_write(self, packet: Packet, t_ns: int) -> list[Reply]:
        parameters = packet.parameters
        if len(parameters) < 3:
            return self._one(packet.servo_id, t_ns, lambda _: StatusError.DATA_LENGTH)
        address = parameters[0] | parameters[1] << 8
        return self._one(packet.servo_id, t_ns, lambda servo: servo.stage(address, parameters[2:]))

    def _action(self, packet: Packet, t_ns: int) -> list[Reply]:
        def act(servo: VirtualServo) -> int:
            staged = servo.staged
            error = servo.action()
            if staged and not error & 0x7F:
                self._log_goals(servo, staged[0], staged[1], t_ns)
            return error

        return self._one(packet.servo_id, t_ns, act)

    def _factory_reset(self, packet: Packet, t_ns: int) -> list[Reply]:
        option = packet.parameters[0] if packet.parameters else -1
        if packet.servo_id == BROADCAST_ID and option == 0xFF:
            return []  # it would leave a chain of servos that all answer to id 1
        return self._one(packet.servo_id, t_ns, lambda servo: servo.factory_reset(option, t_ns))

    def _reboot(self, packet: Packet, t_ns: int) -> list[Reply]:
        def act(servo: VirtualServo) -> int:
            servo.reboot(t_ns)
            return StatusError.NONE

        return self._one(packet.servo_id, t_ns, act)

    def _clear(self, packet: Packet, t_ns: int) -> list[Reply]:
        return self._one(packet.servo_id, t_ns, lambda servo: servo.clear(packet.parameters))

    # -- many at once ------------------------------------------------------------------------------

    def _sync_read(self, packet: Packet, t_ns: int) -> list[Reply]:
        plan = self._plan(packet.parameters) if self._whole else None
        if plan is not None:
            burst = plan.burst(self, t_ns)
            if burst is not None:
                return [burst]
        parameters = packet.parameters
        if len(parameters) < 5:
            return []
        address, length = _words(parameters)
        return self._in_turn([(servo_id, address, length) for servo_id in parameters[4:]], t_ns)

    def _bulk_read(self, packet: Packet, t_ns: int) -> list[Reply]:
        return self._in_turn(_bulk_requests(packet.parameters), t_ns)

    def _in_turn(self, requests: list[tuple[int, int, int]], t_ns: int) -> list[Reply]:
        replies: list[Reply] = []
        for servo_id, address, length in requests:
            servo = self._find(servo_id, t_ns)
            if servo is None or servo.status_return_level < 1:
                if self.after_missing == "silent":
                    break
                continue
            error, data = self._sample(servo, address, length, t_ns)
            replies.append((servo.return_delay_s, encode_status(servo_id, error, data)))
        return replies

    def _fast_read(self, packet: Packet, t_ns: int) -> list[Reply]:
        """One status packet that the servos write together: header and total length from the
        first, then error, id, data and the CRC of all before from each. It is not stuffed: its
        length is fixed before the data are known."""
        parameters = packet.parameters
        if packet.instruction == Instruction.FAST_SYNC_READ:
            if len(parameters) < 5:
                return []
            address, length = _words(parameters)
            requests = [(servo_id, address, length) for servo_id in parameters[4:]]
        else:
            requests = _bulk_requests(parameters)
        total = 1 + sum(4 + length for _, _, length in requests)
        out = HEADER + bytes((BROADCAST_ID, total & 0xFF, total >> 8, Instruction.STATUS))
        crc = crc16(out)
        delay = 0.0
        answered = False
        for servo_id, address, length in requests:
            servo = self._find(servo_id, t_ns)
            if servo is None or servo.status_return_level < 1:
                break  # those behind it wait for it in vain
            error, data = self._sample(servo, address, length, t_ns)
            segment = bytes((error, servo_id)) + data.ljust(length, b"\0")
            crc = crc16(segment, crc)
            tail = crc.to_bytes(2, "little")
            crc = crc16(tail, crc)
            out += segment + tail
            delay += servo.return_delay_s
            answered = True
        return [(delay, out)] if answered else []

    def _sync_write(self, packet: Packet, t_ns: int) -> list[Reply]:
        parameters = packet.parameters
        if len(parameters) < 5:
            return []
        address, length = _words(parameters)
        step = length + 1
        body = parameters[4:]
        if length < 1 or len(body) % step:
            return []
        for start in range(0, len(body), step):
            data = body[start + 1 : start + step]
            for servo in self._listeners(body[start], t_ns):
                self._put(servo, address, data, t_ns)
        return []

    def _bulk_write(self, packet: Packet, t_ns: int) -> list[Reply]:
        body = packet.parameters
        while len(body) > 5:
            servo_id = body[0]
            address, length = _words(body[1:])
            for servo in self._listeners(servo_id, t_ns):
                self._put(servo, address, body[5 : 5 + length], t_ns)
            body = body[5 + length :]
        return []

    def _plan(self, parameters: bytes) -> _SyncReadPlan | None:
        if parameters not in self._plans:
            if len(self._plans) > 256:
                self._plans.clear()
            self._plans[parameters] = _SyncReadPlan.of(self, parameters)
        return self._plans[parameters]

    @property
    def baud(self) -> int:
        """The line's speed during the current instruction."""
        return self._baud

    @property
    def samples(self) -> Log:
        """Where position samples are logged."""
        return self._samples


class _SyncReadPlan:
    """A sync read of known servos, answered in a few vector operations.

    Falls back (None) whenever a servo is silent, the data would need stuffing, or the registers
    are of the kind that exist only when looked at.
    """

    def __init__(self, servos: list[VirtualServo], address: int, length: int) -> None:
        self._servos = servos
        self._slice = slice(address, address + length)
        self._rows = np.array([servo.row for servo in servos])
        self._ids = np.array([servo.servo_id for servo in servos], dtype=np.int64)
        n = len(servos)
        self._packets = np.zeros((n, 11 + length), dtype=np.uint8)
        wire = length + 4
        head = (*HEADER, 0, wire & 0xFF, wire >> 8, Instruction.STATUS, 0)
        self._packets[:, :9] = head
        self._packets[:, 4] = self._ids
        self._crc = CrcTable(9 + length)
        self._has_position = address <= 132 and address + length >= 136

    @classmethod
    def of(cls, chain: Chain, parameters: bytes) -> _SyncReadPlan | None:
        if len(parameters) < 5:
            return None
        address, length = _words(parameters)
        if not 126 <= address < address + length <= 136:
            return None
        by_id = {servo.servo_id: servo for servo in chain.servos}
        if any(servo_id not in by_id for servo_id in parameters[4:]):
            return None
        return cls([by_id[servo_id] for servo_id in parameters[4:]], address, length)

    def burst(self, chain: Chain, t_ns: int) -> Reply | None:
        memory = chain.bank.memory
        packets = self._packets
        delay = 0.0
        for n, servo in enumerate(self._servos):
            if (
                servo.baud != chain.baud
                or servo.servo_id != self._ids[n]
                or not servo.answers(t_ns)
                or servo.status_return_level < 1
            ):
                return None
            delay += servo.return_delay_s
        data = memory[self._rows, self._slice]
        if _MARK in data.tobytes():
            return None
        packets[:, 8] = np.where(memory[self._rows, 70], StatusError.ALERT, 0)
        packets[:, 9:-2] = data
        packets[:, -2:] = self._crc(packets[:, :-2]).astype("<u2")[:, None].view(np.uint8)
        for servo in self._servos:
            servo.heard(t_ns)
        if self._has_position:
            positions = memory[self._rows, 132:136].view("<i4")[:, 0]
            chain.samples.add_many(t_ns, self._ids, positions, LogKind.SAMPLE)
        return delay, packets.tobytes()


def _words(parameters: bytes) -> tuple[int, int]:
    return parameters[0] | parameters[1] << 8, parameters[2] | parameters[3] << 8


def _bulk_requests(parameters: bytes) -> list[tuple[int, int, int]]:
    if len(parameters) % 5:
        return []
    return [
        (parameters[n], *_words(parameters[n + 1 : n + 5])) for n in range(0, len(parameters), 5)
    ]
