"""Which episode files a command line means: files, or directories of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from robot_stack.errors import EpisodeError

__all__ = ["episode_files", "episode_number", "missing_numbers"]

_NAME = re.compile(r"episode_(\d+)\.hdf5$")


def episode_number(path: Path) -> int | None:
    """3 for ``episode_3.hdf5``, None for other names."""
    found = _NAME.match(path.name)
    return int(found[1]) if found else None


def _order(path: Path) -> tuple[int, str]:
    number = episode_number(path)
    return (-1 if number is None else number, path.name)


def episode_files(paths: Iterable[str | Path]) -> list[Path]:
    """The episodes that ``paths`` name, those of a directory in the order of their numbers.

    EpisodeError when a path does not exist or a directory holds no episode.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path.glob("*.hdf5"), key=_order)
            if not inside:
                raise EpisodeError(f"{path} holds no episode (*.hdf5)")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise EpisodeError(f"{path} does not exist; give episode files or their directory")
    return found


def missing_numbers(directory: Path) -> list[int]:
    """The numbers from 0 to the highest that no episode of ``directory`` has."""
    used = {n for path in directory.iterdir() if (n := episode_number(path)) is not None}
    return sorted(set(range(max(used, default=-1) + 1)) - used)
