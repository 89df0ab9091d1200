"""EMA: each chunk is averaged with the one that is being executed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from policies.decoding.receding_horizon import RecedingHorizon
from policies.interfaces import Array, Decoder, Draw, Need, Policy, Step
from robot_stack.config import within
from robot_stack.contract import PolicyContract

__all__ = ["Ema"]


@dataclass(frozen=True)
class Ema:
    """``newest`` of the new chunk, the rest of the executed one (a baseline of Liu et al., BID,
    2024: .5/.5). What is remembered is the average, so that older chunks fade geometrically.

    ``of`` is the decoder whose chunks are averaged.
    """

    newest: float = within(0.01, 1.0, default=0.5)
    of: Decoder = field(default_factory=RecedingHorizon)

    name: ClassVar[str] = "ema"

    @property
    def needs(self) -> frozenset[Need]:
        return self.of.needs

    def plan(self, step: Step, policy: Policy) -> Draw:
        return self.of.plan(step, policy)

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        chosen = self.of.choose(step, strong, weak, contract)
        if not step.priors:
            return chosen
        average, prior = chosen.copy(), step.priors[0]
        average[: len(prior)] += (1.0 - self.newest) * (prior - average[: len(prior)])
        return average

    def emit(self, step: Step, chosen: Array, contract: PolicyContract) -> Array:
        return self.of.emit(step, chosen, contract)
