"""The moving average of the weights that is evaluated and kept."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from policies.training.config import EmaConfig

__all__ = ["Ema", "decay"]

M = TypeVar("M", bound=nn.Module)


def decay(step: int, config: EmaConfig) -> float:
    """How much of the average stays after ``step`` updates before this one: 0 at first."""
    return min(1 - (1 + step) ** -config.power, config.maximum) if step > 0 else 0.0


class Ema(Generic[M]):
    """``model`` holds the average of the weights of ``source``; all parameters take part."""

    def __init__(self, source: M, config: EmaConfig) -> None:
        self.config = config
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        self._average: list[torch.Tensor] = list(self.model.parameters())
        self._source: list[torch.Tensor] = list(source.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimiser step number ``step`` (from 0)."""
        torch._foreach_lerp_(self._average, self._source, 1 - decay(step, self.config))
