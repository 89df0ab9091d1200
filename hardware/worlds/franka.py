"""Pick and place on a table before a Franka arm: a cube, and a square that it has to stand on.

The arm and its physics are the virtual robot's own (`hardware.franka.virtual`); this is what lies
before it. The frame is the robot's base, the table's top is its mounting plane.
"""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.franka.limits import Model
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.scene import arm_scene
from hardware.worlds.scenes import Scene
from robot_stack.rotation import pose_of

__all__ = [
    "CAMERAS",
    "CUBE_SIDE",
    "FrankaPickPlace",
    "franka_pick_place",
    "load_model",
    "load_render_model",
    "sample_places",
]

Array = NDArray[np.float64]

# Stations' camera names -> the model's.
CAMERAS = {"cam_shoulder": "shoulder", "cam_wrist": "wrist"}
CUBE_SIDE = 0.045
SQUARE_SIDE = 0.12
# The whole cube stands on the square, whichever way it is turned.
IN_SQUARE = SQUARE_SIDE / 2 - CUBE_SIDE / 2 * 2**0.5
LIFTED = 0.01  # m between table and cube
ON_TABLE = 0.004
REWARD_DONE = 4
REST_SPEED, REST_TURN = 0.01, 0.1  # m/s, rad/s
CLEAR = 0.06  # m from the cube's middle to the fingertips
SUCCESS_HOLD_S = 0.5
# Contacts and speeds chatter for some steps after an impact.
CHATTER_S = 0.05
# Groups of geoms, as MuJoCo's viewers have them.
SHOWN, HULLS = 2, 3
SHOULDER = (-0.35, 0.60, 0.80)


def _spec(model: Model, *, visual: bool) -> mujoco.MjSpec:
    spec = arm_scene(model, visual=visual)
    world = spec.worldbody
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(0.6, 0.7, 0.02),
        pos=(0.35, 0.0, -0.02),
        rgba=(0.55, 0.45, 0.36, 1.0),
        friction=(0.8, 0.005, 0.0001),
    )
    # Two slides that nothing pushes: so that the square's place is part of the state.
    square = world.add_body(name="square")
    for axis in range(2):
        square.add_joint(
            name=f"square_{'xy'[axis]}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=np.eye(3)[axis],
        )
    square.add_geom(
        name="square",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(SQUARE_SIDE / 2, SQUARE_SIDE / 2, 0.0005),
        mass=1.0,
        contype=0,
        conaffinity=0,
        rgba=(0.16, 0.50, 0.30, 1.0),
    )
    cube = world.add_body(name="cube", pos=(0.5, 0.0, CUBE_SIDE / 2))
    cube.add_freejoint(name="cube")
    cube.add_geom(
        name="cube",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(CUBE_SIDE / 2,) * 3,
        mass=0.08,
        condim=4,
        friction=(1.0, 0.02, 0.0001),
        rgba=(0.78, 0.20, 0.16, 1.0),
    )
    _light_and_cameras(spec)
    return spec


def _light_and_cameras(spec: mujoco.MjSpec) -> None:
    spec.add_texture(
        name="room",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.62, 0.66, 0.70),
        rgb2=(0.32, 0.34, 0.37),
        width=32,
        height=192,
    )
    world = spec.worldbody
    world.add_light(pos=(0.3, 0.6, 1.8), dir=(0.1, -0.3, -1.0), diffuse=(0.6, 0.6, 0.6))
    world.add_light(pos=(0.3, -0.8, 1.6), dir=(0.1, 0.4, -1.0), diffuse=(0.3, 0.3, 0.3))
    world.add_camera(
        name="shoulder",
        pos=SHOULDER,
        quat=_looking(SHOULDER, (0.48, 0.0, 0.12)),
        fovy=50.0,
    )
    # On the flange's side as makers' mounts have it, looking past the fingers.
    spec.body("hand").add_camera(
        name="wrist",
        pos=(0.07, 0.0, 0.02),
        quat=_looking((0.07, 0.0, 0.02), (0.0, 0.0, 0.25)),
        fovy=65.0,
    )


def _looking(eye: Sequence[float], at: Sequence[float]) -> Array:
    """Quaternion (4,) of a camera at ``eye`` that sees ``at`` in the middle, upright where it can
    be: MuJoCo's cameras look along their -z."""
    back = np.subtract(eye, at)
    back /= np.linalg.norm(back)
    up = np.array([0.0, 0.0, 1.0])
    right = np.cross(up, back)
    if np.linalg.norm(right) < 1e-6:
        right = np.array([0.0, -1.0, 0.0])
    right /= np.linalg.norm(right)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, np.column_stack([right, np.cross(back, right), back]).ravel())
    return quaternion


def load_model(model: Model = "fr3") -> mujoco.MjModel:
    """The scene at 1 kHz, ``qpos`` (18,): arm joints (7), fingers (2), the square's place (2) and
    the cube's pose (7)."""
    return _spec(model, visual=False).compile()


