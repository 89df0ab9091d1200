"""From episodes and a configuration to a trainer: split, statistics, contract, policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from policies.build import build
from policies.normalizer import Normalizer
from policies.trainable import TrainablePolicy
from policies.training.config import TrainConfig, plain
from policies.training.demonstrations import Demonstration
from robot_stack.contract import PolicyContract
from robot_stack.errors import EpisodeError

__all__ = ["Split", "contract_of", "fresh_policy", "split"]


@dataclass(frozen=True)
class Split:
    """Episodes to learn from and episodes held out."""

    train: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]


def split(episodes: Sequence[Demonstration], share: float, seed: int) -> Split:
    """Hold out ``share`` of the episodes (one at least, unless share is 0), drawn by ``seed``.

    EpisodeError when nothing would be left to learn from.
    """
    held = max(1, round(share * len(episodes))) if share > 0 else 0
    if held >= len(episodes):
        raise EpisodeError(
            f"{len(episodes)} episodes are too few to hold {held} out and learn from the rest; "
            "record more, or set validation.share to 0"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(episodes))[:held].tolist())
    return Split(
        tuple(one for i, one in enumerate(episodes) if i not in chosen),
        tuple(one for i, one in enumerate(episodes) if i in chosen),
    )


def contract_of(config: TrainConfig, episodes: Sequence[Demonstration]) -> PolicyContract:
    """The interface of a policy that learns from these episodes."""
    first = episodes[0]
    start = np.median([one.begin for one in episodes], axis=0)
    return PolicyContract(
        name=config.name,
        embodiment=first.embodiment,
        task=config.task or first.task,
        state=first.state_features,
        action=first.action_features,
        cameras=config.data.camera_inputs,
        control_dt_ns=first.period_ns,
        observations=config.observations,
        horizon=config.horizon,
        first_action=config.first,
        execute=config.execute,
        start=tuple(float(value) for value in start),
    )


def fresh_policy(config: TrainConfig, episodes: Sequence[Demonstration]) -> TrainablePolicy:
    """A policy with the statistics of ``episodes`` and weights drawn by ``config.seed``."""
    normalizer = Normalizer.fit(
        np.concatenate([one.state for one in episodes]),
        np.concatenate([one.action for one in episodes]),
        config.normalizer,
    )
    torch.manual_seed(config.seed)
    return build(plain(config.architecture), contract_of(config, episodes), normalizer)
