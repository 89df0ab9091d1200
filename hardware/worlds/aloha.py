"""The ALOHA cell of gym-aloha 0.1.5 as a plant: two vx300s, a table and a cube, driven by servos.

The MJCF comes from the installed gym-aloha package. Its joints are re-parametrised here as
Dynamixel servos: a proportional drive on PWM, so stiffness is the P gain times the stall torque and
damping is the back-EMF. Like the real arms, these sag under gravity by their stiffness.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.aloha.rig import ARMS, GRIPPER, GRIPPERS
from hardware.worlds.aloha_servos import (
    ARM_DRIVES,
    FINGER_RANGE,
    GRIPPER_DRIVE,
    VX300S_GRIPPER,
    finger_slope,
)
from hardware.worlds.assets import gym_aloha_assets
from hardware.worlds.scenes import Scene

__all__ = [
    "ARM_JOINTS",
    "CAMERAS",
    "LEFT",
    "RIGHT",
    "SIDES",
    "SLEEP",
    "START",
    "AlohaTransferCube",
    "aloha_transfer_cube",
    "load_model",
    "load_render_model",
    "sample_cube_pose",
]

Array = NDArray[np.float64]

SIDES = ("left", "right")
LEFT, RIGHT = 0, 1
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
# ALOHA's camera names -> the MJCF's. The wrist cameras look from behind with fovy 20, as there.
CAMERAS = {
    "cam_high": "top",
    "cam_low": "front_close",
    "cam_left_wrist": "left_wrist",
    "cam_right_wrist": "right_wrist",
}
# Six arm joints and the closed gripper's servo, in rad.
CLOSED = GRIPPERS["stanford"]["vx300s"].joint_closed
START = (*ARMS["vx300s"].home, CLOSED)
SLEEP = (*ARMS["vx300s"].sleep, CLOSED)

TIMESTEP_S = 0.002
SUCCESS_HOLD_S = 0.5
# A contact under a steady grip may miss a physics step now and then.
CHATTER_S = 0.05
REWARD_HELD_BY_LEFT = 4


# The finger as a linear servo (N/m, N s/m): stiff enough that the current limit decides the grip.
_FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_ARMATURE = 4000.0, 80.0, 0.5

# Which joint's servo drives each of an arm's eight actuators: both fingers hang on the gripper.
_ACTUATOR_JOINT = np.array([0, 1, 2, 3, 4, 5, 6, 6])
_TORQUE_PER_AMPERE = np.array([drive.torque_per_ampere for drive in (*ARM_DRIVES, GRIPPER_DRIVE)])


def _spec() -> mujoco.MjSpec:
    spec = mujoco.MjSpec.from_file(str(gym_aloha_assets() / "bimanual_viperx_transfer_cube.xml"))
    spec.option.timestep = TIMESTEP_S
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    for side in SIDES:
        prefix = f"vx300s_{side}/"
        for name, drive in zip(ARM_JOINTS, ARM_DRIVES, strict=True):
            joint = spec.joint(prefix + name)
            joint.frictionloss = drive.servos * drive.friction
            joint.armature = drive.servos * drive.armature
        for name, sign in (("left_finger", 1.0), ("right_finger", -1.0)):
            finger = spec.joint(prefix + name)
            finger.frictionloss = 0.5
            finger.armature = _FINGER_ARMATURE
            finger.range = sorted(sign * limit for limit in FINGER_RANGE)
        # One horn drives both fingers, so they mirror each other however the load is shared.
        mirror = spec.add_equality(
            name=prefix + "horn",
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1=prefix + "right_finger",
            name2=prefix + "left_finger",
        )
        mirror.data[:5] = (0.0, -1.0, 0.0, 0.0, 0.0)
        # The convex hulls of the bowed fingers overlap before the real, flexible tips touch.
        spec.add_exclude(
            bodyname1=prefix + "left_finger_link", bodyname2=prefix + "right_finger_link"
        )
        spec.body(prefix + "gripper_link").add_site(name=f"{side}_grasp", pos=(0.14, 0.0, 0.0))
    for actuator in spec.actuators:
        actuator.ctrlrange = tuple(spec.joint(actuator.target).range)
    return spec


def load_model() -> mujoco.MjModel:
    """The scene with servo dynamics, at 500 Hz: nq 23 (8 per arm, then the cube), nu 16."""
    model = _spec().compile()
    for a in range(model.nu):
        name = model.joint(model.actuator_trnid[a, 0]).name.split("/")[1]
        if name in ARM_JOINTS:
            drive = ARM_DRIVES[ARM_JOINTS.index(name)]
            gain, damping, force = drive.stiffness, drive.damping, drive.servos * drive.stall
        else:
            gain, damping, force = _FINGER_STIFFNESS, _FINGER_DAMPING, 0.0
        model.actuator_gainprm[a, 0] = gain
        model.actuator_biasprm[a, 1:3] = (-gain, -damping)
        model.actuator_forcelimited[a] = 1
        model.actuator_forcerange[a] = (-force, force)
    return model


def load_render_model() -> mujoco.MjModel:
    """The same scene for drawing ``qpos`` (23,) at many frames a second without a GPU.

    Shadows, reflections and multisampling are off: on llvmpipe they cost six times the rest.
    """
    spec = _spec()
    for light in spec.lights:
        light.castshadow = False
    for material in spec.materials:
        material.reflectance = 0.0
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 0
    return spec.compile()


def sample_cube_pose(seed: int) -> Array:
    """Cube pose (7,), xyz and quaternion wxyz, as gym-aloha's ``sample_box_pose`` draws it."""
    generator = np.random.RandomState(seed)  # the legacy generator: the same poses as there
    position = generator.uniform([0.0, 0.4, 0.05], [0.2, 0.6, 0.05])
    return np.concatenate([position, [1.0, 0.0, 0.0, 0.0]])


