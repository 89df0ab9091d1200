"""Push-T as an evaluation's world: the features that imported episodes have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from collect.evaluation.world import WorldOptions
from hardware.worlds.pusht import CONTROL_HZ, DYNAMIC_STEPS, IMAGE, STEPS, PushT
from robot_stack.contract import CameraInput, Feature

__all__ = ["PushTWorld"]

Array = NDArray[np.float64]

ANGLE = 2  # of the columns of env_state


class PushTWorld:
    """Mean max reward over seeds of 300 steps is the published score; a moving object gets 400
    steps, as in BID. State: the disc, then block x, y, angle and nine keypoints."""

    embodiment = "pusht"
    control_dt_ns = 1_000_000_000 // CONTROL_HZ
    action = (Feature("agent/x", "px"), Feature("agent/y", "px"))
    state = (*action, *(Feature(f"env/{i}", "1" if i == ANGLE else "px") for i in range(21)))
    cameras: Mapping[str, tuple[int, int] | None] = {"image": (IMAGE, IMAGE)}

    def __init__(self, options: WorldOptions) -> None:
        self.steps = DYNAMIC_STEPS if options.dynamic else STEPS
        self._world = PushT(options.dynamic)

    def reset(self, seed: int) -> None:
        self._world.reset(seed)

    def observe(self) -> Array:
        return np.concatenate([self._world.state[:2], self._world.env_state])

    def image(self, camera: CameraInput) -> NDArray[np.uint8]:
        return self._world.image()

    def step(self, action: Array) -> None:
        self._world.step(action)

    @property
    def reward(self) -> float:
        return self._world.reward

    @property
    def success(self) -> bool:
        return self._world.success

    def picture(self) -> NDArray[np.uint8]:
        return self._world.picture()
