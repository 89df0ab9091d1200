"""The bus driver against every fault of the virtual bus, through the real SDK over a pty."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hardware.dynamixel import bus as bus_module
from hardware.dynamixel.bus import (
    UNKNOWN_TICKS,
    BusState,
    DynamixelBus,
    check_usb_latency,
    unwrap_ticks,
)
from hardware.dynamixel.control_table import RAD_PER_TICK, HardwareError
from hardware.dynamixel.packet import Decoder, encode_status
from hardware.dynamixel.port import usb_latency_s
from robot_stack.errors import BusError, DeviceError

from .conftest import VX300S, StartBus, servo_rows

IDS = tuple(VX300S)
LONG = 0.5  # a deadline that a loaded machine keeps


def until(
    bus: DynamixelBus, wanted: Callable[[BusState], bool], timeout_s: float = 8.0
) -> BusState:
    """Read until a state is as wanted; fails when time is up."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(BusError):
            state = bus.read_state(LONG)
            if wanted(state):
                return state
    raise AssertionError("never came")


# -- connecting --------------------------------------------------------------------------------


def test_nothing_happens_before_connect(start_bus: StartBus) -> None:
    process = start_bus()
    bus = DynamixelBus(process.port, IDS)
    assert not bus.connected
    assert process.control.call("counters")["packets"] == 0
    with pytest.raises(BusError, match="connect"):
        bus.read_state()
    bus.close()


def test_connect_says_who_is_there_and_changes_nothing(start_bus: StartBus) -> None:
    process = start_bus()
    process.control.call("missing", servo_id=6)
    with DynamixelBus(process.port, IDS) as bus:
        assert sorted(bus.found) == [1, 2, 3, 4, 5, 7, 8, 9]
        assert bus.found[1].model == "XM540-W270"
        assert bus.found[1].firmware == 47
    assert not bus.connected
    assert process.control.call("counters")["goals"] == 0


def test_connect_failures_say_what_to_do(start_bus: StartBus, tmp_path: Path) -> None:
    with pytest.raises(BusError, match="udev"):
        DynamixelBus(str(tmp_path / "nothing"), IDS).connect()
    process = start_bus()
    with pytest.raises(BusError, match="baud rate"):
        DynamixelBus(process.port, IDS, 2_000_000).connect()
    with pytest.raises(BusError, match="no speed"):
        DynamixelBus(process.port, IDS, 1234).connect()
    with (
        DynamixelBus(process.port, IDS),
        pytest.raises(BusError, match="no other program"),
    ):
        DynamixelBus(process.port, IDS).connect()
    for ids in ([], [1, 1], [253]):
        with pytest.raises(DeviceError):
            DynamixelBus(process.port, ids)


def test_scan_finds_ids_and_speeds(start_bus: StartBus) -> None:
    rows = servo_rows({1: "XM430-W350", 7: "XL430-W250"})
    process = start_bus(rows)
    process.control.call("set", servo_id=7, name="baud_rate", value=4)
    bus = DynamixelBus(process.port, [1])
    found = bus.scan(bauds=[57600, 1_000_000, 2_000_000])
    assert {key: result.model for key, result in found.items()} == {
        (1_000_000, 1): "XM430-W350",
        (2_000_000, 7): "XL430-W250",
    }
    assert not bus.connected
    with bus:
        assert set(bus.scan(ids=[1, 2, 3])) == {(1_000_000, 1)}
        assert bus.read_state(LONG).missing == ()


# -- the loop's calls --------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_state_vectors(start_bus: StartBus, fast: bool) -> None:
    process = start_bus()
    for n in IDS:
        process.control.call("hand", servo_id=n, position_rad=0.1 * n)
    with DynamixelBus(process.port, IDS, fast=fast) as bus:
        before = time.monotonic_ns()
        state = bus.read_state(LONG)
        after = time.monotonic_ns()
    expected = [2048 + round(0.1 * n / RAD_PER_TICK) for n in IDS]
    assert state.position_ticks.tolist() == expected
    assert (state.position_ticks.dtype, state.velocity_raw.dtype, state.current_raw.dtype) == (
        np.int32,
        np.int32,
        np.int16,
    )
    assert before < state.t_ns < after
    # What we call the moment of the sample is what the far side logged, give or take a wake-up.
    log = process.control.sample_log()
    assert abs(int(log.t_ns[-1]) - state.t_ns) < 50e6
    with pytest.raises(ValueError, match="read-only"):
        state.position_ticks[0] = 1