class AlohaTransferCube:
    """Cube transfer: the right arm lifts the cube and hands it to the left.

    Arm 0 is left. Joint vectors have shape (7,): six arm joints and the gripper servo, in rad.
    ``goals`` (2, 7) is where the drives pull and is read at every step.
    """

    def __init__(self, seed: int = 0) -> None:
        self.model = load_model()
        self.data = mujoco.MjData(self.model)
        self.goals: Array = np.zeros((2, 7))
        m = self.model
        self._gain = m.actuator_gainprm[:8, 0].copy()
        self._damping = m.actuator_biasprm[:8, 2].copy()
        self._force = m.actuator_forcerange[:8, 1].copy()
        self._box = m.geom("red_box").id
        self._table = m.geom("table").id
        self._fingers = tuple(
            frozenset(
                m.geom(f"vx300s_{side}/10_{which}_gripper_finger").id for which in ("left", "right")
            )
            for side in SIDES
        )
        # gym-aloha's reward looks at the left finger of each gripper only.
        self._reward_finger = tuple(
            m.geom(f"vx300s_{side}/10_left_gripper_finger").id for side in SIDES
        )
        self._grip: Array = np.zeros(2)  # Nm that each gripper servo may use
        self.seed = seed
        self._held_s = 0.0
        self._lost_s = CHATTER_S
        for arm in (LEFT, RIGHT):
            self.set_drives(arm, np.zeros(7), np.ones(7))
        self.reset(seed)

    def reset(self, seed: int, pose: Sequence[float] | None = None) -> None:
        """Place the cube by ``seed``. ``pose`` (7,) also puts both arms there, at rest; without
        it the arms stay where they are, as they would on a table that a person has tidied."""
        self.seed = seed
        self._held_s = 0.0
        self._lost_s = CHATTER_S
        qpos = self.data.qpos
        if pose is not None:
            mujoco.mj_resetData(self.model, self.data)
            finger = VX300S_GRIPPER.finger(pose[6])
            for arm in (LEFT, RIGHT):
                qpos[8 * arm : 8 * arm + 8] = (*pose[:6], finger, -finger)
                self.goals[arm] = pose
        qpos[16:23] = sample_cube_pose(seed)
        self.data.qvel[16:22] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def set_drives(self, arm: int, strength: Array, gain: Array) -> None:
        """What fraction of its stall torque each joint's drive may use (7,), 0 for no torque at
        all, and how stiffly it pulls (7,), 1 for the factory's P gain."""
        m = self.model
        rows = slice(8 * arm, 8 * arm + 8)
        power = np.asarray(strength)[_ACTUATOR_JOINT]
        stiffness = self._gain * np.asarray(gain)[_ACTUATOR_JOINT] * (power > 0.0)
        m.actuator_gainprm[rows, 0] = stiffness
        m.actuator_biasprm[rows, 1] = -stiffness
        m.actuator_biasprm[rows, 2] = self._damping * (power > 0.0)
        m.actuator_forcerange[rows, 0] = -self._force * power
        m.actuator_forcerange[rows, 1] = self._force * power
        self._grip[arm] = GRIPPER_DRIVE.stall * strength[GRIPPER]

    def step(self, steps: int = 1) -> None:
        """Advance ``steps`` of 2 ms with the current goals."""
        self._pull()
        for _ in range(steps):
            mujoco.mj_step(self.model, self.data)
        held = self.reward() == REWARD_HELD_BY_LEFT and not self.touching(RIGHT)
        dt = steps * TIMESTEP_S
        self._lost_s = 0.0 if held else self._lost_s + dt
        self._held_s = self._held_s + dt if self._lost_s < CHATTER_S else 0.0

    def _pull(self) -> None:
        m, ctrl = self.model, self.data.ctrl
        for arm in (LEFT, RIGHT):
            first = 8 * arm
            theta = VX300S_GRIPPER.joint(float(self.data.qpos[first + 6]))
            # One horn: half of the servo's torque for each finger.
            force = float(self._grip[arm]) / finger_slope(theta) / 2.0
            m.actuator_forcerange[first + 6 : first + 8, 0] = -force
            m.actuator_forcerange[first + 6 : first + 8, 1] = force
            goal = VX300S_GRIPPER.finger(min(pi / 2, max(-pi / 2, float(self.goals[arm, GRIPPER]))))
            ctrl[first : first + 6] = self.goals[arm, :6]
            ctrl[first + 6] = goal
            ctrl[first + 7] = -goal

    def measure(self, arm: int) -> tuple[Array, Array, Array]:
        """Joint angles in rad, velocities in rad/s and motor currents in A (of one servo where
        two share a joint), each (7,)."""
        first, data = 8 * arm, self.data
        q = np.array(data.qpos[first : first + 7])
        dq = np.array(data.qvel[first : first + 7])
        current = data.actuator_force[first : first + 7] / _TORQUE_PER_AMPERE
        theta = VX300S_GRIPPER.joint(float(q[GRIPPER]))
        slope = finger_slope(theta)
        q[GRIPPER] = theta
        dq[GRIPPER] /= slope
        # Both fingers' forces at the horn: the right one counts the other way.
        current[GRIPPER] = (
            (float(data.actuator_force[first + 6]) - float(data.actuator_force[first + 7]))
            * slope
            / GRIPPER_DRIVE.torque_per_ampere
        )
        return q, dq, current

    @property
    def env_state(self) -> Array:
        """Cube pose (7,): xyz and quaternion wxyz, gym-aloha's ``env_state``."""
        return np.array(self.data.qpos[16:23])

    def _box_contacts(self) -> set[int]:
        touching: set[int] = set()
        for one, other in self.data.contact.geom.tolist():
            if one == self._box:
                touching.add(other)
            elif other == self._box:
                touching.add(one)
        return touching

    def touching(self, arm: int) -> bool:
        """Whether any finger of this arm touches the cube."""
        return not self._fingers[arm].isdisjoint(self._box_contacts())

    def reward(self) -> int:
        """gym-aloha's: 1 right touches, 2 lifted, 3 left touches, 4 left holds it off the table."""
        contacts = self._box_contacts()
        lifted = self._table not in contacts
        if self._reward_finger[LEFT] in contacts:
            return 4 if lifted else 3
        if self._reward_finger[RIGHT] in contacts:
            return 2 if lifted else 1
        return 0

    @property
    def success(self) -> bool:
        """Reward 4 with the right gripper clear of the cube, held for half a second."""
        return self._held_s >= SUCCESS_HOLD_S


def aloha_transfer_cube() -> Scene:
    """The registry's row of this scene."""
    return Scene(
        process="hardware.worlds.world_process",
        cameras=CAMERAS,
        render_model=load_render_model,
        page="hardware.worlds.page",
    )
