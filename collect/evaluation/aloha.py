"""ALOHA's cube transfer as an evaluation's world: the virtual station's physics and limits, without
its processes, buses and real time.

What a station does with a target is kept: the SafetyFilter at the rate of the arm processes, the
servos' own counts on the way there and back, the gripper's current limit. What is left out is the
collision guard between the arms, cameras' and buses' delays, and noise of any scheduler.
"""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

if "MUJOCO_GL" not in os.environ:  # MuJoCo chooses its renderer as it is imported
    os.environ["MUJOCO_GL"] = "egl" if ctypes.util.find_library("EGL") else "osmesa"
os.environ.setdefault("LP_NUM_THREADS", "1")
import mujoco

from collect.evaluation.world import WorldOptions
from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.rig import GRIPPER, JOINTS
from hardware.aloha.scale import Scale
from hardware.dynamixel.control_table import CENTER_TICKS, CURRENT_UNIT_MA, RAD_PER_TICK
from hardware.worlds.aloha import (
    CAMERAS,
    CLOSED,
    SIDES,
    START,
    TIMESTEP_S,
    AlohaTransferCube,
    load_render_model,
)
from hardware.worlds.aloha_servos import GRIPPER_DRIVE
from robot_stack.contract import CameraInput, Feature
from robot_stack.errors import ConfigError
from robot_stack.safety.filter import SafetyFilter

__all__ = ["AlohaTransferWorld"]

Array = NDArray[np.float64]

RATE_HZ = 50  # of policies and episodes
LOOP_HZ = 200  # of configs/aloha_virtual.yaml's arm processes
SECONDS = 16  # a person takes 9 to 12
DOF = len(JOINTS)
HEADROOM = 0.95  # the servo's current loop settles a little under its limit
BEST = 4  # gym-aloha's highest reward
NO_VELOCITY = np.zeros(9, dtype=np.int32)

# The followers of configs/aloha_virtual.yaml.
FOLLOWER = AlohaArmConfig(role="follower", model="vx300s", port="virtual:", current_limit=300)


def _features() -> tuple[Feature, ...]:
    return tuple(
        Feature(f"follower_{side}/{joint.name}", joint.unit)
        for side in SIDES
        for joint in FOLLOWER.spec.joints
    )


HOME = (*START[:GRIPPER], FOLLOWER.gripper.fraction_of_joint(CLOSED))


@cache
def _renderer(height: int, width: int) -> tuple[Any, Any]:
    """(data, renderer) of one size, for all worlds of this process."""
    model = load_render_model()
    model.vis.global_.offheight, model.vis.global_.offwidth = height, width
    return mujoco.MjData(model), mujoco.Renderer(model, height, width)


class AlohaTransferWorld:
    """The right arm lifts the cube and hands it to the left; reward is gym-aloha's, of 4.

    State: the followers' joints in command units as episodes have them (a gripper is observed as a
    fraction of finger position and commanded as one of joint angle), and the cube's pose.
    """

    embodiment = FOLLOWER.spec.embodiment
    control_dt_ns = 1_000_000_000 // RATE_HZ
    steps = SECONDS * RATE_HZ
    action = _features()
    state = (*action, *(Feature(f"env/{i}", "1") for i in range(7)))
    cameras: Mapping[str, tuple[int, int] | None] = dict.fromkeys(CAMERAS)

    def __init__(self, options: WorldOptions) -> None:
        if options.dynamic:
            raise ConfigError("aloha-transfer has no moving object; leave --dynamic out")
        if options.start and len(options.start) != 2 * DOF:
            raise ConfigError(f"start: {2 * DOF} values wanted, got {len(options.start)}")
        self._start = np.array(options.start or 2 * HOME).reshape(2, DOF)
        self._plant = AlohaTransferCube()
        self._scale = Scale(FOLLOWER)
        self._filters = [SafetyFilter(FOLLOWER.spec, 1.0 / LOOP_HZ) for _ in SIDES]
        self._joint_of_servo = np.array([servo.joint for servo in FOLLOWER.arm.servos])
        self._strength = np.ones(DOF)
        grip_ma = HEADROOM * FOLLOWER.grip * CURRENT_UNIT_MA
        self._strength[GRIPPER] = min(1.0, grip_ma / (1000.0 * GRIPPER_DRIVE.stall_current))
        self._asked = np.zeros((2, DOF))
        self._reward = 0.0
        self.reset(0)

    def reset(self, seed: int) -> None:
        plant = self._plant
        plant.reset(seed, START)
        self._asked = self._start.copy()
        self._reward = 0.0
        for arm, pose in enumerate(self._start):
            finger = FOLLOWER.arm.linkage.finger(
                FOLLOWER.gripper.joint_of_fraction(float(pose[GRIPPER]))
            )
            plant.data.qpos[8 * arm : 8 * arm + 8] = (*pose[:GRIPPER], finger, -finger)
            plant.set_drives(arm, self._strength, np.ones(DOF))
            self._filters[arm].reset(pose)
            self._pull(arm, pose)
        mujoco.mj_forward(plant.model, plant.data)

    def observe(self) -> Array:
        joints = []
        for arm in range(2):
            q, _, _ = self._plant.measure(arm)
            ticks = np.rint(q / RAD_PER_TICK).astype(np.int32) + CENTER_TICKS
            joints.append(self._scale.measured(ticks[self._joint_of_servo], NO_VELOCITY)[0])
        return np.concatenate([*joints, self._plant.env_state])

    def image(self, camera: CameraInput) -> NDArray[np.uint8]:
        return self._draw(CAMERAS[camera.name], camera.height, camera.width)

    def picture(self) -> NDArray[np.uint8]:
        return self._draw(CAMERAS["cam_high"], 240, 320)

    def _draw(self, view: str, height: int, width: int) -> NDArray[np.uint8]:
        data, renderer = _renderer(height, width)
        data.qpos[:] = self._plant.data.qpos
        mujoco.mj_forward(renderer.model, data)
        renderer.update_scene(data, view)
        image: NDArray[np.uint8] = renderer.render()
        return image

    def step(self, action: Array) -> None:
        target = np.asarray(action, dtype=np.float64).reshape(2, DOF)
        ticks = LOOP_HZ // RATE_HZ
        before = self._asked.copy()
        self._asked = target
        for tick in range(1, ticks + 1):
            # As the arm process follows a stream: on a straight line to the newest target.
            asked = before + (target - before) * (tick / ticks)
            for arm, safety in enumerate(self._filters):
                self._pull(arm, safety.step(asked[arm], 1.0 / LOOP_HZ).sent)
            # 5 ms are 2.5 physics steps: 2 and 3 of them in turn.
            done = round((tick - 1) / LOOP_HZ / TIMESTEP_S)
            self._plant.step(round(tick / LOOP_HZ / TIMESTEP_S) - done)
        self._reward = self._plant.reward() / BEST

    def _pull(self, arm: int, sent: Array) -> None:
        goals = self._scale.goals(sent)
        self._plant.goals[arm] = (goals - CENTER_TICKS) * RAD_PER_TICK

    @property
    def reward(self) -> float:
        return self._reward

    @property
    def success(self) -> bool:
        return self._plant.success
