"""Real-time chunking (RTC): the new chunk is inpainted around what will have been executed.

Black, Galliker and Levine, "Real-Time Execution of Action Chunking Flow Policies", 2025. The
policy's sampler carries out the guidance (its eq. 2), with a true vector-Jacobian product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.decoding.coherence import Coherence
from policies.decoding.priors import extended
from policies.decoding.receding_horizon import standard_normal
from policies.interfaces import Array, Draw, Guide, Need, Policy, Step
from robot_stack.config import within

__all__ = ["Rtc", "soft_mask"]


def soft_mask(rows: int, delay: int, overlap: int) -> Array:
    """W (rows,) of RTC eq. 5: 1 for i < delay; c expm1(c) / (e - 1) with c falling linearly from 1
    to 0 for i < overlap (H - s in the paper); 0 from there on, where the prior says nothing."""
    frozen = min(delay, overlap)
    i = np.arange(rows)
    c = np.clip((overlap - i) / (overlap - frozen + 1), 0.0, 1.0)
    soft = c * np.expm1(c) / math.expm1(1.0)
    return np.where(i < frozen, 1.0, soft).astype(np.float32)


@dataclass(frozen=True)
class Rtc(Coherence):
    """Samples that are guided to repeat the executed chunk until the forecast delay has passed and
    to leave it gradually from there on; of them, the one with the smallest d_B.

    Rows before the newest observation's moment were executed already and count as certain. An
    actual delay above the forecast is met by the rows after it, whose weights begin near 1.
    ``limit`` is beta, the largest guidance weight.

    The paper draws one sample (``samples`` 1). Its guidance takes the data to have unit variance
    in the network's range, so of two ways that differ by less it may take the other one all the
    same: at a fork 30 ms ahead of an ALOHA arm, a third of the samples did (``benchmarks._forks``).
    Then the executed chunk and the observation disagree at every later seam too.
    """

    samples: int = within(1, 1024, default=4)
    limit: float = within(0.0, 1000.0, default=5.0)

    name: ClassVar[str] = "rtc"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SAMPLES, Need.GRADIENTS})

    def plan(self, step: Step, policy: Policy) -> Draw:
        contract = policy.contract
        if not step.priors:
            return Draw(standard_normal(step, contract))
        prior, past = step.priors[0], contract.first_action
        weights = np.ones(contract.horizon, dtype=np.float32)
        weights[past:] = soft_mask(contract.rows, step.delay, len(prior) - past)
        guide = Guide(extended(prior, contract.horizon), weights, self.limit)
        return Draw(standard_normal(step, contract, self.samples), guide=guide)
