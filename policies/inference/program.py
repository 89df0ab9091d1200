"""A sampler as numbers: everything about its steps that is known before the noise is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from policies.conditioned import ConditionedPolicy
from policies.diffusion import DiffusionPolicy
from policies.flow import TIME_SCALE, FlowPolicy
from policies.samplers import DDIM, begin, leading
from policies.schedules import Level

__all__ = ["Program", "advance", "program"]


@dataclass(frozen=True, slots=True)
class Program:
    """Steps x -> keep clip(of_x x + of_answer r) + of_rest r, where r is the network's answer.

    ``times`` are what the network is told; ``mixes`` (chunk, noise) where sampling would begin at
    each step; ``coefficients`` (K, 4) float32: of_x, of_answer, keep, of_rest.
    """

    times: tuple[float, ...]
    mixes: tuple[tuple[float, float], ...]
    coefficients: torch.Tensor
    clip: float | None

    def first(self, start: torch.Tensor | None, level: float) -> int:
        """The step at which sampling begins; PolicyError as ``policies.samplers.begin``."""
        return len(self.times) - len(begin(list(self.times), start, level))


def advance(
    x: torch.Tensor, answer: torch.Tensor, coefficients: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """One step of a program; coefficients (4,)."""
    of_x, of_answer, keep, of_rest = coefficients
    clean: torch.Tensor = of_x * x + of_answer * answer
    if clip is not None:
        clean = clean.clamp(-clip, clip)
    result: torch.Tensor = keep * clean + of_rest * answer
    return result


def program(policy: ConditionedPolicy) -> Program | None:
    """DDIM's steps of a diffusion policy, or Euler's of a flow; None for other samplers."""
    if isinstance(policy, DiffusionPolicy) and policy.prediction != "epsilon":
        return None
    if isinstance(policy, DiffusionPolicy) and isinstance(policy.sampler, DDIM):
        levels = leading(policy.schedule, policy.sampler.steps)
        rows = [
            (1 / here.alpha, -here.sigma / here.alpha, after.alpha, after.sigma)
            for here, after in zip(levels, [*levels[1:], Level(-1, 1, 0)], strict=True)
        ]
        return Program(
            tuple(level.t for level in levels),
            tuple((level.alpha, level.sigma) for level in levels),
            torch.tensor(rows, dtype=torch.float64).float(),
            policy.clip,
        )
    if isinstance(policy, FlowPolicy):
        steps = policy.sampler.steps
        taus = [i / steps for i in range(steps)]
        return Program(
            tuple(TIME_SCALE * tau for tau in taus),
            tuple((tau, 1 - tau) for tau in taus),
            torch.tensor([[1.0, 0.0, 1.0, 1 / steps]]).expand(steps, 4).contiguous(),
            None,
        )
    return None
