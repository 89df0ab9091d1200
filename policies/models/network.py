"""What a policy asks of its network, and the embedding of the noise level that all share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

__all__ = ["ChunkNetwork", "ChunkShape", "NetworkOptions", "SinusoidalEmbedding", "StepEncoder"]


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """What a network maps: ``horizon`` (Tp) x ``action`` (D) numbers, under ``observations`` (To)
    x ``features`` (F) numbers."""

    horizon: int
    action: int
    observations: int
    features: int


class ChunkNetwork(nn.Module, ABC):
    """Chunk x (M, Tp, D) at step t (M,) under condition (M, To, F) -> noise or velocity (M, Tp,
    D), all in the network's range."""

    @abstractmethod
    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """As the class says."""


class NetworkOptions(Protocol):
    """A network's part of an architecture."""

    def make(self, shape: ChunkShape) -> ChunkNetwork:
        """The network, with fresh weights. PolicyError for a shape that it cannot map."""


class SinusoidalEmbedding(nn.Module):
    """t (M,) -> (M, width): sines, then cosines, of ``width / 2`` frequencies from 1 to 1e-4."""

    frequencies: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        powers = torch.arange(half, dtype=torch.float32) / (half - 1)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * powers), persistent=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        angles = t.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class StepEncoder(nn.Sequential):
    """Sinusoidal embedding and the two-layer MLP behind it: t (M,) -> (M, width)."""

    def __init__(self, width: int) -> None:
        super().__init__(
            SinusoidalEmbedding(width),
            nn.Linear(width, 4 * width),
            nn.Mish(),
            nn.Linear(4 * width, width),
        )
