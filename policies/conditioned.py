"""A policy whose network maps noise to a chunk under the observations: diffusion and flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from policies.interfaces import Need
from policies.models.network import ChunkShape, NetworkOptions
from policies.models.vision import ENCODERS, ImageEncoder
from policies.named import parse_named
from policies.normalizer import Normalizer
from policies.trainable import TrainablePolicy
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError

__all__ = ["ConditionedPolicy"]


class ConditionedPolicy(TrainablePolicy):
    """Condition (B, To, F): of each observation the normalised state, then each camera's features
    in the contract's order. Gives samples, chosen noise and gradients."""

    gives = frozenset({Need.SAMPLES, Need.NOISE, Need.GRADIENTS})

    def __init__(
        self,
        architecture: Mapping[str, Any],
        contract: PolicyContract,
        normalizer: Normalizer,
        network: NetworkOptions,
        encoder: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(architecture, contract, normalizer)
        features = len(contract.state)
        self.images: ImageEncoder | None = None
        if contract.cameras:
            options = parse_named(ENCODERS, encoder or {"name": "resnet18"}, "encoder")
            self.images = ImageEncoder(options, contract.cameras)
            features += self.images.features
        elif encoder is not None:
            raise PolicyError(
                "the architecture has an encoder, the contract no cameras; take one of them out"
            )
        self.network = network.make(
            ChunkShape(contract.horizon, len(contract.action), contract.observations, features)
        )

    def condition(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As ``encode``, with gradients: what training calls."""
        normalized = self.normalize_state(state)
        if self.images is None:
            return normalized
        return torch.cat((normalized, self.images(images)), dim=-1)

    @torch.no_grad()
    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As ``Policy.encode``."""
        return self.condition(state, images)

    @staticmethod
    def mean(error: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The mean of errors (B, Tp, D), of the rows of ``mask`` (B, Tp) alone where given."""
        if mask is None:
            return error.mean()
        weights = mask.unsqueeze(-1).to(error.dtype)
        total: torch.Tensor = (error * weights).sum() / (weights.sum() * error.shape[-1]).clamp(1)
        return total
