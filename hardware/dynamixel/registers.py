"""Registers by name: read, write, verify; torque, hardware errors and reboot."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from dynamixel_sdk import COMM_SUCCESS

from hardware.dynamixel.control_table import MODELS, ControlTable, HardwareError, Register
from hardware.dynamixel.packet import BROADCAST_ID, Instruction, StatusError, encode
from hardware.dynamixel.transport import TRIES, Transport
from robot_stack.errors import BusError, DeviceError

__all__ = ["RegisterAccess"]


class RegisterAccess(Transport):
    """What can be done with servos one register at a time, all values in counts."""

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
                    self._note_alert(servo_id, bool(read.errors[k] & StatusError.ALERT))
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
        for _ in range(TRIES):
            self.sync_write("torque_enable", dict.fromkeys(targets, want))
            values = self.sync_read("torque_enable", targets)
            wrong = [servo_id for servo_id in targets if values.get(servo_id) != want]
            if not wrong:
                return
        raise DeviceError(
            f"torque of servos {wrong} on {self.port_name} is not {'on' if on else 'off'} after "
            f"{TRIES} attempts: read hardware_error of each; a servo that shut down needs recover"
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
