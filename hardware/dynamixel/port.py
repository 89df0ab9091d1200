"""The serial port of a servo bus: dynamixel_sdk's handlers, mended where they lose or waste.

Mended in `Port`: the SDK's receive loop polls a non-blocking port without pause, so that under a
real-time priority it starves the very process or kernel thread that brings the bytes; here a read
sleeps in select until bytes come or the packet's time is up. The SDK allows twice a hard-coded
16 ms latency to every packet; here the real one counts. Its clock is the wall clock.

Mended in `PacketProtocol`: stuffing is computed but never sent (the list is rebound); un-stuffing
loses a byte of FF FF FD FF FD FD; a broadcast ping takes 0.8 s.
"""

from __future__ import annotations

import contextlib
import os
import select
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import serial
from dynamixel_sdk import PortHandler, Protocol2PacketHandler

from hardware.dynamixel.packet import stuff, unstuff
from robot_stack.errors import BusError

__all__ = ["LatencyIssue", "PacketProtocol", "Port", "check_usb_latency", "usb_latency_s"]

_HEAD = 7  # header, id and length: what stuffing leaves alone
_SYSFS = Path("/sys/bus/usb-serial/devices")


@dataclass(frozen=True, slots=True)
class LatencyIssue:
    """A USB adapter that holds bytes back longer than a control loop can afford."""

    device: str
    latency_ms: int
    command: str

    def __str__(self) -> str:
        return (
            f"{self.device} has a latency timer of {self.latency_ms} ms; it must be 1 ms "
            f"for a control loop: {self.command}"
        )


def _latency_file(port: str, sysfs: Path) -> Path:
    return sysfs / Path(port).resolve().name / "latency_timer"


def check_usb_latency(port: str, sysfs: Path = _SYSFS) -> LatencyIssue | None:
    """What is wrong with the USB latency timer of `port`, with the command that mends it.

    None when it is 1 ms, or when the port is not of a USB adapter that has one.
    """
    path = _latency_file(port, sysfs)
    try:
        milliseconds = int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    if milliseconds <= 1:
        return None
    return LatencyIssue(path.parent.name, milliseconds, f"echo 1 | sudo tee {path}")


def usb_latency_s(port: str, sysfs: Path = _SYSFS) -> float:
    """The latency timer of `port` in seconds; 1 ms where the system does not say."""
    try:
        return int(_latency_file(port, sysfs).read_text(encoding="ascii")) / 1000.0
    except (OSError, ValueError):
        return 0.001


class BeforeUse(Protocol):
    """Called before a packet is sent, or with ``clear`` before input is thrown away."""

    def __call__(self, *, clear: bool) -> None: ...


def _nothing(*, clear: bool) -> None:
    """What a port does before use unless it is told."""


class Port(PortHandler):  # type: ignore[misc]
    """dynamixel_sdk's PortHandler that sleeps while it waits. Errors are BusError."""

    def __init__(self, port_name: str, baud: int, latency_s: float, slack_s: float) -> None:
        super().__init__(port_name)
        self.is_open: bool = False
        self.baudrate = baud
        self.latency_s = latency_s
        self.slack_s = slack_s
        self.before_use: BeforeUse = _nothing
        self._fd = -1

    def setupPort(self, _cflag_baud: int) -> bool:  # noqa: N802
        if self.is_open:
            self.closePort()
        try:
            # Exclusive: a second program on the bus would take half of the answers.
            self.ser = serial.Serial(
                port=self.port_name, baudrate=self.baudrate, timeout=0, exclusive=True
            )
        except (serial.SerialException, ValueError, OSError) as error:
            raise BusError(
                f"cannot open serial port {self.port_name} at {self.baudrate} baud: {error}. "
                "Check the plug, the udev link, and that no other program has it open"
            ) from error
        # Asks an FTDI driver for its 1 ms latency timer; other ports do not know the call.
        with contextlib.suppress(ValueError, OSError):
            self.ser.set_low_latency_mode(True)
        self._fd = self.ser.fileno()
        self.is_open = True
        self.is_using = False
        self.tx_time_per_byte = 10_000.0 / self.baudrate
        self.ser.reset_input_buffer()
        return True

    def closePort(self) -> None:  # noqa: N802
        if self.ser is not None:
            self.ser.close()
        self._fd = -1
        self.is_open = False
        self.is_using = False

    def lost(self, error: OSError | None = None) -> BusError:
        """The error to raise when the device has gone."""
        cause = f" ({error.strerror})" if error else ""
        return BusError(
            f"serial port {self.port_name} hung up{cause}: the USB plug is out or the adapter "
            "has reset. Put it back and connect again"
        )

    def clearPort(self) -> None:  # noqa: N802
        self.before_use(clear=True)
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
        except termios.error as error:
            raise self.lost() from error

    def readPort(self, length: int) -> bytes:  # noqa: N802
        """Up to `length` bytes, as soon as there are any; b"" when the packet's time is up."""
        left_ms = self.packet_timeout - (self.getCurrentTime() - self.packet_start_time)
        return self.read_some(length, max(0.0, left_ms / 1000.0))

    def read_some(self, length: int, timeout_s: float) -> bytes:
        """Up to `length` bytes, as soon as there are any; b"" after `timeout_s`."""
        try:
            if not select.select((self._fd,), (), (), timeout_s)[0]:
                return b""
            data = os.read(self._fd, length)
        except BlockingIOError:
            return b""
        except (OSError, ValueError) as error:
            raise self.lost(error if isinstance(error, OSError) else None) from error
        if not data:  # readable and yet empty: hung up
            raise self.lost()
        return data

    def writePort(self, packet: bytes | list[int]) -> int:  # noqa: N802
        self.before_use(clear=False)
        data = bytes(packet)
        sent = 0
        try:
            while sent < len(data):
                try:
                    sent += os.write(self._fd, data[sent:])
                except BlockingIOError:
                    if not select.select((), (self._fd,), (), 0.1)[1]:
                        return sent
        except (OSError, ValueError) as error:
            raise self.lost(error if isinstance(error, OSError) else None) from error
        return sent

    def setPacketTimeout(self, packet_length: int) -> None:  # noqa: N802
        self.setPacketTimeoutMillis(
            self.tx_time_per_byte * packet_length + 1000.0 * (self.latency_s + self.slack_s)
        )

    def getCurrentTime(self) -> float:  # noqa: N802
        return time.monotonic_ns() / 1e6


class PacketProtocol(Protocol2PacketHandler):  # type: ignore[misc]
    """dynamixel_sdk's packet handler with stuffing that reaches the wire, and comes off whole."""

    def addStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        body = stuff(bytes(packet[_HEAD:-2]))
        length = len(body) + 2
        # In place: txPacket goes on with the list that it handed in.
        packet[5] = length & 0xFF
        packet[6] = length >> 8
        packet[_HEAD:] = [*body, 0, 0]
        return packet

    def removeStuffing(self, packet: list[int]) -> list[int]:  # noqa: N802
        end = _HEAD + (packet[5] | packet[6] << 8)
        body = unstuff(bytes(packet[_HEAD : end - 2]))
        length = len(body) + 2
        packet[5] = length & 0xFF
        packet[6] = length >> 8
        packet[_HEAD:end] = [*body, *packet[end - 2 : end]]
        return packet
