"""Warm start: the chunk that is being executed, shifted, is the initial noise of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from policies.decoding.receding_horizon import RecedingHorizon, standard_normal
from policies.interfaces import Draw, Need, Policy, Step

__all__ = ["WarmStart"]


@dataclass(frozen=True)
class WarmStart(RecedingHorizon):
    """x_T is the executed chunk, normalised; where it has ended, standard normal (a baseline of
    Liu et al., BID, 2024)."""

    name: ClassVar[str] = "warm_start"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.NOISE})

    def plan(self, step: Step, policy: Policy) -> Draw:
        noise = standard_normal(step, policy.contract)
        if step.priors:
            prior = step.priors[0]
            noise[0, : len(prior)] = policy.normalized(prior)
        return Draw(noise)
