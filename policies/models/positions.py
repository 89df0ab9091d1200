"""Fixed sines for the place of a token in a sequence or an image."""

from __future__ import annotations

import math

import torch

__all__ = ["image_positions", "sequence_positions"]


def sequence_positions(length: int, width: int) -> torch.Tensor:
    """(length, width): sines in the even columns, cosines in the odd (Vaswani et al. 2017)."""
    return _waves(torch.arange(length, dtype=torch.float32), width)


def image_positions(height: int, width: int, channels: int) -> torch.Tensor:
    """(height * width, channels), row by row: half of the channels for y, half for x, both on
    (0, 2 pi] (Carion et al. 2020)."""
    y = (torch.arange(height, dtype=torch.float32) + 1) * 2 * math.pi / height
    x = (torch.arange(width, dtype=torch.float32) + 1) * 2 * math.pi / width
    down = _waves(y, channels // 2).unsqueeze(1).expand(height, width, -1)
    across = _waves(x, channels // 2).unsqueeze(0).expand(height, width, -1)
    return torch.cat((down, across), dim=-1).flatten(0, 1)


def _waves(places: torch.Tensor, width: int) -> torch.Tensor:
    rates = torch.exp(-math.log(10_000) * torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = places.unsqueeze(-1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