def test_negative_values_and_stuffed_answers(start_bus: StartBus) -> None:
    # current -1, velocity -3: FF FF FD in the data of a status packet.
    process = start_bus(servo_rows({1: "XM430-W350", 2: "XM430-W350"}, external=True))
    bus = DynamixelBus(process.port, [1, 2], fast=False)
    with bus:
        for position in (-3, -769, 0xFDFF, 253, -1):
            rad = (position - 2048) * RAD_PER_TICK
            process.control.call("measured", servo_id=2, position_rad=rad,
                                 velocity_rad_s=-3 * 0.023981, current_ma=-2.69)  # fmt: skip
            state = bus.read_state(LONG)
            assert state.missing == ()
            assert state.velocity_raw[1] == -3
            assert state.current_raw[1] == -1
            assert (state.position_ticks[1] - position) % 4096 == 0


def test_write_goals(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        goals = np.arange(2000, 2009)
        before = time.monotonic_ns()
        sent = bus.write_goals(goals)
        assert sent.tolist() == goals.tolist()
        bus.write_goals(np.array([1500, 1600]), ids=[4, 2])
        bus.write_goal_currents(np.full(9, 200))
        assert bus.read(9, "goal_current") == 200  # and so they have all arrived
        log = process.control.goal_log()
        positions = log.kind == 0
        assert list(zip(log.servo_id[positions], log.value[positions], strict=True)) == [
            *zip(IDS, goals, strict=True),
            (4, 1500),
            (2, 1600),
        ]
        assert (log.value[~positions] == 200).all()
        # Ten bits a byte: 14 + 9 * 5 bytes at 1 Mbit/s.
        assert log.t_ns[0] - before >= 590_000
        for bad in (np.arange(8), np.arange(9.0), np.zeros((9, 1), int)):
            with pytest.raises(DeviceError, match="shape"):
                bus.write_goals(bad)


@pytest.mark.parametrize("after_missing", ["silent", "answer"])
@pytest.mark.parametrize("fast", [False, True])
def test_one_missing_servo_costs_only_itself(
    start_bus: StartBus, fast: bool, after_missing: str
) -> None:
    process = start_bus(after_missing=after_missing)
    with DynamixelBus(process.port, IDS, fast=fast) as bus:
        first = bus.read_state(LONG)
        assert first.missing == ()
        process.control.call("missing", servo_id=3)
        state = bus.read_state(LONG)
        assert state.missing == (3,)
        assert state.age_s[2] == pytest.approx((state.t_ns - first.t_ns) / 1e9)
        assert np.delete(state.age_s, 2).max() == 0.0
        assert state.position_ticks[2] == first.position_ticks[2]
        again = bus.read_state(LONG)
        assert again.age_s[2] > state.age_s[2]
        # Once it is known to be away, it no longer costs a timeout.
        best = math.inf
        for _ in range(20):
            start = time.monotonic()
            assert bus.read_state(LONG).missing == (3,)
            best = min(best, time.monotonic() - start)
        assert best < 0.006
        process.control.call("missing", servo_id=3, gone=False)
        back = until(bus, lambda s: s.missing == ())
        assert back.age_s.max() == 0.0


def test_a_servo_that_never_answered_is_unknown_not_zero(start_bus: StartBus) -> None:
    process = start_bus()
    process.control.call("missing", servo_id=9)
    with DynamixelBus(process.port, IDS) as bus:
        state = bus.read_state(LONG)
    assert state.missing == (9,)
    assert math.isinf(state.age_s[8])
    assert state.position_ticks[8] == UNKNOWN_TICKS


@pytest.mark.parametrize("fast", [False, True])
def test_alert_is_seen_in_the_loop(start_bus: StartBus, fast: bool) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, fast=fast) as bus:
        assert not bus.read_state(LONG).alert.any()
        process.control.call("overload", servo_id=5)
        state = bus.read_state(LONG)
        assert state.alert.tolist() == [n == 5 for n in IDS]
        assert state.missing == ()
        assert bus.hardware_error(5) is HardwareError.OVERLOAD
        assert bus.hardware_error(4) is HardwareError.NONE


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("fault", ["drop", "corrupt"])
def test_lost_and_damaged_packets_are_asked_for_again(
    start_bus: StartBus, fast: bool, fault: str
) -> None:
    process = start_bus(seed=11)
    with DynamixelBus(process.port, IDS, fast=fast) as bus:
        bus.torque(IDS, True)
        goals = np.full(9, 2300)
        bus.write_goals(goals)
        until(bus, lambda s: bool((np.abs(s.position_ticks - goals) <= 2).all()))
        process.control.call(fault, rate=0.05)
        fresh = 0
        for _ in range(60):
            state = bus.read_state(LONG)
            fresh += not state.missing
            # Whatever is damaged: never a wrong number.
            assert np.abs(state.position_ticks - goals).max() <= 2
        assert fresh == 60
    assert process.control.call("counters")["dropped" if fault == "drop" else "corrupted"] > 0


