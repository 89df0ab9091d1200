"""The Cartesian mapper: no jump on engage, never too fast or too far ahead, always numbers.

Speeds and distances are restated here by hand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.teleop.mapper import CartesianMapper, MotionConfig, Stick
from robot_stack.rotation import between

MS = 1_000_000
DOWN = (0.0, 1.0, 0.0, 0.0)  # the hand points down
HELD = np.array([0.4, 0.1, 0.3, *DOWN, 0.5])

any_number = st.floats(allow_nan=True, allow_infinity=True, width=32)
twists = st.lists(any_number, min_size=6, max_size=6).map(tuple)
sticks = st.builds(
    Stick,
    twist=twists,
    held=st.booleans(),
    gripper_rate=any_number,
    gripper_goal=any_number,
    speed=any_number,
)
quaternions = (
    st.lists(st.floats(-1, 1), min_size=4, max_size=4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)
poses = st.builds(
    lambda p, q: np.array([*p, *q]), st.lists(st.floats(-1, 1), min_size=3, max_size=3), quaternions
)
held_poses = st.builds(lambda pose, grip: np.array([*pose, grip]), poses, st.floats(-0.1, 1.1))
motions = st.builds(
    MotionConfig,
    linear_m_s=st.floats(0.001, 2.0),
    angular_rad_s=st.floats(0.0, 3.0),
    gripper_per_s=st.floats(0.01, 10.0),
    dead_zone=st.floats(0.0, 0.9),
    expo=st.floats(0.0, 1.0),
    ramp_s=st.floats(0.0, 2.0),
    frame=st.sampled_from(["base", "tool"]),
    view_deg=st.floats(-360, 360),
    leash_m=st.floats(0.005, 0.5),
    leash_rad=st.floats(0.02, 1.5),
)


def angle(a, b):
    """Between the orientations of two poses, rad."""
    return math.hypot(*between(a[3:7], b[3:7]))


def mapped(config=None, held=HELD):
    mapper = CartesianMapper(config or MotionConfig())
    mapper.engage(held)
    return mapper


def follow(mapper, stick, seconds, *, dt_ms=10, start_ms=0, track=True):
    """Targets while the stick is held so; the robot is where it was asked to be, or stays."""
    here = mapper.target[:7]
    targets = []
    for now in range(start_ms, start_ms + round(seconds * 1000) + 1, dt_ms):
        targets.append(mapper.step(stick, now * MS, here))
        if track:
            here = targets[-1][:7]
    return np.array(targets)


@settings(max_examples=300, deadline=None)
@given(
    config=motions,
    first=held_poses,
    history=st.lists(st.tuples(sticks, poses, st.integers(-5, 400)), max_size=12),
    held=held_poses,
    stick=sticks,
    measured=poses,
)
def test_no_jump_on_engage_whatever_the_history(config, first, history, held, stick, measured):
    mapper = mapped(config, first)
    now = 0
    for before, where, pause_ms in history:
        now += pause_ms * MS
        mapper.step(before, now, where)
    mapper.engage(held)
    target = mapper.step(stick, now + 10_000 * MS, measured)
    assert target == pytest.approx(held, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(
    config=motions,
    held=held_poses,
    history=st.lists(st.tuples(sticks, poses, st.integers(0, 400)), min_size=1, max_size=20),
)
def test_never_faster_than_full_speed_and_always_numbers(config, held, history):
    mapper = mapped(config, held)
    now, before = 0, mapper.target
    mapper.step(Stick(), now, held[:7])
    for stick, measured, pause_ms in history:
        now += pause_ms * MS
        target = mapper.step(stick, now, measured)
        dt = pause_ms / 1e3
        assert np.isfinite(target).all()
        assert np.linalg.norm(target[3:7]) == pytest.approx(1.0)
        assert np.linalg.norm(target[:3] - before[:3]) <= config.linear_m_s * dt + 1e-9
        assert angle(target, before) <= config.angular_rad_s * dt + 1e-6
        assert abs(target[7] - before[7]) <= config.gripper_per_s * dt + 1e-9
        assert min(0.0, held[7]) - 1e-9 <= target[7] <= max(1.0, held[7]) + 1e-9
        before = target


@settings(max_examples=300, deadline=None)
@given(
    config=motions,
    held=held_poses,
    history=st.lists(st.tuples(sticks, poses, st.integers(0, 400)), min_size=1, max_size=20),
)
def test_never_farther_ahead_than_the_leash(config, held, history):
    mapper = mapped(config, held)
    now, before = 0, mapper.target
    mapper.step(Stick(), now, held[:7])
    for stick, measured, pause_ms in history:
        now += pause_ms * MS
        target = mapper.step(stick, now, measured)
        ahead = np.linalg.norm(target[:3] - measured[:3])
        was = np.linalg.norm(before[:3] - measured[:3])
        assert ahead <= max(config.leash_m, was) + 1e-9
        assert angle(target, measured) <= max(config.leash_rad, angle(before, measured)) + 1e-6
        before = target


@settings(max_examples=200, deadline=None)
@given(
    bad=st.sampled_from([math.nan, math.inf, -math.inf]),
    axis=st.integers(0, 5),
    twist=twists,
    unknown=st.integers(0, 6),
)
def test_a_number_that_is_none_moves_nothing(bad, axis, twist, unknown):
    config = MotionConfig(ramp_s=0.0)
    wrong = list(twist)
    wrong[axis] = bad
    mapper = mapped(config)
    targets = follow(mapper, Stick(tuple(wrong), gripper_rate=bad), 0.1)
    assert targets == pytest.approx(np.tile(HELD, (len(targets), 1)), abs=1e-9)
    assert follow(mapper, Stick((1.0,) * 6, speed=bad), 0.1)[-1] == pytest.approx(HELD, abs=1e-9)
    nowhere = HELD[:7].copy()
    nowhere[unknown] = bad
    mapper.step(Stick((1.0,) * 6), 1000 * MS, nowhere)
    assert mapper.step(Stick((1.0,) * 6), 1010 * MS, nowhere)[:7] == pytest.approx(HELD[:7])


@pytest.mark.parametrize(
    ("axis", "moved"),
    [(0, (0.25, 0, 0)), (1, (0, 0.25, 0)), (2, (0, 0, 0.25))],
)
def test_full_deflection_is_full_speed_along_the_base(axis, moved):
    twist = [0.0] * 6
    twist[axis] = 1.0
    targets = follow(mapped(MotionConfig(ramp_s=0.0)), Stick(tuple(twist)), 1.0)
    assert targets[-1][:3] - HELD[:3] == pytest.approx(moved, abs=1e-6)  # 0.25 m/s for a second
    assert targets[-1][3:7] == pytest.approx(DOWN)


def test_turning_is_about_the_end_effector_and_the_base_axes():
    stick = Stick((0, 0, 0, 0, 0, 1.0))
    target = follow(mapped(MotionConfig(ramp_s=0.0)), stick, 1.0)[-1]
    assert target[:3] == pytest.approx(HELD[:3])
    about_z = (math.cos(0.5), 0.0, 0.0, math.sin(0.5))  # 1 rad/s for a second
    w, _, _, z = about_z
    assert target[3:7] == pytest.approx((0.0, w, z, 0.0), abs=1e-6)  # about_z * DOWN


def test_in_the_tool_frame_forward_is_where_the_tool_points():
    up = follow(mapped(MotionConfig(ramp_s=0.0, frame="tool")), Stick((0, 0, 1.0, 0, 0, 0)), 1.0)
    assert up[-1][:3] - HELD[:3] == pytest.approx((0, 0, -0.25), abs=1e-6)  # it points down


def test_an_operator_who_faces_the_robot_sees_it_come_nearer():
    config = MotionConfig(ramp_s=0.0, view_deg=180.0)
    away = follow(mapped(config), Stick((1.0, 0, 0, 0, 0, 0)), 1.0)
    assert away[-1][:3] - HELD[:3] == pytest.approx((-0.25, 0, 0), abs=1e-6)


def test_dead_zone_expo_and_speed_share():
    config = MotionConfig(dead_zone=0.1, expo=0.5)
    assert config.shaped(0.1) == 0.0
    assert config.shaped(-0.05) == 0.0
    assert config.shaped(1.0) == pytest.approx(1.0)
    assert config.shaped(-3.0) == pytest.approx(-1.0)
    assert config.shaped(0.55) == pytest.approx(0.5 * 0.5 + 0.5 * 0.125)  # half way beyond the zone
    mapper = mapped(MotionConfig(ramp_s=0.0))
    target = follow(mapper, Stick((1.0, 0, 0, 0, 0, 0), speed=0.2), 1.0)[-1]
    assert target[0] - HELD[0] == pytest.approx(0.05, abs=1e-6)


def test_a_stick_in_its_corner_is_not_faster():
    target = follow(mapped(MotionConfig(ramp_s=0.0)), Stick((1.0, 1.0, 1.0, 0, 0, 0)), 1.0)[-1]
    assert np.linalg.norm(target[:3] - HELD[:3]) == pytest.approx(0.25, abs=1e-6)


def test_it_speeds_up_and_slows_down_within_the_ramp():
    mapper = mapped(MotionConfig(ramp_s=0.2, leash_m=0.5))
    speeds = np.diff(follow(mapper, Stick((1.0, 0, 0, 0, 0, 0)), 0.5)[:, 0]) / 0.01
    assert np.abs(np.diff(speeds)).max() <= 0.25 / 0.2 * 0.01 + 1e-9
    assert speeds[-1] == pytest.approx(0.25)
    braking = np.diff(follow(mapper, Stick(), 0.5, start_ms=510)[:, 0]) / 0.01
    assert braking[-1] == 0.0
    assert (np.diff(braking) <= 1e-12).all()


def test_a_robot_that_is_held_back_is_not_left_behind():
    mapper = mapped()
    targets = follow(mapper, Stick((1.0, 0, 0, 0, 0, 1.0)), 3.0, track=False)
    assert targets[-1][0] - HELD[0] == pytest.approx(0.08, abs=1e-6)  # the leash
    assert 0.3 < angle(targets[-1], HELD) <= 0.35 + 1e-9
    back = follow(mapper, Stick((-1.0, 0, 0, 0, 0, -1.0)), 0.5, start_ms=3010, track=False)
    assert back[-1][0] < targets[-1][0]
    assert angle(back[-1], HELD) < 0.3


def test_turning_that_is_locked_and_no_ramp_go_together():
    mapper = mapped(MotionConfig(ramp_s=0.0, angular_rad_s=0.0))
    target = follow(mapper, Stick((1.0,) * 6), 1.0)[-1]
    assert target[:3] - HELD[:3] == pytest.approx([0.25 / math.sqrt(3)] * 3)
    assert target[3:7] == pytest.approx(DOWN)


def test_a_pause_is_no_leap():
    mapper = mapped(MotionConfig(ramp_s=0.0))
    forward = Stick((1.0, 0, 0, 0, 0, 0))
    mapper.step(forward, 0, HELD[:7])
    target = mapper.step(forward, 5000 * MS, HELD[:7])
    assert target[0] - HELD[0] <= 0.25 * 0.05 + 1e-9


def test_gripper_by_rate_and_by_goal():
    mapper = mapped(MotionConfig(gripper_per_s=2.0))
    opening = follow(mapper, Stick(gripper_rate=0.5), 0.2)
    assert opening[-1][7] == pytest.approx(0.5 + 0.2)
    closing = follow(mapper, Stick(gripper_goal=0.0), 1.0, start_ms=210)
    assert closing[-1][7] == 0.0
    assert np.diff(closing[:, 7]).min() == pytest.approx(-0.02)


@pytest.mark.parametrize(
    "held", [np.zeros(8), np.full(8, math.nan), np.zeros(7), np.array([*HELD[:7], math.inf])]
)
def test_what_is_no_pose_cannot_be_engaged(held):
    with pytest.raises(ValueError, match=r"finite numbers|no rotation"):
        CartesianMapper(MotionConfig()).engage(held)
