"""Short cuts for what a control loop asks of a chain every turn: the same answers, as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hardware.dynamixel.control_table import OperatingMode
from hardware.dynamixel.log import LogKind
from hardware.dynamixel.packet import HEADER, CrcTable, Instruction, StatusError
from hardware.dynamixel.servo import VirtualServo

if TYPE_CHECKING:
    from hardware.dynamixel.chain import Chain

__all__ = ["GoalPlan", "SyncReadPlan", "words"]

_MARK = b"\xff\xff\xfd"
_TIME_PROFILE = 4  # drive mode bit
_FARTHEST = 1_048_575  # ticks: 256 turns


def words(parameters: bytes) -> tuple[int, int]:
    """The two little-endian words at the front: address and length."""
    return parameters[0] | parameters[1] << 8, parameters[2] | parameters[3] << 8


class SyncReadPlan:
    """A sync read of known servos, answered in a few vector operations.

    Falls back (None) whenever a servo is silent, the data would need stuffing, or the registers
    are of the kind that exist only when looked at.
    """

    def __init__(self, servos: list[VirtualServo], address: int, length: int) -> None:
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
    def of(cls, chain: Chain, parameters: bytes) -> SyncReadPlan | None:
        if len(parameters) < 5:
            return None
        address, length = words(parameters)
        if not 126 <= address < address + length <= 136:
            return None
        servos = []
        for servo_id in parameters[4:]:
            heard = chain.listeners(servo_id)
            if not heard or heard[0].servo_id != servo_id:
                return None
            servos.append(heard[0])
        return cls(servos, address, length)

    def burst(self, chain: Chain, t_ns: int) -> tuple[float, bytes] | None:
        bank, rows, packets = chain.bank, self._rows, self._packets
        if bank.silent_until_ns[rows].max() > t_ns:
            return None
        status = bank.memory[rows, 68:71]
        data = bank.memory[rows, self._slice]
        if not status[:, 0].all() or _MARK in data.tobytes():
            return None
        bank.heard_ns[rows] = t_ns
        packets[:, 8] = (status[:, 2] != 0) * np.uint8(StatusError.ALERT)
        packets[:, 9:-2] = data
        packets[:, -2:] = self._crc(packets[:, :-2]).astype("<u2")[:, None].view(np.uint8)
        if self._has_position:
            start = 132 - self._slice.start
            positions = data[:, start : start + 4].copy().view("<i4")[:, 0]
            chain.samples.add_many(t_ns, self._ids, positions, LogKind.SAMPLE)
        return 2e-6 * float(bank.memory[rows, 9].sum()), packets.tobytes()


class GoalPlan:
    """A sync write of goal positions, checked and done in a few vector operations.

    False from `put` leaves everything to the servos one by one: when one is silent or would
    refuse, or has a profile in time.
    """

    def __init__(self, entries: list[int], servos: list[VirtualServo]) -> None:
        self._entries = np.array(entries)
        self._rows = np.array([servo.row for servo in servos])
        self._ids = np.array([servo.servo_id for servo in servos], dtype=np.int64)

    @classmethod
    def of(cls, chain: Chain, ids: bytes) -> GoalPlan | None:
        pairs = [(n, s) for n, servo_id in enumerate(ids) for s in chain.listeners(servo_id)]
        if not pairs or len({id(servo) for _, servo in pairs}) < len(pairs):
            return None
        return cls([n for n, _ in pairs], [servo for _, servo in pairs])

    def put(self, chain: Chain, body: bytes, t_ns: int) -> bool:
        bank, rows = chain.bank, self._rows
        table = np.frombuffer(body, np.uint8).reshape(-1, 5)[:, 1:]
        goals = table.copy().view("<i4")[self._entries, 0]
        memory = bank.memory
        limited = memory[rows, 11] == OperatingMode.POSITION
        outside = (goals > bank.max_position[rows]) | (goals < bank.min_position[rows])
        if (
            bank.silent_until_ns[rows].max() > t_ns
            or (memory[rows, 10] & _TIME_PROFILE).any()
            or (memory[rows, 98] == 0xFF).any()
            or (outside & limited).any()
            or goals.max() > _FARTHEST
            or goals.min() < -_FARTHEST
        ):
            return False
        bank.goal_position[rows] = goals
        bank.goal[rows] = goals - bank.offset[rows]
        bank.heard_ns[rows] = t_ns
        chain.goals.add_many(t_ns, self._ids, goals, LogKind.GOAL_POSITION)
        return True
