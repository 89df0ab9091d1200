"""From an architecture, as configurations and checkpoints write it, to a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.normalizer import Normalizer
from policies.trainable import TrainablePolicy
from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError
from robot_stack.registry import load, names

__all__ = ["build"]


def build(
    architecture: Mapping[str, Any], contract: PolicyContract, normalizer: Normalizer
) -> TrainablePolicy:
    """The policy that ``architecture["policy"]`` names, with fresh weights, in training mode.

    ConfigError names an unknown, missing or impossible key of the architecture; PolicyError says
    what of contract or statistics does not fit it.
    """
    kind = architecture.get("policy")
    if not isinstance(kind, str):
        raise ConfigError(
            f"architecture.policy: missing, and required (allowed: {', '.join(names('policy'))})"
        )
    policy: TrainablePolicy = load("policy", kind)(architecture, contract, normalizer)
    return policy
