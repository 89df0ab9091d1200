"""Diffusion Policy: a network that predicts the noise in an action chunk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from policies.batch import Batch
from policies.conditioned import ConditionedPolicy
from policies.guidance import guide_denoise, ordinary
from policies.models.table import NETWORKS
from policies.named import parse_named
from policies.normalizer import Normalizer
from policies.samplers import DDIM, DDPM, Denoise, Sampler
from policies.schedules import Level, Schedule
from policies.solvers import DpmSolver, Heun
from robot_stack.config import Section, parse
from robot_stack.contract import PolicyContract

__all__ = ["SAMPLERS", "DiffusionOptions", "DiffusionPolicy"]

SAMPLERS: dict[str, type[Sampler]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "dpm_solver": DpmSolver,
    "heun": Heun,
}


@dataclass(frozen=True)
class DiffusionOptions:
    """``{"policy": "diffusion", "network": {"name": ...}, "sampler": {"name": ...}, ...}``."""

    network: Section
    encoder: Section | None = None
    schedule: Schedule = field(default_factory=Schedule)
    sampler: Section = field(default_factory=lambda: Section({"name": "ddim"}, "", 0, {}))
    prediction: Literal["epsilon", "sample"] = "epsilon"
    mask_padding: bool = False


class DiffusionPolicy(ConditionedPolicy):
    """Chi et al. 2023: epsilon prediction under the observations, trained as Ho et al. 2020.

    With ``prediction: sample`` the network answers the clean chunk instead of its noise. A small
    network needs that for long chunks: to predict noise it must carry all of it from its input to
    its output, and what it fails to carry hides the chunk where the noise is strong.

    The paper's loss counts the padded actions at the ends of an episode; ``mask_padding`` leaves
    them out.
    """

    def __init__(
        self, architecture: Mapping[str, Any], contract: PolicyContract, normalizer: Normalizer
    ) -> None:
        values = {key: value for key, value in architecture.items() if key != "policy"}
        options = parse(DiffusionOptions, values, "architecture")
        super().__init__(
            architecture,
            contract,
            normalizer,
            parse_named(NETWORKS, options.network, "network"),
            options.encoder,
        )
        self.schedule = options.schedule
        self.sampler = parse_named(SAMPLERS, options.sampler, "sampler")
        self.prediction = options.prediction
        self.mask_padding = options.mask_padding
        shares = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float64)
        self.register_buffer("alphas", shares.sqrt().float(), persistent=False)
        self.register_buffer("sigmas", (1 - shares).sqrt().float(), persistent=False)

    alphas: torch.Tensor
    sigmas: torch.Tensor

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean square error of the predicted noise (Ho et al. 2020, algorithm 1), or chunk."""
        condition = self.condition(batch.state, batch.images)
        clean = self.normalize_action(batch.action)
        t = torch.randint(self.schedule.steps, (len(clean),), device=clean.device)
        noise = torch.randn_like(clean)
        x = self.alphas[t, None, None] * clean + self.sigmas[t, None, None] * noise
        wanted = noise if self.prediction == "epsilon" else clean
        error = (self.network(x, t, condition) - wanted) ** 2
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
        """As ``Policy.sample``; guided as ``policies.guidance`` derives it."""

        def denoise(x: torch.Tensor, here: Level) -> tuple[torch.Tensor, torch.Tensor]:
            t = torch.full((len(x),), here.t, device=x.device)
            answer = self.network(x, t, condition)
            if self.prediction == "epsilon":
                return (x - here.sigma * answer) / here.alpha, answer
            return answer, (x - here.alpha * answer) / here.sigma

        chosen: Denoise = denoise
        if guide is not None:
            target, weights, limit = guide
            condition = ordinary(condition)
            target = self.normalize_action(target)
            chosen = guide_denoise(denoise, target, weights, limit, self.clip)
        clean = self.sampler.sample(
            chosen,
            self.schedule,
            noise,
            start=None if start is None else self.normalize_action(start),
            level=level,
            clip=self.clip,
        )
        return self.restore_action(clean)
