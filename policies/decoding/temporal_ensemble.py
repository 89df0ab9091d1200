"""Temporal ensemble: what goes out is the weighted mean of all predictions of each moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from policies.decoding.priors import blended
from policies.decoding.receding_horizon import RecedingHorizon
from policies.interfaces import Array, Decoder, Draw, Need, Policy, Step
from robot_stack.config import within
from robot_stack.contract import PolicyContract

__all__ = ["TemporalEnsemble"]


@dataclass(frozen=True)
class TemporalEnsemble:
    """w_i = exp(-decay * i), i = 0 the oldest prediction (Zhao et al., ACT, 2023, section IV-B).

    What is remembered is the raw prediction: only what goes out is blended. ``of`` is the decoder
    that makes the predictions.
    """

    decay: float = within(0.0, 100.0, default=0.01)
    of: Decoder = field(default_factory=RecedingHorizon)

    name: ClassVar[str] = "temporal_ensemble"

    @property
    def needs(self) -> frozenset[Need]:
        return self.of.needs

    def plan(self, step: Step, policy: Policy) -> Draw:
        return self.of.plan(step, policy)

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        return self.of.choose(step, strong, weak, contract)

    def emit(self, step: Step, chosen: Array, contract: PolicyContract) -> Array:
        first = contract.first_action
        raw = self.of.emit(step, chosen, contract)
        return blended([*(prior[first:] for prior in reversed(step.priors)), raw], self.decay)
