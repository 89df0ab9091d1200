"""The gripper's linkage and fractions: published rigs, inverses over the whole stroke, refusals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.aloha.gripper import Gripper, GripperCalibration, Linkage
from hardware.aloha.rig import ARMS, GRIPPERS

# Published joint angles (rad) and finger positions (m) of both rigs, restated by hand.
PUBLISHED = [
    ("vx300s", 1.4910, 0.05800),
    ("vx300s", -0.6213, 0.01844),
    ("vx300s", 1.6214, 0.0579),
    ("vx300s", 0.6197, 0.0440),
    ("wx250s", 0.3083, 0.02417),
    ("wx250s", -0.6842, 0.01244),
    ("wx250s", 0.8298, 0.0323),
    ("wx250s", -0.0552, 0.0185),
]
linkages = st.builds(
    lambda horn, ratio: Linkage(horn, horn * ratio),
    st.floats(0.005, 0.05),
    st.floats(1.2, 3.0),
)


@pytest.mark.parametrize(("arm", "joint", "finger"), PUBLISHED)
def test_the_linkage_reproduces_the_published_rigs(arm: str, joint: float, finger: float) -> None:
    assert ARMS[arm].linkage.finger(joint) == pytest.approx(finger, abs=3e-4)


@given(linkages, st.floats(-1.5, 1.5))
def test_linkage_inverse(linkage: Linkage, joint: float) -> None:
    assert linkage.joint(linkage.finger(joint)) == pytest.approx(joint, abs=1e-5)


@given(linkages, st.floats(-3.0, 3.0))
def test_slope_is_the_difference_quotient(linkage: Linkage, joint: float) -> None:
    quotient = (linkage.finger(joint + 1e-5) - linkage.finger(joint - 1e-5)) / 2e-5
    assert linkage.slope(joint) == pytest.approx(quotient, abs=1e-6)


@given(linkages, st.floats(-1.57, 1.57), st.floats(-1.57, 1.57))
def test_finger_rises_with_the_joint(linkage: Linkage, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert linkage.finger(low) <= linkage.finger(high) + 1e-12


@given(linkages, st.floats(-1.0, 1.0))
def test_positions_beyond_the_stroke_are_its_ends(linkage: Linkage, finger: float) -> None:
    assert -math.pi / 2 <= linkage.joint(finger) <= math.pi / 2


@pytest.mark.parametrize("rig", GRIPPERS)
@pytest.mark.parametrize("arm", ARMS)
def test_published_grippers_are_zero_closed_and_one_open(rig: str, arm: str) -> None:
    gripper = Gripper(ARMS[arm].linkage, GRIPPERS[rig][arm])
    numbers = gripper.calibration
    assert gripper.fraction_of_joint(numbers.joint_closed) == pytest.approx(0.0)
    assert gripper.fraction_of_joint(numbers.joint_open) == pytest.approx(1.0)
    # The published finger positions are rounded; 2.5 % of the stroke covers the rounding.
    assert gripper.position_fraction(numbers.joint_closed) == pytest.approx(0.0, abs=0.025)
    assert gripper.position_fraction(numbers.joint_open) == pytest.approx(1.0, abs=0.025)


@given(st.floats(-0.6, 1.4), st.floats(0.3, 2.0), st.floats(-0.1, 1.1))
def test_joint_fraction_inverse(closed: float, span: float, fraction: float) -> None:
    gripper = Gripper(Linkage(0.022, 0.036), GripperCalibration(closed, closed + span))
    joint = gripper.joint_of_fraction(fraction)
    assert gripper.fraction_of_joint(joint) == pytest.approx(fraction, abs=1e-9)


@given(st.floats(-1.4, 0.9), st.floats(0.3, 0.6), st.floats(0.0, 1.0))
def test_position_fraction_inverse(closed: float, span: float, fraction: float) -> None:
    gripper = Gripper(Linkage(0.022, 0.036), GripperCalibration(closed, closed + span))
    joint = gripper.joint_of_position(fraction)
    assert gripper.position_fraction(joint) == pytest.approx(fraction, abs=1e-7)


def test_leader_to_follower_is_linear_in_the_joint() -> None:
    leader = Gripper(ARMS["wx250s"].linkage, GRIPPERS["stanford"]["wx250s"])
    follower = Gripper(ARMS["vx300s"].linkage, GRIPPERS["stanford"]["vx300s"])
    # Halfway between -0.6842 and 0.3083 is halfway between -0.6213 and 1.4910.
    joint = follower.joint_of_fraction(leader.fraction_of_joint(-0.18795))
    assert joint == pytest.approx(0.43485)
    # ... which is not halfway for the finger: observation and action differ by design. By hand:
    # 0.022 * 0.4213 + sqrt(0.036^2 - 0.022^2 * 0.8225) = 0.03924 m of 0.01844..0.05800.
    assert follower.position_fraction(joint) == pytest.approx(0.5257, abs=5e-4)


def test_the_starting_grip() -> None:
    assert Gripper(
        ARMS["wx250s"].linkage, GRIPPERS["stanford"]["wx250s"]
    ).start_fraction == pytest.approx(0.387, abs=1e-3)
    assert Gripper(
        ARMS["wx250s"].linkage, GRIPPERS["interbotix"]["wx250s"]
    ).start_fraction == pytest.approx(0.0624, abs=1e-3)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((0.5, 0.1), "at least 0.2 rad"),
        ((0.5, 0.5), "at least 0.2 rad"),
        ((math.nan, 1.0), "finite"),
        ((0.0, 1.0, 0.02), "both, or neither"),
        ((0.0, 1.0, 0.05, 0.02), "below finger_open"),
    ],
)
def test_impossible_calibrations_are_refused(numbers: tuple[float, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GripperCalibration(*numbers)
