"""The scripted operator's motion as actions of the cube-transfer world."""

from __future__ import annotations

from functools import cache

import numpy as np

from collect.evaluation.aloha import AlohaTransferWorld
from hardware.worlds.inverse_kinematics import both_arms
from hardware.worlds.operator import plan_transfer

kinematics = cache(both_arms)


def transfer(world: AlohaTransferWorld, seed: int, *, grip: bool = True) -> list[float]:
    """Make the transfer of ``seed``; the reward of each step. Without ``grip`` the right gripper
    stays open."""
    world.reset(seed)
    planning = plan_transfer(world.observe()[14:], seed, 1.0, kinematics())
    while True:
        try:
            next(planning)
        except StopIteration as finished:
            plan = finished.value
            break
    rewards = []
    for step in range(int(plan.duration_s * 50) + 10):
        action = plan.at(step / 50).copy()
        if not grip:
            action[1, 6] = max(action[1, 6], min(0.9, step / 50))
        world.step(np.ravel(action))
        rewards.append(world.reward)
        if world.success:
            break
    return rewards
