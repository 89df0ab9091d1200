"""Bidirectional decoding (BID): samples that agree with the past and contrast with a weak policy.

Liu, Hamid, Xie, Lee, Du and Finn, "Bidirectional Decoding: Improving Action Chunking via
Closed-Loop Resampling", 2024, with its defaults. Different from the authors' code: the prior is
compared from the first row that can still be executed on (theirs begins in the past), it dies
with the session's reset, and pair distances leave out the rows that repeat the past.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.decoding.coherence import backward_distance
from policies.decoding.priors import extended
from policies.decoding.receding_horizon import RecedingHorizon, standard_normal
from policies.interfaces import Array, Draw, Need, Policy, Step
from robot_stack.config import within
from robot_stack.contract import PolicyContract

__all__ = ["Bid", "BidWarm"]


@dataclass(frozen=True)
class Bid(RecedingHorizon):
    """``samples`` (N) chunks of the strong and of the weak policy; of each, the N // modes nearest
    to the executed chunk are kept. Chosen is the kept strong one with the smallest

        d_B + mean distance to its nearest kept strong - mean distance to its nearest kept weak,

    over half as many neighbours as were kept (2 of 5), itself excluded. Without a prior all N are
    kept and d_B is 0. The distance of two chunks is the mean over rows of the L2 norm, in action
    units.
    """

    samples: int = within(2, 1024, default=15)
    modes: int = within(1, 512, default=3)
    rho: float = within(0.01, 1.0, default=0.5)

    name: ClassVar[str] = "bid"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SAMPLES, Need.CONTRAST})

    def __post_init__(self) -> None:
        if self.samples // self.modes < 2:
            raise ValueError(
                f"{self.samples} samples and {self.modes} modes keep {self.samples // self.modes} "
                "chunks; at least 2 are needed: give samples >= 2 * modes"
            )

    def plan(self, step: Step, policy: Policy) -> Draw:
        noise = standard_normal(step, policy.contract, 2 * self.samples)
        return Draw(noise, contrast=self.samples)

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        backward = np.zeros(len(strong), dtype=np.float32)
        if step.priors:
            keep = self.samples // self.modes
            strong, backward = self._nearest(strong, step, contract.first_action, keep)
            weak, _ = self._nearest(weak, step, contract.first_action, keep)
        neighbours = len(strong) // 2
        ahead = strong[:, contract.first_action :]
        to_strong = _distances(ahead, ahead)
        np.fill_diagonal(to_strong, np.inf)
        to_weak = _distances(ahead, weak[:, contract.first_action :])
        forward = _nearest_mean(to_strong, neighbours) - _nearest_mean(to_weak, neighbours)
        return np.asarray(strong[int(np.argmin(backward + forward))])

    def _nearest(
        self, chunks: Array, step: Step, first_action: int, keep: int
    ) -> tuple[Array, Array]:
        distance = backward_distance(chunks, step, first_action, self.rho)
        kept = np.argsort(distance, kind="stable")[:keep]
        return chunks[kept], distance[kept]


@dataclass(frozen=True)
class BidWarm(Bid):
    """BID whose samples begin at ``level`` of the noise schedule from the executed chunk: about
    that share of the denoising steps. Samples stay nearer to the past, so there is less to choose
    from: measure it on the task at hand before use."""

    level: float = within(0.05, 1.0, default=0.4)

    name: ClassVar[str] = "bid_warm"
    needs: ClassVar[frozenset[Need]] = Bid.needs | {Need.NOISE}

    def plan(self, step: Step, policy: Policy) -> Draw:
        draw = super().plan(step, policy)
        if not step.priors:
            return draw
        start = extended(step.priors[0], policy.contract.horizon)
        return Draw(draw.noise, contrast=draw.contrast, start=start, level=self.level)


def _distances(left: Array, right: Array) -> Array:
    """Mean over rows of the L2 norm, of each of (n, H, D) to each of (m, H, D): (n, m)."""
    difference = left[:, None] - right[None]
    return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1))


def _nearest_mean(distances: Array, count: int) -> Array:
    """The mean of the ``count`` smallest of each row."""
    return np.asarray(np.sort(distances, axis=1)[:, :count].mean(axis=1))
