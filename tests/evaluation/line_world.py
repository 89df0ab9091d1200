"""A world and a policy that are easy to reason about: a point on a line, and one that counts on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from policies.interfaces import Need
from robot_stack.contract import Feature, PolicyContract

CONTRACT = PolicyContract(
    name="counter",
    embodiment="line",
    task="",
    state=(Feature("point/x", "m"), Feature("env/1", "1")),
    action=(Feature("point/x", "m"), Feature("point/y", "m")),
    cameras=(),
    control_dt_ns=100_000_000,
    observations=3,
    horizon=8,
    first_action=2,
    execute=4,
)


class LineWorld:
    """Its state is how many steps it has made since ``reset`` (x), the seed, and -x."""

    embodiment = "line"
    control_dt_ns = 100_000_000
    state = (Feature("env/0", "1"), Feature("env/1", "1"), Feature("point/x", "m"))
    action = (Feature("point/y", "m"), Feature("point/x", "m"))
    cameras: Mapping[str, tuple[int, int] | None] = {}

    def __init__(self, steps: int = 20, goal: int = 10**6) -> None:
        self.steps = steps
        self.goal = goal
        self.seed = -1
        self.x = 0
        self.done: dict[int, list[list[float]]] = {}

    def reset(self, seed: int) -> None:
        self.seed, self.x = seed, 0
        self.done[seed] = []

    def observe(self) -> np.ndarray:
        return np.array([-self.x, self.seed, self.x], dtype=np.float64)

    def step(self, action: np.ndarray) -> None:
        self.x += 1
        self.done[self.seed].append(np.asarray(action).tolist())

    @property
    def reward(self) -> float:
        return min(1.0, self.x / 100)

    @property
    def success(self) -> bool:
        return self.x >= self.goal

    def picture(self) -> np.ndarray:
        return np.full((16, 32, 3), self.x, dtype=np.uint8)


class Counter:
    """Row i of its chunk is (the newest x + i - first_action, the noise of that row in y)."""

    contract = CONTRACT
    gives = frozenset({Need.SAMPLES})
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.seen: list[np.ndarray] = []

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.batches.append(len(state))
        self.seen.append(state.numpy().copy())
        return state

    def sample(self, condition, noise, *, start=None, level=1.0, guide=None):
        newest = condition[:, -1, 0]
        rows = torch.arange(noise.shape[1]) - self.contract.first_action
        return torch.stack([newest[:, None] + rows, noise[..., 1]], dim=-1)

    def normalized(self, actions):
        return actions
