"""Doctor's checks of ALOHA arms: port, latency timer, and what the servos' registers hold.

Read only. A bus that an arm process is using is left alone: two masters on one wire disturb each
other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from hardware.aloha import registers
from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.rig import GRIPPER, Servo
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.port import check_usb_latency
from robot_stack.config import RobotConfig, Station
from robot_stack.doctor import Check
from robot_stack.errors import RobotStackError, SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle

__all__ = ["checks"]

ADAPTERS = Path("/dev/serial/by-id")
ALIVE_NS = 1_000_000_000
VOLTS = (11.0, 13.0)  # of the 12 V supply, at the servo; below, a loaded arm browns out
HOT = 60  # degC; the servos shut down at 72 to 80
OUTSIDE_TICKS = 60  # beyond a limit by more than the joint's play


def checks(station: Station | None) -> Iterator[Check]:
    """One row a finding; without a station the serial adapters that are plugged in."""
    if station is None:
        yield from _adapters()
        return
    for name, robot in station.robots.items():
        if robot.driver == "aloha":
            yield from _arm(name, robot, station)


def _adapters() -> Iterator[Check]:
    for link in sorted(ADAPTERS.glob("*")):
        issue = check_usb_latency(str(link))
        if issue is None:
            yield Check(f"port {link.name}", "ok", str(link.resolve()))
        else:
            yield Check(f"port {link.name}", "fail", str(issue), issue.command)


def _arm(name: str, robot: RobotConfig, station: Station) -> Iterator[Check]:
    config = AlohaArmConfig.from_station(robot, station)
    port = config.port
    if not Path(port).exists():
        mend = "plug it in; `ls /dev/serial/by-id` and `robot-stack identify` tell the ports"
        if str(robot.options["port"]).startswith("virtual:"):
            mend = f"robot-stack virtual {station.path}"
        yield Check(name, "fail", f"{port} is not there", mend)
        return
    if not os.access(port, os.R_OK | os.W_OK):
        mend = "sudo usermod -aG dialout $USER; then log in again"
        yield Check(name, "fail", f"no right to use {port}", mend)
        return
    issue = check_usb_latency(port)
    if issue is None:
        yield Check(f"{name} port", "ok", f"{port}, latency timer not above 1 ms")
    else:
        yield Check(f"{name} port", "fail", str(issue), issue.command)
    running = _running(name, station.station)
    if running is not None:
        yield running
        return
    try:
        with DynamixelBus(port, [servo.id for servo in config.arm.servos], config.baud) as bus:
            yield from _servos(name, bus, config, station)
    except RobotStackError as error:
        yield Check(f"{name} servos", "fail", str(error), "mend cable or power, then try again")


def _running(name: str, station: str) -> Check | None:
    """What the arm process says, when there is one."""
    try:
        with Ring(ring_path(station, "arm", name)) as ring:
            latest = ring.latest()
            closed = ring.closed
    except SharedMemoryError:
        return None
    if closed or latest is None or time.monotonic_ns() - int(latest[1]["t_ns"]) > ALIVE_NS:
        return None
    tick = latest[1]
    state = Lifecycle(int(tick["lifecycle"]))
    fault = tick["fault"].decode(errors="replace")
    found = f"its arm process runs ({state.name.lower()}, {int(tick['retries'])} bus retries)"
    if state is Lifecycle.FAULT:
        return Check(f"{name} servos", "fail", f"{found}: {fault}", f"robot-stack reset {station}")
    return Check(f"{name} servos", "ok", f"{found}; end the station to check its servos")


def _servos(
    name: str, bus: DynamixelBus, config: AlohaArmConfig, station: Station
) -> Iterator[Check]:
    arm = config.arm
    silent = [str(servo) for servo in arm.servos if servo.id not in bus.found]
    if silent:
        yield Check(
            f"{name} ids",
            "fail",
            f"no answer from {', '.join(silent)}",
            "check the cable before the first of them; `robot-stack identify` finds other ids",
        )
        return
    yield Check(f"{name} ids", "ok", f"{len(arm.servos)} servos answer at {config.baud} baud")
    wrong = registers.check_models(bus, config)
    yield _verdict(f"{name} models", wrong, "as expected", "servo_models in the station file")
    mismatches = registers.check_eeprom(bus, config)
    yield _verdict(
        f"{name} registers",
        [str(mismatch) for mismatch in mismatches],
        "limits, drive modes, shadows, delays as expected",
        f"robot-stack calibrate {station.path} --robot {name} --apply",
    )
    if config.role == "follower":
        yield _grip_limit(name, bus, config)
    yield from _health(name, bus, arm.servos)
    yield _positions(name, bus, arm.servos)


def _verdict(name: str, wrong: list[str], right: str, mend: str) -> Check:
    if wrong:
        return Check(name, "fail", "; ".join(wrong), mend)
    return Check(name, "ok", right)


def _grip_limit(name: str, bus: DynamixelBus, config: AlohaArmConfig) -> Check:
    servo = next(servo for servo in config.arm.masters if servo.joint == GRIPPER)
    found = bus.read(servo.id, "current_limit")
    text = f"gripper current limit {found} ({found * 2.69e-3:.2f} A)"
    if found != config.current_limit:
        wanted = f"{text}, the station says {config.current_limit}"
        return Check(f"{name} grip", "warn", wanted, "connecting without torque sets it: serve")
    return Check(f"{name} grip", "ok", text)


def _health(name: str, bus: DynamixelBus, servos: tuple[Servo, ...]) -> Iterator[Check]:
    errors = [f"{s}: {error!r}" for s in servos if (error := bus.hardware_error(s.id))]
    yield _verdict(
        f"{name} errors",
        errors,
        "no servo has shut down",
        "power off and on, or `robot-stack reset`",
    )
    volts = {s: bus.read(s.id, "present_input_voltage") / 10 for s in servos}
    low, high = min(volts.values()), max(volts.values())
    found = f"{low:.1f} to {high:.1f} V at the servos"
    if low < VOLTS[0] or high > VOLTS[1]:
        yield Check(f"{name} supply", "fail", found, "use the 12 V supply of the arm, and check it")
    else:
        yield Check(f"{name} supply", "ok", found)
    warm = {s: bus.read(s.id, "present_temperature") for s in servos}
    hottest = max(warm, key=lambda servo: warm[servo])
    found = f"hottest is {hottest} at {warm[hottest]} degC"
    if warm[hottest] > HOT:
        yield Check(f"{name} heat", "warn", found, "let the arm rest at its sleep pose")
    else:
        yield Check(f"{name} heat", "ok", found)


def _positions(name: str, bus: DynamixelBus, servos: tuple[Servo, ...]) -> Check:
    """Joints outside their limits: a horn mounted a turn off, or a count that has wrapped."""
    ticks = bus.sync_read("present_position")
    outside = [
        f"{s} reads {ticks[s.id]}, limits {s.min_ticks} to {s.max_ticks}"
        for s in servos
        if not s.min_ticks - OUTSIDE_TICKS <= ticks[s.id] <= s.max_ticks + OUTSIDE_TICKS
    ]
    mend = "move the joint inside by hand without torque; if it is inside, power off and on (wrap)"
    return _verdict(f"{name} wraps", outside, "every joint reads inside its limits", mend)
