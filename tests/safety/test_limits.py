"""Limits on poses: the ramp, and a box that the end effector must not leave."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from robot_stack.safety.filter import SafetyFilter
from robot_stack.safety.limits import WorkspaceBox, free_fraction
from robot_stack.spec import JointSpec, RobotSpec
from robot_stack.types import Difference

Array = NDArray[np.float64]
DT = 0.005


@pytest.mark.parametrize(
    ("ahead", "held", "free"),
    [
        (0.050, 0.060, 1.0),  # far
        (0.030, 0.060, 0.5),  # half-way down the ramp
        (0.010, 0.060, 0.0),
        (-0.02, 0.060, 0.0),
        (0.012, 0.011, 1.0),  # near, but on its way out
        (-0.02, -0.03, 1.0),
        (-0.02, -0.02, 1.0),  # standing still harms nobody
    ],
)
def test_the_ramp_slows_then_stops_and_lets_go_away(ahead: float, held: float, free: float) -> None:
    assert free_fraction(ahead, held, stop=0.020, slow=0.040) == pytest.approx(free)


def planar(q: Array) -> Array:
    """Two links of 0.3 m in the x-z plane, turned about z by a waist; shoulder at 0.1 m."""
    waist, shoulder, elbow = q
    reach = 0.3 * math.cos(shoulder) + 0.3 * math.cos(shoulder + elbow)
    height = 0.1 + 0.3 * math.sin(shoulder) + 0.3 * math.sin(shoulder + elbow)
    return np.array([reach * math.cos(waist), reach * math.sin(waist), height])


def arm() -> RobotSpec:
    joints = tuple(
        JointSpec(name, "rad", -3.0, 3.0, 3.14, 12.0, 100.0)
        for name in ("waist", "shoulder", "elbow")
    )
    return RobotSpec("planar", joints, (0.0,) * 3, (0.0,) * 3)


LOWER, UPPER = (0.1, -0.4, 0.02), (0.55, 0.4, math.inf)


def boxed() -> SafetyFilter:
    box = WorkspaceBox(planar, LOWER, UPPER, slow_m=0.03)
    safety = SafetyFilter(arm(), DT, workspace=box)
    safety.reset(np.array([0.0, 0.8, -1.6]))
    return safety


# Seeds whose way to rest bulges out most, and some others.
@pytest.mark.parametrize("seed", [305, 210, 298, 21, 2140, 2647, 0, 1])
def test_at_full_speed_into_any_face_it_stops_inside(seed: int) -> None:
    random = np.random.default_rng(seed)
    safety = boxed()
    blocked = False
    for _ in range(4):
        goal = random.uniform(-2.5, 2.5, 3)
        for _ in range(60):
            result = safety.step(goal, DT)
            blocked |= bool(result.difference & Difference.WORKSPACE)
            point = planar(result.sent)
            assert (point >= np.array(LOWER)).all(), point
            assert (point <= np.array(UPPER)).all(), point
    assert blocked


def test_it_slows_before_the_table_and_leaves_it_freely() -> None:
    safety = boxed()
    start, down = safety.position, np.array([0.0, -0.4, -1.2])
    heights = []
    for _ in range(600):
        result = safety.step(down, DT)
        heights.append(float(planar(result.sent)[2]))
    assert result.difference & Difference.WORKSPACE
    assert 0.02 <= heights[-1] < 0.03
    falls = -np.diff(heights)
    near = np.array(heights[1:]) < 0.025
    assert falls[near].max() < 0.3 * falls.max()
    for _ in range(5):
        before = float(planar(safety.position)[2])
        result = safety.step(start, DT)
        assert not result.difference & Difference.WORKSPACE
        assert planar(result.sent)[2] > before


def test_outside_the_box_only_the_way_in_is_free() -> None:
    box = WorkspaceBox(lambda q: q, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    held = np.array([1.2, 0.5, 0.5])
    assert box.distance(held) == pytest.approx(-0.2)
    outward = np.array([0.01, 0.0, 0.0])
    assert box(held, held + outward) == 0.0
    assert box(held, held - outward) == 1.0


def test_a_pose_that_cannot_be_computed_is_not_free() -> None:
    box = WorkspaceBox(lambda q: np.full(3, np.nan), (0.0,) * 3, (1.0,) * 3)
    assert box(np.zeros(3), np.zeros(3)) == 0.0


def test_a_box_turned_inside_out_is_refused() -> None:
    with pytest.raises(ValueError, match="below upper"):
        WorkspaceBox(planar, (0.0, 0.0, 1.0), (1.0, 1.0, 0.5))
    with pytest.raises(ValueError, match="three"):
        WorkspaceBox(planar, (0.0,), (1.0,))
    with pytest.raises(ValueError, match="slow_m"):
        WorkspaceBox(planar, (0.0,) * 3, (1.0,) * 3, slow_m=0.0)
