"""The collision guard of the ALOHA cell: a second MuJoCo model beside each arm's control loop.

After RoboCrowd (arXiv 2411.01915): at every control step a parallel simulation predicts collisions
between the arms and with the table, and stops the motion before. Here it is kinematics and
collision detection alone, without dynamics: 7 us when nothing is near, 90 us at a hand-over.

Only listed pairs of geoms are looked at, each with margins of its own. Geoms are the convex hulls
of gym-aloha's meshes, which cover the real parts, so distances are on the safe side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Literal, Self

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.worlds.assets import gym_aloha_assets
from robot_stack.safety.limits import ForwardKinematics, free_fraction

__all__ = ["Margin", "Margins", "MujocoCollisionGuard", "aloha_cell_spec", "end_effector"]

Array = NDArray[np.float64]
Side = Literal["left", "right"]

SIDES: tuple[Side, Side] = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
DOF = len(JOINTS) + 1
FINGER_CLOSED_M, FINGER_OPEN_M = 0.021, 0.057  # gym-aloha's range of one finger's slide

LINKS = ("2_shoulder", "3_upper_arm", "4_upper_forearm", "5_lower_forearm", "6_wrist")
HAND = ("7_gripper", "9_gripper_bar", "8_gripper_prop")
FINGERS = ("10_left_gripper_finger", "10_right_gripper_finger")
# Own pairs that a joint's range does not keep apart: the outer arm folded back on the inner.
INNER = ("1_base", "2_shoulder", "3_upper_arm")
OUTER = ("6_wrist", *HAND, *FINGERS)
# The shoulder's range keeps the upper arm 15 cm above the table.
OVER_TABLE = (*LINKS[2:], *HAND)


@dataclass(frozen=True, slots=True)
class Margin:
    """Distances in metres between two geoms: motion slows below ``slow``, ends at ``stop``.

    A ``stop`` of zero or less allows contact (and that much of overlap of the convex hulls).
    """

    slow: float
    stop: float

    def __post_init__(self) -> None:
        if not self.stop < self.slow:
            raise ValueError(f"margin: stop {self.stop} m must be below slow {self.slow} m")


@dataclass(frozen=True, slots=True)
class Margins:
    """Margins by kind of pair.

    Fingers meet at a hand-over and touch the table; they are compliant and the gripper's current
    limits their force. What is judged are goals, and two grippers that squeeze one small thing have
    goals whose hulls overlap by up to 19 mm (measured over hand-over poses); into the table an
    operator's goal may press by 10 mm. In the sleep pose the folded wrist is 8.6 mm from its own
    shoulder (hull to hull), so an arm's own margin must be below that.
    """

    arms: Margin = Margin(0.040, 0.015)
    finger_to_arm: Margin = Margin(0.025, 0.010)
    finger_to_finger: Margin = Margin(-0.020, -0.030)
    table: Margin = Margin(0.030, 0.010)
    finger_to_table: Margin = Margin(0.0, -0.010)
    own: Margin = Margin(0.008, 0.002)


def aloha_cell_spec() -> mujoco.MjSpec:
    """The bare ALOHA cell of gym-aloha: table and both arms, no cube, actuators or cameras.

    Joints (16): per arm the six of ``JOINTS``, then left and right finger slides; left arm first.
    Every geom is out of collision detection; add pairs for what should be looked at.
    """
    spec = mujoco.MjSpec.from_file(str(gym_aloha_assets() / "bimanual_viperx_transfer_cube.xml"))
    spec.delete(spec.body("box"))
    for element in (*spec.keys, *spec.actuators, *spec.cameras, *spec.lights):
        spec.delete(element)
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    # The table top is at z = 0; as a plane it has no underside to end up on.
    table = spec.geom("table")
    table.type = mujoco.mjtGeom.mjGEOM_PLANE
    table.meshname = ""
    table.size = (1.0, 1.0, 1.0)
    table.pos = (0.0, 0.0, 0.0)
    return spec


def _pairs(own: Side, other: Side, margins: Margins) -> dict[tuple[str, str], Margin]:
    """The pairs of geoms that motion of arm ``own`` may bring together."""

    def geom(side: Side, name: str) -> str:
        return f"vx300s_{side}/{name}"

    pairs = {("table", geom(own, name)): margins.table for name in OVER_TABLE}
    pairs |= {("table", geom(own, name)): margins.finger_to_table for name in FINGERS}
    for inner, outer in product(INNER, OUTER):
        pairs[geom(own, inner), geom(own, outer)] = margins.own
    for mine, theirs in product((*LINKS, *HAND, *FINGERS), ("1_base", *LINKS, *HAND, *FINGERS)):
        fingers = (mine in FINGERS) + (theirs in FINGERS)
        pairs[geom(own, mine), geom(other, theirs)] = (
            margins.arms,
            margins.finger_to_arm,
            margins.finger_to_finger,
        )[fingers]
    return pairs


def _write(qpos: Array, first: int, joints: Array) -> None:
    """Put one arm's joints (7,) at ``qpos[first:]``; the gripper's fraction moves both fingers."""
    qpos[first : first + 6] = joints[:6]
    opening = min(max(float(joints[6]), 0.0), 1.0)
    finger = FINGER_CLOSED_M + opening * (FINGER_OPEN_M - FINGER_CLOSED_M)
    qpos[first + 6] = finger
    qpos[first + 7] = -finger


class MujocoCollisionGuard:
    """Keeps one arm of the cell from the other arm, the table and itself (a ``CollisionGuard``).

    ``side`` is the arm that it guards. Joint vectors are in the order of ``JOINTS`` and then the
    gripper's fraction. Ask it about the way to rest (``limits.Clearance``), and show it where the
    other arm would come to rest, not where it is: both may be moving.
    """

    def __init__(self, side: Side, margins: Margins | None = None) -> None:
        if side not in SIDES:
            raise ValueError(f"side is {side!r}; the cell has the arms {' and '.join(SIDES)}")
        other: Side = "right" if side == "left" else "left"
        pairs = _pairs(side, other, margins or Margins())
        spec = aloha_cell_spec()
        for (first, second), margin in pairs.items():
            # MuJoCo reports contacts nearer than the margin; it must not be negative.
            spec.add_pair(geomname1=first, geomname2=second, margin=max(margin.slow, 1e-6))
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._own = 8 * SIDES.index(side)
        self._other = 8 * SIDES.index(other)
        shape = (self._model.ngeom, self._model.ngeom)
        self._stop = np.full(shape, math.nan)
        self._range = np.full(shape, math.nan)
        for (first, second), margin in pairs.items():
            a, b = self._model.geom(first).id, self._model.geom(second).id
            self._stop[a, b] = self._stop[b, a] = margin.stop
            self._range[a, b] = self._range[b, a] = margin.slow - margin.stop

    @classmethod
    def for_robot(cls, index: int) -> Self:
        """The guard of a group's robot ``index``: 0 is the left arm, 1 the right."""
        return cls(SIDES[index])

    def check(self, current: Array, target: Array, other: Array) -> tuple[float, float]:
        """(free fraction of the step, nearest distance in m at ``target``), all shapes (7,).

        The distance is inf when everything is farther away than its margin; pairs that may touch
        (fingers) don't count for it. A step that brings nothing nearer is free: away is always
        allowed, however near. Nothing is free, and the distance NaN, while a pose is unknown (NaN).
        """
        if not math.isfinite(float(target.sum() + other.sum())):
            return 0.0, math.nan
        _write(self._data.qpos, self._other, other)
        clearance, distance = self._nearest(target)
        if clearance >= 1.0:
            return 1.0, distance
        held, _ = self._nearest(current)
        return free_fraction(clearance, held, 0.0, 1.0), distance

    def _nearest(self, joints: Array) -> tuple[float, float]:
        """Smallest clearance (0 at ``stop``, 1 at ``slow``) and distance among the pairs."""
        data = self._data
        _write(data.qpos, self._own, joints)
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_collision(self._model, data)
        if data.ncon == 0:
            return 1.0, math.inf
        first, second = data.contact.geom.T
        distance = data.contact.dist
        stop = self._stop[first, second]
        clearance = float(((distance - stop) / self._range[first, second]).min())
        apart = distance[stop > 0.0]
        return clearance, float(apart.min()) if len(apart) else math.inf


def end_effector(side: Side) -> ForwardKinematics:
    """Forward kinematics of one arm: joints (7,) to the fingertips (3,) in m in its base frame.

    The fingertips are gym-aloha's calibration site, 15 cm before the wrist-rotate joint.
    """
    model = aloha_cell_spec().compile()
    data = mujoco.MjData(model)
    site = model.site(f"cali_{side}_site1").id
    base = model.body(f"vx300s_{side}").id
    first = 8 * SIDES.index(side)

    def position(joints: Array) -> Array:
        _write(data.qpos, first, joints)
        mujoco.mj_kinematics(model, data)
        frame = data.xmat[base].reshape(3, 3)
        return np.asarray(frame.T @ (data.site_xpos[site] - data.xpos[base]))

    return position
