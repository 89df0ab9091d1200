"""Poses of the end effector through the arm process: what is sent stays within all limits."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_stack import rotation
from robot_stack.records import command_record
from robot_stack.types import ActionChunk, CommandMode, Difference, Source
from server.control.chunk_buffer import ChunkBuffer
from tests.control.ideal_franka import DT_NS, Rig, rig

Array = NDArray[np.float64]

DT = DT_NS / 1e9
POSE, JOINT = CommandMode.EE_POSE, CommandMode.JOINT_POSITION

# The FR3's limits, restated: positions, half the speed that a station may use (its default), the
# accelerations that the speed bound's own deceleration leaves, and that bound.
LOWER = np.array((-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508, 0.0))
UPPER = np.array((2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508, 1.0))
FASTEST = np.array((2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26))
DECELERATION = np.array((6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0))
OFFSET = np.array((0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35))
VELOCITY = np.append(FASTEST / 2.0, 5.0)
ACCELERATION = np.array((6.0, 2.585, 3.5, 4.0, 10.0, 5.5, 10.0, 100.0))
SLACK = 1e-6  # seconds as floats leave 1e-9 of a step


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


class Watch:
    """Holds every step that is sent against the limits."""

    def __init__(self, q: Array) -> None:
        self.q, self.velocity = q, np.zeros(8)

    def step(self, q: Array) -> None:
        velocity = (q - self.q) / DT
        assert np.isfinite(q).all()
        assert (q >= LOWER).all() and (q <= UPPER).all()
        assert (np.abs(velocity) <= VELOCITY + SLACK).all(), velocity
        change = np.abs(velocity - self.velocity) / DT
        assert (change <= ACCELERATION + 1e-4).all(), change
        up = np.sqrt(2.0 * DECELERATION * (UPPER - self.q)[:7]) - OFFSET
        down = np.sqrt(2.0 * DECELERATION * (self.q - LOWER)[:7]) - OFFSET
        assert (velocity[:7] <= np.maximum(up, 0.0) + SLACK).all()
        assert (velocity[:7] >= -np.maximum(down, 0.0) - SLACK).all()
        self.q, self.velocity = q, velocity


def with_gripper(pose: Array, opening: float = 1.0) -> Array:
    return np.append(pose, opening)


def turned(pose: Array, vector: tuple[float, float, float]) -> Array:
    turn = rotation.multiply(rotation.from_vector(vector), pose[3:])
    return np.concatenate([pose[:3], turn])


# -- following -----------------------------------------------------------------------------------


def test_a_stream_of_poses_is_followed_exactly(arm: Rig) -> None:
    start = arm.pose
    watch = Watch(arm.sent)
    for i in range(600):
        angle = 2.0 * math.pi * 0.2 * i * DT
        pose = turned(start, (0.0, 0.1 * (1.0 - math.cos(angle)), 0.0))
        pose[1] += 0.08 * (1.0 - math.cos(angle))
        arm.send(with_gripper(pose, 0.5))
        tick = arm.turn()
        watch.step(tick["sent"])
        assert tick["mode"] == POSE
        np.testing.assert_allclose(tick["asked_pose"], pose, atol=1e-12)
        assert not tick["difference"] & ~(Difference.VELOCITY | Difference.ACCELERATION)
        if i > 100:
            np.testing.assert_allclose(arm.pose[:3], pose[:3], atol=1e-4)
            np.testing.assert_array_equal(tick["sent"], tick["asked"])
    np.testing.assert_allclose(tick["ee_pose"], arm.pose, atol=1e-2)
    assert tick["sent"][7] == 0.5


def test_poses_at_50_hz_come_out_smooth(arm: Rig) -> None:
    start = arm.pose
    path = []
    for i in range(400):
        if i % 4 == 0:
            pose = start.copy()
            pose[2] -= 0.1 * (1.0 - math.cos(2.0 * math.pi * 0.25 * i * DT))
            arm.send(with_gripper(pose))
        arm.turn()
        path.append(arm.pose[2])
    speed = np.diff(path[50:]) / DT
    assert np.abs(np.diff(speed)).max() < 0.02  # a staircase has jumps of 0.1 m/s
    assert np.abs(speed).max() == pytest.approx(0.157, abs=0.01)


def test_a_chunk_of_poses_turns_the_short_way_whatever_its_signs(arm: Rig) -> None:
    start = arm.pose
    watch = Watch(arm.sent)
    rows = []
    for i in range(40):
        row = turned(start, (0.0, 0.0, 0.01 * i))
        row[3:] *= (-1.0) ** (i // 3) * (1.0 + 0.2 * math.sin(i))  # signs and lengths of a network
        rows.append(with_gripper(row))
    arm.send(rows, start_ns=arm.clock.now_ns, dt_ns=4 * DT_NS)
    lengths = []
    last = start[3:]
    for _ in range(4 * 40):
        tick = arm.turn()
        watch.step(tick["sent"])
        lengths.append(np.linalg.norm(tick["asked_pose"][3:]))
        assert math.hypot(*rotation.between(last, tick["asked_pose"][3:])) < 0.004
        last = tick["asked_pose"][3:]
        way = rotation.between(start[3:], arm.pose[3:])
        assert math.hypot(way[0], way[1]) < 0.01
        assert -0.01 < way[2] < 0.41
    np.testing.assert_allclose(lengths, 1.0, atol=1e-12)
    assert way[2] == pytest.approx(0.39, abs=0.02)


def test_the_step_that_a_stream_may_take_is_taken_without_overshooting(arm: Rig) -> None:
    goal = arm.pose
    goal[0] += 0.08
    beyond = []
    for _ in range(300):
        arm.send(with_gripper(goal))
        arm.turn()
        beyond.append(arm.pose[0] - goal[0])
    assert max(beyond) < 1e-4
    np.testing.assert_allclose(arm.pose[:3], goal[:3], atol=1e-5)
    assert math.hypot(*rotation.between(goal[3:], arm.pose[3:])) < 1e-4


# -- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({0: math.nan}, Difference.INVALID),
        ({5: math.inf}, Difference.INVALID),
        ({3: 0.0, 4: 0.0, 5: 0.0, 6: 0.0}, Difference.INVALID),
        ({3: 5.0}, Difference.INVALID),
        ({0: 0.45}, Difference.REENGAGE),  # 14 cm away
        ({2: 1e300}, Difference.REENGAGE),
        ({3: 0.4, 4: 0.9}, Difference.REENGAGE),  # 48 degrees round
    ],
)
def test_what_is_no_pose_or_jumps_is_refused_and_the_arm_holds(
    arm: Rig, change: dict[int, float], reason: Difference
) -> None:
    before = arm.sent
    bad = with_gripper(arm.pose)
    for index, value in change.items():
        bad[index] = value
    for _ in range(30):
        arm.send(bad)
        tick = arm.turn()
        assert tick["difference"] & reason
        np.testing.assert_array_equal(tick["sent"], before)
        assert np.isnan(tick["asked"]).all()
    good = with_gripper(arm.pose)
    good[0] += 0.02
    arm.send(good)
    assert not arm.turn()["difference"] & (reason | Difference.STALE)


def test_a_jump_within_a_stream_stops_the_arm_until_the_poses_come_back(arm: Rig) -> None:
    start = arm.pose
    pose = start.copy()
    watch = Watch(arm.sent)
    for _ in range(60):
        pose[1] += 0.001
        arm.send(with_gripper(pose))
        watch.step(arm.turn()["sent"])
    pose[1] += 0.15
    for _ in range(60):
        arm.send(with_gripper(pose))
        tick = arm.turn()
        watch.step(tick["sent"])
        assert tick["difference"] & Difference.REENGAGE
    np.testing.assert_array_equal(watch.velocity, 0.0)
    assert arm.pose[1] == pytest.approx(0.06, abs=0.04)
    pose[1] = arm.pose[1] + 0.01
    arm.send(with_gripper(pose))
    assert not arm.turn()["difference"] & Difference.REENGAGE


def test_out_of_reach_the_nearest_is_held_and_told(arm: Rig) -> None:
    pose = arm.pose
    watch = Watch(arm.sent)
    reached = arm.pose
    for i in range(900):
        pose[0] += 0.001 if i < 600 else 0.0  # 0.2 m/s, 0.6 m ahead
        arm.send(with_gripper(pose))
        tick = arm.turn()
        watch.step(tick["sent"])
        if i == 700:
            reached = arm.pose
    assert tick["difference"] & Difference.REACH
    assert arm.pose[0] - reached[0] < 2e-3
    assert 0.7 < arm.pose[0] < 0.95
    np.testing.assert_allclose(tick["asked_pose"][0], pose[0])


@pytest.mark.parametrize("away", [0.35, -0.35])
def test_another_mode_within_a_stream_does_not_jump(arm: Rig, away: float) -> None:
    watch = Watch(arm.sent)
    pose = arm.pose
    for _ in range(40):
        pose[1] += 0.001
        arm.send(with_gripper(pose))
        watch.step(arm.turn()["sent"])
    joints = arm.sent.copy()
    joints[0] += away  # farther than max_step
    for _ in range(20):
        arm.send(joints, JOINT)
        tick = arm.turn()
        watch.step(tick["sent"])
        assert tick["mode"] == JOINT
        assert np.isnan(tick["asked_pose"]).all()
        assert tick["difference"] & Difference.REENGAGE
    joints = arm.sent.copy()
    for _ in range(40):
        joints[0] += math.copysign(0.002, away)
        arm.send(joints, JOINT)
        tick = arm.turn()
        watch.step(tick["sent"])
        assert not tick["difference"] & Difference.REENGAGE
    far = with_gripper(arm.pose)
    far[1] += away
    arm.send(far)
    tick = arm.turn()
    watch.step(tick["sent"])
    assert tick["difference"] & Difference.REENGAGE
    near = with_gripper(arm.pose)
    arm.send(near)
    tick = arm.turn()
    watch.step(tick["sent"])
    assert not tick["difference"] & Difference.REENGAGE


def test_a_robot_that_takes_joints_only_refuses_poses(arm: Rig) -> None:
    before = arm.sent
    arm.arm.inbox.poses = False  # as ArmProcess sets it for a robot without inverse kinematics
    arm.send(with_gripper(arm.pose))
    tick = arm.turn()
    assert tick["difference"] & Difference.INVALID
    assert tick["mode"] == JOINT
    np.testing.assert_array_equal(tick["sent"], before)


@pytest.mark.parametrize("mode", [2, 255])
def test_a_mode_that_is_none_is_refused(arm: Rig, mode: int) -> None:
    arm.send(with_gripper(arm.pose), mode)
    assert arm.turn()["difference"] & Difference.INVALID


def test_a_mailbox_carries_the_mode() -> None:
    assert command_record(8).fields is not None
    assert command_record(8)["mode"] == np.dtype("u1")


# -- walls ---------------------------------------------------------------------------------------


WALLS = "workspace: {lower: [0.2, -0.3, 0.3], upper: [0.5, 0.3, 0.7], slow_m: 0.05}"
WALL_LOWER, WALL_UPPER = np.array((0.2, -0.3, 0.3)), np.array((0.5, 0.3, 0.7))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mode", [POSE, JOINT])
def test_a_wall_slows_the_hand_and_then_stops_it(
    tmp_path: Path, axis: int, sign: float, mode: CommandMode
) -> None:
    """The hand heads for a wall at 0.3 m/s; joints that lead there know nothing of walls either."""
    with rig(tmp_path, workspace=WALLS) as arm:
        wall = (WALL_UPPER if sign > 0 else WALL_LOWER)[axis]
        free = rig_path(arm, axis, sign)
        watch = Watch(arm.sent)
        left, speeds = [], []
        reasons = 0
        for pose, joints in free:
            arm.send(with_gripper(pose) if mode is POSE else joints, mode)
            before = arm.pose[axis]
            tick = arm.turn()
            watch.step(tick["sent"])
            reasons |= int(tick["difference"])
            at = arm.pose
            assert (at[:3] >= WALL_LOWER).all()
            assert (at[:3] <= WALL_UPPER).all()
            left.append(sign * (wall - at[axis]))
            speeds.append(sign * (at[axis] - before) / DT)
        assert reasons & Difference.WORKSPACE
        assert 0.0 <= left[-1] < 0.05
        far = [speed for speed, way in zip(speeds, left, strict=True) if way > 0.06]
        near = [speed for speed, way in zip(speeds, left, strict=True) if way < 0.005]
        assert max(far) > 0.15  # fast where there is room; the nearest wall is 11 cm away
        assert max(near, default=0.0) < 0.09  # slow before it stops
        assert abs(speeds[-1]) < 0.01
        # And it comes away freely, once the hand has come back to where the arm is.
        pose = arm.pose
        for _ in range(100):
            pose[axis] -= sign * 0.0005
            arm.send(with_gripper(pose))
            tick = arm.turn()
            watch.step(tick["sent"])
        assert sign * (wall - arm.pose[axis]) > left[-1] + 0.03


def rig_path(arm: Rig, axis: int, sign: float) -> list[tuple[Array, Array]]:
    """Poses that go 0.45 m along an axis at 0.3 m/s, and the joints for them where there is no
    wall, with the gripper."""
    pose, joints = arm.pose, arm.sent
    path = []
    for i in range(400):
        speed = min(0.3, 0.0015 * i)
        if i < 350:
            pose = pose.copy()
            pose[axis] += sign * speed * DT
        joints = np.append(arm.kinematics.solve(pose, joints[:7], DT), 1.0)
        path.append((pose, joints))
    return path


# -- whatever comes ------------------------------------------------------------------------------


anything = st.one_of(
    st.floats(-1.2, 1.2), st.floats(allow_nan=True, allow_infinity=True), st.just(0.0)
)
small = st.floats(-0.12, 0.12)
ticks = st.integers(1, 24)
events = st.lists(
    st.one_of(
        st.tuples(st.just("near"), st.tuples(*[small] * 6), ticks),
        st.tuples(st.just("drift"), st.tuples(*[small] * 6), ticks),
        st.tuples(st.just("opposite"), st.tuples(*[small] * 6), ticks),
        st.tuples(st.just("chunk"), st.tuples(*[small] * 6), ticks),
        st.tuples(st.just("joints"), st.tuples(*[small] * 6), ticks),
        st.tuples(st.just("any"), st.tuples(*[anything] * 7), ticks),
        st.tuples(st.just("any joints"), st.tuples(*[anything] * 7), ticks),
        st.tuples(st.just("silence"), st.just(()), ticks),
        st.tuples(st.just("singular"), st.tuples(*[small] * 6), ticks),
    ),
    min_size=3,
    max_size=8,
)


def play(arm: Rig, sequence: list[tuple[str, tuple[float, ...], int]]) -> None:
    watch = Watch(arm.sent)
    for kind, numbers, count in sequence:
        at = arm.pose
        chunk = []
        for i in range(count):
            share = (i + 1) / count if kind in ("drift", "chunk") else 1.0
            moved = at
            if kind not in ("any", "any joints", "silence"):
                dx, dy, dz, rx, ry, rz = (share * value for value in numbers)
                moved = turned(at, (4.0 * rx, 4.0 * ry, 4.0 * rz))
                moved[:3] += (dx, dy, dz)
            if kind == "opposite":
                moved[3:] *= -1.0 if i % 2 else 0.6
            elif kind == "singular":  # towards the shoulder's own axis
                moved[:2] *= 0.8
            if kind == "any":
                arm.send(np.append(numbers, 0.3))
            elif kind == "any joints":
                arm.send(np.append(numbers, 0.3), JOINT)
            elif kind == "joints":
                arm.send(arm.sent + np.append(numbers, (0.0, 0.0)), JOINT)
            elif kind == "chunk":
                chunk.append(with_gripper(moved))
            elif kind != "silence":
                arm.send(with_gripper(moved))
            if kind == "chunk" and i == count - 1 and len(chunk) > 1:
                arm.send(chunk, start_ns=arm.clock.now_ns, dt_ns=3 * DT_NS)
            watch.step(arm.turn()["sent"])
    for _ in range(160):  # silence: whatever it did, it comes to rest
        watch.step(arm.turn()["sent"])
    np.testing.assert_array_equal(watch.velocity, 0.0)


@settings(deadline=None, max_examples=20)
@given(events)
def test_whatever_is_asked_what_is_sent_keeps_every_limit(
    sequence: list[tuple[str, tuple[float, ...], int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory, rig(Path(directory)) as arm:
        play(arm, sequence)


@pytest.mark.exhaustive
@settings(deadline=None, max_examples=3000)
@given(events)
def test_whatever_is_asked_at_length(
    sequence: list[tuple[str, tuple[float, ...], int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory, rig(Path(directory)) as arm:
        play(arm, sequence)


# -- between rows --------------------------------------------------------------------------------


def row(x: float, quaternion: tuple[float, float, float, float]) -> Array:
    return np.array([x, 0.0, 0.5, *quaternion, 1.0])


def test_nothing_lies_between_joints_and_a_pose() -> None:
    buffer = ChunkBuffer(8)
    for i in range(17):
        if i % 4 == 0 and i < 16:
            buffer.put_target(i * DT_NS, np.full(8, 0.1 * i), JOINT)
        if i < 16:
            buffer.target(i * DT_NS)
    pose = row(0.4, (1.0, 0.0, 0.0, 0.0))
    buffer.put_target(16 * DT_NS, pose, POSE)
    sample = buffer.target(16 * DT_NS)
    assert sample.mode is POSE
    np.testing.assert_array_equal(sample.target, pose)


def test_a_chunk_of_poses_that_follows_joints_lets_them_stand_until_it_begins() -> None:
    buffer = ChunkBuffer(8)
    joints = np.full(8, 0.2)
    buffer.put_target(0, joints, JOINT)
    buffer.target(0)
    poses = np.array([row(0.4 + 0.01 * i, (1.0, 0.0, 0.0, 0.0)) for i in range(5)])
    start = 6 * DT_NS
    buffer.put_chunk(
        ActionChunk(0, start, 4 * DT_NS, poses, Source.POLICY, token=1, chunk_id=3, mode=POSE)
    )
    for i in range(1, 20):
        sample = buffer.target(i * DT_NS)
        assert sample.target is not None
        if i < 6:
            assert sample.mode is JOINT
            np.testing.assert_array_equal(sample.target, joints)
        else:
            assert sample.mode is POSE
            assert sample.target[0] >= 0.4
    assert sample.chunk_id == 3


def test_a_row_without_a_rotation_is_refused_whole() -> None:
    buffer = ChunkBuffer(8)
    buffer.put_target(0, row(0.4, (0.1, 0.0, 0.0, 0.0)), POSE)
    sample = buffer.target(0)
    assert sample.target is None
    assert sample.difference & Difference.INVALID