def load_render_model() -> mujoco.MjModel:
    """The same scene for drawing ``qpos`` at many frames a second without a GPU; both arms look
    alike.

    The arm is drawn by its hulls: its 130,000 visual faces take llvmpipe 15 ms, whatever the
    picture's size, the hulls 2 to 4. Shadows, reflections and multisampling are off as well.
    """
    spec = _spec("fr3", visual=False)
    for geom in spec.geoms:
        if geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            geom.rgba = (0.90, 0.92, 0.93, 1.0)
        if geom.group == HULLS:
            geom.group = SHOWN
    for light in spec.lights:
        light.castshadow = False
    for material in spec.materials:
        material.reflectance = 0.0
    spec.visual.quality.offsamples = 0
    spec.visual.quality.shadowsize = 0
    return spec.compile()


def sample_places(seed: int) -> tuple[Array, Array]:
    """Cube pose (7,), xyz and quaternion wxyz, on the arm's right, and the square's middle (2,),
    on its left: what the gripper reaches pointing straight down, 0.2 m apart at least."""
    random = np.random.default_rng(seed)
    turn = random.uniform(-0.5, 0.5)
    cube = [random.uniform(0.40, 0.58), random.uniform(-0.24, -0.06), CUBE_SIDE / 2]
    square = random.uniform([0.40, 0.14], [0.58, 0.28])
    return np.array([*cube, np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)]), square


class FrankaPickPlace:
    """Pick and place: lift the cube, put it on the square, let go and draw back.

    ``body`` is the arm in it, whose `step` advances everything.
    """

    def __init__(self, seed: int = 0, model: Model = "fr3") -> None:
        self.model = load_model(model)
        self.data = mujoco.MjData(self.model)
        self.body = Body(self.model, self.data)
        m = self.model
        self._cube = m.geom("cube").id
        self._tcp = m.site("tcp").id
        fingers = [m.body(name).id for name in ("left_finger", "right_finger")]
        self._fingers = frozenset(np.flatnonzero(np.isin(m.geom_bodyid, fingers)).tolist())
        self._looked_s = 0.0
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Place cube and square by ``seed``; the arm stays where it is, as if a person had tidied
        the table."""
        self.seed = seed
        self._held_s = 0.0
        self._lost_s = CHATTER_S
        cube, square = sample_places(seed)
        self.place(cube)
        self.data.qpos[9:11] = square
        mujoco.mj_forward(self.model, self.data)

    def place(self, cube: Array) -> None:
        """Put the cube at a pose (7,), at rest."""
        self.data.qpos[11:18] = cube
        self.data.qvel[11:17] = 0.0

    def look(self) -> None:
        """Judge the state as it is now; call it every 10 ms or so of physics."""
        dt = self.data.time - self._looked_s
        self._looked_s = self.data.time
        self._lost_s = 0.0 if self.reward() == REWARD_DONE else self._lost_s + dt
        self._held_s = self._held_s + dt if self._lost_s < CHATTER_S else 0.0

    @property
    def env_state(self) -> Array:
        """(9,): cube xyz and quaternion wxyz, then the square's x and y; metres."""
        return np.concatenate([self.data.qpos[11:18], self.data.qpos[9:11]])

    @property
    def fingertips(self) -> Array:
        """The pose (7,) between the fingertips, xyz and quaternion wxyz, in the base frame."""
        return pose_of(self.body.forward())

    def reward(self) -> int:
        """1 a finger touches the cube, 2 it is lifted, 3 it rests on the square, 4 and the gripper
        has let go and is clear of it; 0 otherwise."""
        touched = not self._fingers.isdisjoint(self._touching_cube())
        cube = self.data.qpos[11:14]
        if self._rests_on_square(cube):
            clear = float(np.linalg.norm(self.data.site_xpos[self._tcp] - cube)) > CLEAR
            return REWARD_DONE if clear and not touched else 3
        if not touched:
            return 0
        return 2 if cube[2] > CUBE_SIDE / 2 + LIFTED else 1

    def _rests_on_square(self, cube: Array) -> bool:
        turn, speed = self.data.qvel[14:17], self.data.qvel[11:14]
        return bool(
            np.abs(cube[:2] - self.data.qpos[9:11]).max() < IN_SQUARE
            and abs(cube[2] - CUBE_SIDE / 2) < ON_TABLE
            and np.linalg.norm(speed) < REST_SPEED
            and np.linalg.norm(turn) < REST_TURN
        )

    def _touching_cube(self) -> set[int]:
        touching: set[int] = set()
        for one, other in self.data.contact.geom.tolist():
            if one == self._cube:
                touching.add(other)
            elif other == self._cube:
                touching.add(one)
        return touching

    @property
    def success(self) -> bool:
        """Reward 4, held for half a second."""
        return self._held_s >= SUCCESS_HOLD_S


def franka_pick_place() -> Scene:
    """The registry's row of this scene."""
    return Scene(
        process="hardware.worlds.franka_process",
        cameras=CAMERAS,
        render_model=load_render_model,
    )
