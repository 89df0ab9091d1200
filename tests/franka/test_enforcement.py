"""What the virtual arm refuses: streams inside all limits pass, each violation has its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise, repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardware.franka.fci import ERROR_NAMES
from hardware.franka.kinematics import HOME, Kinematics
from hardware.franka.limits import FER, FR3, Limits, Space, joint_limits
from hardware.franka.virtual.enforcement import Enforcement

Array = NDArray[np.float64]
Names = tuple[str, ...]
DT = 0.001
START = np.array(HOME)
POSE = Kinematics().transform(START)

models = st.sampled_from([FR3, FER])
joints = st.integers(0, 6)
signs = st.sampled_from([1.0, -1.0])
shares = st.floats(0.0, 1.0)


def begun(limits: Limits, q: Array = START) -> Enforcement:
    enforcement = Enforcement(limits.model)
    enforcement.begin(q, np.zeros(7), Kinematics().transform(q))
    return enforcement


def first(check: Callable[[Array], Names], commands: Iterable[Array]) -> Names:
    """The names of the first step that raises any; every name must be one of libfranka's."""
    for command in commands:
        names = check(command)
        assert set(names) <= set(ERROR_NAMES)
        if names:
            return names
    return ()


def integrated(jerks: Iterable[float], times: int = 3) -> list[float]:
    """Sums of ``jerks`` over time: positions for ``times`` 3, velocities for 2."""
    values = list(jerks)
    for _ in range(times):
        values = [value * DT for value in accumulate(values)]
    return values


def smooth(distance: Array, seconds: float) -> Array:
    """Minimum-jerk offsets (H, n) from rest to rest, written out here on purpose."""
    s = np.arange(1, round(seconds / DT) + 1)[:, None] * DT / seconds
    return distance * (10 * s**3 - 15 * s**4 + 6 * s**5)


def duration(distance: Array, velocity: Array, acceleration: Array, jerk: Array) -> float:
    """Of a minimum-jerk move that stays 1 % below: peaks are 15/8, 10/sqrt(3) and 60."""
    far = np.abs(distance) / 0.99
    return float(
        max(
            (1.875 * far / velocity).max(),
            np.sqrt(5.7736 * far / acceleration).max(),
            np.cbrt(60.0 * far / jerk).max(),
            0.01,
        )
    )


# -- streams that are right ----------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(models, st.lists(st.lists(shares, min_size=7, max_size=7), min_size=2, max_size=3), shares)
def test_a_stream_inside_the_joint_limits_never_raises(
    limits: Limits, corners: list[list[float]], speed: float
) -> None:
    fastest = np.array(limits.velocity) * (0.2 + 0.8 * speed)
    lower, upper, velocity, acceleration = joint_limits(limits.model, fastest)
    points = [lower + np.array(corner) * (upper - lower) for corner in corners]
    positions, rates = begun(limits, points[0]), begun(limits, points[0])
    solved = begun(limits, points[0])
    for a, b in pairwise(points):
        seconds = duration(b - a, velocity, acceleration, np.array(limits.jerk))
        last = a
        for q in a + smooth(b - a, seconds):
            assert positions.joint_positions(q) == ()
            assert rates.joint_velocities((q - last) / DT) == ()
            assert solved.cartesian_joints(q) == ()
            last = q


@settings(max_examples=25, deadline=None)
@given(models, st.lists(st.floats(-1, 1), min_size=7, max_size=7), st.floats(0.01, 0.5))
def test_a_stream_inside_the_cartesian_limits_never_raises(
    limits: Limits, direction: list[float], reach: float
) -> None:
    shift, axis = np.array(direction[:3]) * reach, np.array(direction[3:6]) * reach
    elbow = direction[6] * reach
    ways = np.array([np.linalg.norm(shift), np.linalg.norm(axis), abs(elbow)])
    spaces = (limits.translation, limits.rotation, limits.elbow)
    v, a, j = (np.array([getattr(s, n) for s in spaces]) for n in Space.__slots__)
    seconds = duration(ways, v, a, j)
    poses, twists = begun(limits), begun(limits)
    last = 0.0
    for row in smooth(np.ones(1), seconds):
        part = float(row[0])
        pose = moved(shift * part, axis * part)
        rate = (part - last) / DT
        assert poses.pose(pose, START[2] + elbow * part, -1.0) == ()
        assert twists.twist(np.concatenate([shift, axis]) * rate) == ()
        last = part


