"""Notices what goes wrong in an arm's servos, without spending bus time that the loop needs.

The alert bit of every state packet says that a servo has shut down; register 70 then says why.
What no bit tells is asked for when there is a reason (a servo was silent and came back: did it
restart? the loop stalled: has a bus watchdog run out?), and otherwise one register of one servo
at a time, in ticks that have room for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from itertools import cycle

from hardware.aloha.rig import ArmModel
from hardware.dynamixel.bus import BusState, DynamixelBus
from hardware.dynamixel.control_table import HardwareError
from robot_stack.errors import DeviceError

__all__ = ["TRIPPED", "FaultWatch", "describe"]

SILENCE_S = 0.1
RESTART_S = 0.05  # a servo is silent for longer than this when it restarts
POLL_EVERY_S = 0.25
POLL_ANYWAY_S = 2.0
LATE_ANSWER_S = 0.01
TRIPPED = -1  # register 98 after the bus watchdog has run out

SILENT = "does not answer (cable, power)"
TEXT = {
    HardwareError.INPUT_VOLTAGE: "input voltage",
    HardwareError.OVERHEATING: "overheating",
    HardwareError.ENCODER: "encoder failure",
    HardwareError.ELECTRICAL_SHOCK: "electrical shock",
    HardwareError.OVERLOAD: "overload",
}


class FaultWatch:
    """Latched faults of one arm's servos, by id.

    ``torque`` is what each servo last said or was told; ``lost`` are those whose torque went off
    by itself.
    """

    def __init__(self, bus: DynamixelBus, arm: ArmModel, poll_s: float, watchdog_s: float) -> None:
        self._bus = bus
        self._arm = arm
        self._poll_s = poll_s
        self._watchdog_s = watchdog_s
        self._servos = {servo.id: servo for servo in arm.servos}
        self.torque: dict[int, bool] = dict.fromkeys(self._servos, False)
        self.latched: dict[int, str] = {}
        self.lost: set[int] = set()
        self._silent_since: dict[int, int] = {}
        self._urgent: deque[tuple[int, str]] = deque()
        registers = ("torque_enable", "bus_watchdog")
        self._round: Iterator[tuple[int, str]] = cycle(
            [(servo_id, register) for register in registers for servo_id in self._servos]
        )
        self._heard_ns = time.monotonic_ns()
        self._polled_ns = self._heard_ns
        self._period_ns = 0

    def text(self) -> str | None:
        """All latched faults in words, None when there are none."""
        if not self.latched:
            return None
        return "; ".join(f"{self._servos[s]}: {why}" for s, why in sorted(self.latched.items()))

    def clear(self, servo_id: int) -> None:
        """Forget a fault that has been mended."""
        self.latched.pop(servo_id, None)

    def pause(self) -> None:
        """The loop was held up on purpose (a recovery, a change of torque): not a stall."""
        self._heard_ns = time.monotonic_ns()
        self._period_ns = 0

    def observe(self, state: BusState, started_ns: int) -> None:
        """Take in a state that a read begun at ``started_ns`` has brought, and ask what is due."""
        now_ns = time.monotonic_ns()
        gap_ns = started_ns - self._heard_ns
        self._heard_ns = started_ns
        if gap_ns > self._watchdog_s * 1e9:
            self._urgent.extend((servo_id, "bus_watchdog") for servo_id in self._servos)
        if gap_ns > RESTART_S * 1e9:
            self._urgent.extend((servo_id, "torque_enable") for servo_id in self._servos)
        self._follow_silence(state, now_ns)
        for row, servo in enumerate(self._arm.servos):
            if state.alert[row] and servo.id not in self.latched and servo.id not in state.missing:
                self._ask(servo.id, "hardware_error_status")
                self._ask(servo.id, "torque_enable")
        self._poll(started_ns, gap_ns)

    def _follow_silence(self, state: BusState, now_ns: int) -> None:
        for servo_id in self._servos:
            if servo_id in state.missing:
                since = self._silent_since.setdefault(servo_id, now_ns)
                if now_ns - since > SILENCE_S * 1e9:
                    self.latched.setdefault(servo_id, SILENT)
            else:
                since = self._silent_since.pop(servo_id, now_ns)
                if now_ns - since > RESTART_S * 1e9:
                    self._urgent.append((servo_id, "torque_enable"))

    def _poll(self, started_ns: int, gap_ns: int) -> None:
        """One question, when something is urgent or this tick has room for it."""
        # The shortest of the last two periods: a late tick has made this gap long, not the room.
        period_ns = min(gap_ns, self._period_ns) if self._period_ns else gap_ns
        self._period_ns = gap_ns
        if self._urgent:
            self._ask(*self._urgent.popleft())
            return
        now_ns = time.monotonic_ns()
        waited_s = (now_ns - self._polled_ns) * 1e-9
        room_s = (period_ns - (now_ns - started_ns)) * 1e-9
        if waited_s > POLL_ANYWAY_S or (
            waited_s > POLL_EVERY_S and room_s > self._poll_s + 0.5e-9 * period_ns
        ):
            self._ask(*next(self._round))

    def _ask(self, servo_id: int, register: str) -> None:
        if servo_id in self._silent_since:
            return
        self._polled_ns = time.monotonic_ns()
        try:
            value = self._bus.read(servo_id, register)
            if self._bad(servo_id, register, value):
                # An answer carries no register name: a late one to an earlier question looks the
                # same. Only what is said twice counts.
                time.sleep(LATE_ANSWER_S)
                if self._bus.read(servo_id, register) != value:
                    return
        except DeviceError:  # the next state packet tells whether it is gone
            return
        self.judge(servo_id, register, value)

    def _bad(self, servo_id: int, register: str, value: int) -> bool:
        if register == "torque_enable":
            return self.torque[servo_id] and not value
        return value == TRIPPED if register == "bus_watchdog" else value != 0

    def judge(self, servo_id: int, register: str, value: int) -> None:
        """Latch what the value of a register means."""
        if register == "hardware_error_status" and value:
            self.latched[servo_id] = describe(HardwareError(value & 0x3D))
        elif register == "bus_watchdog" and value == TRIPPED:
            self.latched.setdefault(
                servo_id, "its bus watchdog ran out (the computer stalled); it holds where it is"
            )
        elif register == "torque_enable":
            if self.torque[servo_id] and not value:
                self.lost.add(servo_id)
                if self.latched.get(servo_id, SILENT) == SILENT:  # now it is known why
                    self.latched[servo_id] = "lost its torque (it restarted, or lost power)"
            self.torque[servo_id] = bool(value)


def describe(error: HardwareError) -> str:
    """The bits of register 70 in words."""
    return ", ".join(text for bit, text in TEXT.items() if bit & error) or "an unknown error"
