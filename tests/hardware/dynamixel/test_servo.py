"""One virtual servo by itself: motion, modes, limits, overload, watchdog, hand."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hardware.dynamixel.control_table import RAD_PER_TICK, HardwareError, OperatingMode
from hardware.dynamixel.packet import StatusError
from hardware.dynamixel.servo import VirtualServo
from hardware.dynamixel.virtual import VirtualBus
from robot_stack.errors import ConfigError, DeviceError

DT = 0.002


def run(bus: VirtualBus, seconds: float) -> np.ndarray:
    """Steps the bus; the positions (steps, n) in ticks."""
    track = []
    for _ in range(round(seconds / DT)):
        bus.step(DT)
        track.append(bus.bank.position.copy())
    return np.array(track)


_open: list[VirtualBus] = []


@pytest.fixture(autouse=True)
def close_buses() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def one(model: str = "XM430-W350", **options: Any) -> tuple[VirtualBus, VirtualServo]:
    bus = VirtualBus([VirtualServo(1, model, **options)])
    _open.append(bus)
    return bus, bus.servo(1)


def test_holds_moves_and_settles_without_overshoot() -> None:
    bus, servo = one()
    servo.set("torque_enable", 1)
    servo.set("goal_position", 2500)
    track = run(bus, 1.0)[:, 0]
    assert servo.get("present_position") == 2500
    assert track.max() < 2505
    assert (np.diff(track) > -1.0).all()
    # No faster than the motor turns without load: 46 rpm.
    assert np.abs(np.diff(track)).max() / DT <= 46.0 / 60 * 4096 * 1.001


def test_profile_is_a_trapezoid_within_its_limits() -> None:
    bus, servo = one()
    servo.set("profile_velocity", 100)  # 22.9 rpm
    servo.set("profile_acceleration", 10)  # 2145.77 rev/min^2
    servo.set("torque_enable", 1)
    servo.set("goal_position", 4095)
    rates, targets = [], []
    for _ in range(1000):
        bus.step(DT)
        targets.append(servo.target_ticks())
    rates = np.diff(targets) / DT
    top = 100 * 0.229 / 60 * 4096
    assert rates.max() == pytest.approx(top, rel=0.01)
    acceleration = 10 * 214.577 / 3600 * 4096
    assert np.diff(rates).max() / DT == pytest.approx(acceleration, rel=0.01)
    assert targets[-1] == 4095


def test_profile_in_time_takes_that_time() -> None:
    bus, servo = one(registers={"drive_mode": 4})
    servo.set("profile_velocity", 800)  # ms
    servo.set("profile_acceleration", 200)
    servo.set("torque_enable", 1)
    servo.set("goal_position", 3000)
    steps = 0
    while servo.target_ticks() < 2999 and steps < 2000:
        bus.step(DT)
        steps += 1
    assert steps * DT == pytest.approx(0.8, abs=0.05)


def test_velocity_current_and_pwm_modes() -> None:
    bus, servo = one(registers={"operating_mode": OperatingMode.VELOCITY})
    servo.set("torque_enable", 1)
    servo.set("goal_velocity", 50)
    run(bus, 0.5)
    assert servo.get("present_velocity") == pytest.approx(50, abs=1)
    assert math.isnan(servo.target_rad())

    bus, servo = one(registers={"operating_mode": OperatingMode.CURRENT})
    servo.set("torque_enable", 1)
    servo.set("goal_current", -100)
    run(bus, 0.05)
    assert servo.get("present_current") == -100
    assert servo.get("present_velocity") < 0

    bus, servo = one(registers={"operating_mode": OperatingMode.PWM})
    servo.set("torque_enable", 1)
    servo.set("goal_pwm", 442)
    run(bus, 0.5)
    half = 46.0 / 0.229 / 2
    assert servo.get("present_velocity") == pytest.approx(half, rel=0.03)


def test_current_limited_grip_stalls_without_overload() -> None:
    bus, servo = one(registers={"operating_mode": OperatingMode.CURRENT_POSITION})
    servo.set("torque_enable", 1)
    servo.set("goal_current", 200)
    servo.pull(-600.0)  # something that does not give way
    servo.set("goal_position", 3000)
    run(bus, 1.0)
    assert servo.get("present_current") == 200
    assert servo.current_limit_ma() == pytest.approx(538.0)
    assert servo.get("hardware_error_status") == 0
    assert servo.torque_on


def test_overload_trips_shutdown_and_only_a_reboot_helps() -> None:
    bus, servo = one(registers={"current_limit": 300}, boot_s=0.0)
    servo.set("torque_enable", 1)
    servo.hand(1.0)  # forced away and held there
    run(bus, 2.0)
    assert servo.get("hardware_error_status") == HardwareError.OVERLOAD
    assert not servo.torque_on
    assert servo.write(64, b"\x01") == StatusError.RESULT_FAIL | StatusError.ALERT
    servo.hand(None)
    servo.set("goal_current", 200)
    servo.reboot(0)
    assert servo.write(64, b"\x01") == 0
    # EEPROM has stayed, RAM has not.
    assert servo.get("current_limit") == 300
    assert servo.get("goal_current") == 300


def test_accelerating_at_the_limit_is_no_overload() -> None:
    bus, servo = one(registers={"current_limit": 60})
    servo.set("torque_enable", 1)
    servo.set("goal_position", 4095)
    run(bus, 0.1)
    assert servo.get("present_current") == 60
    run(bus, 3.0)
    assert servo.torque_on


def test_without_shutdown_bit_the_torque_stays() -> None:
    _, servo = one(registers={"shutdown": 0})
    servo.set("torque_enable", 1)
    servo.fail(HardwareError.OVERLOAD)
    assert servo.torque_on
    assert servo.error_bit == StatusError.ALERT


def test_hand_moves_a_slack_joint_and_loads_a_stiff_one() -> None:
    bus, servo = one()
    servo.hand(0.5)
    assert servo.get("present_position") == 2048 + round(0.5 / RAD_PER_TICK)
    servo.hand(None)
    run(bus, 0.2)
    assert servo.get("present_position") == 2048 + round(0.5 / RAD_PER_TICK)
    servo.set("goal_position", servo.get("present_position"))
    servo.set("torque_enable", 1)
    run(bus, 0.1)
    servo.hand(0.52)
    run(bus, 0.3)
    assert abs(servo.get("present_current")) > 5
    assert abs(bus.positions_rad()[0] - 0.5) < 0.02


def test_single_turn_memory() -> None:
    _, servo = one(position_rad=math.pi + 0.5, boot_s=0.0)
    # Beyond the encoder's turn: what a servo says after power-up is one turn off.
    assert servo.get("present_position") == round(0.5 / RAD_PER_TICK)
    servo.hand(-0.1 - math.pi)
    assert servo.get("present_position") < -4096
    servo.reboot(0)
    assert 0 <= servo.get("present_position") < 4096


def test_homing_offset_shifts_both_directions() -> None:
    bus, servo = one(registers={"homing_offset": 100})
    assert servo.get("present_position") == 2148
    servo.set("torque_enable", 1)
    servo.set("goal_position", 2248)
    run(bus, 0.5)
    assert servo.get("present_position") == 2248
    assert bus.positions_rad()[0] == pytest.approx(100 * RAD_PER_TICK, abs=1e-3)


def test_watchdog_stops_keeps_torque_and_refuses_goals() -> None:
    bus, servo = one()
    servo.set("goal_velocity", 0)
    assert servo.write(64, b"\x01") == 0
    assert servo.write(112, (20).to_bytes(4, "little")) == 0
    assert servo.write(98, b"\x01") == 0  # 20 ms
    now = time.monotonic_ns()
    servo.heard(now)
    assert servo.write(116, (4000).to_bytes(4, "little")) == 0
    run(bus, 0.01)
    servo.check_watchdog(now + 19_000_000)
    assert servo.get("bus_watchdog") == 1
    servo.check_watchdog(now + 21_000_000)
    assert servo.get("bus_watchdog") == -1
    here = servo.get("present_position")
    run(bus, 0.5)
    assert abs(servo.get("present_position") - here) < 30
    assert servo.torque_on
    assert servo.write(116, (3000).to_bytes(4, "little")) == StatusError.DATA_RANGE
    assert servo.write(98, b"\x00") == 0
    assert servo.write(116, (3000).to_bytes(4, "little")) == 0


@pytest.mark.parametrize(
    ("address", "data", "error"),
    [
        (132, b"\0\0\0\0", StatusError.ACCESS),  # read-only
        (300, b"\0", StatusError.ACCESS),  # nothing there
        (661, b"\0\0", StatusError.DATA_RANGE),  # beyond the end
        (11, b"\x03", StatusError.ACCESS),  # EEPROM, torque on
        (116, b"\0\0", StatusError.DATA_LENGTH),  # half a register
        (117, b"\0\0\0", StatusError.DATA_LENGTH),
        (65, b"\x02", StatusError.DATA_RANGE),  # LED
        (116, (3500).to_bytes(4, "little"), StatusError.DATA_LIMIT),  # max position 3000
        (102, (501).to_bytes(2, "little"), StatusError.DATA_LIMIT),  # current limit 500
        (100, (886).to_bytes(2, "little"), StatusError.DATA_RANGE),
        (104, (201).to_bytes(4, "little"), StatusError.DATA_LIMIT),  # velocity limit 200
        (116, (2900).to_bytes(4, "little"), StatusError.NONE),
        (102, (500).to_bytes(2, "little"), StatusError.NONE),
    ],
)
def test_write_rules(address: int, data: bytes, error: int) -> None:
    _, servo = one(registers={"max_position_limit": 3000, "current_limit": 500})
    servo.set("torque_enable", 1)
    before = servo.bank.memory.copy()
    assert servo.write(address, data) == error
    if error:
        assert (servo.bank.memory == before).all()


def test_write_of_many_registers_is_all_or_nothing() -> None:
    _, servo = one()
    good = (100).to_bytes(4, "little")
    assert servo.write(108, good + good + (5000).to_bytes(4, "little")) == StatusError.DATA_LIMIT
    assert servo.get("profile_velocity") == 0
    assert servo.write(108, good + good + (2100).to_bytes(4, "little")) == 0
    assert (servo.get("profile_velocity"), servo.get("goal_position")) == (100, 2100)


def test_mode_switch_loses_goal_current_and_profiles() -> None:
    _, servo = one()
    servo.write(102, (200).to_bytes(2, "little"))
    servo.write(112, (50).to_bytes(4, "little"))
    assert servo.write(11, bytes((OperatingMode.CURRENT_POSITION,))) == 0
    assert servo.get("goal_current") == 1193
    assert servo.get("profile_velocity") == 0


def test_models_without_current_have_no_current_modes() -> None:
    _, servo = one("XL430-W250")
    assert servo.write(11, b"\x05") == StatusError.DATA_RANGE
    assert servo.write(102, b"\0\0") == StatusError.ACCESS
    assert servo.get("present_load") == 0


def test_indirect_registers_alias_and_obey_the_rules() -> None:
    _, servo = one(registers={"max_position_limit": 3000})
    for n in range(4):
        servo.write(168 + 2 * n, (116 + n).to_bytes(2, "little"))
        servo.write(578 + 2 * n, (132 + n).to_bytes(2, "little"))
    assert servo.write(224, (2500).to_bytes(4, "little")) == 0
    assert servo.get("goal_position") == 2500
    assert servo.write(224, (3500).to_bytes(4, "little")) == StatusError.DATA_LIMIT
    error, data = servo.read(634, 4)
    assert (error, int.from_bytes(data, "little")) == (0, 2048)


def test_external_plant_owns_the_position() -> None:
    bus, servo = one(external=True)
    servo.set("torque_enable", 1)
    servo.set("goal_position", 2500)
    run(bus, 0.1)
    assert servo.target_ticks() == 2500
    assert servo.get("present_position") == 2048
    bus.set_measured([0.25], [0.5], [-269.0])
    assert servo.get("present_position") == 2048 + round(0.25 / RAD_PER_TICK)
    assert servo.get("present_current") == -100
    assert servo.get("present_velocity") == round(0.5 / 0.023981)
    assert bus.targets_rad()[0] == pytest.approx(452 * RAD_PER_TICK)
    servo.set("torque_enable", 0)
    bus.step(DT)
    assert math.isnan(bus.targets_rad()[0])
    assert bus.current_limits_ma()[0] == 0.0


def test_measured_current_at_the_limit_overloads_too() -> None:
    bus, servo = one(external=True)
    servo.set("torque_enable", 1)
    servo.set_measured(0.0, 0.0, 1193 * 2.69)
    run(bus, 1.0)
    assert not servo.torque_on


def test_plausible_voltage_temperature_and_clock() -> None:
    _, servo = one()
    assert 110 <= servo.get("present_input_voltage") <= 125
    assert 20 <= servo.get("present_temperature") <= 60
    assert 0 <= servo.get("realtime_tick") <= 32767
    assert servo.get("moving") == 0


def test_descriptions_that_make_no_sense() -> None:
    with pytest.raises(DeviceError, match="XM430-W350"):
        VirtualServo(1, "AX-12")
    with pytest.raises(ConfigError, match=r"0\.\.1193"):
        VirtualServo(1, registers={"current_limit": 5000})
    with pytest.raises(ConfigError, match="each its own"):
        VirtualBus([VirtualServo(1), VirtualServo(1)])
    with pytest.raises(ConfigError, match="4000000"):
        VirtualBus([VirtualServo(1)], baud=1234)


def test_stepping_36_servos_is_cheap() -> None:
    buses = [VirtualBus([VirtualServo(n) for n in range(1, 10)]) for _ in range(4)]
    _open.extend(buses)
    for bus in buses:
        for servo in bus.servos:
            servo.set("torque_enable", 1)
    best = math.inf
    for _ in range(5):
        start = time.process_time()
        for _ in range(100):
            for bus in buses:
                bus.step(DT)
        best = min(best, time.process_time() - start)
    # 100 steps are 0.2 s of servo time at 500 Hz: a tenth of one core.
    assert best < 0.02
