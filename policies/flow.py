"""Flow matching: a network that predicts the straight velocity from noise to an action chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from policies.batch import Batch
from policies.conditioned import ConditionedPolicy
from policies.guidance import Field, guide_flow, ordinary
from policies.models.table import NETWORKS
from policies.named import parse_named
from policies.normalizer import Normalizer
from policies.samplers import begin
from robot_stack.config import Section, parse, within
from robot_stack.contract import PolicyContract

__all__ = ["FLOW_SAMPLERS", "Euler", "FlowOptions", "FlowPolicy"]

# What the network is told is tau times this: its embedding is made for steps 0 to 100.
TIME_SCALE = 100.0


@dataclass(frozen=True)
class Euler:
    """Equal steps from noise (tau 0) to data (tau 1)."""

    name: ClassVar[str] = "euler"
    steps: int = within(1, 1000, default=5)

    def sample(
        self,
        field: Field,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
    ) -> torch.Tensor:
        """x at tau 1 (M, Tp, D). With ``start`` only the last ``round(level * steps)`` steps are
        taken, at least one, from ``start`` mixed with that much noise."""
        taus = begin([i / self.steps for i in range(self.steps)], start, level)
        x = noise if start is None or level == 1 else taus[0] * start + (1 - taus[0]) * noise
        for tau in taus:
            x = x + field(x, tau) / self.steps
        return x


FLOW_SAMPLERS: dict[str, type[Euler]] = {"euler": Euler}


@dataclass(frozen=True)
class FlowOptions:
    """``{"policy": "flow", "network": {"name": ...}, "sampler": {"name": "euler", ...}, ...}``."""

    network: Section
    encoder: Section | None = None
    sampler: Section = field(default_factory=lambda: Section({"name": "euler"}, "", 0, {}))
    mask_padding: bool = False


class FlowPolicy(ConditionedPolicy):
    """Conditional flow matching on straight paths (Lipman et al. 2023; Liu et al. 2023): at
    x = (1 - tau) noise + tau chunk, tau uniform, the network predicts chunk - noise."""

    def __init__(
        self, architecture: Mapping[str, Any], contract: PolicyContract, normalizer: Normalizer
    ) -> None:
        values = {key: value for key, value in architecture.items() if key != "policy"}
        options = parse(FlowOptions, values, "architecture")
        super().__init__(
            architecture,
            contract,
            normalizer,
            parse_named(NETWORKS, options.network, "network"),
            options.encoder,
        )
        self.sampler = parse_named(FLOW_SAMPLERS, options.sampler, "sampler")
        self.mask_padding = options.mask_padding

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean square error of the predicted velocity."""
        condition = self.condition(batch.state, batch.images)
        clean = self.normalize_action(batch.action)
        tau = torch.rand(len(clean), device=clean.device)
        noise = torch.randn_like(clean)
        part = tau[:, None, None]
        velocity = self.network((1 - part) * noise + part * clean, TIME_SCALE * tau, condition)
        error = (velocity - (clean - noise)) ** 2
        return self.mean(error, batch.mask if self.mask_padding else None)

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        """As ``Policy.sample``; guided as real-time chunking (``policies.guidance``)."""

        def velocity(x: torch.Tensor, tau: float) -> torch.Tensor:
            t = torch.full((len(x),), TIME_SCALE * tau, device=x.device)
            result: torch.Tensor = self.network(x, t, condition)
            return result

        chosen: Field = velocity
        if guide is not None:
            target, weights, limit = guide
            condition = ordinary(condition)
            chosen = guide_flow(velocity, self.normalize_action(target), weights, limit)
        clean = self.sampler.sample(
            chosen,
            noise,
            start=None if start is None else self.normalize_action(start),
            level=level,
        )
        return self.restore_action(clean)
