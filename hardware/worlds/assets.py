"""Where the installed packages keep their MJCF files, found without importing the packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from robot_stack.errors import MissingDependencyError

__all__ = ["gym_aloha_assets"]


def gym_aloha_assets() -> Path:
    """The assets directory of gym-aloha (MJCF and meshes of the ALOHA cell).

    gym-aloha itself is not imported: that would pull in dm_control. MissingDependencyError when
    it is not installed.
    """
    found = find_spec("gym_aloha")
    for location in (found.submodule_search_locations or ()) if found else ():
        assets = Path(location) / "assets"
        if assets.is_dir():
            return assets
    raise MissingDependencyError(
        "the ALOHA scene needs the package 'gym_aloha': pip install 'robot-stack[sim]' "
        "(or: pip install --no-deps gym-aloha==0.1.5)"
    )
