"""What a training step sees: windows of episodes as tensors, in the units they were recorded in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

__all__ = ["Batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """B windows: ``state`` (B, To, S) float32, ``images`` uint8 RGB (B, To, H, W, 3) a camera,
    ``action`` (B, Tp, D) float32, ``mask`` (B, Tp) bool, False where an action only pads an end.

    Nothing is normalised: the policy does that with the statistics of its checkpoint.
    """

    state: torch.Tensor
    images: Mapping[str, torch.Tensor]
    action: torch.Tensor
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.state)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Batch:
        """The same windows on ``device``."""
        return Batch(
            self.state.to(device, non_blocking=non_blocking),
            {k: v.to(device, non_blocking=non_blocking) for k, v in self.images.items()},
            self.action.to(device, non_blocking=non_blocking),
            self.mask.to(device, non_blocking=non_blocking),
        )