@given(models, st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_torques_that_change_slowly_never_raise(limits: Limits, goal: list[float]) -> None:
    enforcement = begun(limits)
    aim = np.array(goal) * limits.torque
    tau = np.zeros(7)
    for _ in range(90):
        tau += np.clip(aim - tau, -0.999, 0.999)
        assert enforcement.torques(tau) == ()


def rate_limited(start: Array, wishes: Iterable[Array]) -> Iterable[Array]:
    """Positions of a client that limits its rates as libfranka does, up to 1e-3 below each limit,
    and continues from the state's q_d, dq_d and ddq_d, which version 10 rounds to float32."""
    q, dq, ddq = start.copy(), np.zeros(7), np.zeros(7)
    jerk, top = 5000.0 - 1e-3, 10.0 - 1e-3
    for wish in wishes:
        q32, dq32, ddq32 = (v.astype(np.float32).astype(np.float64) for v in (q, dq, ddq))
        low, high = np.array([FR3.velocity_bounds(i, float(q32[i])) for i in range(7)]).T
        change = np.clip((wish - dq32) / DT, ddq32 - jerk * DT, ddq32 + jerk * DT)
        floor = np.clip(jerk / top * (low + 1e-3 - dq32), -top, top)
        ceiling = np.clip(jerk / top * (high - 1e-3 - dq32), -top, top)
        q_c = q32 + (dq32 + np.clip(change, floor, ceiling) * DT) * DT
        rate = (q_c - q) / DT
        q, dq, ddq = q_c, rate, (rate - dq) / DT
        yield q_c


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(-2.0, 2.0), min_size=7, max_size=7))
def test_a_client_at_the_limits_with_single_precision_states(speeds: list[float]) -> None:
    wish, start = np.array(speeds), middle(FR3)
    stream = rate_limited(start, [wish] * 250 + [np.zeros(7)] * 250)
    assert first(begun(FR3, start).joint_positions, stream) == ()


@pytest.mark.parametrize(("joint", "sign"), [(0, 1.0), (1, -1.0), (3, 1.0)])
def test_a_client_that_follows_the_shrinking_bound(joint: int, sign: float) -> None:
    """The limiter lags behind the bound that falls before it. (Joints 5 and 7 are not here: their
    bound falls faster than the acceleration limit lets them brake.)"""
    start = middle(FR3)
    wish = sign * 0.9 * np.eye(7)[joint] * FR3.velocity[joint]
    stream = list(rate_limited(start, [wish] * 2200))
    edge = (FR3.q_upper if sign > 0 else FR3.q_lower)[joint]
    assert abs(edge - stream[-1][joint]) < 0.15
    assert first(begun(FR3, start).joint_positions, stream) == ()


# -- each violation has its name -----------------------------------------------------------------


def moved(shift: Array, rotation: Array) -> Array:
    """POSE moved by metres and a rotation vector, base frame."""
    pose = POSE.copy()
    pose[:3, 3] += shift
    angle = float(np.linalg.norm(rotation))
    if angle > 0.0:
        x, y, z = rotation / angle
        k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
        turn = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
        pose[:3, :3] = turn @ pose[:3, :3]
    return pose


def too_fast(space: Space) -> list[float]:
    """Jerks of a ramp to 1.2 times the velocity, within acceleration and jerk."""
    rise = max(1, int(0.9 * space.acceleration / (0.9 * space.jerk * DT)))
    jerk = 0.9 * space.jerk
    plateau = int(1.2 * space.velocity / (jerk * DT * rise * DT)) - rise
    return [jerk] * rise + [0.0] * plateau + [-jerk] * rise + [0.0]


def too_steep(space: Space) -> list[float]:
    """Jerks that stay within theirs until the acceleration is 1.3 times what it may be."""
    return [0.9 * space.jerk] * (int(1.3 * space.acceleration / (0.9 * space.jerk * DT)) + 1)


def too_sudden(space: Space) -> list[float]:
    """One step of the acceleration that is small, but sudden."""
    return [0.0, 0.0, 1.2 * space.jerk]


SHAPES = {
    "velocity_limits_violation": too_fast,
    "velocity_discontinuity": too_steep,
    "acceleration_discontinuity": too_sudden,
}


