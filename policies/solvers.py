"""Samplers of second order, for few steps: DPM-Solver++(2M), and Heun on Karras' noise levels."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from policies.samplers import Denoise, begin, clipped, leading, noised
from policies.schedules import Level, Schedule
from robot_stack.config import within

__all__ = ["DpmSolver", "Heun"]


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M), midpoint (Lu et al. 2022, algorithm 2): one evaluation a step; a
    straight line through the last two estimates of x0. The first and last step are DDIM's."""

    name: ClassVar[str] = "dpm_solver"
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
        x0 = clipped(denoise(x, levels[0])[0], clip)
        last, passed = x0, 1.0
        for here, after in itertools.pairwise(levels):
            step = _snr(after) - _snr(here)
            ahead = x0 + (x0 - last) * step / (2 * passed)
            x = after.sigma / here.sigma * x - after.alpha * math.expm1(-step) * ahead
            last, passed, x0 = x0, step, clipped(denoise(x, after)[0], clip)
        return x0


def _snr(level: Level) -> float:
    """Half the logarithm of the ratio of signal to noise: lambda."""
    return math.log(level.alpha / level.sigma)


@dataclass(frozen=True)
class Heun:
    """Heun's method on the levels of Karras et al. 2022 (algorithm 1, eq. 5, no churn): two
    evaluations a step, one in the last. BESO (Reuss et al. 2023) takes 3 steps of it.

    ``sigma_max`` and ``sigma_min`` are the ends of sigma / alpha; sampling starts at ``sigma_max``
    as if it were pure noise.
    """

    name: ClassVar[str] = "heun"
    steps: int = within(1, 1000, default=5)
    sigma_max: float = within(0.1, 1000, default=10.0)
    sigma_min: float = within(1e-4, 1, default=0.03)
    rho: float = within(0.1, 100, default=7.0)

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max")

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
        levels = begin([schedule.at_ratio(ratio) for ratio in self.ratios], start, level)
        x = noised(levels[0], noise, start, level)

        def slope(x: torch.Tensor, here: Level) -> tuple[torch.Tensor, torch.Tensor]:
            """d (x / alpha) / d (sigma / alpha), and the estimate of x0."""
            x0 = clipped(denoise(x, here)[0], clip)
            return (x / here.alpha - x0) * (here.alpha / here.sigma), x0

        for here, after in itertools.pairwise(levels):
            width = after.sigma / after.alpha - here.sigma / here.alpha
            first, _ = slope(x, here)
            second, _ = slope(after.alpha * (x / here.alpha + width * first), after)
            x = after.alpha * (x / here.alpha + width * (first + second) / 2)
        return slope(x, levels[-1])[1]

    @property
    def ratios(self) -> list[float]:
        """The levels' sigma / alpha, largest first."""
        if self.steps == 1:
            return [self.sigma_max]
        top, bottom = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return [
            (top + i / (self.steps - 1) * (bottom - top)) ** self.rho for i in range(self.steps)
        ]
