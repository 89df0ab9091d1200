"""The robot model that an FR3 serves to its clients: a URDF, written from the scene and limits.

libfranka (0.18 and later) asks for it at connecting. It reads the velocity bounds from the
joints, and computes mass, Coriolis and gravity with Pinocchio from the chain that ends in
`link8`, the flange; the hand is not part of it, its mass is in the robot's state. Masses and
inertias are those of the MuJoCo model that plays the arm, so both agree on the dynamics.
"""

from __future__ import annotations

from functools import cache
from math import atan2, hypot
from xml.etree import ElementTree

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.franka.kinematics import FLANGE_M
from hardware.franka.limits import FR3
from hardware.franka.virtual.scene import arm_scene

__all__ = ["fr3_urdf"]

Array = NDArray[np.float64]


@cache
def fr3_urdf() -> str:
    """The URDF of an FR3 without hand: links `link0` to `link8`, joints `joint1` to `joint7`."""
    assert FR3.velocity_offset is not None and FR3.deceleration is not None
    model = arm_scene("fr3", visual=False).compile()
    # A name that starts with "tmr" would be a mobile base to libfranka.
    robot = ElementTree.Element("robot", name="fr3")
    for i in range(8):
        _link(robot, model, f"link{i}")
    ElementTree.SubElement(robot, "link", name="link8")
    for i in range(7):
        child = model.body(f"link{i + 1}")
        joint = _joint(robot, f"joint{i + 1}", "revolute", i, child.pos, _rotation(child.quat))
        ElementTree.SubElement(joint, "axis", xyz="0 0 1")
        ElementTree.SubElement(
            joint,
            "limit",
            lower=repr(FR3.q_lower[i]),
            upper=repr(FR3.q_upper[i]),
            velocity=repr(FR3.velocity[i]),
            effort=repr(FR3.torque[i]),
        )
        ElementTree.SubElement(
            joint,
            "position_based_velocity_limits",
            velocity_offset=repr(FR3.velocity_offset[i]),
            deceleration_limit=repr(FR3.deceleration[i]),
        )
    _joint(robot, "joint8", "fixed", 7, np.array([0.0, 0.0, FLANGE_M]), np.eye(3))
    ElementTree.indent(robot)
    return ElementTree.tostring(robot, encoding="unicode", xml_declaration=True)


def _link(robot: ElementTree.Element, model: mujoco.MjModel, name: str) -> None:
    body = model.body(name)
    turn = _rotation(body.iquat)
    inertia = turn @ np.diag(body.inertia) @ turn.T
    inertial = ElementTree.SubElement(ElementTree.SubElement(robot, "link", name=name), "inertial")
    ElementTree.SubElement(inertial, "origin", xyz=_numbers(body.ipos), rpy="0 0 0")
    ElementTree.SubElement(inertial, "mass", value=repr(float(body.mass[0])))
    entries = {
        f"i{a}{b}": repr(float(inertia[i, j]))
        for i, a in enumerate("xyz")
        for j, b in enumerate("xyz")
        if j >= i
    }
    ElementTree.SubElement(inertial, "inertia", entries)


def _joint(
    robot: ElementTree.Element, name: str, kind: str, parent: int, at: Array, turn: Array
) -> ElementTree.Element:
    joint = ElementTree.SubElement(robot, "joint", name=name, type=kind)
    ElementTree.SubElement(joint, "origin", xyz=_numbers(at), rpy=_numbers(_rpy(turn)))
    ElementTree.SubElement(joint, "parent", link=f"link{parent}")
    ElementTree.SubElement(joint, "child", link=f"link{parent + 1}")
    return joint


def _rotation(quat: Array) -> Array:
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat))
    return matrix.reshape(3, 3)


def _rpy(turn: Array) -> Array:
    """URDF's roll, pitch and yaw: turns about the fixed x, y and z axes, in that order."""
    pitch = atan2(-turn[2, 0], hypot(turn[2, 1], turn[2, 2]))
    return np.array([atan2(turn[2, 1], turn[2, 2]), pitch, atan2(turn[1, 0], turn[0, 0])])


def _numbers(values: Array) -> str:
    return " ".join(repr(float(value)) for value in values)