def joint_space(limits: Limits, joint: int) -> Space:
    return Space(limits.velocity[joint], limits.acceleration[joint], limits.jerk[joint])


def along(joint: int, values: Iterable[float], start: Array | None = None) -> list[Array]:
    unit = np.eye(7)[joint]
    base = np.zeros(7) if start is None else start
    return [base + unit * value for value in values]


def middle(limits: Limits) -> Array:
    return (np.array(limits.q_lower) + limits.q_upper) / 2


@pytest.mark.parametrize("kind", SHAPES)
@settings(max_examples=20, deadline=None)
@given(limits=models, joint=joints, sign=signs)
def test_joint_streams(kind: str, limits: Limits, joint: int, sign: float) -> None:
    jerks = [sign * jerk for jerk in SHAPES[kind](joint_space(limits, joint))]
    start = middle(limits)
    expected = (f"joint_motion_generator_{kind}",)
    enforcement = begun(limits, start)
    positions = along(joint, integrated(jerks), start)
    assert first(enforcement.joint_positions, positions) == expected
    enforcement = begun(limits, start)
    assert first(enforcement.joint_velocities, along(joint, integrated(jerks, 2))) == expected
    enforcement = begun(limits, start)
    of_pose = (f"cartesian_motion_generator_joint_{kind}",)
    # Jerk is no condition of what inverse kinematics finds.
    assert first(enforcement.cartesian_joints, positions) == (
        () if kind == "acceleration_discontinuity" else of_pose
    )


@given(limits=models, joint=joints, upper=st.booleans())
def test_a_joint_that_creeps_past_its_limit(limits: Limits, joint: int, upper: bool) -> None:
    sign = 1.0 if upper else -1.0
    edge = (limits.q_upper if upper else limits.q_lower)[joint]
    start = middle(limits)
    start[joint] = edge - sign * 5e-6
    # Slower than the tolerance of the FR3's bound, which is 0 rad/s here.
    creep = [sign * 0.9e-3 * DT * k for k in range(30)]
    for check, prefix in (
        ("joint_positions", "joint_motion_generator_position"),
        ("cartesian_joints", "cartesian_motion_generator_joint_position"),
    ):
        enforcement = begun(limits, start)
        names = first(getattr(enforcement, check), along(joint, creep, start))
        assert names == (f"{prefix}_limits_violation",)
    enforcement = begun(limits, start)
    rates = along(joint, repeat(sign * 0.9e-3, 30))
    assert first(enforcement.joint_velocities, rates) == (
        "joint_motion_generator_position_limits_violation",
    )
    beyond = start.copy()
    beyond[joint] = edge + sign * 0.01
    assert enforcement.target(start) == ()
    assert enforcement.target(beyond) == ("joint_motion_generator_position_limits_violation",)


@given(joints, signs)
def test_the_fr3s_bound_shrinks_towards_its_limits(joint: int, sign: float) -> None:
    """0.1 rad/s too fast for a place 0.05 rad before the limit, far below the greatest speed."""
    edge = (FR3.q_upper if sign > 0 else FR3.q_lower)[joint]
    start = middle(FR3)
    start[joint] = edge - sign * 0.05
    assert FR3.velocity_offset is not None and FR3.deceleration is not None
    room = (2 * FR3.deceleration[joint] * 0.05) ** 0.5
    allowed = max(0.0, room - FR3.velocity_offset[joint])
    jerks = too_fast(Space((allowed + 0.1) / 1.2, 10.0, 5000.0))
    ahead = [sign * jerk for jerk in jerks]
    names = first(begun(FR3, start).joint_velocities, along(joint, integrated(ahead, 2)))
    assert names == ("joint_motion_generator_velocity_limits_violation",)
    back = along(joint, integrated([-jerk for jerk in ahead], 2))
    assert first(begun(FR3, start).joint_velocities, back) == ()


@given(joints, signs, st.floats(0.051, 1.0))
def test_a_first_position_that_is_elsewhere(joint: int, sign: float, distance: float) -> None:
    command = along(joint, [sign * distance], START)
    assert first(begun(FR3).joint_positions, command) == (
        "joint_position_motion_generator_start_pose_invalid",
    )


