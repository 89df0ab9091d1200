"""Servos that fail under way: named in words, mended one at a time, and never an arm dropped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from robot_stack.config import load_station
from robot_stack.errors import DeviceError
from robot_stack.types import Difference, Lifecycle
from server.control import arm_process

TICK = 2 * np.pi / 4096
ALL = [True] * 7
NAME = "follower_left"


def _fault(arm: Any, wait: Callable[..., None]) -> str:
    """Run the loop until the arm reports a fault."""

    def seen() -> bool:
        arm.read(0.3)
        arm.write(arm.held())
        return arm.faults() is not None

    wait(seen, "a fault to be reported")
    return str(arm.faults())


def _torque(bench: Any) -> list[int]:
    return [bench.get(NAME, servo_id, "torque_enable") for servo_id in range(1, 10)]


def test_an_overloaded_gripper_recovers_while_the_arm_holds(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME, current_limit=200) as arm:
        arm.set_torque(ALL, True)
        held = arm.held()
        bench.control.call("overload", NAME, servo_id=9)
        assert _fault(arm, wait) == "servo 9 (gripper): overload"
        assert arm.torque().tolist() == [True] * 6 + [False]
        assert _torque(bench) == [1] * 8 + [0]
        goals = {n: len(bench.goals(NAME, n)) for n in range(1, 9)}

        arm.recover()
        assert arm.faults() is None
        assert arm.torque().all()
        assert _torque(bench) == [1] * 9
        # Its RAM came back: mode 5, both limits, gains.
        assert bench.get(NAME, 9, "operating_mode") == 5
        assert bench.get(NAME, 9, "current_limit") == 200
        assert bench.get(NAME, 9, "goal_current") == 200
        # Nobody moved the others.
        assert goals == {n: len(bench.goals(NAME, n)) for n in range(1, 9)}
        np.testing.assert_allclose(arm.held(), held, atol=3 * TICK)
        arm.read(0.3)
        arm.write(arm.held())
        assert arm.faults() is None


@pytest.mark.parametrize(("limit", "amperes"), [(200, 0.538), (300, 0.807)])
def test_a_blocked_gripper_squeezes_with_the_current_it_may(
    make_bench: Callable[..., Any], wait: Callable[..., None], limit: int, amperes: float
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME, current_limit=limit) as arm:
        arm.set_torque(ALL, True)
        # An object holds the fingers half open.
        bench.control.call("hand", NAME, servo_id=9, position_rad=0.4)
        target = arm.held()
        target[6] = -0.1

        def current() -> float:
            arm.write(target)
            return abs(float(arm.read(0.3).tau[6]))

        wait(lambda: current() > 0.95 * amperes, "the gripper to squeeze")
        for _ in range(50):
            assert current() <= amperes + 0.003
        assert arm.faults() is None


def test_an_overloaded_shadow_recovers_while_its_master_holds(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
        bench.control.call("overload", NAME, servo_id=3)
        assert _fault(arm, wait) == "servo 3 (shoulder_shadow): overload"
        # The joint itself still holds: its master has torque.
        assert arm.torque().all()
        arm.recover()
        assert arm.faults() is None
        assert _torque(bench) == [1] * 9


def test_a_master_is_not_rebooted_while_its_shadow_holds_the_arm(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
        bench.control.call("overload", NAME, servo_id=2)
        assert _fault(arm, wait) == "servo 2 (shoulder): overload"
        with pytest.raises(DeviceError, match=r"servo 2 \(shoulder\).*servo 3.*support the arm"):
            arm.recover()
        assert bench.get(NAME, 3, "torque_enable") == 1
        assert arm.faults() is not None
        # With the joint's torque off, as the message says, it can be done.
        arm.set_torque([False, True] + [False] * 5, False)
        arm.recover()
        assert arm.faults() is None
        assert _torque(bench) == [1, 0, 0, 1, 1, 1, 1, 1, 1]
        arm.set_torque([False, True] + [False] * 5, True)
        assert _torque(bench) == [1] * 9


def test_several_errors_in_words(make_bench: Callable[..., Any], wait: Callable[..., None]) -> None:
    bench = make_bench(NAME)
    bench.set(NAME, 6, "hardware_error_status", 4 | 32)
    bench.set(NAME, 8, "hardware_error_status", 1)
    with bench.arm(NAME) as arm:
        # Known from the start, not only when the loop runs.
        assert arm.faults() == (
            "servo 6 (forearm_roll): overheating, overload; servo 8 (wrist_rotate): input voltage"
        )


def test_a_servo_that_restarts_is_noticed_and_holds_again(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    """A brown-out leaves no error bit: torque and RAM are gone, and the servo answers again."""
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
        bench.set(NAME, 7, "position_p_gain", 800)
        bench.control.call("reboot", NAME, servo_id=7)

        def lost() -> bool:
            arm.read(0.3)
            arm.write(arm.held())
            return "lost its torque" in str(arm.faults())

        wait(lost, "the lost torque to be noticed")
        assert arm.torque().tolist() == [True] * 4 + [False] + [True] * 2
        arm.recover()
        assert arm.faults() is None
        assert _torque(bench) == [1] * 9


def test_a_missing_servo_is_named_and_can_come_back(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
        bench.control.call("missing", NAME, servo_id=5, gone=True)
        assert _fault(arm, wait) == "servo 5 (elbow_shadow): does not answer (cable, power)"
        with pytest.raises(DeviceError, match=r"servo 5 \(elbow_shadow\).*does not answer"):
            arm.recover()
        bench.control.call("missing", NAME, servo_id=5, gone=False)
        arm.recover()
        assert arm.faults() is None
        assert _torque(bench) == [1] * 9


def test_a_missing_joint_ages(make_bench: Callable[..., Any], wait: Callable[..., None]) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        q = arm.read(0.3).q
        bench.control.call("missing", NAME, servo_id=6, gone=True)
        wait(lambda: bool(arm.read(0.3).age_s[3] > 0.05), "the forearm's age to grow")
        state = arm.read(0.3)
        assert state.q[3] == q[3]
        assert (state.age_s[[0, 1, 2, 4]] < 0.05).all()


def test_the_watchdog_holds_a_dead_process_and_is_cleared_on_return(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    first = bench.arm(NAME, bus_watchdog_ms=300)
    first.connect()
    first.set_torque(ALL, True)
    first.read(0.3)
    first.write(first.held())
    assert bench.get(NAME, 1, "bus_watchdog") == 15  # times 20 ms
    held = first.held()
    before = bench.positions(NAME)
    first._bus.close()  # killed
    wait(lambda: bench.get(NAME, 1, "bus_watchdog") == -1, "the bus watchdog")
    with bench.arm(NAME) as second:
        assert second.faults() is None
        np.testing.assert_array_equal(second.held(), held)
        second.read(0.3)
        second.write(second.held())
        assert bench.get(NAME, 1, "bus_watchdog") == 127
        target = held.copy()
        target[0] = 0.1
        second.write(target)
        assert bench.get(NAME, 1, "goal_position") == 2048 + round(0.1 / TICK)
        np.testing.assert_allclose(bench.positions(NAME)[1:], before[1:], atol=3 * TICK)
    assert bench.get(NAME, 1, "bus_watchdog") == 0


def test_a_joint_stopped_on_its_way_does_not_fly_on(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    """The process died in mid-motion and the watchdog stopped a joint far from its goal."""
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
    bench.set(NAME, 1, "profile_velocity", 10)  # 0.24 rad/s
    bench.set(NAME, 1, "bus_watchdog", 10)
    bench.set(NAME, 1, "goal_position", 2548)
    wait(lambda: bench.get(NAME, 1, "bus_watchdog") == -1, "the bus watchdog")
    present = bench.get(NAME, 1, "present_position")
    assert 2048 < present < 2448
    with bench.arm(NAME) as arm:
        assert arm.held()[0] == pytest.approx((present - 2048) * TICK, abs=3 * TICK)
        arm.read(0.3)
        arm.write(arm.held())
        assert abs(bench.get(NAME, 1, "goal_position") - present) < 5


def test_a_stalled_loop_is_a_fault(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME, bus_watchdog_ms=200) as arm:
        arm.set_torque(ALL, True)
        arm.read(0.3)
        arm.write(arm.held())
        stalled = time.monotonic() + 2.0
        wait(lambda: bench.get(NAME, 4, "bus_watchdog") == -1, "the bus watchdog")
        assert time.monotonic() < stalled
        for _ in range(9):  # every servo is asked at once, one a tick: not in its turn
            arm.read(0.3)
            arm.write(arm.held())
        assert str(arm.faults()).count("bus watchdog ran out") == 9
        arm.recover()
        assert arm.faults() is None
        assert _torque(bench) == [1] * 9
        target = arm.held()
        target[5] = 0.2
        arm.read(0.3)
        arm.write(target)
        assert bench.get(NAME, 8, "goal_position") == 2048 + round(0.2 / TICK)


def test_one_bad_packet_is_no_fault(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(NAME)
    with bench.arm(NAME) as arm:
        arm.set_torque(ALL, True)
        bench.control.call("drop", NAME, rate=0.05)
        bench.control.call("corrupt", NAME, rate=0.05)
        for _ in range(150):
            arm.read(0.3)
            arm.write(arm.held())
        assert arm.faults() is None
        bench.control.call("calm", NAME)
    assert _torque(bench) == [1] * 9


def test_each_reason_why_there_is_no_connection_is_told_when_it_is_the_reason(
    make_bench: Callable[..., Any],
    wait: Callable[..., None],
    runtime: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first one is mended, and then something else is in the way: the operator must see it."""
    monkeypatch.setattr(arm_process, "RECONNECT_S", 0.0)
    bench = make_bench(NAME)
    options = {"role": "follower", "model": "vx300s", "port": bench.process.ports[NAME]}
    robot = {"driver": "aloha", "options": {**options, "bus_watchdog_ms": 2540}}
    file = runtime / "station.yaml"
    file.write_text(
        yaml.safe_dump(
            {"station": "v", "robots": {NAME: robot}, "groups": {"arms": {"robots": [NAME]}}}
        )
    )
    arm = arm_process.ArmProcess(load_station(file), NAME)

    def status() -> tuple[Lifecycle, str]:
        arm.turn()
        arm.robot.request()
        arm._publish(Difference.NONE, 0.0, 0, 0, time.monotonic_ns())
        tick = arm._record[0]
        return Lifecycle(int(tick["lifecycle"])), tick["fault"].decode()

    def told(words: str) -> str:
        wait(lambda: words in status()[1], f"{words!r} in the fault")
        assert status()[0] is Lifecycle.FAULT
        return status()[1]

    try:
        bench.control.call("missing", NAME, servo_id=6)
        told("servo 6 (forearm_roll) does not answer")
        # It answers, but its mode is wrong, and it may hold the arm.
        bench.control.call("missing", NAME, servo_id=6, gone=False)
        bench.set(NAME, 6, "operating_mode", 1)
        bench.set(NAME, 6, "torque_enable", 1)
        assert "does not answer" not in told("support the arm, switch its power off and on")
        bench.set(NAME, 6, "torque_enable", 0)
        wait(lambda: status()[0] is Lifecycle.FAULT and arm.connected, "a connection")
        assert status()[1].startswith("connected now, before: servo 6 (forearm_roll)")

        arm.orders._reset()
        assert status() == (Lifecycle.STOPPED, "")
        arm.stop.clear()
        arm.orders._reset()
        bench.control.call("unplug", NAME)
        told("no answer for")
        told("cannot open serial port")
        bench.control.call("plug", NAME)
        wait(lambda: status()[0] is Lifecycle.FAULT and arm.connected, "a connection again")
        assert status()[1].startswith("connected now, before: cannot open serial port")
        assert arm.stop.reason.startswith(f"{NAME}: no answer for")
        said = capfd.readouterr().err
        for words in ("does not answer", "support the arm", "no answer for", "cannot open"):
            assert words in said
        assert said.count(f"{NAME}: connected") == 2
        assert said.count("support the arm") == 1, "said when it changed, not at each attempt"
    finally:
        arm.robot.disconnect()
        arm._ring.close()
        arm.stop.close()
