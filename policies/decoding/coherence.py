"""Backward coherence: of several samples, the one nearest to the chunk that is being executed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.decoding.receding_horizon import RecedingHorizon, standard_normal
from policies.interfaces import Array, Draw, Need, Policy, Step
from robot_stack.config import within
from robot_stack.contract import PolicyContract

__all__ = ["Coherence", "backward_distance"]


def backward_distance(chunks: Array, step: Step, first_action: int, rho: float) -> Array:
    """d_B (n,) of chunks (n, Tp, D): the sum of w_i |a_i - prior_i| over the rows they share,
    w_i = rho^i / sum rho^i (Liu et al., BID, 2024, eq. 3).

    Row i = 0 is the first that can still be executed: the newest observation's moment plus the
    forecast delay. What lies before it is done by the prior whichever chunk is chosen. The
    authors' code begins at the oldest observation, and so puts most weight on the past.
    """
    prior = step.priors[0]
    begin = min(first_action + step.delay, len(prior) - 1)
    weights = rho ** np.arange(len(prior) - begin)
    weights /= weights.sum()
    distances = np.linalg.norm(chunks[:, begin : len(prior)] - prior[begin:], axis=-1)
    return np.asarray(distances @ weights, dtype=np.float32)


@dataclass(frozen=True)
class Coherence(RecedingHorizon):
    """The smallest d_B of ``samples``; without a prior the first sample."""

    samples: int = within(1, 1024, default=15)
    rho: float = within(0.01, 1.0, default=0.5)

    name: ClassVar[str] = "coherence"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SAMPLES})

    def plan(self, step: Step, policy: Policy) -> Draw:
        return Draw(standard_normal(step, policy.contract, self.samples))

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        best = 0
        if step.priors:
            distance = backward_distance(strong, step, contract.first_action, self.rho)
            best = int(np.argmin(distance))
        return np.asarray(strong[best])
