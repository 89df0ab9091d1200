"""A servo bus on a pseudo-terminal: real packets, wire time and USB latency, servos behind it.

Any program that opens a serial port can drive it. `python -m hardware.dynamixel.virtual FILE`
serves the buses that a JSON file describes (see `process.py`).

What time it charges. A byte takes 10 bits at the speed that the client has set. An instruction
begins when it reaches this process or, if later, when the line is free; it acts and is stamped
when its last byte has arrived. Each answer follows after the servo's return delay. The adapter
then holds the bytes back until its latency timer expires: a tick every `usb_latency_s` counted
from the last delivery, as FTDI chips do (AN232B-04), or until `usb_block_bytes` wait. The answer
to one instruction is handed over at once at the first tick after its last byte, or with
`usb_partial` in the pieces that each tick finds. Outgoing USB time is not charged.

Registers are sampled from the last physics step before the instruction came.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import tty
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from hardware.dynamixel.chain import Chain
from hardware.dynamixel.control_table import BAUD_CODES, CENTER_TICKS, RAD_PER_TICK, HardwareError
from hardware.dynamixel.faults import Faults
from hardware.dynamixel.log import Log, LogRows
from hardware.dynamixel.packet import Decoder
from hardware.dynamixel.servo import VirtualServo
from robot_stack.errors import ConfigError, DeviceError

__all__ = ["VirtualBus", "VirtualServo"]

_TCGETS2 = 0x802C542A
_TERMIOS2_SPEED = slice(40, 44)  # c_ospeed in struct termios2
_BITS_PER_BYTE = 10
_PACKET_GAP_NS = 20_000_000
_WARM_EVERY_S = 1.0
_NS = 1_000_000_000


class VirtualBus:
    """Servos behind a pty. Single-threaded: an event loop calls it (see `process.run`).

    `servos` must have different ids. `baud` is written to their baud register; a client that sets
    another speed hears nothing. `usb_latency_s` is the adapter's latency timer, 0 for none.
    Times are `time.monotonic_ns()`. Raises ConfigError for a bad description.
    """

    def __init__(
        self,
        servos: Sequence[VirtualServo],
        baud: int = 1_000_000,
        usb_latency_s: float = 0.001,
        *,
        name: str = "bus",
        seed: int = 0,
        after_missing: Literal["silent", "answer"] = "silent",
        usb_block_bytes: int = 510,
        usb_partial: bool = False,
        log_capacity: int = 1 << 16,
    ) -> None:
        codes = {speed: code for code, speed in BAUD_CODES.items()}
        if baud not in codes:
            raise ConfigError(f"baud {baud} of {name} is none of {sorted(codes)}")
        ids = [servo.servo_id for servo in servos]
        if not ids or len(set(ids)) != len(ids):
            raise ConfigError(f"the servos of {name} need ids, each its own; they have {ids}")
        self.name = name
        self.faults = Faults(seed)
        self.goals = Log(log_capacity)
        self.samples = Log(log_capacity)
        for servo in servos:
            servo.set("baud_rate", codes[baud])
        self.chain = Chain(servos, self.goals, self.samples, after_missing)
        self.bank = self.chain.bank
        self.usb_latency_ns = round(usb_latency_s * _NS)
        self.usb_block_bytes = usb_block_bytes
        self.usb_partial = usb_partial
        self.packets = 0
        self._per_ma = np.array([servo.counts_per_ma for servo in servos])
        self._by_id = {servo.servo_id: servo for servo in servos}
        self._decoder = Decoder()
        self._link: Path | None = None
        self._line_free_ns = 0
        self._usb_anchor_ns = time.monotonic_ns()
        self._last_read_ns = 0
        self._outbox: deque[tuple[int, bytes]] = deque()
        self._since_warm = 0.0
        self._termios2 = bytearray(44)
        self._master = -1
        self._slave = -1
        self.port = ""
        self.plug()

    # -- the port ------------------------------------------------------------------------------

    def plug(self) -> None:
        """Put the USB plug in: a new port, linked again where `link` said."""
        if self._master >= 0:
            return
        self._master, self._slave = os.openpty()
        # The far end stays open here: a client that leaves must not hang the port up.
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.port = os.ttyname(self._slave)
        self._decoder.clear()
        if self._link is not None:
            self.link(self._link)

    def unplug(self) -> None:
        """Pull the USB plug: clients get a hang-up and the device file goes. Servos keep power."""
        if self._master < 0:
            return
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1
        self.port = ""
        self._outbox.clear()

    def link(self, path: str | os.PathLike[str]) -> str:
        """Make `path` a symbolic link to the port, kept over unplug and plug. Returns `path`.

        Raises DeviceError if something that is no link stands there.
        """
        self._link = Path(path)
        if self._link.exists() and not self._link.is_symlink():
            raise DeviceError(f"{path} exists and is no link: remove it or choose another path")
        if self._master >= 0:
            fresh = self._link.with_name(f".{self._link.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self.port)
            fresh.replace(self._link)
        return str(path)

    def close(self) -> None:
        """Unplug for good."""
        self.unplug()
        self._link = None

    def __enter__(self) -> VirtualBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the event loop --------------------------------------------------------------------------

    def fileno(self) -> int:
        """What to wait on; -1 while unplugged."""
        return self._master

    def line_baud(self) -> int:
        """The speed that the client has set, bits per second."""
        # struct termios2: also speeds that have no B constant.
        fcntl.ioctl(self._master, _TCGETS2, self._termios2)
        speed: int = struct.unpack("I", self._termios2[_TERMIOS2_SPEED])[0]
        return speed

    def on_readable(self, now_ns: int) -> None:
        """Take what the client has written and queue the answers."""
        try:
            data = os.read(self._master, 4096)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EIO, errno.EBADF):
                return
            raise
        baud = self.line_baud()
        if baud <= 0 or not data:
            return
        if self._decoder and now_ns - self._last_read_ns > _PACKET_GAP_NS:
            self._decoder.clear()
        self._last_read_ns = now_ns
        byte_ns = _BITS_PER_BYTE * _NS / baud
        if not self.faults.quiet:
            data = self.faults.through(data)
        for packet in self._decoder.feed(data):
            self.packets += 1
            start = max(now_ns, self._line_free_ns)
            arrived = start + round(packet.wire_bytes * byte_ns)
            replies = self.chain.execute(packet, arrived, baud, whole=self.faults.quiet)
            self._line_free_ns = arrived
            if replies:
                self._answer(replies, arrived, byte_ns)

    def _answer(self, replies: list[tuple[float, bytes]], t_ns: int, byte_ns: float) -> None:
        heard: list[bytes] = []
        start = t_ns
        for delay, status in replies:
            t_ns += round(delay * _NS + len(status) * byte_ns)
            heard.append(status if self.faults.quiet else self.faults.through(status))
        self._line_free_ns = t_ns
        data = b"".join(heard)
        if not self.faults.quiet:
            data = self.faults.noise() + data
        if not data:
            return
        t_ns += round(self.faults.delay_ms * 1e6)
        latency = self.usb_latency_ns
        while len(data) > self.usb_block_bytes:
            full = start + round(self.usb_block_bytes * byte_ns)
            self._outbox.append((full, data[: self.usb_block_bytes]))
            data = data[self.usb_block_bytes :]
            start = self._usb_anchor_ns = full
        if latency == 0:
            self._outbox.append((t_ns, data))
            return
        if self.usb_partial:
            done = 0
            tick = self._next_tick(start + 1)
            while tick < t_ns:
                ready = min(int((tick - start) / byte_ns), len(data))
                if ready > done:
                    self._outbox.append((tick, data[done:ready]))
                    done = ready
                tick += latency
            data = data[done:]
        tick = self._next_tick(t_ns)
        self._outbox.append((tick, data))
        self._usb_anchor_ns = tick

    def _next_tick(self, t_ns: int) -> int:
        """The first latency tick at or after `t_ns`."""
        behind = t_ns - self._usb_anchor_ns
        return self._usb_anchor_ns + -(-behind // self.usb_latency_ns) * self.usb_latency_ns

    def next_deadline_ns(self) -> int | None:
        """When `on_deadline` has something to deliver; None for never."""
        return self._outbox[0][0] if self._outbox else None

    def on_deadline(self, now_ns: int) -> None:
        """Deliver what is due."""
        while self._outbox and self._outbox[0][0] <= now_ns:
            data = self._outbox.popleft()[1]
            # A client that never reads fills the pty: a real adapter drops bytes then as well.
            with contextlib.suppress(BlockingIOError):
                os.write(self._master, data)

    def step(self, dt: float) -> None:
        """Advance the servos by `dt` seconds: motion, overload, watchdogs, heat."""
        for row in self.bank.step(dt):
            self.chain.servos[row].check_overload()
        now_ns = time.monotonic_ns()
        if self.bank.memory[:, 98].any():
            for servo in self.chain.servos:
                servo.check_watchdog(now_ns)
        self._since_warm += dt
        if self._since_warm >= _WARM_EVERY_S:
            for servo in self.chain.servos:
                servo.warm(self._since_warm)
            self._since_warm = 0.0

    # -- servos, as vectors over `ids` -----------------------------------------------------------

    @property
    def servos(self) -> tuple[VirtualServo, ...]:
        """All servos, in the order given."""
        return self.chain.servos

    @property
    def ids(self) -> tuple[int, ...]:
        """Their ids, in that order."""
        return tuple(self._by_id)

    def servo(self, servo_id: int) -> VirtualServo:
        """The servo that was built with `servo_id`. Raises DeviceError if there is none."""
        try:
            return self._by_id[servo_id]
        except KeyError:
            raise DeviceError(f"{self.name} has servos {self.ids}, not {servo_id}") from None

    def positions_rad(self) -> npt.NDArray[np.float64]:
        """Shaft positions, float64 (n,)."""
        positions: npt.NDArray[np.float64] = (self.bank.position - CENTER_TICKS) * RAD_PER_TICK
        return positions

    def targets_rad(self) -> npt.NDArray[np.float64]:
        """Where each wants its shaft after profile and mode, float64 (n,); NaN without torque or
        in a mode without a position goal."""
        bank = self.bank
        driven = bank.active & bank.position_mode
        return np.where(driven, (bank.trajectory - CENTER_TICKS) * RAD_PER_TICK, np.nan)

    def current_limits_ma(self) -> npt.NDArray[np.float64]:
        """What each may draw now, float64 (n,); 0 without torque."""
        return np.array([servo.current_limit_ma() for servo in self.servos])

    def set_measured(
        self,
        position_rad: npt.ArrayLike,
        velocity_rad_s: npt.ArrayLike = 0.0,
        current_ma: npt.ArrayLike = 0.0,
    ) -> None:
        """What a plant outside says of the shafts, each (n,) or scalar; external servos only."""
        bank = self.bank
        mask = bank.external
        position = np.asarray(position_rad) / RAD_PER_TICK + CENTER_TICKS
        np.copyto(bank.position, position, where=mask)
        np.copyto(bank.velocity, np.asarray(velocity_rad_s) / RAD_PER_TICK, where=mask)
        np.copyto(bank.measured_counts, np.asarray(current_ma) * self._per_ma, where=mask)
        bank.publish()

    # -- logs --------------------------------------------------------------------------------------

    def goal_log(self, since: int = 0) -> LogRows:
        """Every accepted write to goal position or goal current, from row `since` on."""
        return self.goals.since(since)

    def sample_log(self, since: int = 0) -> LogRows:
        """Every reading of a present position, from row `since` on."""
        return self.samples.since(since)

    # -- faults ------------------------------------------------------------------------------------

    def drop(self, rate: float) -> None:
        """Lose this share of packets, both ways."""
        self.faults.drop_rate = rate

    def corrupt(self, rate: float) -> None:
        """Flip a bit in this share of packets, both ways."""
        self.faults.corrupt_rate = rate

    def delay(self, ms: float) -> None:
        """Hold every answer back."""
        self.faults.delay_ms = ms

    def noise(self, count: int) -> None:
        """Put this many random bytes before every answer."""
        self.faults.noise_bytes = count

    def missing(self, servo_id: int, gone: bool = True) -> None:
        """Take a servo off the chain, or put it back."""
        self.servo(servo_id).present = not gone

    def overload(self, servo_id: int) -> None:
        """Overload error: alert bit and, by the shutdown register, torque off."""
        self.servo(servo_id).fail(HardwareError.OVERLOAD)

    def reboot(self, servo_id: int) -> None:
        """Brown-out: RAM lost, silent for the boot time."""
        self.servo(servo_id).reboot(time.monotonic_ns())

    def hand(self, servo_id: int, position_rad: float | None) -> None:
        """An operator's hand on a joint (None: lets go)."""
        self.servo(servo_id).hand(position_rad)

    def calm(self) -> None:
        """End all line faults (drop, corrupt, delay, noise)."""
        self.drop(0.0)
        self.corrupt(0.0)
        self.delay(0.0)
        self.noise(0)


if __name__ == "__main__":
    from hardware.dynamixel.process import main

    main()
