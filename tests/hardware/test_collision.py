"""The collision guard of the ALOHA cell: what it stops, what it lets pass, what it lets go."""

from __future__ import annotations

import math
from itertools import product

import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.worlds.aloha import sample_cube_pose
from hardware.worlds.assets import gym_aloha_assets
from hardware.worlds.collision import Margin, MujocoCollisionGuard, Side, end_effector
from hardware.worlds.operator import plan_transfer
from robot_stack.safety.filter import SafetyFilter
from robot_stack.spec import JointSpec, RobotSpec
from robot_stack.types import Difference

Array = NDArray[np.float64]

HOME = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5])
SLEEP = np.array([0.0, -1.85, 1.55, 0.0, 0.8, 0.0, 0.0])
# Reaching across the middle, over 20 cm into the other arm's half of the table.
REACHING = np.array([0.0, 0.7, -0.3, 0.0, 0.0, 0.0, 0.5])
INTO_TABLE = np.array([0.0, 0.9, 0.1, 0.0, 0.6, 0.0, 0.5])
SIDES: tuple[Side, Side] = ("left", "right")
RATE_HZ = 200.0
LOWER = [-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, -0.1]
UPPER = [3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.1]


def spec(max_step: float = 100.0) -> RobotSpec:
    joints = tuple(
        JointSpec(
            str(i),
            "rad" if i < 6 else "fraction",
            LOWER[i],
            UPPER[i],
            3.14 if i < 6 else 6.0,
            12.0 if i < 6 else 60.0,
            max_step,
        )
        for i in range(7)
    )
    return RobotSpec("vx300s", joints, tuple(HOME), tuple(SLEEP))


class Witness:
    """Distances in the scene as gym-aloha ships it, by another function of MuJoCo."""

    def __init__(self) -> None:
        path = gym_aloha_assets() / "bimanual_viperx_transfer_cube.xml"
        self.model = mujoco.MjModel.from_xml_path(str(path))
        self.data = mujoco.MjData(self.model)
        names = [self.model.geom(i).name for i in range(self.model.ngeom)]

        def geoms(side: Side, fingers: bool) -> list[int]:
            return [
                i
                for i, name in enumerate(names)
                if name.startswith(f"vx300s_{side}/")
                and not name.endswith("1_base")
                and name.endswith("_finger") == fingers
            ]

        self.hard = {side: geoms(side, False) for side in SIDES}
        self.fingers = {side: geoms(side, True) for side in SIDES}
        self.table = names.index("table")

    def pose(self, left: Array, right: Array) -> None:
        for first, q in ((0, left), (8, right)):
            finger = 0.021 + float(np.clip(q[6], 0.0, 1.0)) * (0.057 - 0.021)
            self.data.qpos[first : first + 8] = [*q[:6], finger, -finger]
        mujoco.mj_kinematics(self.model, self.data)

    def between(self, first: list[int], second: list[int]) -> float:
        return min(self._distance(a, b) for a, b in product(first, second))

    def _distance(self, a: int, b: int) -> float:
        # mj_geomDistance (3.8.1) now and then answers 0.0 for meshes that are far apart (0.1 % of
        # random poses; mj_collision does not): ask again a hair's breadth beside.
        for _ in range(10):
            distance = float(mujoco.mj_geomDistance(self.model, self.data, a, b, 0.3, None))
            if distance != 0.0:
                return distance
            self.data.geom_xpos[b] += 1e-6
        raise AssertionError("mj_geomDistance has no answer")

    def arms(self) -> float:
        """Nearest distance between the arms, fingers against fingers left out."""
        return min(
            self.between(self.hard["left"], self.hard["right"]),
            self.between(self.fingers["left"], self.hard["right"]),
            self.between(self.hard["left"], self.fingers["right"]),
        )


@pytest.fixture(scope="module")
def witness() -> Witness:
    return Witness()


@pytest.fixture(scope="module")
def guards() -> tuple[MujocoCollisionGuard, MujocoCollisionGuard]:
    return MujocoCollisionGuard("left"), MujocoCollisionGuard.for_robot(1)


Guards = tuple[MujocoCollisionGuard, MujocoCollisionGuard]


class Cell:
    """Two filters with their guards; each sees where the other would come to rest, a tick late."""

    def __init__(self, guards: Guards, left: Array, right: Array) -> None:
        self.guards = guards
        self.filters = (SafetyFilter(spec(), 1 / RATE_HZ), SafetyFilter(spec(), 1 / RATE_HZ))
        self.sent = [left, right]
        self.rest = [left, right]
        self.differences = [Difference.NONE, Difference.NONE]
        self.distance = [math.inf, math.inf]
        for safety, position in zip(self.filters, self.sent, strict=True):
            safety.reset(position)

    def step(self, *targets: Array | None) -> None:
        rest = list(self.rest)
        for arm, target in enumerate(targets):

            def clearance(held: Array, ahead: Array, arm: int = arm) -> float:
                free, self.distance[arm] = self.guards[arm].check(held, ahead, rest[1 - arm])
                return free

            result = self.filters[arm].step(target, 1 / RATE_HZ, guard=clearance)
            self.sent[arm], self.rest[arm] = result.sent, result.rest
            self.differences[arm] = result.difference

    def speed(self) -> float:
        return max(float(np.abs(safety.velocity).max()) for safety in self.filters)


