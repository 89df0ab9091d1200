"""Rollouts while a policy is trained: its success in a world, every so many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collect.evaluation.rollouts import rollouts
from collect.evaluation.world import World, WorldOptions, make_world
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.trainable import TrainablePolicy
from robot_stack.config import Section, parse, within

__all__ = ["RolloutConfig", "rollouts_of"]


@dataclass(frozen=True)
class RolloutConfig:
    """Section ``rollout`` of a training file. The seeds are the same each time, and others than
    those of `robot-stack eval`, so that no checkpoint is chosen by what it is judged on."""

    world: str
    every: int = within(1, 10**8, "steps")
    episodes: int = within(1, 10_000, default=20)
    seed0: int = within(0, 2**31 - 20_000, default=0)
    decoder: str = "receding_horizon"
    options: Section = field(default_factory=lambda: Section({}, "", 0, {}))


def rollouts_of(
    section: Mapping[str, Any],
) -> tuple[Callable[[TrainablePolicy, int], Mapping[str, float]], int]:
    """(what rolls a policy out and returns scalars to log, every how many steps).

    ConfigError names a key, world or decoder that does not exist.
    """
    config = parse(RolloutConfig, section, "rollout")
    decoder = make_decoder(config.decoder, config.options)
    worlds: list[World] = []

    def roll_out(policy: TrainablePolicy, step: int) -> Mapping[str, float]:
        if not worlds:
            options = WorldOptions(start=policy.contract.start)
            worlds.extend(make_world(config.world, options) for _ in range(config.episodes))
        seeds = range(config.seed0, config.seed0 + config.episodes)
        scores = list(rollouts(Hosted(policy), decoder, worlds, seeds))
        return {
            "rollout/mean_max_reward": float(np.mean([score.max_reward for score in scores])),
            "rollout/success_rate": float(np.mean([score.success for score in scores])),
        }

    return roll_out, config.every
