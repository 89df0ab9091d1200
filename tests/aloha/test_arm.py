"""The driver against virtual servos: checks at connect, units, torque, restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hardware.aloha.arm import AlohaArm
from hardware.aloha.configuration import AlohaArmConfig, ArmCalibration
from robot_stack.errors import BusError, DeviceError
from robot_stack.interfaces import Robot

TICK = 2 * np.pi / 4096
ALL = [True] * 7
HOME = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.5])


def _settle(arm: Any, wait: Callable[..., None], target: np.ndarray[Any, Any]) -> None:
    """Send ``target`` until the six arm joints are there."""

    def there() -> bool:
        arm.write(target)
        return bool(np.abs(arm.read(0.3).q - target)[:6].max() < 3 * TICK)

    wait(there, "the arm to reach its target")


@pytest.mark.parametrize("name", ["follower_left", "follower_right", "leader_left"])
def test_connect_changes_neither_torque_nor_goals(
    make_bench: Callable[..., Any], name: str
) -> None:
    bench = make_bench(name)
    before = bench.positions(name)
    with bench.arm(name) as arm:
        assert isinstance(arm, Robot)
        assert not arm.torque().any()
        assert arm.faults() is None
        arm.read(0.3)
        np.testing.assert_allclose(bench.positions(name), before, atol=1e-6)
        assert (
            bench.control.goal_log(bus=name).value[bench.control.goal_log(bus=name).kind == 0].size
            == 0
        )
    arm.disconnect()  # twice is harmless
    assert [bench.get(name, n, "torque_enable") for n in range(1, 10)] == [0] * 9


@pytest.mark.parametrize("name", ["follower_left", "follower_right"])
def test_grip_is_limited_on_both_sides(make_bench: Callable[..., Any], name: str) -> None:
    bench = make_bench("follower_left", "follower_right")
    with bench.arm(name, current_limit=300):
        assert bench.get(name, 9, "operating_mode") == 5
        assert bench.get(name, 9, "current_limit") == 300
        assert bench.get(name, 9, "goal_current") == 300
    assert [bench.get(name, n, "operating_mode") for n in range(1, 9)] == [3] * 8


def test_a_leader_gripper_holds_positions(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("leader_left")
    with bench.arm("leader_left"):
        assert bench.get("leader_left", 9, "operating_mode") == 3


def test_ram_is_applied_again(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    for register, value in {"profile_velocity": 50, "position_p_gain": 100}.items():
        bench.set("follower_left", 4, register, value)
    with bench.arm("follower_left"):
        assert bench.get("follower_left", 4, "profile_velocity") == 0
        assert bench.get("follower_left", 4, "position_p_gain") == 800


def _lost(servo_id: int) -> Callable[[str, list[dict[str, Any]]], None]:
    def edit(_: str, rows: list[dict[str, Any]]) -> None:
        del rows[servo_id - 1]

    return edit


def _other(servo_id: int, register: str, value: Any) -> Callable[..., None]:
    def edit(_: str, rows: list[dict[str, Any]]) -> None:
        if register == "model":
            rows[servo_id - 1]["model"] = value
        else:
            rows[servo_id - 1]["registers"][register] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (_lost(6), r"servo 6 \(forearm_roll\) does not answer; ids that answered: \[1, 2, 3, 4, 5"),
        (_lost(3), r"servo 3 \(shoulder_shadow\)"),
        (_other(8, "model", "XL430-W250"), r"servo 8 \(wrist_rotate\) is XL430.*must be XM430"),
        (_other(4, "drive_mode", 0), r"servo 4 \(elbow\): drive_mode is 0, must be 1"),
        (_other(1, "drive_mode", 8), r"servo 1 \(waist\): drive_mode is 8, must be 0"),
        (_other(5, "secondary_id", 255), r"servo 5 \(elbow_shadow\): secondary_id is 255, must"),
        (_other(2, "max_position_limit", 4095), r"max_position_limit is 4095, must be 2867"),
        (_other(7, "velocity_limit", 1023), r"velocity_limit is 1023.*calibrate .* --apply"),
        (_other(9, "return_delay_time", 250), r"return_delay_time is 250, must be 0"),
    ],
)
def test_an_arm_that_is_not_as_it_should(
    make_bench: Callable[..., Any], edit: Callable[..., None], says: str
) -> None:
    bench = make_bench("follower_left", edit=edit)
    arm = bench.arm("follower_left")
    with pytest.raises(DeviceError, match=says):
        arm.connect()
    # It can be tried again at once: the port was given back.
    with pytest.raises(DeviceError, match=says):
        arm.connect()


def test_a_time_based_profile_bit_is_harmless(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left", edit=_other(2, "drive_mode", 5))
    with bench.arm("follower_left"):
        pass


def test_a_replaced_servo_is_told_by_the_station(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("leader_left", edit=_other(8, "model", "XM430-W350"))
    with bench.arm("leader_left", servo_models={"wrist_rotate": "XM430-W350"}) as arm:
        assert np.isfinite(arm.read(0.3).tau[5])


def test_a_gripper_that_cannot_limit_its_current() -> None:
    with pytest.raises(ValueError, match="cannot limit its current"):
        AlohaArmConfig("follower", "vx300s", "/dev/null", servo_models={"gripper": "XC430-W150"})


def test_no_port() -> None:
    arm = AlohaArm(AlohaArmConfig("leader", "wx250s", "/dev/does-not-exist"))
    with pytest.raises(BusError, match="does-not-exist"):
        arm.connect()
    arm.disconnect()


@pytest.mark.parametrize("name", ["follower_left", "leader_right"])
def test_units(make_bench: Callable[..., Any], name: str) -> None:
    bench = make_bench(name)
    with bench.arm(name) as arm:
        state = arm.read(0.3)
        sleep = [0, -1.85, 1.55, 0, 0.8, 0] if name[0] == "f" else [0, -1.80, 1.55, 0, 0.8, 0]
        np.testing.assert_allclose(state.q[:6], sleep, atol=TICK)
        if name[0] == "f":
            # Finger at 0.022 sin 0.4 + sqrt(0.036^2 - 0.022^2 cos^2 0.4) of 0.01844..0.05800 m.
            assert state.q[6] == pytest.approx((0.038335 - 0.01844) / 0.03956, abs=2e-3)
            assert np.isfinite(state.tau).all()
        else:
            assert state.q[6] == pytest.approx((-0.2 + 0.6842) / (0.3083 + 0.6842), abs=2e-3)
            # XL430 and XC430 have no current sensor: unknown is NaN.
            assert np.isnan(state.tau[5:]).all()
            assert np.isfinite(state.tau[:5]).all()
        assert (state.age_s == 0).all()
        held = arm.held()
        np.testing.assert_allclose(held[:6], state.q[:6], atol=1e-9)


def test_targets_round_trip(make_bench: Callable[..., Any], wait: Callable[..., None]) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque(ALL, True)
        sent = arm.write(HOME)
        np.testing.assert_allclose(sent[:6], HOME[:6], atol=TICK / 2)
        # The gripper's stroke is 2.1123 rad of joint.
        assert sent[6] == pytest.approx(0.5, abs=TICK / 2.1123)
        np.testing.assert_array_equal(arm.held(), sent)
        _settle(arm, wait, HOME)
        # Restated: 2048 + rad / (2 pi / 4096); the gripper at -0.6213 + 0.5 * 2.1123 rad.
        goals = [bench.get("follower_left", n, "goal_position") for n in range(1, 10)]
        assert goals == [2048, 1422, 1422, 2804, 2804, 2048, 1852, 2048, 2331]
        back = arm.write(sent)
        np.testing.assert_allclose(back, sent, atol=1e-9)


def test_a_target_at_a_limit_is_not_refused(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque(ALL, True)
        # Half a tick and more beyond the last one: a servo would refuse it without a word.
        arm.write(arm.spec.limits("upper") + 0.01)
        assert bench.get("follower_left", 2, "goal_position") == 2867
        assert bench.get("follower_left", 1, "goal_position") == 4095
        arm.write(arm.spec.limits("lower") - 0.01)
        assert bench.get("follower_left", 2, "goal_position") == 841
        assert bench.get("follower_left", 1, "goal_position") == 0


@pytest.mark.parametrize("bad", [np.zeros(6), np.full(7, np.nan), np.array([np.inf] + [0] * 6)])
def test_nonsense_is_refused(make_bench: Callable[..., Any], bad: Any) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque(ALL, True)
        with pytest.raises(DeviceError, match="7 finite numbers"):
            arm.write(bad)


def test_offsets(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    calibration = ArmCalibration(offsets={"wrist_rotate": 100})
    with bench.arm("follower_left", calibration=calibration) as arm:
        assert arm.read(0.3).q[5] == pytest.approx(-100 * TICK)
        arm.set_torque(ALL, True)
        target = arm.held()
        target[5] = 0.0
        arm.write(target)
        assert bench.get("follower_left", 8, "goal_position") == 2148


def test_torque_comes_without_a_jump(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    for servo_id in range(1, 10):  # a goal from another life, far away
        bench.set("follower_left", servo_id, "goal_position", 2048)
    before = bench.positions("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque(ALL, True)
        assert arm.torque().all()
        assert [bench.get("follower_left", n, "torque_enable") for n in range(1, 10)] == [1] * 9
        for servo_id in range(1, 10):
            ticks = 2048 + before[servo_id - 1] / TICK
            assert abs(bench.get("follower_left", servo_id, "goal_position") - ticks) < 2
        for _ in range(20):
            arm.read(0.3)
            arm.write(arm.held())
        np.testing.assert_allclose(bench.positions("follower_left"), before, atol=3 * TICK)


def test_joints_without_torque_are_skipped(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("leader_left")
    with bench.arm("leader_left") as arm:
        arm.set_torque(ALL, True)
        arm.set_torque([False] * 6 + [True], False)
        assert arm.torque().tolist() == [True] * 6 + [False]
        written = len(bench.goals("leader_left", 9))
        arm.read(0.3)
        sent = arm.write(HOME)
        assert len(bench.goals("leader_left", 9)) == written
        # What comes back for the free gripper is where it is.
        assert sent[6] == pytest.approx((-0.2 + 0.6842) / 0.9925, abs=2e-3)
        assert bench.get("leader_left", 2, "goal_position") == 1422


def test_shadows_go_along(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque([False, True] + [False] * 5, True)
        assert [bench.get("follower_left", n, "torque_enable") for n in range(1, 10)] == [
            0, 1, 1, 0, 0, 0, 0, 0, 0,
        ]  # fmt: skip
        assert bench.get("follower_left", 3, "goal_position") == bench.get(
            "follower_left", 2, "goal_position"
        )
        arm.set_torque([False, True] + [False] * 5, False)
        assert [bench.get("follower_left", n, "torque_enable") for n in (2, 3)] == [0, 0]


def test_far_outside_its_limits_a_joint_gets_no_torque(make_bench: Callable[..., Any]) -> None:
    def edit(_: str, rows: list[dict[str, Any]]) -> None:
        rows[6]["position_rad"] = -2.2  # 614 counts; the limit is 830

    bench = make_bench("follower_left", edit=edit)
    with bench.arm("follower_left") as arm:
        with pytest.raises(DeviceError, match=r"servo 7 \(wrist_angle\).*by hand"):
            arm.set_torque(ALL, True)
        assert bench.get("follower_left", 7, "torque_enable") == 0


def test_a_hand_moves_a_free_leader(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench("leader_left")
    with bench.arm("leader_left") as arm:
        bench.control.call("hand", "leader_left", servo_id=6, position_rad=0.7)
        bench.control.call("hand", "leader_left", servo_id=9, position_rad=-0.6842)
        wait(lambda: abs(arm.read(0.3).q[3] - 0.7) < 2 * TICK, "the hand to be seen")
        assert arm.read(0.3).q[6] == pytest.approx(0.0, abs=2e-3)
        assert not arm.torque().any()
        assert len(bench.goals("leader_left", 6)) == 0


def test_a_restart_under_torque_moves_nothing(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    bench = make_bench("follower_left")
    first = bench.arm("follower_left")
    first.connect()
    first.set_torque(ALL, True)
    _settle(first, wait, HOME)
    held = first.held()
    before = bench.positions("follower_left")
    goals = {n: bench.goals("follower_left", n)[-1] for n in range(1, 10)}
    first._bus.close()  # as if killed: no farewell

    with bench.arm("follower_left") as second:
        assert second.torque().all()
        np.testing.assert_array_equal(second.held(), held)
        second.read(0.3)
        second.write(second.held())
        for servo_id, goal in goals.items():
            after = bench.goals("follower_left", servo_id)
            assert after[-1] == goal
            assert bench.get("follower_left", servo_id, "torque_enable") == 1
        np.testing.assert_allclose(bench.positions("follower_left"), before, atol=3 * TICK)
    assert [bench.get("follower_left", n, "torque_enable") for n in range(1, 10)] == [1] * 9


def test_a_wrong_mode_under_torque_is_a_fault_not_a_drop(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left", edit=_other(4, "operating_mode", 4))
    bench.set("follower_left", 4, "torque_enable", 1)
    with pytest.raises(DeviceError, match=r"servo 4 \(elbow\).*operating mode 4, needs 3"):
        bench.arm("follower_left").connect()
    assert bench.get("follower_left", 4, "torque_enable") == 1
    assert bench.get("follower_left", 4, "operating_mode") == 4


def test_a_grip_limit_under_torque_is_a_fault_not_a_drop(make_bench: Callable[..., Any]) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left", current_limit=200) as arm:
        arm.set_torque(ALL, True)
    with pytest.raises(DeviceError, match="holds with current_limit 200, the station says 300"):
        bench.arm("follower_left", current_limit=300).connect()
    assert bench.get("follower_left", 9, "torque_enable") == 1


@pytest.mark.parametrize("turn", [-1, 1, 2])
def test_whole_turns_do_not_matter(make_bench: Callable[..., Any], turn: int) -> None:
    """A free leader whose joint a hand has turned right round reads 4096 more, and is the same."""
    bench = make_bench("leader_left")
    angle = 0.3 + turn * 2 * np.pi
    bench.control.call("hand", "leader_left", servo_id=6, position_rad=angle)
    bench.control.call("hand", "leader_left", servo_id=9, position_rad=-0.2 + turn * 2 * np.pi)
    assert bench.get("leader_left", 6, "present_position") == pytest.approx(
        2048 + angle / TICK, abs=2
    )
    with bench.arm("leader_left") as arm:
        state = arm.read(0.3)
        assert state.q[3] == pytest.approx(0.3, abs=TICK)
        assert state.q[6] == pytest.approx((-0.2 + 0.6842) / 0.9925, abs=2e-3)
        # The servo forgets the turns when torque comes on; the joint stays where it is.
        arm.set_torque(ALL, True)
        state = arm.read(0.3)
        assert state.q[3] == pytest.approx(0.3, abs=3 * TICK)
        np.testing.assert_allclose(arm.held()[3], 0.3, atol=2 * TICK)


def test_whole_turns_of_a_follower_gripper(
    make_bench: Callable[..., Any], wait: Callable[..., None]
) -> None:
    """In current-based position mode goals count turns too: they go where the count is."""
    bench = make_bench("follower_left")
    bench.control.call("hand", "follower_left", servo_id=9, position_rad=0.4 + 2 * np.pi)
    with bench.arm("follower_left") as arm:
        arm.set_torque(ALL, True)
        bench.control.call("hand", "follower_left", servo_id=9, position_rad=None)
        target = arm.held()
        target[6] = 0.5
        arm.write(target)
        assert bench.get("follower_left", 9, "goal_position") == 2331 + 4096


@pytest.mark.parametrize(
    ("role", "model", "baud", "fast", "hz"),
    [
        ("follower", "vx300s", 1_000_000, None, 261),
        ("follower", "vx300s", 4_000_000, True, 528),
        ("follower", "vx300s", 1_000_000, False, 222),
        ("leader", "wx250s", 1_000_000, None, 311),
    ],
)
def test_rate(role: Any, model: Any, baud: int, fast: bool | None, hz: float) -> None:
    config = AlohaArmConfig(role, model, "/dev/null", baud, fast_read=fast)
    assert AlohaArm(config).rate_hz == pytest.approx(hz, abs=1)
