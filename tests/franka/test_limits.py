"""The Franka limits restated by hand, and that a braking filter within the insets keeps them."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.franka.limits import FER, FR3, joint_limits, limits_of

# FCI documentation, FR3 with system image 5.9 or later.
UPPER = [2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508]
LOWER = [-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508]
FASTEST = [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]
OFFSET = [0.6599, 0.2517, 0.2, 0.3533, 0.5757, 0.4878, 0.4628]
DECELERATION = [6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0]

shares = st.floats(0.0, 1.0)
joints = st.integers(0, 6)


def highest(joint: int, q: float) -> float:
    """The documentation's upper velocity bound of the FR3."""
    room = max(0.0, 2 * DECELERATION[joint] * (UPPER[joint] - q))
    return min(FASTEST[joint], max(0.0, -OFFSET[joint] + sqrt(room)))


def lowest(joint: int, q: float) -> float:
    room = max(0.0, 2 * DECELERATION[joint] * (q - LOWER[joint]))
    return max(-FASTEST[joint], min(0.0, OFFSET[joint] - sqrt(room)))


@given(joints, shares)
def test_the_fr3s_velocity_depends_on_its_position(joint: int, share: float) -> None:
    q = LOWER[joint] + share * (UPPER[joint] - LOWER[joint])
    low, high = FR3.velocity_bounds(joint, q)
    assert low == pytest.approx(lowest(joint, q), abs=1e-12)
    assert high == pytest.approx(highest(joint, q), abs=1e-12)


def test_examples_of_the_velocity_bound() -> None:
    assert FR3.velocity_bounds(0, 0.0) == (-2.62, 2.62)
    # 0.1 rad before the stop: sqrt(2 * 6 * 0.1) - 0.6599 rad/s, and full speed back.
    assert FR3.velocity_bounds(0, 2.8007) == pytest.approx((-2.62, 0.43554), abs=1e-5)
    assert FR3.velocity_bounds(5, 0.4398) == (0.0, 4.18)
    assert FR3.velocity_bounds(5, 0.4) == (0.0, 4.18)


def test_the_fers_does_not() -> None:
    for joint, top in enumerate([2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]):
        assert FER.velocity_bounds(joint, FER.q_upper[joint]) == (-top, top)


def test_the_numbers_of_both_models() -> None:
    assert FR3.q_lower == tuple(LOWER) and FR3.q_upper == tuple(UPPER)
    assert FR3.acceleration == (10.0,) * 7 and FR3.jerk == (5000.0,) * 7
    assert FER.q_lower == (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
    assert FER.q_upper == (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
    assert FER.acceleration == (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0)
    assert FER.jerk == tuple(500.0 * a for a in FER.acceleration)
    for limits in (FR3, FER):
        assert limits.torque == (87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0)
        assert limits.torque_rate == (1000.0,) * 7
    assert [FR3.translation.velocity, FR3.translation.acceleration, FR3.translation.jerk] == [
        3.0, 9.0, 4500.0,
    ]  # fmt: skip
    assert [FER.rotation.velocity, FER.rotation.acceleration, FER.rotation.jerk] == [
        2.5, 25.0, 12500.0,
    ]  # fmt: skip


@given(joints, st.floats(0.01, 1.0), shares)
def test_braking_within_the_inset_keeps_the_fr3s_bound(
    joint: int, speed: float, share: float
) -> None:
    """Anywhere within the inset limits, the fastest a constant deceleration can stop from."""
    lower, upper, velocity, acceleration = joint_limits("fr3", np.array(FASTEST) * speed)
    q = lower[joint] + share * (upper[joint] - lower[joint])
    assert lower[joint] < upper[joint]
    up = min(velocity[joint], sqrt(2 * acceleration[joint] * max(0.0, upper[joint] - q)))
    down = min(velocity[joint], sqrt(2 * acceleration[joint] * max(0.0, q - lower[joint])))
    assert up <= highest(joint, q) + 1e-9
    assert -down >= lowest(joint, q) - 1e-9


def test_an_inset_by_hand() -> None:
    lower, upper, velocity, acceleration = joint_limits("fr3", 1.0)
    # joint 2: 0.2517 * (2 * 1.0 + 0.2517) / (2 * 2.585) = 0.10962 rad
    assert upper[1] == pytest.approx(1.8361 - 0.10962, abs=1e-5)
    assert lower[1] == pytest.approx(-1.8361 + 0.10962, abs=1e-5)
    assert velocity.tolist() == [1.0] * 7
    assert acceleration.tolist() == [6.0, 2.585, 3.5, 4.0, 10.0, 5.5, 10.0]


def test_the_fer_keeps_its_limits() -> None:
    lower, upper, velocity, acceleration = joint_limits("fer", [2, 2, 2, 2, 2.5, 2.5, 2.5])
    assert lower.tolist() == list(FER.q_lower) and upper.tolist() == list(FER.q_upper)
    assert velocity.tolist() == [2, 2, 2, 2, 2.5, 2.5, 2.5]
    assert acceleration.tolist() == list(FER.acceleration)


@pytest.mark.parametrize("velocity", [0.0, -1.0, 2.7, float("nan"), [1, 1, 1, 1, 1, 5, 1]])
def test_a_speed_that_the_robot_has_not(velocity: float) -> None:
    with pytest.raises(ValueError, match="at most"):
        joint_limits("fr3", velocity)


def test_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="'fr3'"):
        limits_of("panda")
