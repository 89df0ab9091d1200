"""Moves: at rest at both ends, never above the speeds restated here, and off the table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardware.aloha import trajectory
from hardware.aloha.rig import ARMS, build_spec
from robot_stack.trajectory import minimum_jerk

# Restated by hand: rad/s and rad/s^2 of the arm, 1/s and 1/s^2 of the gripper.
SPEED = np.array([1.0] * 6 + [2.0])
ACCELERATION = np.array([80.0] * 6 + [8.0])
LOWER = np.array([-3.14, -1.85, -1.76, -3.14, -1.86, -3.14, -0.1])
UPPER = np.array([3.14, 1.25, 1.60, 3.14, 2.23, 3.14, 1.1])
DT = 0.02
SPEC = build_spec(ARMS["vx300s"])

poses = st.lists(st.floats(0, 1), min_size=7, max_size=7).map(
    lambda u: LOWER + np.array(u) * (UPPER - LOWER)
)


def _check_motion(start: NDArray[np.float64], path: NDArray[np.float64]) -> None:
    whole = np.vstack([start, start, path, path[-1]])
    velocity = np.diff(whole, axis=0) / DT
    assert (np.abs(velocity) <= SPEED + 1e-9).all()
    acceleration = np.diff(velocity, axis=0) / DT
    assert (np.abs(acceleration) <= ACCELERATION + 1e-9).all()


def test_minimum_jerk_by_hand() -> None:
    path = minimum_jerk(np.zeros(1), np.ones(1), 1.0, 0.25)
    # 10 s^3 - 15 s^4 + 6 s^5 at s = 1/4, 1/2, 3/4, 1.
    assert path[:, 0].tolist() == pytest.approx([0.103515625, 0.5, 0.896484375, 1.0])


@pytest.mark.parametrize("bad", [np.array([np.nan]), np.array([0.0, 1.0])])
def test_minimum_jerk_refuses(bad: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="finite and alike"):
        minimum_jerk(np.zeros(1), bad, 1.0, 0.1)


@settings(max_examples=100, deadline=None)
@given(poses)
def test_home_from_anywhere(start: NDArray[np.float64]) -> None:
    path = trajectory.home(SPEC, start, DT)
    _check_motion(start, path)
    assert path[-1, :6].tolist() == [0, -0.96, 1.16, 0, -0.3, 0]
    assert (path[:, 6] == start[6]).all()
    assert len(path) * DT >= 1.5 - 1e-9


@settings(max_examples=100, deadline=None)
@given(poses)
def test_sleep_from_anywhere(start: NDArray[np.float64]) -> None:
    path = trajectory.sleep(SPEC, start, DT)
    _check_motion(start, path)
    assert path[-1, :6].tolist() == [0, -1.85, 1.55, 0, 0.8, 0]
    # The shoulder is never farther forward than it was, or than home.
    assert path[:, 1].max() <= max(start[1], -0.96) + 1e-9


def test_asleep_stays_asleep() -> None:
    pose = np.array([*SPEC.sleep[:6], 0.7])
    assert trajectory.sleep(SPEC, pose, DT).tolist() == [pose.tolist()]


def test_a_slow_station_moves_slower() -> None:
    start = np.array(SPEC.sleep)
    slow = trajectory.home(SPEC.scaled(0.1), start, DT)
    assert len(slow) > 2 * len(trajectory.home(SPEC, start, DT))
    assert np.abs(np.diff(slow, axis=0) / DT)[:, :6].max() <= 0.314


@pytest.mark.slow
def test_the_order_of_joints_keeps_the_hand_off_the_table() -> None:
    """In gym-aloha's geometry, from poses with the hand within 8 cm of the table."""
    mujoco = pytest.importorskip("mujoco")
    gym_aloha = pytest.importorskip("gym_aloha")
    from pathlib import Path

    scene = Path(gym_aloha.__file__).parent / "assets" / "bimanual_viperx_transfer_cube.xml"
    model = mujoco.MjModel.from_xml_path(str(scene))
    data = mujoco.MjData(model)
    names = [model.geom(g).name for g in range(model.ngeom)]
    body = [model.body(model.geom_bodyid[g]).name for g in range(model.ngeom)]
    # The base, shoulder and upper arm stand on the table; what moves freely is from the elbow on.
    arm = [
        g
        for g in range(model.ngeom)
        if body[g].startswith("vx300s_left/")
        and not any(part in names[g] for part in ("1_base", "2_shoulder", "3_upper_arm"))
        and model.geom_contype[g]
    ]
    vertices = {}
    for g in arm:
        mesh = model.geom_dataid[g]
        first = model.mesh_vertadr[mesh]
        vertices[g] = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]

    def height(q: NDArray[np.float64]) -> float:
        """Height in m of the lowest vertex over the table top (z = 0)."""
        data.qpos[:] = model.key_qpos[0]
        data.qpos[:6] = q[:6]
        mujoco.mj_kinematics(model, data)
        return min(
            float((vertices[g] @ data.geom_xmat[g].reshape(3, 3)[2]).min() + data.geom_xpos[g][2])
            for g in arm
        )

    def touches_itself(q: NDArray[np.float64]) -> bool:
        height(q)
        mujoco.mj_collision(model, data)
        return any(
            body[contact.geom1].startswith("vx300s_left/")
            and body[contact.geom2].startswith("vx300s_left/")
            for contact in data.contact
        )

    asleep = height(np.array(SPEC.sleep))
    # Here the hand meets its own shoulder, and dips 2 cm, unless the elbow goes up first.
    curled = np.array([0.78, -0.88, 1.42, 0.98, 1.33, 0.73, 0.5])
    path = trajectory.sleep(SPEC, curled, 0.1)
    assert not any(map(touches_itself, path))
    assert min(map(height, path)) > min(height(curled), asleep) - 0.01

    rng = np.random.default_rng(7)
    low = np.array([-1, -1.8, -1.7, -1.5, -1.8, -1.5, 0.5])
    high = np.array([1, 1.2, 1.55, 1.5, 2.2, 1.5, 0.5001])
    tried = 0
    straight = 0
    while tried < 30:
        start = rng.uniform(low, high)
        if not 0.01 < height(start) < 0.08 or touches_itself(start):
            continue
        tried += 1
        floor = min(height(start), asleep)
        path = trajectory.sleep(SPEC, start, 0.15)
        assert min(map(height, path)) > floor - 0.01
        line = minimum_jerk(start, np.array(SPEC.sleep), 3.0, 0.15)
        straight += min(map(height, line)) < floor - 0.01
    assert straight > 0, "a straight line would do: the detour has no reason"
