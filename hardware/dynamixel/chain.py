"""A chain of virtual servos: what each instruction packet does, and the status packets it earns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from hardware.dynamixel.dynamics import ServoBank
from hardware.dynamixel.log import Log, LogKind
from hardware.dynamixel.packet import (
    BROADCAST_ID,
    HEADER,
    Instruction,
    Packet,
    StatusError,
    crc16,
    encode_status,
)
from hardware.dynamixel.plans import GoalPlan, SyncReadPlan, words
from hardware.dynamixel.servo import VirtualServo

__all__ = ["Chain", "Reply"]

# A status packet and the pause in seconds before it.
Reply = tuple[float, bytes]

_GOAL_POSITION = 116
_GOAL_CURRENT = 102
_ADDRESSES = [7, 8, 12]  # id, baud rate, secondary id


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
        self._plans: dict[tuple[int, bytes], SyncReadPlan | GoalPlan | None] = {}
        self._whole = False
        self._tuned: tuple[int, bytes] | None = None
        self._audible: list[VirtualServo] = []
        self._owners: dict[int, VirtualServo] = {}
        self._followers: dict[int, list[VirtualServo]] = {}
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
        self._tune(baud)
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

    def _tune(self, baud: int) -> None:
        """Know who listens to which id at this speed; again when a servo changed either."""
        key = (baud, self.bank.memory[:, _ADDRESSES].tobytes())
        if key == self._tuned:
            return
        self._tuned = key
        self._plans.clear()
        self._audible = [servo for servo in self.servos if servo.baud == baud]
        self._owners = {servo.servo_id: servo for servo in self._audible}
        self._followers = {}
        for servo in self._audible:
            if servo.secondary_id is not None:
                self._followers.setdefault(servo.secondary_id, []).append(servo)

    def _find(self, servo_id: int, t_ns: int) -> VirtualServo | None:
        servo = self._owners.get(servo_id)
        if servo is None or not servo.answers(t_ns):
            return None
        servo.heard(t_ns)
        return servo

    def listeners(self, servo_id: int) -> list[VirtualServo]:
        """The servo of that id first, then those that follow it by their secondary id."""
        if servo_id == BROADCAST_ID:
            return list(self._audible)
        owner = self._owners.get(servo_id)
        followers = self._followers.get(servo_id, [])
        return [owner, *followers] if owner is not None else list(followers)

    def _listeners(self, servo_id: int, t_ns: int) -> list[VirtualServo]:
        awake = [servo for servo in self.listeners(servo_id) if servo.answers(t_ns)]
        for servo in awake:
            servo.heard(t_ns)
        return awake

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
            awake = [servo for servo in self._audible if servo.answers(t_ns)]
            servos = sorted(awake, key=lambda servo: servo.servo_id)
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
            address, length = words(packet.parameters)
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
        if self._whole:
            key = (packet.instruction, packet.parameters)
            if key not in self._plans:
                self._plans[key] = SyncReadPlan.of(self, packet.parameters)
            plan = self._plans[key]
            if isinstance(plan, SyncReadPlan):
                burst = plan.burst(self, t_ns)
                if burst is not None:
                    return [burst]
        parameters = packet.parameters
        if len(parameters) < 5:
            return []
        address, length = words(parameters)
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
            address, length = words(parameters)
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
        address, length = words(parameters)
        step = length + 1
        body = parameters[4:]
        if length < 1 or len(body) % step:
            return []
        if address == _GOAL_POSITION and length == 4:
            key = (packet.instruction, body[::step])
            if key not in self._plans:
                self._plans[key] = GoalPlan.of(self, body[::step])
            plan = self._plans[key]
            if isinstance(plan, GoalPlan) and plan.put(self, body, t_ns):
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
            address, length = words(body[1:])
            for servo in self._listeners(servo_id, t_ns):
                self._put(servo, address, body[5 : 5 + length], t_ns)
            body = body[5 + length :]
        return []

    @property
    def goals(self) -> Log:
        """Where goal writes are logged."""
        return self._goals

    @property
    def samples(self) -> Log:
        """Where position samples are logged."""
        return self._samples


def _bulk_requests(parameters: bytes) -> list[tuple[int, int, int]]:
    if len(parameters) % 5:
        return []
    return [
        (parameters[n], *words(parameters[n + 1 : n + 5])) for n in range(0, len(parameters), 5)
    ]
