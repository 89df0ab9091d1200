"""The SafetyFilter against limits written out by hand: nothing here is imported from the filter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_stack.safety.filter import FilterResult, SafetyFilter
from robot_stack.spec import JointSpec, RobotSpec
from robot_stack.types import Difference

Array = NDArray[np.float64]

# A vx300s: waist, shoulder, elbow, forearm_roll, wrist_angle, wrist_rotate, gripper.
LOWER = np.array([-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158, -0.1])
UPPER = np.array([3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158, 1.1])
VELOCITY = np.array([3.14, 3.14, 3.14, 3.14, 3.14, 3.14, 6.0])
ACCELERATION = np.array([12.0, 12.0, 12.0, 12.0, 12.0, 12.0, 60.0])
HOME = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0])
NAMES = ["waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper"]
TOLERANCE = 1e-9
DT = 0.005


def vx300s(max_step: float = 0.5) -> RobotSpec:
    joints = tuple(
        JointSpec(
            name=name,
            unit="fraction" if name == "gripper" else "rad",
            lower=float(LOWER[i]),
            upper=float(UPPER[i]),
            velocity=float(VELOCITY[i]),
            acceleration=float(ACCELERATION[i]),
            max_step=max_step,
        )
        for i, name in enumerate(NAMES)
    )
    return RobotSpec("vx300s", joints, tuple(HOME), tuple(HOME))


def one_joint(max_step: float = 10.0) -> SafetyFilter:
    joint = JointSpec("waist", "rad", -3.14158, 3.14158, 3.14, 12.0, max_step)
    return SafetyFilter(RobotSpec("one", (joint,), (0.0,), (0.0,)), DT)


def at_rest(position: Array = HOME, max_step: float = 0.5, dt: float = DT) -> SafetyFilter:
    safety = SafetyFilter(vx300s(max_step), dt)
    safety.reset(position)
    return safety


def only(value: float) -> Array:
    return np.array([value])


def always(fraction: float) -> Callable[[Array, Array], float]:
    """A guard with one answer."""
    return lambda held, ahead: fraction


class Referee:
    """Sees nothing but what is sent and when, and holds it against the limits above."""

    def __init__(self, position: Array) -> None:
        self.position = position
        self.velocity = np.zeros(7)

    def judge(self, result: FilterResult, dt: float) -> None:
        sent = result.sent
        assert sent.shape == (7,)
        assert np.isfinite(sent).all()
        velocity = (sent - self.position) / dt
        assert (np.abs(velocity) <= VELOCITY + TOLERANCE).all(), velocity
        change = np.abs(velocity - self.velocity)
        assert (change <= ACCELERATION * dt + TOLERANCE).all(), change / dt
        outside = np.maximum(LOWER - sent, sent - UPPER)
        before = np.maximum(LOWER - self.position, self.position - UPPER)
        assert (outside <= np.maximum(before, 0.0)).all(), outside
        # It can still stop: braking from here, in continuous time, ends inside. (What stops within
        # the shortest tick, a fifth of the nominal, stops where it is.)
        onward = velocity * np.abs(velocity) / (2.0 * ACCELERATION)
        rest = sent + np.where(np.abs(velocity) <= ACCELERATION * DT / 5.0, 0.0, onward)
        np.testing.assert_allclose(result.rest, rest, atol=TOLERANCE)
        beyond = np.maximum(LOWER - rest, rest - UPPER)
        assert (beyond <= np.maximum(before, 0.0) + TOLERANCE).all(), beyond
        self.position, self.velocity = sent, velocity


# -- anything that may be asked ------------------------------------------------------------------


def target_of(
    random: np.random.Generator, safety: SafetyFilter, kind: str, last: Array, aim: Array
) -> Array | None:
    if kind == "far":
        return random.uniform(-5.0, 5.0, 7)
    if kind == "corner":
        return np.where(random.random(7) < 0.5, LOWER, UPPER)
    if kind == "beside":
        return safety.position + random.normal(0.0, 0.1, 7)
    if kind == "onward":
        return last + random.normal(0.0, 0.02, 7)
    if kind == "charge":  # as fast as is feasible, and straight on at the limits
        speed = np.clip(safety.velocity + 0.99 * ACCELERATION * DT * aim, -VELOCITY, VELOCITY)
        return safety.position + speed * DT
    if kind == "same":
        return last
    if kind == "nan":
        return np.where(random.random(7) < 0.3, np.nan, last)
    if kind == "inf":
        return np.where(random.random(7) < 0.3, random.choice([np.inf, -np.inf]), last)
    if kind == "huge":
        return last * 1e300
    if kind == "shape":
        return np.zeros(int(random.integers(0, 9)) if random.random() < 0.5 else (7, 1))
    return None


KINDS = [
    "far",
    "corner",
    "beside",
    "onward",
    "charge",
    "same",
    "nan",
    "inf",
    "huge",
    "shape",
    "none",
]

asked = st.tuples(
    st.sampled_from(KINDS),
    st.integers(1, 40),  # ticks that this goes on
    st.floats(0.2, 5.0),  # dt over nominal
    st.sampled_from([1.0, 1.0, 1.0, 0.3, 0.0, 2.0, math.nan]),  # speed scale
    st.sampled_from([None, None, 1.0, 0.4, 0.0, -1.0, math.nan]),  # what the guard says is free
)


def check_limits(
    seed: int,
    start_outside: bool,
    max_step: float,
    stream: list[tuple[str, int, float, float, float | None]],
) -> None:
    random = np.random.default_rng(seed)
    margin = 0.3 if start_outside else 0.0
    position = random.uniform(LOWER - margin, UPPER + margin)
    safety = at_rest(position, max_step, DT)
    referee = Referee(position)
    last = position
    for kind, ticks, stretch, scale, free in stream:
        dt = DT * stretch
        guard = None if free is None else always(free)
        aim = random.choice([-1.0, 1.0], 7)
        for _ in range(ticks):
            target = target_of(random, safety, kind, last, aim)
            if (
                isinstance(target, np.ndarray)
                and target.shape == (7,)
                and np.isfinite(target).all()
            ):
                last = np.clip(target, -10.0, 10.0)
            result = safety.step(target, dt, speed_scale=scale, guard=guard)
            referee.judge(result, dt)


stream_strategy = {
    "seed": st.integers(0, 2**32 - 1),
    "start_outside": st.booleans(),
    "max_step": st.sampled_from([0.5, 100.0]),
    "stream": st.lists(asked, min_size=1, max_size=6),
}
quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=300, deadline=None, suppress_health_check=quiet)
@given(**stream_strategy)
def test_output_is_inside_all_limits_whatever_is_asked(**drawn: object) -> None:
    check_limits(**drawn)  # type: ignore[arg-type]


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None, suppress_health_check=quiet)
@given(**stream_strategy)
def test_output_is_inside_all_limits_whatever_is_asked_10000(**drawn: object) -> None:
    check_limits(**drawn)  # type: ignore[arg-type]


# -- what is feasible passes ---------------------------------------------------------------------


def feasible_stream(random: np.random.Generator, ticks: int) -> Iterator[tuple[Array, float]]:
    """Targets that keep to every limit by themselves, with some uneven dt."""
    position = random.uniform(LOWER, UPPER)
    velocity = np.zeros(7)
    drive = np.zeros(7)
    yield position, DT
    for tick in range(ticks):
        dt = DT * float(random.choice([1.0, 1.0, 0.8, 1.3, 3.0]))
        if tick % 15 == 0:
            drive = random.choice([-1.0, -0.3, 0.0, 0.3, 1.0], 7)
        wanted = np.clip(velocity + drive * ACCELERATION * dt, -VELOCITY, VELOCITY)
        left = np.where(wanted > 0.0, UPPER - position, position - LOWER)
        stops = np.abs(wanted) * dt + wanted**2 / (2.0 * ACCELERATION) <= left
        braking = np.sign(velocity) * np.maximum(np.abs(velocity) - ACCELERATION * dt, 0.0)
        velocity = np.where(stops, wanted, braking)
        following = position + velocity * dt
        velocity = (following - position) / dt
        position = following
        yield position, dt


def check_feasible(seed: int) -> None:
    stream = feasible_stream(np.random.default_rng(seed), 60)
    position, _ = next(stream)
    safety = at_rest(position)
    for target, dt in stream:
        result = safety.step(target, dt)
        assert result.sent.tobytes() == target.tobytes()
        assert result.difference == Difference.NONE


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_feasible_targets_pass_bit_for_bit(seed: int) -> None:
    check_feasible(seed)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_feasible_targets_pass_bit_for_bit_10000(seed: int) -> None:
    check_feasible(seed)


# -- what is reachable is reached ----------------------------------------------------------------


def minimum_time(distance: float, velocity: float) -> float:
    """From ``velocity`` to rest, ``distance`` ahead: the double integrator's bang-bang time with
    3.14 rad/s and 12 rad/s^2 (Bryson and Ho 1975, section 3.9, with a speed limit)."""
    limit, a = 3.14, 12.0
    side = 1.0 if distance >= velocity * abs(velocity) / (2.0 * a) else -1.0
    distance, velocity = side * distance, side * velocity
    peak = math.sqrt(a * distance + velocity**2 / 2.0)
    if peak <= limit:
        return (2.0 * peak - velocity) / a
    cruise = distance - (limit**2 - velocity**2) / (2.0 * a) - limit**2 / (2.0 * a)
    return (2.0 * limit - velocity) / a + cruise / limit


def moving_at(velocity: float) -> SafetyFilter:
    safety = one_joint()
    start = -velocity * abs(velocity) / 24.0
    safety.reset(only(start))
    position, speed = start, 0.0
    while abs(speed - velocity) > 1e-12:
        speed += float(np.clip(velocity - speed, -12.0 * DT, 12.0 * DT))
        position += speed * DT
        assert safety.step(only(position), DT).sent[0] == position
    return safety


def check_time(distance: float, velocity: float) -> None:
    safety = moving_at(velocity)
    begin = float(safety.position[0])
    goal = begin + distance
    shortest = minimum_time(distance, velocity)
    overshoots = (
        distance * velocity <= 0.0 or abs(distance) < velocity**2 / 24.0 + abs(velocity) * DT
    )
    ticks = 0
    while True:
        sent = float(safety.step(only(goal), DT).sent[0])
        ticks += 1
        if not overshoots:
            assert (sent - goal) * math.copysign(1.0, distance) <= 1e-12, "beyond the target"
        if abs(sent - goal) <= 1e-9 and abs(safety.velocity[0]) <= 12.0 * DT:
            break
        assert ticks * DT < 10.0
    # Nothing in discrete time begins before the next tick, or ends between two.
    assert ticks * DT <= 1.2 * shortest + 2.0 * DT, (ticks, shortest / DT)
    assert safety.step(only(goal), DT).sent[0] == pytest.approx(goal, abs=1e-9)


distances = st.one_of(st.floats(0.02, 2.0), st.floats(-2.0, -0.02))


@settings(max_examples=150, deadline=None)
@given(distances, st.sampled_from([0.0, 0.3, 1.0, -1.0, 3.0]))
def test_a_reachable_target_is_reached_within_1_2_of_the_minimum_time(
    distance: float, velocity: float
) -> None:
    check_time(distance, velocity)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@settings(max_examples=10_000, deadline=None)
@given(distances, st.floats(-3.14, 3.14))
def test_a_reachable_target_is_reached_within_1_2_of_the_minimum_time_10000(
    distance: float, velocity: float
) -> None:
    check_time(distance, velocity)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 2.0))
def test_a_standing_target_is_never_passed_however_uneven_the_ticks(
    seed: int, distance: float
) -> None:
    random = np.random.default_rng(seed)
    safety = one_joint()
    safety.reset(only(0.0))
    for _ in range(400):
        sent = safety.step(only(distance), DT * float(random.uniform(0.2, 1.5))).sent[0]
        assert sent <= distance + 1e-12
    assert sent == distance


def test_a_moving_target_is_caught_up_with_and_then_followed_without_lag() -> None:
    safety = one_joint()
    safety.reset(only(0.0))
    difference = Difference.NONE
    for tick in range(120):
        target = 0.05 + 1.0 * DT * tick  # 1 rad/s, and 0.05 rad ahead
        result = safety.step(only(target), DT)
        difference = result.difference
    assert result.sent[0] == target
    assert difference == Difference.NONE


# -- stopping ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.floats(0.2, 5.0))
def test_without_a_target_it_stops_in_velocity_over_acceleration_and_holds(
    seed: int, ticks: int, stretch: float
) -> None:
    random = np.random.default_rng(seed)
    position = random.uniform(LOWER, UPPER)
    safety = at_rest(position, max_step=100.0)
    goal = random.uniform(LOWER, UPPER)
    for _ in range(ticks):
        result = safety.step(goal, DT)
    rest, moving = result.rest, safety.velocity
    previous, dt = result.sent, DT * stretch
    for _ in range(math.ceil(float((np.abs(moving) / ACCELERATION).max()) / dt)):
        sent = safety.step(None, dt).sent
        assert ((sent - previous) * moving >= -TOLERANCE).all()
        previous = sent
    assert (safety.velocity == 0.0).all()
    # It ends between where it was and where it was said to come to rest.
    assert ((rest - sent) * np.sign(moving) >= -TOLERANCE).all()
    held = safety.step(None, dt)
    assert held.sent.tobytes() == sent.tobytes()
    assert held.difference == Difference.NONE
    np.testing.assert_allclose(held.rest, held.sent)


def test_a_lower_speed_is_reached_by_braking_within_the_acceleration_limit() -> None:
    safety = moving_at(3.0)
    goal = only(safety.position[0] + 2.0)
    speeds = []
    for _ in range(60):
        safety.step(goal, DT, speed_scale=0.1)
        speeds.append(float(safety.velocity[0]))
    changes = np.diff([3.0, *speeds])
    assert np.abs(changes).max() <= 12.0 * DT + TOLERANCE
    assert speeds[-1] == pytest.approx(0.314)


# -- outside the limits --------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [0.05, 0.3, 1.0])
def test_from_outside_it_holds_until_asked_and_then_only_comes_in(outside: float) -> None:
    position = np.where(np.arange(7) % 2 == 0, UPPER + outside, LOWER - outside)
    safety = at_rest(position)
    assert safety.step(None, DT).sent.tobytes() == position.tobytes()
    previous = position
    # Asked to stay out there, it comes in to the limit and no farther.
    for _ in range(2000):
        result = safety.step(position, DT)
        assert ((previous - result.sent) * np.sign(position - HOME) >= 0.0).all()
        assert result.difference & Difference.POSITION
        previous = result.sent
    np.testing.assert_allclose(previous, np.clip(position, LOWER, UPPER), atol=TOLERANCE)


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [np.full(7, np.nan), np.where(np.arange(7) == 3, np.inf, HOME), np.zeros(6), np.zeros((7, 1))],
)
def test_what_is_not_a_target_brakes_and_is_marked_invalid(bad: Array) -> None:
    safety = at_rest()
    for tick in range(30):
        safety.step(HOME + 0.01 * tick, DT)
    before = safety.velocity
    result = safety.step(bad, DT)
    assert result.difference == Difference.INVALID
    expected = np.sign(before) * np.maximum(np.abs(before) - ACCELERATION * DT, 0.0)
    np.testing.assert_allclose(safety.velocity, expected, atol=TOLERANCE)
    again = safety.step(safety.position, DT)
    assert not again.difference & (Difference.INVALID | Difference.REENGAGE)


def test_a_far_target_is_refused_until_one_comes_near_what_is_held() -> None:
    safety = at_rest()
    far = HOME.copy()
    far[0] += 0.51
    for _ in range(3):
        result = safety.step(far, DT)
        assert result.difference == Difference.REENGAGE
        assert result.sent.tobytes() == HOME.tobytes()
        assert not safety.engaged
    far[0] = HOME[0] + 0.49
    result = safety.step(far, DT)
    assert not result.difference & Difference.REENGAGE
    assert safety.engaged


def test_all_joints_must_be_near_to_engage() -> None:
    safety = at_rest()
    for joint in range(7):
        target = HOME.copy()
        target[joint] += 0.6 if HOME[joint] + 0.6 < UPPER[joint] else -0.6
        assert safety.step(target, DT).difference == Difference.REENGAGE


def test_a_jump_brakes_latches_and_ends_when_the_leader_returns_to_the_follower() -> None:
    safety = at_rest()
    referee = Referee(HOME)
    target = HOME.copy()
    for _ in range(60):
        target[0] += 3.0 * DT
        referee.judge(safety.step(target, DT), DT)
    jumped = target.copy()
    jumped[0] += 0.6
    for _ in range(100):
        result = safety.step(jumped, DT)
        referee.judge(result, DT)
        assert result.difference == Difference.REENGAGE
    assert (safety.velocity == 0.0).all()
    held = result.sent
    back = held.copy()
    back[0] += 0.3
    assert not safety.step(back, DT).difference & Difference.REENGAGE


def test_a_leader_faster_than_the_follower_is_followed_not_refused() -> None:
    """6 rad/s in small steps: what is sent lags by far more than max_step, and still follows."""
    safety = at_rest()
    target = HOME.copy()
    lag = 0.0
    for _ in range(90):
        target[0] += 6.0 * DT
        result = safety.step(target, DT)
        assert not result.difference & Difference.REENGAGE
        lag = max(lag, target[0] - result.sent[0])
    assert lag > 0.6
    for _ in range(200):
        result = safety.step(target, DT)
    np.testing.assert_allclose(result.sent, target, atol=TOLERANCE)


@pytest.mark.parametrize("interruption", [None, np.full(7, np.nan)])
def test_after_an_interruption_a_leader_that_is_far_ahead_must_come_back(
    interruption: Array | None,
) -> None:
    safety = at_rest()
    target = HOME.copy()
    for _ in range(90):
        target[0] += 6.0 * DT
        result = safety.step(target, DT)
    assert target[0] - result.sent[0] > 0.6
    safety.step(interruption, DT)
    assert not safety.engaged
    assert safety.step(target, DT).difference == Difference.REENGAGE


def test_a_leader_beyond_the_followers_range_is_held_at_the_limit_and_stays_engaged() -> None:
    position = HOME.copy()
    position[1] = 1.2
    safety = at_rest(position)
    target = position.copy()
    for _ in range(300):
        target[1] = min(2.0, target[1] + 1.0 * DT)  # 0.74 rad beyond 1.25664
        result = safety.step(target, DT)
    assert result.difference == Difference.POSITION
    assert result.sent[1] == pytest.approx(1.25664, abs=TOLERANCE)
    for _ in range(200):
        target[1] -= 1.0 * DT
        assert not safety.step(target, DT).difference & Difference.REENGAGE


# -- reasons -------------------------------------------------------------------------------------


def test_the_reasons_name_the_limit_that_held_it_back() -> None:
    safety = one_joint()
    safety.reset(only(0.0))
    goal = only(3.0)
    assert safety.step(goal, DT).difference == Difference.ACCELERATION
    for _ in range(80):
        result = safety.step(goal, DT)
    assert result.difference == Difference.VELOCITY
    assert safety.step(only(3.2), DT).difference & Difference.POSITION


# -- guard and workspace -------------------------------------------------------------------------


def test_the_guard_sees_the_next_pose_and_the_way_to_rest() -> None:
    safety = moving_at(2.4)
    before = float(safety.position[0])
    seen: list[float] = []

    def guard(held: Array, ahead: Array) -> float:
        assert held[0] == before
        seen.append(float(ahead[0]))
        return 1.0

    result = safety.step(only(before + 2.4 * DT), DT, guard=guard)
    assert seen[0] == result.sent[0]
    assert seen[-1] == pytest.approx(result.sent[0] + 2.4**2 / 24.0)
    assert seen[-1] == pytest.approx(result.rest[0])
    # Braking takes 0.2 s; in between it looks at least every 50 ms.
    assert len(seen) == 5
    for i, pose in enumerate(seen):
        t = 0.2 * i / 4
        assert pose == pytest.approx(result.sent[0] + 2.4 * t - 6.0 * t**2)
    # When it brakes anyway, the guard only says how near it will come.
    before = float(result.sent[0])
    seen.clear()
    result = safety.step(None, DT, guard=guard)
    assert seen == [pytest.approx(result.rest[0])]
    assert result.rest[0] == pytest.approx(result.sent[0] + 2.34**2 / 24.0)


@pytest.mark.parametrize(
    ("free", "speed"), [(1.0, 2.4), (0.5, 2.37), (0.0, 2.34), (math.nan, 2.34)]
)
def test_what_is_not_free_is_braking(free: float, speed: float) -> None:
    safety = moving_at(2.4)
    result = safety.step(only(safety.position[0] + 2.4 * DT), DT, guard=lambda held, rest: free)
    assert safety.velocity[0] == pytest.approx(speed)
    assert bool(result.difference & Difference.COLLISION) == (free != 1.0)


def test_a_leader_that_runs_away_while_the_way_is_blocked_is_not_chased() -> None:
    safety = one_joint(max_step=0.5)
    safety.reset(only(0.0))
    target = 0.0
    results = []
    for _ in range(120):
        target += 1.0 * DT
        results.append(safety.step(only(target), DT, guard=always(0.0)))
    assert results[50].difference & Difference.COLLISION
    assert not results[50].difference & Difference.REENGAGE
    assert results[-1].difference & Difference.REENGAGE
    freed = safety.step(only(target), DT)
    assert freed.difference == Difference.REENGAGE
    assert freed.sent[0] == 0.0


def test_a_wall_is_not_reached_at_any_speed() -> None:
    """A guard that knows a wall at 1.0 and slows 0.1 before it: the step ends before, unslammed."""
    safety = one_joint(max_step=100.0)
    safety.reset(only(-2.0))
    velocities = [0.0]
    for _ in range(1500):
        result = safety.step(
            only(3.0),
            DT,
            guard=lambda held, ahead: float(np.clip((1.0 - ahead[0]) / 0.1, 0.0, 1.0)),
        )
        assert result.sent[0] < 1.0
        velocities.append(float(safety.velocity[0]))
    assert result.sent[0] > 0.95
    assert max(velocities) == pytest.approx(3.14)
    assert np.abs(np.diff(velocities)).max() <= 12.0 * DT + TOLERANCE


# -- use -----------------------------------------------------------------------------------------


def test_before_reset_and_with_a_bad_reset_it_refuses_to_work() -> None:
    safety = SafetyFilter(vx300s(), DT)
    with pytest.raises(RuntimeError, match="reset"):
        safety.step(HOME, DT)
    with pytest.raises(ValueError, match="7 finite values"):
        safety.reset(np.full(7, np.nan))
    with pytest.raises(ValueError, match="period"):
        SafetyFilter(vx300s(), 0.0)


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan, 1e-9, 1e9, math.inf])
def test_an_impossible_dt_is_taken_as_the_nearest_sane_one(dt: float) -> None:
    safety = at_rest()
    target = HOME + 0.4
    for _ in range(50):
        before, velocity = safety.position, safety.velocity
        sent = safety.step(target, dt).sent
        longest = 5.0 * DT
        assert (np.abs(sent - before) <= VELOCITY * longest + TOLERANCE).all()
        assert (np.abs(safety.velocity - velocity) <= ACCELERATION * longest + TOLERANCE).all()