def test_noise_and_delay_are_survived(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, fast=False) as bus:
        process.control.call("noise", count=7)
        assert bus.read_state(LONG).missing == ()
        process.control.call("calm")
        process.control.call("delay", ms=2.0)
        start = time.monotonic()
        assert bus.read_state(LONG).missing == ()
        assert time.monotonic() - start >= 4.1e-3


def test_answers_in_pieces(start_bus: StartBus) -> None:
    process = start_bus(usb_partial=True)
    with DynamixelBus(process.port, IDS) as bus:
        for _ in range(20):
            assert bus.read_state(LONG).missing == ()


def test_a_late_answer_is_not_taken_for_the_next(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350"}))
    with DynamixelBus(process.port, [1], fast=False) as bus:
        assert bus.read_state(LONG).position_ticks[0] == 2048
        # The answer to this read comes after the driver has given up.
        process.control.call("delay", ms=60.0)
        with pytest.raises(BusError):
            bus.read_state(0.005)
        assert select.select([bus._port.ser.fileno()], [], [], 5.0)[0], "the late answer"
        process.control.call("calm")
        process.control.call("hand", servo_id=1, position_rad=1.0)
        state = bus.read_state(LONG)
        assert state.position_ticks[0] == 2048 + round(1.0 / RAD_PER_TICK)


def test_silence_is_an_error_inside_the_deadline(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        for n in IDS:
            process.control.call("missing", servo_id=n)
        start = time.monotonic()
        with pytest.raises(BusError, match="power"):
            bus.read_state(0.02)
        assert time.monotonic() - start < 0.2
        for n in IDS:
            process.control.call("missing", servo_id=n, gone=False)
        assert until(bus, lambda s: s.missing == ()).missing == ()


def test_waiting_costs_no_cpu(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, slack_s=0.3) as bus:
        for n in IDS:
            process.control.call("missing", servo_id=n)
        for call in (lambda: bus.read_state(0.3), lambda: bus.ping(1), bus._broadcast_ping):
            cpu, wall = time.process_time(), time.monotonic()
            with contextlib.suppress(BusError):
                call()
            cpu, wall = time.process_time() - cpu, time.monotonic() - wall
            assert wall > 0.15
            assert cpu < 0.1 * wall


# -- unplugging --------------------------------------------------------------------------------


def test_unplug_is_told_at_once_and_replug_heals(start_bus: StartBus) -> None:
    process = start_bus()
    bus = DynamixelBus(process.port, IDS)
    bus.connect()
    process.control.call("unplug")
    for call in (
        lambda: bus.read_state(5.0),
        lambda: bus.write_goals(np.full(9, 2048)),
        lambda: bus.read(1, "present_position"),
        lambda: bus.write(1, "led", 1),
    ):
        start = time.monotonic()
        with pytest.raises(BusError, match="hung up"):
            call()
        assert time.monotonic() - start < 0.5
    bus.close()
    with pytest.raises(BusError, match="cannot open"):
        bus.connect()
    process.control.call("plug")
    with bus:
        assert bus.read_state(LONG).missing == ()


def test_unplug_during_a_wait(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, slack_s=3.0) as bus:
        for n in IDS:
            process.control.call("missing", servo_id=n)
        timer = threading.Timer(0.2, process.control.call, ["unplug"])
        timer.start()
        start = time.monotonic()
        with pytest.raises(BusError, match="hung up"):
            bus.read_state(5.0)
        assert time.monotonic() - start < 2.0
        timer.join()


# -- registers ---------------------------------------------------------------------------------


def test_registers_by_name(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350", 2: "XL430-W250"}))
    with DynamixelBus(process.port, [1, 2]) as bus:
        bus.write(1, "homing_offset", -1234)
        assert bus.read(1, "homing_offset") == -1234
        bus.write(1, "position_p_gain", 400)
        assert bus.read(1, "position_p_gain") == 400
        assert bus.read(2, "present_load") == 0
        with pytest.raises(DeviceError, match="present_load"):
            bus.read(2, "present_current")
        with pytest.raises(DeviceError, match="read-only"):
            bus.write(1, "present_position", 1)
        with pytest.raises(DeviceError, match=r"0\.\.1"):
            bus.write(1, "led", 2)
        bus.write(1, "max_position_limit", 3000)
        with pytest.raises(DeviceError, match="limit"):
            bus.write(1, "goal_position", 3500)
        with pytest.raises(BusError, match="servo 9"):
            bus.read(9, "led")


def test_stuffing_in_requests_reaches_the_servo(start_bus: StartBus) -> None:
    # Goal current -1 and goal velocity -3 in one write: FF FF FD on the wire.
    process = start_bus(servo_rows({1: "XM430-W350"}))
    with DynamixelBus(process.port, [1]) as bus:
        data = list(
            (-1).to_bytes(2, "little", signed=True) + (-3).to_bytes(4, "little", signed=True)
        )
        assert bus._packets.writeTxRx(bus._port, 1, 102, 6, data) == (0, 0)
        assert (bus.read(1, "goal_current"), bus.read(1, "goal_velocity")) == (-1, -3)
        answer, result, error = bus._packets.readTxRx(bus._port, 1, 102, 6)
        assert (answer, result, error) == (data, 0, 0)


def test_eeprom_needs_torque_off_and_is_read_back(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350"}))
    with DynamixelBus(process.port, [1]) as bus:
        bus.torque([1], True)
        with pytest.raises(DeviceError, match="support the arm"):
            bus.write_verified(1, "current_limit", 200)
        with pytest.raises(DeviceError, match="EEPROM while torque is on"):
            bus.write(1, "current_limit", 200)
        bus.torque([1], False)
        bus.write_verified(1, "current_limit", 200)
        assert process.control.call("get", servo_id=1, name="current_limit") == 200
        # RAM too, also under torque.
        bus.torque([1], True)
        bus.write_verified(1, "goal_current", 100)
        # What already holds the value needs no write, not even a forbidden one.
        bus.write_verified(1, "current_limit", 200)


def test_sync_read_and_write_of_any_register(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        bus.sync_write("position_p_gain", {n: 100 + n for n in IDS})
        assert bus.sync_read("position_p_gain", deadline_s=LONG) == {n: 100 + n for n in IDS}
        process.control.call("missing", servo_id=2)
        assert set(bus.sync_read("led", deadline_s=LONG)) == set(IDS) - {2}
        with pytest.raises(DeviceError, match="allowed"):
            bus.sync_write("led", {1: 1, 2: 7})


def test_torque_is_verified(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        bus.torque(IDS, True)
        assert set(bus.sync_read("torque_enable").values()) == {1}
        bus.torque(IDS, False)
        process.control.call("overload", servo_id=7)
        with pytest.raises(DeviceError, match=r"\[7\].*recover"):
            bus.torque(IDS, True)


def test_register_access_survives_line_faults(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350"}), seed=5)
    with DynamixelBus(process.port, [1]) as bus:
        process.control.call("corrupt", rate=0.1)
        process.control.call("drop", rate=0.1)
        done = 0
        for n in range(40):
            with contextlib.suppress(BusError):
                bus.write(1, "position_p_gain", n)
                # Never a wrong number, whatever the line does.
                assert bus.read(1, "position_p_gain") == n
                done += 1
        assert done > 30


# -- watchdog, recovery ------------------------------------------------------------------------


def test_bus_watchdog(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350", 2: "XM430-W350"}))
    with DynamixelBus(process.port, [1, 2]) as bus:
        bus.torque([1, 2], True)
        bus.set_bus_watchdog(100)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if process.control.call("get", servo_id=2, name="bus_watchdog") == -1:
                break
        assert bus.read(2, "bus_watchdog") == -1
        with pytest.raises(DeviceError, match="watchdog"):
            bus.write(2, "goal_position", 2100)
        bus.clear_bus_watchdog()
        bus.write(2, "goal_position", 2100)
        assert bus.read(2, "torque_enable") == 1
        for bad in (0, 3000):
            with pytest.raises(DeviceError, match=r"20\.\.2540"):
                bus.set_bus_watchdog(bad)


def test_recover_brings_back_mode_registers_and_place(start_bus: StartBus) -> None:
    process = start_bus(servo_rows(VX300S, registers={"operating_mode": 5}))
    with DynamixelBus(process.port, IDS) as bus:
        bus.sync_write("goal_current", dict.fromkeys(IDS, 200))
        bus.torque(IDS, True)
        goals = np.full(9, 2300)
        bus.write_goals(goals)
        until(
            bus,
            lambda s: (
                bool((np.abs(s.position_ticks - goals) <= 2).all()) and not s.velocity_raw.any()
            ),
        )
        process.control.call("overload", servo_id=9)
        until(bus, lambda s: bool(s.alert[8]))

        def restore(b: DynamixelBus, servo_id: int) -> None:
            assert b.read(servo_id, "torque_enable") == 0
            b.write_verified(servo_id, "goal_current", 150)

        seen = process.control.goal_log().seq[-1] + 1
        bus.recover(9, restore)
        assert bus.read(9, "torque_enable") == 1
        assert bus.read(9, "goal_current") == 150
        assert bus.hardware_error(9) is HardwareError.NONE
        state = bus.read_state(LONG)
        assert state.missing == ()
        assert not state.alert.any()
        # It was told to stay where it was, and nobody else was told anything.
        log = process.control.goal_log(since=int(seen))
        told = [(i, v) for i, v, k in zip(log.servo_id, log.value, log.kind, strict=True) if k == 0]
        assert len(told) == 1
        assert told[0][0] == 9
        assert abs(told[0][1] - 2300) <= 2


def test_recovery_in_steps_keeps_the_loop_going(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        bus.torque(IDS, True)
        process.control.call("overload", servo_id=6)
        recovery = bus.begin_recovery(6, lambda b, n: b.write(n, "position_p_gain", 700))
        reads = 0
        end = time.monotonic() + 5
        while not recovery.poll() and time.monotonic() < end:
            state = bus.read_state(LONG)
            assert state.missing == (6,)
            reads += 1
        assert recovery.stage == "done"
        assert reads > 20
        assert bus.read_state(LONG).missing == ()
        assert bus.read(6, "position_p_gain") == 700
        assert process.control.call("get", servo_id=1, name="torque_enable") == 1


def test_recovery_that_fails_says_so(start_bus: StartBus) -> None:
    process = start_bus(servo_rows({1: "XM430-W350", 2: "XM430-W350"}, boot_s=30.0))
    with DynamixelBus(process.port, [1, 2]) as bus:
        with pytest.raises(BusError, match="did not come back"):
            bus.recover(1, lambda b, n: None, timeout_s=0.2)
        assert bus.read_state(LONG).missing == (1,)


def test_spontaneous_reboot_is_seen_as_missing_and_limp(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        bus.torque(IDS, True)
        process.control.call("reboot", servo_id=2)
        assert bus.read_state(LONG).missing == (2,)
        until(bus, lambda s: s.missing == ())
        assert bus.read(2, "torque_enable") == 0


# -- helpers -----------------------------------------------------------------------------------


def test_unwrap() -> None:
    reference = np.array([2048, 10, 4090, -3000, 2048])
    ticks = np.array([2048 + 4096, 4090, 10, 1100, 2100], dtype=np.int32)
    assert unwrap_ticks(ticks, reference).tolist() == [2048, -6, 4106, -2996, 2100]


def test_usb_latency_is_checked(tmp_path: Path) -> None:
    port = "/dev/ttyUSB7"
    assert check_usb_latency(port, tmp_path) is None
    assert usb_latency_s(port, tmp_path) == 0.001
    device = tmp_path / "ttyUSB7"
    device.mkdir()
    (device / "latency_timer").write_text("16\n")
    issue = check_usb_latency(port, tmp_path)
    assert issue is not None
    assert issue.latency_ms == 16
    assert "16 ms" in str(issue)
    assert issue.command == f"echo 1 | sudo tee {device}/latency_timer"
    assert usb_latency_s(port, tmp_path) == 0.016
    (device / "latency_timer").write_text("1\n")
    assert check_usb_latency(port, tmp_path) is None


def test_stale_bytes_sooner_than_the_wire_allows_are_dropped() -> None:
    """A far end that first sends an old answer at once, then the right one in its time."""
    import tty

    master, slave = os.openpty()
    tty.setraw(slave)
    # At 9600 baud the exchange takes 37 ms at least.
    bus = DynamixelBus(os.ttyname(slave), [1], 9600, fast=False, slack_s=2.0)
    bus._open(9600)
    request_bytes = 15
    old = encode_status(1, 0, bytes(10))
    new = encode_status(1, 0, bytes((0, 0, 0, 0, 0, 0, 7, 0, 0, 0)))

    def far_end() -> None:
        select.select([master], [], [], 5.0)
        os.write(master, old)
        assert len(os.read(master, 100)) == request_bytes
        select.select([master], [], [], 0.06)  # the servo's wire time
        os.write(master, new)

    helper = threading.Thread(target=far_end)
    helper.start()
    try:
        state = bus.read_state(4.0)
    finally:
        helper.join()
        bus.close()
        os.close(master)
        os.close(slave)
    assert next(Decoder().feed(old)).crc_ok
    assert state.position_ticks.tolist() == [7]


def test_public_names_exist() -> None:
    for name in bus_module.__all__:
        assert hasattr(bus_module, name)
