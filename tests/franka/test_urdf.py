"""The FR3's served URDF: what libfranka reads in it, and that its dynamics are the body's."""

from __future__ import annotations

from xml.etree import ElementTree

import mujoco
import numpy as np

from hardware.franka.kinematics import Kinematics
from hardware.franka.limits import FR3
from hardware.franka.virtual.scene import arm_scene
from hardware.franka.virtual.urdf import fr3_urdf


def test_what_libfranka_parses() -> None:
    robot = ElementTree.fromstring(fr3_urdf())
    assert robot.tag == "robot" and not robot.attrib["name"].startswith("tmr")
    joints = {joint.attrib["name"]: joint for joint in robot.iter("joint")}
    upper = [2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508]
    lower = [-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508]
    velocity = [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26]
    offset = [0.6599, 0.2517, 0.2000, 0.3533, 0.5757, 0.4878, 0.4628]
    deceleration = [6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0]
    for i in range(7):
        limit = joints[f"joint{i + 1}"].find("limit")
        bound = joints[f"joint{i + 1}"].find("position_based_velocity_limits")
        assert limit is not None and bound is not None
        assert float(limit.attrib["upper"]) == upper[i]
        assert float(limit.attrib["lower"]) == lower[i]
        assert float(limit.attrib["velocity"]) == velocity[i]
        assert float(bound.attrib["velocity_offset"]) == offset[i]
        assert float(bound.attrib["deceleration_limit"]) == deceleration[i]
    # Pinocchio's chain ends here: the flange, fixed to link 7.
    child = joints["joint8"].find("child")
    assert child is not None and child.attrib["link"] == "link8"
    assert joints["joint8"].attrib["type"] == "fixed"


def test_dynamics_are_those_of_the_arm() -> None:
    """MuJoCo reads the URDF too: mass matrix and bias forces of both, without the hand."""
    read = mujoco.MjModel.from_xml_string(fr3_urdf())
    spec = arm_scene("fr3", visual=False)
    for name in ("left_finger", "right_finger", "hand"):
        spec.delete(spec.body(name))
    arm = spec.compile()
    arm.dof_armature[:] = 0.0
    rng = np.random.default_rng(3)
    full = [np.zeros((7, 7)), np.zeros((7, 7))]
    for _ in range(20):
        q, dq = rng.uniform(FR3.q_lower, FR3.q_upper), rng.uniform(-2, 2, 7)
        bias = []
        for model, matrix in zip((read, arm), full, strict=True):
            data = mujoco.MjData(model)
            data.qpos[:], data.qvel[:] = q, dq
            mujoco.mj_forward(model, data)
            mujoco.mj_fullM(model, matrix, data.qM)
            bias.append(data.qfrc_bias.copy())
            flange = Kinematics(np.eye(4)).transform(q)
            link = data.body("link7")
            np.testing.assert_allclose(
                link.xpos + link.xmat.reshape(3, 3)[:, 2] * 0.107, flange[:3, 3], atol=1e-9
            )
        np.testing.assert_allclose(full[0], full[1], atol=1e-6)
        np.testing.assert_allclose(bias[0], bias[1], atol=1e-5)
