"""Inverse kinematics of the control loop: near poses met, all others approached, nothing jumps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardware.franka.inverse_kinematics import FrankaInverseKinematics
from hardware.franka.kinematics import HOME, Kinematics
from robot_stack import rotation

Array = NDArray[np.float64]

# The FR3's own limits, and a speed and an acceleration that it allows everywhere.
LOWER = np.array((-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508))
UPPER = np.array((2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508))
VELOCITY = np.array((1.3, 1.3, 1.3, 1.3, 2.6, 2.1, 2.6))
ACCELERATION = np.array((6.0, 2.585, 3.5, 4.0, 10.0, 5.5, 10.0))
DT = 0.005
# v^2 / 2a + 2 v dt, worked out by hand.
REACH = np.array((0.1538, 0.3399, 0.2544, 0.2243, 0.3640, 0.4220, 0.3640))
HOME_Q = np.array(HOME)
LEVER = 0.3

KINEMATICS = Kinematics()


def solver() -> FrankaInverseKinematics:
    return FrankaInverseKinematics(
        KINEMATICS, lower=LOWER, upper=UPPER, velocity=VELOCITY, acceleration=ACCELERATION
    )


def follow(ik: FrankaInverseKinematics, pose: Array, q: Array, ticks: int) -> Array:
    """Joints (ticks + 1, 7) of an arm that is at once where the solution says."""
    path = [q]
    for _ in range(ticks):
        path.append(ik.solve(pose, path[-1], DT))
    return np.array(path)


def away(pose: Array, q: Array) -> tuple[float, float]:
    at = KINEMATICS.pose(q)
    return math.dist(pose[:3], at[:3]), math.hypot(*rotation.between(at[3:], pose[3:]))


joints = st.tuples(*(st.floats(low, high) for low, high in zip(LOWER, UPPER, strict=True))).map(
    np.array
)
numbers = st.one_of(
    st.floats(-1.5, 1.5),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1e308, -1e308, 5e-324, 1e9]),
)
poses = st.lists(numbers, min_size=7, max_size=7).map(np.array)


@settings(deadline=None, max_examples=400)
@given(poses, joints, st.sampled_from([0.001, DT, 0.025]))
@example(np.array([1e308, 1e308, 1e308, 1, 0, 0, 0]), HOME_Q, DT)
@example(np.array([0.5, 0, 0.5, 0, 0, 0, 0]), HOME_Q, DT)
@example(np.array([0.0, 0.0, 0.333, 1, 0, 0, 0]), HOME_Q, DT)
def test_whatever_is_asked_the_answer_is_near_and_within_the_limits(
    pose: Array, q: Array, dt: float
) -> None:
    ik = solver()
    before = pose.copy(), q.copy()
    answer = ik.solve(pose, q, dt)
    assert np.isfinite(answer).all()
    assert (answer >= LOWER).all()
    assert (answer <= UPPER).all()
    reach = REACH + 2.0 * VELOCITY * (dt - DT)
    assert (np.abs(answer - q) <= reach + 2e-4).all()
    np.testing.assert_array_equal(pose, before[0])
    np.testing.assert_array_equal(q, before[1])
    assert answer is not q


@pytest.mark.parametrize(
    "pose",
    [
        [math.nan, 0, 0.5, 1, 0, 0, 0],
        [0.4, 0, 0.5, 0, 0, 0, 0],
        [0.4, 0, 0.5, 0, math.inf, 0, 0],
    ],
)
def test_what_is_no_pose_leaves_the_arm_where_it_is(pose: list[float]) -> None:
    ik = solver()
    np.testing.assert_array_equal(ik.solve(np.array(pose), HOME_Q, DT), HOME_Q)
    assert np.isnan(ik.residual).all()


def test_poses_nearby_are_met_to_less_than_the_robot_repeats() -> None:
    random = np.random.default_rng(3)
    ik = solver()
    met = 0
    for _ in range(200):
        start = np.clip(HOME_Q + random.normal(size=7) * 0.4, LOWER + 0.1, UPPER - 0.1)
        pose = KINEMATICS.pose(np.clip(start + random.uniform(-0.2, 0.2, 7), LOWER, UPPER))
        end = follow(ik, pose, start, 100)[-1]
        way, turn = away(pose, end)
        met += way < 5e-5 and turn < 2e-4
        assert ik.residual == pytest.approx((way, turn), abs=5e-6)
    assert met >= 198


def test_a_moving_pose_is_followed_without_a_lag() -> None:
    """0.25 m/s round a circle while the hand nods: every tick's solution is that tick's pose."""
    ik = solver()
    start = KINEMATICS.pose(HOME_Q)
    q = HOME_Q
    speeds = []
    for tick in range(1200):
        t = tick * DT
        angle = 2.0 * math.pi * 0.4 * t
        nod = rotation.from_vector((0.0, 0.3 * math.sin(1.5 * t), 0.0))
        pose = np.array(
            [
                start[0],
                start[1] + 0.1 * math.sin(angle),
                start[2] - 0.1 + 0.1 * math.cos(angle),
                *rotation.multiply(nod, start[3:]),
            ]
        )
        following = ik.solve(pose, q, DT)
        assert max(away(pose, following)) < 2e-5
        speeds.append((following - q) / DT)
        q = following
    assert np.abs(speeds).max() < 1.5
    # The first tick jumps to the circle's speed.
    assert np.abs(np.diff(speeds[1:], axis=0)).max() / DT < 10.0


@settings(deadline=None, max_examples=100)
@given(joints, st.floats(0.6, 1.9))
def test_a_quaternions_sign_and_length_do_not_matter(q: Array, length: float) -> None:
    ik = solver()
    pose = KINEMATICS.pose(np.clip(q + 0.05, LOWER, UPPER))
    answer = ik.solve(pose, q, DT)
    for factor in (-1.0, length, -length):
        same = np.concatenate([pose[:3], factor * pose[3:]])
        np.testing.assert_allclose(ik.solve(same, q, DT), answer, atol=1e-9)


def test_it_turns_the_short_way() -> None:
    ik = solver()
    pose = KINEMATICS.pose(HOME_Q)
    turned = np.array([*pose[:3], *rotation.multiply(rotation.from_vector((0, 0, 0.3)), pose[3:])])
    for sign in (1.0, -1.0):
        target = np.concatenate([turned[:3], sign * turned[3:]])
        path = follow(ik, target, HOME_Q, 30)
        assert abs(path[-1][6] - HOME_Q[6]) < 0.5


# -- out of reach, singular, at the limits -------------------------------------------------------


@pytest.mark.parametrize(
    "pose",
    [
        [2.0, 0.3, 0.4, 0, 1, 0, 0],
        [0.3, -0.2, 1.8, 0, 1, 0, 0],
        [-1.0, -1.0, 0.2, 0, 1, 0, 0],
        [0.4, 0.0, -1.0, 0, 1, 0, 0],
        [0.05, 0.03, 0.3, 0, 1, 0, 0],
        [0.5, 0.0, 0.5, 0.7071, 0.7071, 0.0, 0.0],
    ],
)
def test_a_pose_out_of_reach_is_approached_as_near_as_it_gets_and_held(pose: list[float]) -> None:
    ik = solver()
    target = np.array(pose)
    path = follow(ik, target, HOME_Q, 2500)
    speed = np.abs(np.diff(path[-200:], axis=0)) / DT
    assert speed.max() < 0.02  # held; what creeps is the elbow, along a valley
    end = path[-1]
    way, turn = away(target, end)
    assert ik.residual == pytest.approx((way, turn), abs=5e-6)
    # No joints nearby are better: neither random ones nor any single joint moved.
    left = math.hypot(way, LEVER * turn)
    random = np.random.default_rng(0)
    tries = [*random.normal(size=(400, 7)) * 0.02, *np.eye(7) * 0.01, *-np.eye(7) * 0.01]
    for change in tries:
        other = away(target, np.clip(end + change, LOWER, UPPER))
        assert math.hypot(other[0], LEVER * other[1]) > left - 2e-3


def test_beyond_its_reach_it_slides_along_the_edge_and_comes_back() -> None:
    """The hand leaves the workspace at 0.2 m/s, moves sideways out there, and comes back."""
    ik = solver()
    pose = KINEMATICS.pose(HOME_Q)
    q = HOME_Q
    for velocity, edge in (
        ((0.2, 0.0, 0.0), False),
        ((0.0, 0.2, 0.0), True),
        ((0.0, -0.2, 0.0), True),
        ((-0.2, 0.0, 0.0), False),
    ):
        for _ in range(int(4 / DT)):
            pose[:3] += np.array(velocity) * DT
            following = ik.solve(pose, q, DT)
            # The hand's own way, plus what the elbow settles.
            assert not edge or np.abs(following - q).max() < 0.8 * DT
            q = following
        assert not edge or away(pose, q)[0] > 0.2
    assert max(away(pose, q)) < 1e-4


@pytest.mark.parametrize(
    "q",
    [
        np.zeros(7),  # the elbow stretched, axes 1, 3, 5 and 7 in one line: an FER's may be so
        np.array([0.0, 0.0, 0.0, -1.5, 0.0, 1.5, 0.0]),  # axes 1 and 3
        np.array([0.0, 0.3, 0.0, -1.5, 0.0, 0.0, 0.0]),  # axes 5 and 7
    ],
)
def test_in_a_singularity_a_small_way_is_a_small_motion(q: Array) -> None:
    wide = FrankaInverseKinematics(
        KINEMATICS,
        lower=np.full(7, -3.1),
        upper=np.full(7, 3.1),
        velocity=VELOCITY,
        acceleration=ACCELERATION,
        posture=q,
    )
    pose = KINEMATICS.pose(q)
    for axis in range(3):
        for sign in (1.0, -1.0):
            moved = pose.copy()
            moved[axis] += sign * 1e-3
            answer = wide.solve(moved, q, DT)
            assert np.abs(answer - q).max() < 0.08
            turned = pose.copy()
            vector = [0.0, 0.0, 0.0]
            vector[axis] = sign * 3e-3
            turned[3:] = rotation.multiply(rotation.from_vector(vector), pose[3:])
            assert np.abs(wide.solve(turned, q, DT) - q).max() < 0.08


@pytest.mark.parametrize(
    ("elbow", "most"),
    [(-0.1, 0.02), (-0.3, 0.03), (-0.5, 0.01), (-0.8, 0.02)],  # -0.5: 4 mm of way a radian
)
def test_the_nearer_the_singularity_the_less_a_millimetre_moves(elbow: float, most: float) -> None:
    q = np.array([0.0, 0.6, 0.0, elbow, 0.0, 1.4, 0.785])
    ik = FrankaInverseKinematics(
        KINEMATICS,
        lower=np.full(7, -3.1),
        upper=np.full(7, 3.1),
        velocity=VELOCITY,
        acceleration=ACCELERATION,
        posture=q,
    )
    outwards = KINEMATICS.pose(q)
    outwards[:3] += np.array((math.sin(0.6), 0.0, math.cos(0.6))) * 1e-3
    assert np.abs(ik.solve(outwards, q, DT) - q).max() < most


def swung(q: Array, swing: float) -> Array:
    """The same pose with the elbow swung round by about ``swing`` rad."""
    pose = KINEMATICS.pose(q)
    ik = solver()
    for _ in range(round(abs(swing) / 0.01)):
        nowhere = np.linalg.svd(KINEMATICS.jacobian(q))[2][-1]
        q = q + math.copysign(0.01, swing) * nowhere * np.sign(nowhere[0])
        for _ in range(2):
            q = q + np.linalg.pinv(KINEMATICS.jacobian(q)) @ np.concatenate(
                [
                    pose[:3] - KINEMATICS.pose(q)[:3],
                    rotation.between(KINEMATICS.pose(q)[3:], pose[3:]),
                ]
            )
    assert max(away(pose, q)) < 1e-6
    assert ((q > ik.lower) & (q < ik.upper)).all()
    return q


@pytest.mark.parametrize("swing", [-0.8, 0.8])
def test_the_elbow_settles_slowly_and_the_hand_stays(swing: float) -> None:
    ik = solver()
    start = swung(HOME_Q, swing)
    assert np.abs(start - HOME_Q).max() > 0.3
    pose = KINEMATICS.pose(HOME_Q)
    path = follow(ik, pose, start, 3000)
    assert np.abs(np.diff(path, axis=0)).max() / DT < 0.6
    for q in path[::50]:
        assert max(away(pose, q)) < 1e-5
    np.testing.assert_allclose(path[-1], HOME_Q, atol=0.02)


def test_it_moves_away_from_a_limit_where_the_pose_allows() -> None:
    start = swung(HOME_Q, 0.8)
    upper = UPPER.copy()
    joint = 0
    upper[joint] = start[joint] + 0.01
    lower = LOWER.copy()
    lower[joint] = upper[joint] - 2.0
    ik = FrankaInverseKinematics(
        KINEMATICS,
        lower=lower,
        upper=upper,
        velocity=VELOCITY,
        acceleration=ACCELERATION,
        posture=start,  # nothing else draws it away
    )
    path = follow(ik, KINEMATICS.pose(start), start, 1000)
    assert path[-1][joint] < start[joint] - 0.05
    assert max(away(KINEMATICS.pose(start), path[-1])) < 1e-4


def test_from_outside_its_limits_it_comes_back_at_a_bounded_speed() -> None:
    ik = solver()
    outside = HOME_Q.copy()
    outside[5] = UPPER[5] + 0.6
    answer = ik.solve(KINEMATICS.pose(HOME_Q), outside, DT)
    assert outside[5] - answer[5] == pytest.approx(REACH[5], abs=1e-3)
    assert (follow(ik, KINEMATICS.pose(HOME_Q), outside, 3)[-1] <= UPPER).all()


@pytest.mark.parametrize(
    "change",
    [
        {"lower": np.zeros(6)},
        {"lower": UPPER},
        {"velocity": np.zeros(7)},
        {"acceleration": -ACCELERATION},
        {"posture": np.full(7, math.nan)},
    ],
)
def test_limits_that_are_none_are_refused(change: dict[str, Array]) -> None:
    limits = {"lower": LOWER, "upper": UPPER, "velocity": VELOCITY, "acceleration": ACCELERATION}
    with pytest.raises(ValueError, match=r"limits|seven"):
        FrankaInverseKinematics(KINEMATICS, **{**limits, **change})
