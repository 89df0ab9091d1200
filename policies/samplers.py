"""From noise to a chunk: DDPM and DDIM, each able to begin part-way and to be guided.

A sampler is a loop over noise levels. What it asks of the model is one function, ``Denoise``;
guidance changes what that function answers (``policies.guidance``) and so serves every sampler.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import numpy as np
import torch

from policies.schedules import Level, Schedule
from robot_stack.config import within
from robot_stack.errors import PolicyError

__all__ = ["DDIM", "DDPM", "Denoise", "Sampler", "begin", "clipped", "leading", "noised"]

# x (M, Tp, D) at a noise level -> the estimates of x0 and of the noise in x, each (M, Tp, D)
Denoise = Callable[[torch.Tensor, Level], tuple[torch.Tensor, torch.Tensor]]

P = TypeVar("P")


class Sampler(Protocol):
    """A way from noise to x0 in ``steps`` steps, all numbers in the network's range."""

    name: ClassVar[str]

    @property
    def steps(self) -> int: ...

    def sample(
        self,
        denoise: Denoise,
        schedule: Schedule,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        clip: float | None = None,
    ) -> torch.Tensor:
        """x0 (M, Tp, D) from noise (M, Tp, D).

        With ``start`` only the last ``round(level * steps)`` steps are taken, at least one, from
        ``start`` under the noise of the first of them. Estimates of x0 are kept in [-clip, clip].
        """


def begin(points: list[P], start: torch.Tensor | None, level: float) -> list[P]:
    """The last part of a sampler's points that ``level`` in (0, 1] asks for."""
    if not 0 < level <= 1:
        raise PolicyError(f"level {level} is not in (0, 1], where 1 is pure noise")
    if start is None and level < 1:
        raise PolicyError(f"level {level} needs a chunk to start from; give start, or level 1")
    return points[-max(1, round(level * len(points))) :]


def noised(
    first: Level, noise: torch.Tensor, start: torch.Tensor | None, level: float
) -> torch.Tensor:
    """Where sampling begins: pure noise, or ``start`` under the noise of level ``first``."""
    if start is None or level == 1:
        return noise
    return first.alpha * start + first.sigma * noise


def leading(schedule: Schedule, steps: int) -> list[Level]:
    """Every (train steps // steps)-th training step, noisiest first, the last one t = 0."""
    if steps > schedule.steps:
        raise PolicyError(
            f"{steps} sampler steps, but the schedule was trained with {schedule.steps}; take "
            "at most as many"
        )
    stride = schedule.steps // steps
    return [schedule.level(i * stride) for i in reversed(range(steps))]


def clipped(x0: torch.Tensor, clip: float | None) -> torch.Tensor:
    return x0 if clip is None else x0.clamp(-clip, clip)


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Song et al. 2021), eta 0: deterministic.

    The last step answers its estimate of x0 itself. With ``clip`` the noise estimate stays as the
    network gave it, as in Diffusion Policy.
    """

    name: ClassVar[str] = "ddim"
    steps: int = within(1, 1000, default=10)

    def sample(
        self,
        denoise: Denoise,
        schedule: Schedule,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        clip: float | None = None,
    ) -> torch.Tensor:
        """As ``Sampler.sample``."""
        levels = begin(leading(schedule, self.steps), start, level)
        x = noised(levels[0], noise, start, level)
        for here, after in zip(levels, [*levels[1:], Level(-1, 1, 0)], strict=True):
            x0, residue = denoise(x, here)
            x = after.alpha * clipped(x0, clip) + after.sigma * residue
        return x


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) with the smaller of the two variances.

    The noise that each step adds is drawn, row by row, from a generator seeded by that row's
    initial noise: a chunk depends on its own noise and on nothing else in the batch.
    """

    name: ClassVar[str] = "ddpm"
    steps: int = within(1, 10_000, default=100)

    def sample(
        self,
        denoise: Denoise,
        schedule: Schedule,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        clip: float | None = None,
    ) -> torch.Tensor:
        """As ``Sampler.sample``."""
        levels = begin(leading(schedule, self.steps), start, level)
        x = noised(levels[0], noise, start, level)
        fresh = step_noise(noise, len(levels) - 1)
        for i, here in enumerate(levels):
            x0 = clipped(denoise(x, here)[0], clip)
            if i == len(levels) - 1:
                return x0
            after = levels[i + 1]
            ratio = (here.alpha / after.alpha) ** 2  # the product of the alphas passed over
            of_x0 = after.alpha * (1 - ratio) / here.sigma**2
            of_x = math.sqrt(ratio) * after.sigma**2 / here.sigma**2
            spread = math.sqrt((1 - ratio) * after.sigma**2 / here.sigma**2)
            x = of_x0 * x0 + of_x * x + spread * fresh[i]
        raise AssertionError("a sampler has at least one level")


def step_noise(noise: torch.Tensor, count: int) -> torch.Tensor:
    """Standard normal (count, M, Tp, D); column m is a function of ``noise[m]`` alone."""
    columns = []
    for row in noise.detach().to("cpu", torch.float32).numpy():
        seed = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        generator = np.random.default_rng(int.from_bytes(seed, "little"))
        columns.append(generator.standard_normal((count, *row.shape), dtype=np.float32))
    return torch.from_numpy(np.stack(columns, axis=1)).to(noise)
