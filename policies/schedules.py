"""How much noise at which step of diffusion: the squared-cosine schedule."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from functools import cached_property

from robot_stack.config import within

__all__ = ["Level", "Schedule"]

LARGEST_BETA = 0.999


@dataclass(frozen=True, slots=True)
class Level:
    """A noise level: x = alpha x0 + sigma noise, with alpha^2 + sigma^2 = 1.

    ``t`` is what the network is told: the training step, between two of them where a sampler
    wants to stand there.
    """

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Schedule:
    """``squaredcos_cap_v2`` (Nichol & Dhariwal 2021, eq. 17, each beta at most 0.999): variance
    preserving, ``steps`` training steps, the schedule of Diffusion Policy."""

    steps: int = within(2, 10_000, default=100)

    @cached_property
    def betas(self) -> tuple[float, ...]:
        def bar(part: float) -> float:
            return math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2

        return tuple(
            min(1 - bar((i + 1) / self.steps) / bar(i / self.steps), LARGEST_BETA)
            for i in range(self.steps)
        )

    @cached_property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """The product of 1 - beta up to each step: the share of signal in the variance."""
        product, products = 1.0, []
        for beta in self.betas:
            product *= 1 - beta
            products.append(product)
        return tuple(products)

    def level(self, t: int) -> Level:
        """The noise of training step ``t``."""
        share = self.alphas_cumprod[t]
        return Level(float(t), math.sqrt(share), math.sqrt(1 - share))

    def at_ratio(self, ratio: float) -> Level:
        """The level at which sigma / alpha is ``ratio`` (Karras et al. 2022's sigma); t is
        interpolated in its logarithm, and ends at the first and the last training step."""
        logs = self._log_ratios
        log = math.log(ratio)
        high = min(max(bisect.bisect_left(logs, log), 1), self.steps - 1)
        part = (log - logs[high - 1]) / (logs[high] - logs[high - 1])
        t = high - 1 + min(max(part, 0.0), 1.0)
        alpha = 1 / math.sqrt(1 + ratio * ratio)
        return Level(t, alpha, ratio * alpha)

    @cached_property
    def _log_ratios(self) -> tuple[float, ...]:
        return tuple(math.log((1 - a) / a) / 2 for a in self.alphas_cumprod)