@given(joints, signs, st.floats(0.06, 1.0))
def test_a_jump_has_all_its_names(joint: int, sign: float, distance: float) -> None:
    enforcement = begun(FR3, middle(FR3))
    assert first(enforcement.joint_positions, [middle(FR3)] * 3) == ()
    assert first(enforcement.joint_positions, along(joint, [sign * distance], middle(FR3))) == (
        "joint_motion_generator_velocity_limits_violation",
        "joint_motion_generator_velocity_discontinuity",
        "joint_motion_generator_acceleration_discontinuity",
    )


directions = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("part", ["translation", "rotation", "elbow"])
@settings(max_examples=15, deadline=None)
@given(limits=models, direction=directions, sign=signs)
def test_cartesian_streams(
    kind: str, part: str, limits: Limits, direction: tuple[float, ...], sign: float
) -> None:
    unit = np.array(direction) / np.linalg.norm(direction)
    jerks = SHAPES[kind](getattr(limits, part))
    expected = (f"cartesian_motion_generator_{kind}",)
    none = np.zeros(3)
    enforcement = begun(limits)
    if part == "elbow":
        angles = [START[2] + sign * value for value in integrated(jerks)]
        assert first(lambda e: enforcement.pose(POSE, float(e)), np.array(angles)) == expected
        twisting = begun(limits)
        names = first(lambda e: twisting.twist(np.zeros(6), float(e)), np.array(angles))
        assert names == expected
        return
    offsets = [unit * value for value in integrated(jerks)]
    linear = part == "translation"
    poses = [moved(v, none) if linear else moved(none, v) for v in offsets]
    assert first(enforcement.pose, poses) == expected
    enforcement = begun(limits)
    rates = [unit * value for value in integrated(jerks, 2)]
    twists = [np.concatenate([v, none] if linear else [none, v]) for v in rates]
    assert first(enforcement.twist, twists) == expected


def test_frames_that_are_none() -> None:
    scaled, mirrored, sheared, bottom = (POSE.copy() for _ in range(4))
    scaled[:3, :3] *= 1.001
    mirrored[:3, 0] *= -1.0
    sheared[0, 1] += 1e-3
    bottom[3, 0] = 1e-3
    for frame in (scaled, mirrored, sheared, bottom, POSE * np.nan):
        assert begun(FR3).pose(frame) == ("cartesian_position_motion_generator_invalid_frame",)
    # The transposed rotation is a rotation; column-major read as row-major is not a pose.
    assert begun(FR3).pose(POSE.T) == ("cartesian_position_motion_generator_invalid_frame",)


@given(directions, st.floats(0.051, 3.14), st.booleans())
def test_a_first_pose_that_is_elsewhere(
    direction: tuple[float, ...], distance: float, turned: bool
) -> None:
    offset = np.array(direction) / np.linalg.norm(direction) * distance
    pose = moved(np.zeros(3), offset) if turned else moved(offset, np.zeros(3))
    assert begun(FR3).pose(pose) == ("cartesian_position_motion_generator_start_pose_invalid",)


def test_half_a_turn_is_a_rotation() -> None:
    enforcement = begun(FR3)
    assert enforcement.pose(POSE) == ()
    names = enforcement.pose(moved(np.zeros(3), np.array([0.0, np.pi, 0.0])))
    assert "cartesian_motion_generator_velocity_limits_violation" in names


def test_elbows() -> None:
    assert begun(FR3).pose(POSE, START[2], -1.0) == ()
    assert begun(FR3).pose(POSE, START[2], 1.0) == (
        "cartesian_motion_generator_elbow_sign_inconsistent",
    )
    assert begun(FR3).twist(np.zeros(6), START[2] + 0.06, -1.0) == (
        "cartesian_motion_generator_start_elbow_invalid",
    )
    near = START.copy()
    near[2] = FR3.q_upper[2] - 5e-6
    enforcement, pose = begun(FR3, near), Kinematics().transform(near)
    names = first(lambda e: enforcement.pose(pose, float(e)), near[2] + 0.9e-6 * np.arange(30))
    assert names == ("cartesian_motion_generator_elbow_limit_violation",)


@given(models, joints, signs, st.floats(1.01, 50.0))
def test_torques_that_jump(limits: Limits, joint: int, sign: float, step: float) -> None:
    small = min(step, 11.0)
    names = first(begun(limits).torques, along(joint, [sign * small]))
    assert names == ("controller_torque_discontinuity",)


