"""Receding horizon: one sample, executed as it is; the base of decoders that change one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from policies.interfaces import Array, Draw, Need, Policy, Step
from robot_stack.contract import PolicyContract

__all__ = ["RecedingHorizon", "standard_normal"]


def standard_normal(step: Step, contract: PolicyContract, samples: int = 1) -> Array:
    """Noise (samples, Tp, D) from the session's generator."""
    shape = (samples, contract.horizon, len(contract.action))
    return step.rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class RecedingHorizon:
    """One sample a request (Chi et al., Diffusion Policy, 2023)."""

    name: ClassVar[str] = "receding_horizon"
    needs: ClassVar[frozenset[Need]] = frozenset()

    def plan(self, step: Step, policy: Policy) -> Draw:
        return Draw(standard_normal(step, policy.contract))

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        return np.asarray(strong[0])

    def emit(self, step: Step, chosen: Array, contract: PolicyContract) -> Array:
        return chosen[contract.first_action :]