# -- what it stops -------------------------------------------------------------------------------


@pytest.mark.parametrize("waist", [-0.15, 0.0, 0.15])
def test_arms_that_rush_at_each_other_slow_down_and_stop_apart(
    guards: Guards, witness: Witness, waist: float
) -> None:
    goals = REACHING.copy(), REACHING.copy()
    goals[0][0], goals[1][0] = waist, -waist  # the arms face each other: the same side of the table
    witness.pose(*goals)
    assert witness.arms() < -0.01
    cell = Cell(guards, HOME, HOME)
    fastest, nearest = 0.0, math.inf
    for tick in range(400):
        cell.step(*goals)
        fastest = max(fastest, cell.speed())
        if tick % 5 == 0:
            witness.pose(*cell.sent)
            nearest = min(nearest, witness.arms())
    assert fastest > 1.5
    assert nearest > 0.005
    assert all(difference & Difference.COLLISION for difference in cell.differences)
    assert cell.speed() < 0.01
    assert min(cell.distance) < 0.04


def test_an_arm_is_stopped_by_one_that_stands_in_its_way(guards: Guards, witness: Witness) -> None:
    cell = Cell(guards, HOME, REACHING)
    witness.pose(REACHING, REACHING)
    assert witness.arms() < 0.0
    for tick in range(400):
        cell.step(REACHING, None)
        if tick % 5 == 0:
            witness.pose(*cell.sent)
            assert witness.arms() > 0.009
    assert cell.differences[0] & Difference.COLLISION
    assert cell.sent[1].tobytes() == REACHING.tobytes()


@pytest.mark.parametrize("arm", [0, 1])
def test_an_arm_that_dives_at_the_table_stops_above_it(
    guards: Guards, witness: Witness, arm: int
) -> None:
    goals: list[Array | None] = [None, None]
    goals[arm] = INTO_TABLE
    witness.pose(INTO_TABLE, INTO_TABLE)
    assert witness.between(witness.hard[SIDES[arm]], [witness.table]) < -0.02
    cell = Cell(guards, HOME, HOME)
    for tick in range(400):
        cell.step(*goals)
        if tick % 5 == 0:
            witness.pose(*cell.sent)
            assert witness.between(witness.hard[SIDES[arm]], [witness.table]) > 0.005
            # Fingers may press a little; the goal never goes deep.
            assert witness.between(witness.fingers[SIDES[arm]], [witness.table]) > -0.013
    assert cell.differences[arm] & Difference.COLLISION
    assert cell.speed() < 0.01


def test_an_arm_does_not_fold_into_itself(guards: Guards) -> None:
    folded = SLEEP.copy()
    folded[4] = 2.2  # the wrist curls into the upper arm
    assert guards[0].check(SLEEP, folded, SLEEP)[0] < 1.0


def test_nothing_is_free_while_the_other_arm_is_nowhere(guards: Guards) -> None:
    unknown = np.full(7, np.nan)
    for target, other in ((HOME, unknown), (unknown, HOME)):
        free, distance = guards[0].check(SLEEP, target, other)
        assert free == 0.0
        assert math.isnan(distance)


def test_forearms_keep_1_5_cm_apart_where_no_finger_is_near(
    guards: Guards, witness: Witness
) -> None:
    folded = REACHING.copy()
    folded[4] = -1.8  # hands up: the forearms meet first
    start = HOME.copy()
    start[4] = -1.8
    witness.pose(folded, folded)
    assert witness.between(witness.hard["left"], witness.hard["right"]) < -0.03
    cell = Cell(guards, start, start)
    for tick in range(400):
        cell.step(folded, folded)
        if tick % 5 == 0:
            witness.pose(*cell.sent)
            apart = witness.between(witness.hard["left"], witness.hard["right"])
            assert apart > 0.010  # 5 mm of the 15 for the tick that each sees the other late
    assert 0.010 < apart < 0.030
    assert cell.differences[0] & Difference.COLLISION


def test_a_hand_on_edge_keeps_1_cm_above_the_table(guards: Guards, witness: Witness) -> None:
    on_edge = np.array([0.0, 0.9, 0.2, 0.0, -1.1, 1.57, 0.5])  # the gripper's bar upright
    cell = Cell(guards, HOME, HOME)
    for tick in range(400):
        cell.step(on_edge, None)
        if tick % 5 == 0:
            witness.pose(*cell.sent)
            above = witness.between(witness.hard["left"], [witness.table])
            assert above > 0.0099
    assert above < 0.030
    assert witness.between(witness.fingers["left"], [witness.table]) > 0.02


