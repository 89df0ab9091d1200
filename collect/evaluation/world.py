"""What an evaluation needs of a world, the worlds by name, and whether a policy fits one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_stack import registry
from robot_stack.contract import CameraInput, Feature, PolicyContract
from robot_stack.errors import PolicyError

__all__ = [
    "World",
    "WorldOptions",
    "action_columns",
    "check_fit",
    "make_world",
    "state_columns",
]

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class WorldOptions:
    """``dynamic``: how far the object moves by itself in a control step, where a world can do that
    (Push-T: px in x and in y). ``start`` (D,): where the robots begin, in a world that leaves it
    open; empty for its own pose."""

    dynamic: float = 0.0
    start: tuple[float, ...] = ()


class World(Protocol):
    """A task that is stepped at the policy's rate, faster than real time.

    ``state`` and ``action`` are all that the world offers and needs, in its own order. After
    ``reset`` with the same seed the same actions give the same rewards, to the bit.
    """

    @property
    def embodiment(self) -> str: ...

    @property
    def control_dt_ns(self) -> int: ...

    @property
    def steps(self) -> int:
        """After how many control steps an episode ends at the latest."""

    @property
    def state(self) -> tuple[Feature, ...]: ...

    @property
    def action(self) -> tuple[Feature, ...]: ...

    @property
    def cameras(self) -> Mapping[str, tuple[int, int] | None]:
        """Native (height, width) by name; None: it draws at any size."""

    def reset(self, seed: int) -> None:
        """Begin the episode of ``seed``."""

    def observe(self) -> Array:
        """The state (S,), as ``state`` names it."""

    def image(self, camera: CameraInput) -> NDArray[np.uint8]:
        """What a camera sees now: RGB (height, width, 3) as the policy wants it."""

    def step(self, action: Array) -> None:
        """Act (D,), as ``action`` names it, for one control step."""

    @property
    def reward(self) -> float:
        """Of the last step, in [0, 1]."""

    @property
    def success(self) -> bool:
        """Whether the task is done; the episode ends with it."""

    def picture(self) -> NDArray[np.uint8]:
        """The scene for people, RGB (H, W, 3), both even."""


def make_world(name: str, options: WorldOptions) -> World:
    """The world of a registry name. RegistryError names the nearest one, ConfigError an option
    that it does not have."""
    world: World = registry.load("world", name)(options)
    return world


def check_fit(contract: PolicyContract, world: World) -> None:
    """PolicyError lists what the policy needs and the world does not offer.

    The world offers any subset of its state, in any order, and all of its actions in any order.
    """
    by_name = {feature.name: feature for feature in world.state}
    state = tuple(by_name[f.name] for f in contract.state if f.name in by_name)
    actions = {feature.name: feature for feature in world.action}
    action = world.action
    if {feature.name for feature in contract.action} == set(actions):
        action = tuple(actions[feature.name] for feature in contract.action)
    cameras = tuple(
        CameraInput(c.name, *(world.cameras[c.name] or (c.height, c.width)))
        for c in contract.cameras
        if c.name in world.cameras
    )
    found = contract.differences(
        dataclasses.replace(
            contract,
            embodiment=world.embodiment,
            control_dt_ns=world.control_dt_ns,
            state=state,
            action=action,
            cameras=cameras,
        )
    )
    if found:
        raise PolicyError(
            f"policy {contract.name or '(unnamed)'} does not fit this world: {'; '.join(found)}",
            "contract_mismatch",
        )


def state_columns(contract: PolicyContract, world: World) -> NDArray[np.intp]:
    """Which column of ``world.observe()`` each of the policy's state features is."""
    names = [feature.name for feature in world.state]
    return np.array([names.index(feature.name) for feature in contract.state], dtype=np.intp)


def action_columns(contract: PolicyContract, world: World) -> NDArray[np.intp]:
    """Which column of the policy's action each of the world's actions is."""
    names = [feature.name for feature in contract.action]
    return np.array([names.index(feature.name) for feature in world.action], dtype=np.intp)