@given(models, joints, signs)
def test_torques_beyond_the_motors(limits: Limits, joint: int, sign: float) -> None:
    ramp = along(joint, [sign * 0.9 * k for k in range(120)])
    assert first(begun(limits).torques, ramp) == ("tau_j_range_violation",)


def test_values_that_are_none() -> None:
    """A NaN passes no comparison, so no limit either."""
    nothing = np.full(7, np.nan)
    enforcement = begun(FR3)
    assert enforcement.joint_positions(START) == ()
    assert "joint_motion_generator_position_limits_violation" in enforcement.joint_positions(
        nothing
    )
    assert begun(FR3).joint_velocities(nothing) != ()
    assert begun(FR3).twist(nothing[:6]) != ()
    assert begun(FR3).torques(nothing) != ()
    assert begun(FR3).target(nothing) != ()


# -- what is measured ----------------------------------------------------------------------------

TORQUE = np.array([[15.0] * 7, [20.0] * 7, [5.0] * 7, [10.0] * 7])
FORCE = np.array([[25.0] * 6, [30.0] * 6, [8.0] * 6, [12.0] * 6])
STILL = np.zeros(7)


def measure(enforcement: Enforcement, **other: object) -> Names:
    values = {"q": START, "dq": STILL, "tau_ext": STILL, "O_F_ext": STILL[:6], **other}
    names = enforcement.measured(thresholds=(TORQUE, FORCE), **values)  # type: ignore[arg-type]
    assert set(names) <= set(ERROR_NAMES)
    return names


@given(joints, signs)
def test_collisions_by_the_thresholds_of_the_moment(joint: int, sign: float) -> None:
    """10 Nm and 12 N at constant velocity, 20 Nm and 30 N while the commands accelerate."""
    torque = sign * np.eye(7)[joint]
    enforcement = begun(FR3)
    assert measure(enforcement, tau_ext=9.9 * torque) == ()
    assert measure(enforcement, tau_ext=10.1 * torque) == ("joint_reflex",)
    force = (sign * np.eye(7)[joint])[:6]
    if force.any():
        assert measure(enforcement, O_F_ext=11.9 * force) == ()
        assert measure(enforcement, O_F_ext=12.1 * force) == ("cartesian_reflex",)
    ramp = along(joint, integrated([2000.0, 0.0, 0.0]), START)
    assert first(enforcement.joint_positions, ramp) == ()
    assert enforcement.accelerating
    assert measure(enforcement, tau_ext=19.9 * torque) == ()
    assert measure(enforcement, tau_ext=20.1 * torque) == ("joint_reflex",)
    if force.any():
        assert measure(enforcement, O_F_ext=29.9 * force) == ()
        assert measure(enforcement, O_F_ext=30.1 * force) == ("cartesian_reflex",)


def test_both_reflexes_at_once() -> None:
    names = measure(begun(FR3), tau_ext=STILL + 50.0, O_F_ext=STILL[:6] - 50.0)
    assert names == ("joint_reflex", "cartesian_reflex")


@given(models, joints, st.booleans())
def test_joints_where_they_must_not_be(limits: Limits, joint: int, upper: bool) -> None:
    q = middle(limits)
    q[joint] = limits.q_upper[joint] + 0.02 if upper else limits.q_lower[joint] - 0.02
    assert measure(begun(limits), q=q) == ("joint_position_limits_violation",)
    q[joint] -= 0.02 if upper else -0.02
    assert measure(begun(limits), q=q) == ()


@given(models, joints, signs)
def test_joints_that_turn_too_fast(limits: Limits, joint: int, sign: float) -> None:
    rate = sign * np.eye(7)[joint] * limits.velocity[joint]
    assert measure(begun(limits), dq=rate) == ()
    assert measure(begun(limits), dq=1.2 * rate) == ("joint_velocity_violation",)


def test_the_rest_of_what_is_measured() -> None:
    assert measure(begun(FR3), touching_itself=True) == ("self_collision_avoidance_violation",)
    assert measure(begun(FR3), twist=[2.9, 0, 0, 0, 0, 2.4]) == ()
    assert measure(begun(FR3), twist=[3.4, 0, 0, 0, 0, 0]) == ("cartesian_velocity_violation",)
    assert measure(begun(FR3), twist=[0, 0, 0, 0, 2.8, 0]) == ()  # a wrist may turn that fast
    assert measure(begun(FR3), q=STILL * np.nan) == ("joint_position_limits_violation",)
