"""The scripted operator on the physics alone: the robot follows at once, no network between."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.virtual.servo import joint_impedance
from hardware.teleop.mapper import CartesianMapper, MotionConfig, Stick
from hardware.worlds.franka import FrankaPickPlace, sample_places
from hardware.worlds.franka_hands import JointHand, TwistHand, joints_nearer
from hardware.worlds.franka_operator import Hand, Phase, PickPlaceOperator
from hardware.worlds.franka_plan import plan_pick_place
from robot_stack.errors import DeviceError

Array = NDArray[np.float64]
START = np.array([0.307, 0.0, 0.487, 0.0, 1.0, 0.0, 0.0])
TICK_S = 0.01


@dataclass
class Robot:
    """A robot that does what either hand asks, 10 ms later, at ``speed`` (rad/s) at most;
    ``obeys`` False: nothing at all."""

    world: FrankaPickPlace
    obeys: bool = True
    speed: float = 10.0
    q: Array = field(init=False)
    opening: float = 1.0
    engaged: bool = True
    presses: int = 0
    held: bool = False

    def __post_init__(self) -> None:
        self.q = self.world.body.q
        self.mapper = CartesianMapper(MotionConfig(dead_zone=0.0, expo=0.0))
        self.mapper.engage(np.array([*self.world.fingertips, 1.0]))
        self.now_ns = 0

    def joints(self, q: Array, opening: float) -> None:
        near = np.abs(q - self.q).max() < 0.15 and abs(opening - self.opening) < 0.2
        self.engaged = self.engaged or bool(near)
        if self.obeys and self.engaged:
            most = self.speed * TICK_S
            self.q = self.q + np.clip(q - self.q, -most, most)
            self.grip(opening)

    def grip(self, opening: float) -> None:
        if (opening > 0.5) != (self.opening > 0.5):
            self.world.body.drive_fingers(0.08 if opening > 0.5 else 0.0, 0.1, 40.0)
        self.opening = opening

    def stick(self, stick: Stick) -> None:
        self.presses += stick.held and not self.held
        self.held = stick.held
        self.now_ns += round(TICK_S * 1e9)
        if stick.held and self.obeys:
            target = self.mapper.step(stick, self.now_ns, self.world.fingertips)
            self.joints(joints_nearer(self.q, target[:7]), float(target[7]))

    def run(self, operator: PickPlaceOperator, most_s: float = 40.0) -> None:
        before = self.q
        for _ in range(round(most_s / TICK_S)):
            operator.update(TICK_S)
            if operator.done:
                return
            for k in range(10):
                q_d = before + (self.q - before) * (k + 1) / 10
                rate = (self.q - before) / TICK_S
                self.world.body.step(joint_impedance(q_d, rate, self.world.body))
            before = self.q
            self.world.look()


@dataclass
class Sight:
    world: FrankaPickPlace

    @property
    def fingertips(self) -> Array:
        return self.world.fingertips

    @property
    def env_state(self) -> Array:
        return self.world.env_state

    @property
    def width(self) -> float:
        return self.world.body.finger_width


def hand_of(guise: str, robot: Robot) -> Hand:
    if guise == "twists":
        return TwistHand(robot.stick, 0.25, 1.0)
    return JointHand(robot.joints, lambda: None, lambda: robot.world.body.q)


@pytest.mark.parametrize("guise", ["twists", "joints"])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_operator_puts_the_cube_on_the_square(guise: str, seed: int) -> None:
    robot = Robot(FrankaPickPlace(seed))
    operator = PickPlaceOperator(
        hand_of(guise, robot), Sight(robot.world), seed=seed, max_wait_s=5.0
    )
    robot.run(operator)
    assert operator.phase is Phase.DONE
    assert robot.world.success


def test_a_slippery_cube_is_not_lifted() -> None:
    """Only friction holds it: nothing glues the cube to the fingers."""
    world = FrankaPickPlace(0)
    for name in ("cube", "left_finger_pad", "right_finger_pad"):
        world.model.geom_friction[world.model.geom(name).id] = (0.01, 0.0001, 0.0001)
    robot = Robot(world)
    operator = PickPlaceOperator(hand_of("joints", robot), Sight(world), max_wait_s=5.0)
    start = world.env_state[:2]
    robot.run(operator, 20.0)
    assert not world.success
    assert np.linalg.norm(world.env_state[:2] - start) < 0.15


def test_who_has_no_robot_that_follows_gives_up() -> None:
    robot = Robot(FrankaPickPlace(0), obeys=False)
    operator = PickPlaceOperator(hand_of("twists", robot), Sight(robot.world), max_wait_s=4.0)
    with pytest.raises(DeviceError, match="does not follow"):
        robot.run(operator)
    assert operator.phase is Phase.INTERRUPTED
    assert robot.presses >= 2  # it has let go of the switch and pressed it again
    assert not robot.held


def test_a_robot_that_stops_on_the_way_is_waited_for() -> None:
    robot = Robot(FrankaPickPlace(0))
    operator = PickPlaceOperator(hand_of("joints", robot), Sight(robot.world), max_wait_s=5.0)
    robot.run(operator, 2.0)
    robot.obeys = False
    robot.run(operator, 6.0)
    assert operator.action == "reach"
    robot.obeys = True
    robot.run(operator)
    assert robot.world.success


@pytest.mark.parametrize(("action", "held"), [("let go", 0.02), ("grasp", 0.95), ("lift", 0.4)])
def test_a_leader_that_is_let_off_is_brought_back_to_the_robot(action: str, held: float) -> None:
    """The robot follows a leader only from where it is itself, with its gripper too."""
    robot = Robot(FrankaPickPlace(0))
    operator = PickPlaceOperator(hand_of("joints", robot), Sight(robot.world), max_wait_s=5.0)
    while operator.action != action:
        robot.run(operator, 2 * TICK_S)
        assert not operator.done
    robot.opening, robot.engaged = held, False
    robot.world.body.drive_fingers(0.08 * held, 0.1, 40.0)
    robot.run(operator, 60.0)
    assert robot.engaged
    assert robot.world.success


def test_the_next_movement_begins_when_a_slow_robot_is_there() -> None:
    robot = Robot(FrankaPickPlace(0), speed=0.12)
    operator = PickPlaceOperator(hand_of("joints", robot), Sight(robot.world), max_wait_s=5.0)
    while operator.action != "grasp":
        robot.run(operator, 2 * TICK_S)
        assert not operator.done
    np.testing.assert_allclose(robot.world.fingertips[:3], robot.world.env_state[:3], atol=0.01)
    robot.run(operator, 60.0)
    assert robot.world.success


def test_plans_differ_by_seed_and_not_without_noise() -> None:
    state = np.concatenate(sample_places(2))
    plans = [plan_pick_place(START, state, seed) for seed in (0, 1)]
    assert plans[0].duration_s != plans[1].duration_s
    calm = [plan_pick_place(START, state, seed, noise=0.0) for seed in (0, 1)]
    assert calm[0].duration_s == calm[1].duration_s
    np.testing.assert_array_equal(calm[0].at(1.0, 1.0).pose, calm[1].at(1.0, 1.0).pose)


def test_a_plan_moves_at_human_speed_and_its_rate_is_its_poses() -> None:
    state = np.concatenate(sample_places(4))
    plan = plan_pick_place(START, state, 0, noise=0.0)
    dt = 1e-4
    for t in np.linspace(0.05, plan.duration_s - 0.05, 60):
        wish, after = plan.at(float(t), 0.0), plan.at(float(t) + dt, 0.0)
        if plan.name(float(t)) == plan.name(float(t) + dt):
            np.testing.assert_allclose((after.pose - wish.pose)[:3] / dt, wish.rate[:3], atol=2e-3)
        assert np.linalg.norm(wish.rate[:3]) < 0.26
        assert np.linalg.norm(wish.rate[3:]) < 1.0
