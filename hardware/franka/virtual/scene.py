"""The arm as a MuJoCo scene: gym-hil's Panda links, and a Franka hand in place of its gripper.

Links, masses and inertias come from gym-hil's MJCF (dynamic parameters of the Panda); FER and FR3
share their kinematics, so the FR3 differs in its position limits only. The hand is written here:
gym-hil mounts a Robotiq gripper. Joints are torque-driven and gravity-compensated as the robot
is; names are `link0`..`link7`, `hand`, `left_finger`, `right_finger`, `joint1`..`joint7`,
`finger_joint1`, `finger_joint2`, and the sites `flange` and `tcp`.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import cos, pi, sin
from pathlib import Path

import mujoco
import numpy as np

from hardware.franka.limits import Model, limits_of
from robot_stack.errors import MissingDependencyError

__all__ = [
    "HAND_COM",
    "HAND_INERTIA",
    "HAND_MASS",
    "MAX_WIDTH",
    "STEP_S",
    "arm_scene",
    "configure",
]

STEP_S = 0.001  # the FCI's control period
MAX_WIDTH = 0.08  # m between the pads of an open Franka hand

# Reflected rotor inertia (kg m2) and what is left of the friction after the joint torque control
# (Nm s/rad): estimates, the manufacturer publishes neither.
_ARMATURE = 0.1
_DAMPING = 0.3
# The mechanical stop lies behind the software limit.
_STOP_MARGIN = 0.05
# Franka hand with its fingers, as the robot has it configured: mass kg, centre in the flange frame
# m, inertia about it kg m2 (FCI documentation, m_ee, F_x_Cee, I_ee).
HAND_MASS = 0.73
HAND_COM = (-0.01, 0.0, 0.03)
HAND_INERTIA = (0.001, 0.0025, 0.0017)
_FINGER_MASS = 0.015
_FINGER_Z = 0.0584  # of the slide above the flange
_FINGER_LENGTH = 0.0538
_FINGER_COM = (0.0, 0.012, 0.025)
_TCP_Z = 0.1034
_FINGER_ARMATURE, _FINGER_DAMPING = 0.2, 5.0  # geared drive, kg and N s/m, estimates
# Links that lie beside each other without touching in the mechanism, but whose hulls do.
_NEIGHBOURS = (("link5", "link7"), ("link6", "hand"), ("link7", "left_finger"),
               ("link7", "right_finger"))  # fmt: skip


def configure(spec: mujoco.MjSpec) -> None:
    """Set the solver options that the arm and its fingers need, on the outermost spec."""
    spec.option.timestep = STEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # Without these a held object creeps out of the fingers.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0


def arm_scene(model: Model, *, visual: bool = True) -> mujoco.MjSpec:
    """The arm with its base frame (link0) at the origin, hand mounted, nothing around it.

    ``visual`` False leaves the meshes out that are only seen, for an arm that no camera looks at.
    MissingDependencyError when gym-hil is not installed.
    """
    limits = limits_of(model)
    spec = mujoco.MjSpec.from_file(str(_panda()))
    spec.modelname = model
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    spec.delete(spec.body("attachment"))
    for i in range(7):
        joint = spec.joint(f"joint{i + 1}")
        joint.range = (limits.q_lower[i] - _STOP_MARGIN, limits.q_upper[i] + _STOP_MARGIN)
        joint.armature, joint.damping = _ARMATURE, [_DAMPING, 0.0, 0.0]
    _strip(spec, visual)
    _add_hand(spec, visual)
    for body in spec.bodies:
        body.gravcomp = 1.0
    for first, second in _NEIGHBOURS:
        spec.add_exclude(bodyname1=first, bodyname2=second)
    configure(spec)
    return spec


def _panda() -> Path:
    found = find_spec("gym_hil")
    for location in (found.submodule_search_locations or ()) if found else ():
        path = Path(location) / "assets" / "panda.xml"
        if path.is_file():
            return path
    raise MissingDependencyError(
        "the virtual Franka needs the Panda model of the package 'gym_hil': "
        "pip install 'robot-stack[sim]' (or: pip install --no-deps gym-hil==0.1.14)"
    )


def _strip(spec: mujoco.MjSpec, visual: bool) -> None:
    """Delete the meshes of the Robotiq gripper, and those that are only seen unless `visual`."""
    used = set()
    for geom in list(spec.geoms):
        if geom.contype == 0 and geom.conaffinity == 0 and not visual:
            spec.delete(geom)
        else:
            used.add(geom.meshname)
    for mesh in list(spec.meshes):
        # A mesh without a name is known by its file's.
        if (mesh.name or Path(mesh.file).stem) not in used:
            spec.delete(mesh)


def _add_hand(spec: mujoco.MjSpec, visual: bool) -> None:
    link7 = spec.body("link7")
    # The flange is 107 mm above joint 7; the hand sits on it turned by -45 degrees.
    link7.add_site(name="flange", pos=(0.0, 0.0, 0.107), size=[0.001] * 3, group=4)
    half = pi / 8
    hand = link7.add_body(
        name="hand", pos=(0.0, 0.0, 0.107), quat=(cos(half), 0.0, 0.0, -sin(half))
    )
    _weigh_housing(hand)
    hand.add_site(name="tcp", pos=(0.0, 0.0, _TCP_Z), size=[0.001] * 3, group=4)
    box = mujoco.mjtGeom.mjGEOM_BOX
    white, dark = (0.90, 0.92, 0.93, 1.0), (0.25, 0.25, 0.25, 1.0)
    # The housing is 204 x 63 x 66 mm.
    hand.add_geom(
        name="hand", type=box, pos=(0.0, 0.0, 0.0254), size=(0.0315, 0.102, 0.033), rgba=white,
        group=2 if visual else 3,
    )  # fmt: skip
    for i, (name, turn) in enumerate((("left_finger", 0.0), ("right_finger", pi))):
        finger = hand.add_body(
            name=name, pos=(0.0, 0.0, _FINGER_Z), quat=(cos(turn / 2), 0.0, 0.0, sin(turn / 2))
        )
        finger.mass = _FINGER_MASS
        finger.ipos, finger.inertia = _FINGER_COM, (5e-6, 4e-6, 2e-6)
        finger.explicitinertial = True
        finger.add_joint(
            name=f"finger_joint{i + 1}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0.0, 1.0, 0.0),
            range=(0.0, MAX_WIDTH / 2), limited=True,
            armature=_FINGER_ARMATURE, damping=[_FINGER_DAMPING, 0.0, 0.0],
        )  # fmt: skip
        finger.add_geom(
            name=name, type=box, pos=(0.0, 0.014, 0.021), size=(0.0105, 0.008, 0.021), rgba=dark
        )
        # Rubber pad; its face is the finger's origin, so that closed pads touch.
        finger.add_geom(
            name=f"{name}_pad", type=box, pos=(0.0, 0.004, _FINGER_LENGTH - 0.009),
            size=(0.0085, 0.004, 0.009), rgba=dark, condim=4, friction=(1.0, 0.02, 0.0001),
            solref=(0.004, 1.0), solimp=(0.95, 0.99, 0.001, 0.5, 2.0), priority=1,
        )  # fmt: skip
    # One belt moves both fingers.
    belt = spec.add_equality(name="finger_belt", type=mujoco.mjtEq.mjEQ_JOINT)
    belt.objtype = mujoco.mjtObj.mjOBJ_JOINT
    belt.name1, belt.name2 = "finger_joint2", "finger_joint1"
    belt.data[:2] = (0.0, 1.0)


def _weigh_housing(hand: mujoco.MjsBody) -> None:
    """What is left of the configured hand without its fingers, half open; in the hand's frame,
    which is the flange's turned by -45 degrees."""
    mass = HAND_MASS - 2 * _FINGER_MASS
    flange_to_hand = np.array(
        [[cos(pi / 4), -sin(pi / 4), 0.0], [sin(pi / 4), cos(pi / 4), 0.0], [0.0, 0.0, 1.0]]
    )
    total = flange_to_hand @ HAND_COM
    reach = _FINGER_COM[1] + MAX_WIDTH / 4
    fingers = [np.array([0.0, side * reach, _FINGER_Z + _FINGER_COM[2]]) for side in (1, -1)]
    com = (HAND_MASS * total - _FINGER_MASS * (fingers[0] + fingers[1])) / mass
    inertia = flange_to_hand @ np.diag(HAND_INERTIA) @ flange_to_hand.T
    for part, weight in ((com, mass), *((finger, _FINGER_MASS) for finger in fingers)):
        arm = part - total
        inertia -= weight * (arm @ arm * np.eye(3) - np.outer(arm, arm))
    hand.mass, hand.ipos = mass, com
    hand.fullinertia = inertia[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    hand.explicitinertial = True
