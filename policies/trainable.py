"""What the policies here have in common: contract, statistics, observations to a condition."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from policies.batch import Batch
from policies.interfaces import Array, Need
from policies.named import plain
from policies.normalizer import Normalizer
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError

__all__ = ["TrainablePolicy"]


class TrainablePolicy(nn.Module, ABC):
    """A ``policies.interfaces.Policy`` that can be trained.

    ``architecture`` is the mapping it was built from, as a checkpoint keeps it. The contract's
    ``normalizer`` is filled in; PolicyError where it names others, or another number of features.
    """

    gives: frozenset[Need]
    state_center: torch.Tensor
    state_width: torch.Tensor
    action_center: torch.Tensor
    action_width: torch.Tensor

    def __init__(
        self,
        architecture: Mapping[str, Any],
        contract: PolicyContract,
        normalizer: Normalizer,
    ) -> None:
        super().__init__()
        for part in ("state", "action"):
            scale, features = getattr(normalizer, part), getattr(contract, part)
            if len(scale) != len(features):
                raise PolicyError(
                    f"the normalizer has {len(scale)} {part} features, the contract "
                    f"{len(features)}; fit it on the data of this contract"
                )
            self.register_buffer(f"{part}_center", torch.tensor(scale.center), persistent=False)
            self.register_buffer(f"{part}_width", torch.tensor(scale.width), persistent=False)
        if contract.normalizer not in ("", normalizer.sha256):
            raise PolicyError(
                f"the contract names normalizer {contract.normalizer[:12]}, given is "
                f"{normalizer.sha256[:12]}; leave the name empty, or give the statistics it names"
            )
        self.architecture: dict[str, Any] = plain(architecture)
        self.contract = dataclasses.replace(contract, normalizer=normalizer.sha256)
        self.normalizer = normalizer

    @property
    def device(self) -> torch.device:
        """Where the policy lives, and where it wants observations and noise."""
        return self.action_center.device

    @abstractmethod
    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As ``Policy.encode``, without gradients."""

    @abstractmethod
    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        """As ``Policy.sample``; deterministic given ``noise``."""

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """The training objective, a scalar; noise and steps come from torch's generator."""

    def normalized(self, actions: Array) -> Array:
        """As ``Policy.normalized``."""
        return self.normalizer.action.normalize(actions)

    def normalize_state(self, state: torch.Tensor) -> torch.Tensor:
        return (state - self.state_center) / self.state_width

    def normalize_action(self, action: torch.Tensor) -> torch.Tensor:
        return (action - self.action_center) / self.action_width

    def restore_action(self, normalized: torch.Tensor) -> torch.Tensor:
        return normalized * self.action_width + self.action_center

    @property
    def clip(self) -> float | None:
        """Where estimates of the clean chunk are clipped: data ends at 1 under min-max only."""
        return 1.0 if self.normalizer.action.kind == "minmax" else None
