"""What a scene of a virtual station is made of. The registry names them: ``world.scene`` of a
station file chooses one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robot_stack import registry
from robot_stack.config import Station
from robot_stack.errors import ConfigError

if TYPE_CHECKING:
    import mujoco

__all__ = ["Scene", "named_scene", "scene_of"]


@dataclass(frozen=True, slots=True)
class Scene:
    """``process`` is the module that `python -m` runs as the world, with the station file as its
    argument; it publishes ``qpos`` of the model that ``render_model`` gives for drawing.

    ``cameras`` maps the names that stations use to the model's own; ``page`` is the module of the
    world's page, None for a scene without one.
    """

    process: str
    cameras: Mapping[str, str]
    render_model: Callable[[], mujoco.MjModel]
    page: str | None = None


def scene_of(station: Station) -> Scene:
    """The scene of a virtual station. ConfigError when it has no world, RegistryError when no
    scene has that name."""
    if station.world is None:
        raise ConfigError(
            f"{station.path} has no `world` section: only a virtual station has a world to run"
        )
    return named_scene(station.world.scene)


def named_scene(name: str) -> Scene:
    """The scene that the registry knows by this name; RegistryError with the known names."""
    scene: Scene = registry.load("scene", name)()
    return scene
