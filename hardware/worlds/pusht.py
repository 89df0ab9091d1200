"""Push-T: a disc pushes a T onto its goal. The physics are gym-pusht's own, without its window.

Initial states, coverage and success are those of Diffusion Policy (Chi et al., 2023); the nine
keypoints are those of its dataset; the moving object is that of BID (Liu et al., 2025).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it would greet on standard output
from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely

__all__ = ["CONTROL_HZ", "DYNAMIC_STEPS", "IMAGE", "KEYPOINTS", "STEPS", "PushT", "keypoints"]

Array = NDArray[np.float64]

CONTROL_HZ = 10
STEPS = 300  # of an episode, Diffusion Policy
DYNAMIC_STEPS = 400  # of an episode with a moving object, BID
IMAGE = 96  # px, as in the dataset

# The dataset's keypoints in the block's own frame, px: a fit to its 25,650 rows, which it meets to
# 0.003 px on average (62 rows, where the block is being struck, differ by up to 2 px).
KEYPOINTS: Array = np.array(
    [
        (9.2698, 90.0410),
        (-60.9835, -1.1867),
        (60.9128, -1.3934),
        (-0.2705, 25.5436),
        (-14.0649, 122.8159),
        (39.0027, 32.8574),
        (-39.9664, 32.7297),
        (-16.8243, 62.8632),
        (23.5415, -1.7003),
    ]
)


def keypoints(x: float, y: float, angle: float) -> Array:
    """The nine keypoints (9, 2), px, of a block at ``x``, ``y`` (px) and ``angle`` (rad)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.asarray(KEYPOINTS @ np.array([[c, s], [-s, c]]) + (x, y))


class PushT:
    """One world. ``step`` advances it by a tenth of a second towards a target position.

    ``drift_px``: the block is shifted by so much in x and in y after every step, as if it lay on a
    conveyor (BID's dynamic object).
    """

    def __init__(self, drift_px: float = 0.0) -> None:
        self._drift = drift_px
        self._env = PushTEnv(obs_type="pixels", observation_width=IMAGE, observation_height=IMAGE)
        self.coverage = 0.0
        self.reset(0)

    def reset(self, seed: int) -> None:
        """The published initial state of ``seed``: random disc, block and angle."""
        generator = np.random.RandomState(seed)  # the legacy generator: the same states as there
        state = [
            generator.randint(50, 450),
            generator.randint(50, 450),
            generator.randint(100, 400),
            generator.randint(100, 400),
            generator.randn() * 2 * np.pi - np.pi,
        ]
        # Published scores were made with a simulator that set the position first and then turned
        # the block around its centre of mass, which moves it; gym-pusht keeps to that.
        self._env.reset(options={"reset_to_state": state})
        self._begin()

    def reset_to(self, state: Sequence[float] | Array) -> None:
        """Exactly ``state`` (5,): disc x, y, block x, y in px and its angle in rad, all at rest."""
        env = self._env
        env._setup()
        x, y, block_x, block_y, angle = (float(value) for value in state)
        env.agent.position = (x, y)
        env.block.angle = angle  # first: it turns the block around its centre of mass
        env.block.position = (block_x, block_y)
        env.space.step(env.dt)
        self._begin()

    def _begin(self) -> None:
        env = self._env
        # The environment counts contacts in a Python callback for shapes of type 0, which costs
        # more than the physics and is not wanted here.
        for shape in env.space.shapes:
            shape.collision_type = 1
        env._last_action = None
        # (2, 4, 2): the bar and the stem of the T are rectangles.
        self._corners = np.array([shape.get_vertices() for shape in env.block.shapes])
        goal = pymunk_to_shapely(env.get_goal_pose_body(env.goal_pose), env.block.shapes)
        self._goal = shapely.union_all(list(goal.geoms))
        self._goal_area = float(self._goal.area)
        self.coverage = self._covered()

    def step(self, action: Sequence[float] | Array) -> float:
        """Pull the disc towards ``action`` (2,), px, for 0.1 s; returns the reward.

        ValueError for a target that is not two finite numbers.
        """
        x, y = (float(value) for value in action)
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"Push-T action {action!r} must be two finite numbers (px)")
        env = self._env
        env._last_action = np.array((x, y))
        agent, space = env.agent, env.space
        k_p, k_v, dt = env.k_p, env.k_v, env.dt
        # The environment's own controller, without its numpy arrays of two.
        for _ in range(int(1 / (dt * env.control_hz))):
            px, py = agent.position
            vx, vy = agent.velocity
            agent.velocity = (
                vx + (k_p * (x - px) + k_v * (0 - vx)) * dt,
                vy + (k_p * (y - py) + k_v * (0 - vy)) * dt,
            )
            space.step(dt)
        if self._drift:
            block_x, block_y = env.block.position
            env.block.position = (block_x + self._drift, block_y + self._drift)
        self.coverage = self._covered()
        return self.reward

    def _covered(self) -> float:
        block = self._env.block
        c, s = math.cos(block.angle), math.sin(block.angle)
        corners = self._corners @ np.array([[c, s], [-s, c]]) + tuple(block.position)
        covered = shapely.intersection(self._goal, shapely.polygons(corners))
        return float(shapely.area(covered).sum()) / self._goal_area

    @property
    def reward(self) -> float:
        """Covered share of the goal over what success needs, at most 1."""
        return min(1.0, self.coverage / float(self._env.success_threshold))

    @property
    def success(self) -> bool:
        """More than 95 % of the goal is covered. People's demonstrations stop near 90 %."""
        return self.coverage > float(self._env.success_threshold)

    @property
    def state(self) -> Array:
        """(5,): disc x, y, block x, y in px, and the block's angle in [0, 2 pi)."""
        agent, block = self._env.agent, self._env.block
        return np.array((*agent.position, *block.position, block.angle % (2 * math.pi)))

    @property
    def env_state(self) -> Array:
        """(21,): block x, y, angle, then x and y of the nine keypoints, as imported episodes have
        it."""
        x, y, angle = self.state[2:]
        return np.concatenate([(x, y, angle), keypoints(x, y, angle).ravel()])

    def image(self) -> NDArray[np.uint8]:
        """What the dataset's camera sees: RGB (96, 96, 3), without the target's marker."""
        return np.ascontiguousarray(self._env.get_obs(), dtype=np.uint8)

    def picture(self, size: int = 384) -> NDArray[np.uint8]:
        """The scene with the target's marker, RGB (size, size, 3), for people."""
        env = self._env
        env.visualization_width = env.visualization_height = size
        return np.ascontiguousarray(env.render(), dtype=np.uint8)
