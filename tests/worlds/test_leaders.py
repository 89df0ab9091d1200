"""Hands on the virtual leaders, and the scripted operator going through the start ritual."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hardware.aloha.rig import GRIPPERS, arm_model
from hardware.dynamixel.virtual import VirtualBus, VirtualServo
from hardware.worlds.aloha import LEFT, RIGHT, START, sample_cube_pose
from hardware.worlds.inverse_kinematics import ArmKinematics, both_arms
from hardware.worlds.leaders import LeaderHands
from hardware.worlds.operator import Phase, ScriptedOperator

DT = 0.004
# Restated by hand: rad of a leader's gripper servo, closed and open.
CLOSED, OPEN = -0.6842, 0.3083


class Leaders:
    """Two leader arms in this process: their buses, and hands on them."""

    def __init__(self) -> None:
        model = arm_model("wx250s")
        self.buses = []
        for name in ("left", "right"):
            servos = [
                VirtualServo(s.id, s.model, position_rad=[*START[:6], 0.0][s.joint])
                for s in model.servos
            ]
            self.buses.append(VirtualBus(servos, name=name))
        gripper = GRIPPERS["stanford"]["wx250s"]
        self.hands = LeaderHands([(bus, model, gripper) for bus in self.buses])
        self.now = 0.0

    def torque(self, servos: range, on: bool) -> None:
        for bus in self.buses:
            for servo in servos:
                if on:
                    bus.servo(servo).set("goal_position", bus.servo(servo).get("present_position"))
                bus.servo(servo).set("torque_enable", int(on))

    def step(self, seconds: float, also: Callable[[float], None] = lambda now: None) -> None:
        for _ in range(round(seconds / DT)):
            self.now += DT
            also(self.now)
            self.hands.step(DT)
            for bus in self.buses:
                bus.step(DT)


@pytest.fixture
def leaders() -> Iterator[Leaders]:
    pair = Leaders()
    yield pair
    for bus in pair.buses:
        bus.close()


@pytest.fixture(scope="module")
def kinematics() -> tuple[ArmKinematics, ArmKinematics]:
    return both_arms()


def test_a_limp_leader_follows_the_hand_and_stays(leaders: Leaders) -> None:
    target = np.array([0.4, -0.7, 0.9, 0.3, -0.1, 0.2])
    leaders.hands.move(LEFT, target, 0.25)
    leaders.step(1.0)
    np.testing.assert_allclose(leaders.hands.joints(LEFT), [*target, 0.25], atol=2e-3)
    grip = leaders.buses[LEFT].servo(9).get("present_position")
    assert (grip - 2048) * 2 * np.pi / 4096 == pytest.approx(
        CLOSED + 0.25 * (OPEN - CLOSED), abs=3e-3
    )
    leaders.hands.release(LEFT)
    leaders.step(0.5)
    np.testing.assert_allclose(leaders.hands.joints(LEFT)[:6], target, atol=2e-3)
    np.testing.assert_allclose(leaders.hands.joints(RIGHT)[:6], START[:6], atol=2e-3)


def test_the_shadow_servo_moves_with_its_master(leaders: Leaders) -> None:
    leaders.hands.move(LEFT, np.array([0.0, -0.5, 0.8, 0.0, 0.0, 0.0]), None)
    leaders.step(1.0)
    for master, shadow in ((2, 3), (4, 5)):
        bus = leaders.buses[LEFT]
        assert bus.servo(master).get("present_position") == bus.servo(shadow).get(
            "present_position"
        )


def test_hands_move_at_human_speed_unless_told(leaders: Leaders) -> None:
    leaders.hands.move(LEFT, np.array([1.0, *START[1:6]]), None)
    before = leaders.hands.joints(LEFT)[0]
    leaders.step(0.1)
    assert 0.05 < leaders.hands.joints(LEFT)[0] - before < 0.31
    leaders.hands.move(RIGHT, np.array([1.0, *START[1:6]]), None, at_once=True)
    leaders.step(DT)
    assert leaders.hands.joints(RIGHT)[0] == pytest.approx(1.0, abs=2e-3)


def test_hands_stop_at_the_end_of_a_joint(leaders: Leaders) -> None:
    leaders.hands.move(LEFT, np.array([0.0, -3.0, 3.0, 0.0, 0.0, 0.0]), None)
    leaders.step(3.0)
    # wx250s shoulder 819 and elbow 3094 ticks.
    np.testing.assert_allclose(
        leaders.hands.joints(LEFT)[1:3],
        [(819 - 2048) * 2 * np.pi / 4096, (3094 - 2048) * 2 * np.pi / 4096],
        atol=2e-3,
    )


def test_torque_takes_the_joint_out_of_the_hand(leaders: Leaders) -> None:
    leaders.hands.move(LEFT, np.array([0.3, *START[1:6]]), 0.5)
    leaders.step(1.0)
    leaders.torque(range(1, 9), True)
    leaders.step(0.1)
    leaders.buses[LEFT].servo(1).set("goal_position", 2048)
    leaders.step(1.0)
    assert leaders.hands.joints(LEFT)[0] == pytest.approx(0.0, abs=0.02)
    assert leaders.hands.held(LEFT)  # the gripper, which is limp
    leaders.hands.move(LEFT, np.array([0.5, *START[1:6]]), None)
    leaders.step(0.5)
    assert leaders.hands.joints(LEFT)[0] > 0.02  # a new push pushes against the torque


def test_the_start_ritual_and_a_transfer(
    leaders: Leaders, kinematics: tuple[ArmKinematics, ArmKinematics]
) -> None:
    operator = ScriptedOperator(leaders.hands, sample_cube_pose(0), kinematics, seed=0)
    leaders.step(0.6, operator.update)
    assert operator.phase is Phase.WAITING_FOR_HOME  # limp, but nobody has gone home yet

    leaders.torque(range(1, 10), True)
    leaders.step(1.0, operator.update)
    assert operator.phase is Phase.WAITING_FOR_HOME

    leaders.torque(range(9, 10), False)
    leaders.step(1.5, operator.update)
    assert operator.phase is Phase.WAITING_FOR_START
    for arm in (LEFT, RIGHT):
        assert leaders.hands.joints(arm)[6] < 0.05  # squeezed
        np.testing.assert_allclose(leaders.hands.joints(arm)[:6], START[:6], atol=0.03)

    leaders.torque(range(1, 9), False)
    leaders.step(0.5, operator.update)
    assert operator.phase is Phase.MOVING
    fastest, last = 0.0, leaders.hands.joints(RIGHT)
    for _ in range(round(14.0 / 0.1)):
        leaders.step(0.1, operator.update)
        joints = leaders.hands.joints(RIGHT)
        fastest = max(fastest, float(np.abs(joints - last)[:6].max()) / 0.1)
        last = joints
    assert operator.phase is Phase.DONE
    assert fastest < 3.0  # rad/s: below what the followers' servos allow
    assert not leaders.hands.held(LEFT)


def test_torque_interrupts_the_operator(
    leaders: Leaders, kinematics: tuple[ArmKinematics, ArmKinematics]
) -> None:
    operator = ScriptedOperator(
        leaders.hands, sample_cube_pose(0), kinematics, seed=0, ritual=False
    )
    leaders.step(3.0, operator.update)
    assert operator.phase is Phase.MOVING
    leaders.torque(range(1, 10), True)
    leaders.step(0.1, operator.update)
    assert operator.phase is Phase.INTERRUPTED
    stays = leaders.hands.joints(RIGHT)
    leaders.step(0.5, operator.update)
    np.testing.assert_allclose(leaders.hands.joints(RIGHT), stays, atol=0.02)
