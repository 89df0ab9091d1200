"""Forward kinematics and Jacobian, against the Panda of gym-hil and numbers worked out by hand."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardware.franka.kinematics import HAND_TCP, HOME, Kinematics
from robot_stack import rotation

Array = NDArray[np.float64]

LOWER = (-2.9007, -1.8361, -2.9007, -3.0770, -2.8973, -0.0175, -3.0508)
UPPER = (2.9007, 1.8361, 2.9007, -0.0698, 2.8973, 4.6216, 3.0508)

joints = st.tuples(*(st.floats(low, high) for low, high in zip(LOWER, UPPER, strict=True))).map(
    np.array
)


@functools.cache
def panda() -> tuple[Any, Any]:
    import gym_hil

    path = Path(gym_hil.__file__).parent / "assets" / "scene.xml"
    model = mujoco.MjModel.from_xml_path(str(path))
    return model, mujoco.MjData(model)


def flange_of_mujoco(q: Array) -> Array:
    """The flange, (4, 4): gym-hil's body ``attachment`` is the flange, turned by 135 degrees."""
    model, data = panda()
    data.qpos[:] = model.qpos0
    data.qpos[model.joint("joint1").qposadr[0] + np.arange(7)] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    link7 = data.body("link7")
    flange = np.eye(4)
    flange[:3, :3] = link7.xmat.reshape(3, 3)
    flange[:3, 3] = data.body("attachment").xpos
    return flange


@settings(deadline=None)
@given(joints)
def test_it_is_mujocos_panda(q: Array) -> None:
    flange = flange_of_mujoco(q)
    np.testing.assert_allclose(Kinematics(np.eye(4)).transform(q), flange, atol=1e-9)
    np.testing.assert_allclose(Kinematics().transform(q), flange @ HAND_TCP, atol=1e-9)


@settings(deadline=None)
@given(joints)
def test_the_jacobian_is_mujocos(q: Array) -> None:
    tip = Kinematics().transform(q)[:3, 3]
    flange_of_mujoco(q)
    model, data = panda()
    linear, angular = np.zeros((3, model.nv)), np.zeros((3, model.nv))
    mujoco.mj_jac(model, data, linear, angular, tip, model.body("link7").id)
    first = model.joint("joint1").dofadr[0]
    expected = np.vstack([linear, angular])[:, first : first + 7]
    np.testing.assert_allclose(Kinematics().jacobian(q), expected, atol=1e-9)


@settings(deadline=None)
@given(joints)
def test_pose_position_and_transform_say_the_same(q: Array) -> None:
    kinematics = Kinematics()
    with_gripper = np.append(q, 0.5)
    transform = kinematics.transform(q)
    pose = kinematics.pose(with_gripper)
    np.testing.assert_allclose(pose[:3], transform[:3, 3], atol=1e-12)
    np.testing.assert_allclose(rotation.to_matrix(pose[3:]), transform[:3, :3], atol=1e-12)
    assert pose[3] >= 0.0
    np.testing.assert_array_equal(kinematics.position(with_gripper), pose[:3])
    np.testing.assert_allclose(rotation.pose_of(transform), pose, atol=1e-9)
    fast, jacobian = kinematics.pose_and_jacobian(q.tolist())
    np.testing.assert_array_equal(fast, pose)
    np.testing.assert_array_equal(jacobian, kinematics.jacobian(q))


def test_poses_worked_out_by_hand() -> None:
    # Stretched out upwards: 0.333 + 0.316 + 0.384 m above the base, then 88 mm forward and the
    # flange's 107 mm down again.
    flange = Kinematics(np.eye(4)).transform(np.zeros(7))
    np.testing.assert_allclose(flange[:3, 3], (0.088, 0.0, 0.926), atol=1e-12)
    np.testing.assert_allclose(flange[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    # Turned a quarter at the base.
    turned = Kinematics(np.eye(4)).position(np.array([math.pi / 2, 0, 0, 0, 0, 0, 0]))
    np.testing.assert_allclose(turned, (0.0, 0.088, 0.926), atol=1e-12)
    # Home: the hand points straight down, its fingers open along y.
    home = Kinematics().transform(np.array(HOME))
    np.testing.assert_allclose(home[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-12)
    np.testing.assert_allclose(home[:3, 3], (0.3069, 0.0, 0.4869), atol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [np.eye(3), np.diag([1.0, 1.0, -1.0, 1.0]), 2.0 * np.eye(4), np.full((4, 4), math.nan)],
)
def test_an_end_effector_frame_that_is_none_is_refused(wrong: Array) -> None:
    with pytest.raises(ValueError, match="F_T_EE"):
        Kinematics(wrong)


# -- rotations -----------------------------------------------------------------------------------

numbers = st.floats(-1.0, 1.0)
quaternions = (
    st.tuples(numbers, numbers, numbers, numbers)
    .filter(lambda q: math.hypot(*q) > 1e-3)
    .map(rotation.normalized)
)


@given(quaternions, quaternions)
def test_the_way_between_two_rotations_is_short_and_arrives(
    a: rotation.Quaternion, b: rotation.Quaternion
) -> None:
    way = rotation.between(a, b)
    assert math.hypot(*way) <= math.pi + 1e-12
    arrived = rotation.multiply(rotation.from_vector(way), a)
    assert abs(sum(p * q for p, q in zip(arrived, b, strict=True))) == pytest.approx(1.0)
    opposite = tuple(-value for value in b)
    if math.hypot(*way) < math.pi - 1e-6:
        np.testing.assert_allclose(rotation.between(a, opposite), way, atol=1e-9)


@given(quaternions)
@settings(max_examples=300)
def test_a_matrix_and_its_quaternion(q: rotation.Quaternion) -> None:
    back = rotation.from_matrix(rotation.to_matrix(q))
    assert back[0] >= 0.0
    assert abs(sum(p * r for p, r in zip(back, q, strict=True))) == pytest.approx(1.0)


@pytest.mark.parametrize("none", [(0.0,) * 4, (math.nan, 0, 0, 0), (math.inf, 0, 0, 0)])
def test_what_is_no_rotation_is_refused(none: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="no rotation"):
        rotation.normalized(none)