# -- what it lets go -----------------------------------------------------------------------------


def test_away_is_free_however_near(guards: Guards) -> None:
    cell = Cell(guards, HOME, REACHING)
    for _ in range(400):
        cell.step(REACHING, None)
    held = cell.sent[0]
    nearer = held + 0.02 * (REACHING - held) / np.abs(REACHING - held).max()
    away = held + 0.02 * (HOME - held) / np.abs(HOME - held).max()
    assert guards[0].check(held, nearer, REACHING)[0] < 0.3
    assert guards[0].check(held, away, REACHING)[0] == 1.0
    # Even when the arms are already in one another.
    inside = HOME + 0.52 * (REACHING - HOME)
    back = HOME + 0.50 * (REACHING - HOME)
    free, distance = guards[0].check(inside, back, inside)
    assert distance < -0.01
    assert free == 1.0
    assert guards[0].check(back, inside, inside)[0] == 0.0
    for _ in range(300):
        cell.step(HOME, None)
        assert not cell.differences[0] & Difference.COLLISION
    np.testing.assert_allclose(cell.sent[0], HOME, atol=1e-9)


# -- what it lets pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [0.0, 1.0])
@pytest.mark.parametrize("roll", [-3.1, 0.0, 1.6])
def test_home_and_sleep_are_free(guards: Guards, opening: float, roll: float) -> None:
    poses = []
    for pose in (HOME, SLEEP):
        turned = pose.copy()
        turned[6] = opening
        poses.append(turned)
    poses[0][5] = roll
    for guard, mine, theirs in product(guards, poses, poses):
        free, distance = guard.check(HOME, mine, theirs)
        assert free == 1.0
        assert distance > 0.008


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_cube_transfer_passes_without_being_slowed(
    guards: Guards, witness: Witness, seed: int
) -> None:
    planning = plan_transfer(sample_cube_pose(seed), seed)
    while True:
        try:
            next(planning)
        except StopIteration as finished:
            plan = finished.value
            break
    fingers_met = False
    for t in np.arange(0.0, plan.duration_s, 0.04):
        now, ahead = plan.at(t), plan.at(t + 0.1)
        for arm, guard in enumerate(guards):
            free, _ = guard.check(now[arm], ahead[arm], now[1 - arm])
            assert free == 1.0, (plan.name(t), arm)
        if plan.name(t) == "take":
            witness.pose(*now)
            met = witness.between(witness.fingers["left"], witness.fingers["right"])
            fingers_met |= met < 0.01
    assert fingers_met  # or this was no hand-over


def test_fingertips_may_touch_the_table(guards: Guards, witness: Witness) -> None:
    touching = np.array([0.0, 0.15, 0.5, 0.0, 0.5, 0.0, 0.5])
    low, high = 0.0, 0.6
    for _ in range(30):  # turn the shoulder until the lowest finger is 2 mm into the table
        touching[1] = (low + high) / 2.0
        witness.pose(touching, HOME)
        depth = witness.between(witness.fingers["left"], [witness.table])
        low, high = (touching[1], high) if depth > -0.002 else (low, touching[1])
    assert depth == pytest.approx(-0.002, abs=1e-4)
    assert guards[0].check(HOME, touching, HOME)[0] == pytest.approx(0.8, abs=0.02)


# -- what it says --------------------------------------------------------------------------------


def test_the_distance_is_the_true_one_seen_from_both_arms(guards: Guards, witness: Witness) -> None:
    for reach in np.linspace(0.0, 1.0, 41):
        pose = HOME + reach * (REACHING - HOME)
        witness.pose(pose, pose)
        distances = [guard.check(pose, pose, pose)[1] for guard in guards]
        assert distances[0] == pytest.approx(distances[1], abs=1e-4)
        if not math.isinf(distances[0]):
            true = min(
                witness.arms(),
                *(witness.between(witness.hard[side], [witness.table]) for side in SIDES),
            )
            assert distances[0] == pytest.approx(true, abs=1e-3)
    assert distances[0] < 0.0


def test_margins_and_sides_are_checked() -> None:
    with pytest.raises(ValueError, match="below slow"):
        Margin(0.01, 0.02)
    with pytest.raises(ValueError, match="left and right"):
        MujocoCollisionGuard("middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("side", SIDES)
def test_forward_kinematics_in_the_arms_own_base(side: Side) -> None:
    """Stretched out at zero: 0.079 + 0.04805 + 0.3 m high, five links along x."""
    position = end_effector(side)
    straight = np.zeros(7)
    reach, height = 0.05955 + 0.2 + 0.1 + 0.069744 + 0.15, 0.42705
    np.testing.assert_allclose(position(straight), [reach, 0.0, height], atol=1e-6)
    straight[0] = np.pi / 2
    np.testing.assert_allclose(position(straight), [0.0, reach, height], atol=1e-6)
