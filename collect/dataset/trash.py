"""The trash of an episode directory: ``.trash/`` beside the episodes, from which they come back.

A trashed episode keeps its bytes as ``.trash/<UTC time>-<name>``; a note of the same name and
``.json`` says where it was, when, by whom and why. Nothing is deleted but by ``empty``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robot_stack.episode import Episode, next_episode
from robot_stack.episode.files import NEW, PART, claim, sync_directory, with_suffix
from robot_stack.errors import EpisodeError

__all__ = ["TRASH", "Trashed", "empty", "listing", "restore", "trash"]

TRASH = ".trash"
SECONDS_A_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Trashed:
    """One trashed episode: where it lies, its old ``name``, when (Unix seconds), by whom, why.

    ``uuid`` is None when the file could not be read.
    """

    path: Path
    name: str
    time: float
    by: str
    reason: str
    uuid: str | None
    bytes: int

    @property
    def directory(self) -> Path:
        """The directory that it was in, and comes back to."""
        return self.path.parent.parent

    @property
    def age_days(self) -> float:
        return (time.time() - self.time) / SECONDS_A_DAY


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _uuid(path: Path) -> str | None:
    try:
        with Episode.open(path) as episode:
            return episode.metadata.uuid
    except (EpisodeError, OSError, KeyError, ValueError):  # a damaged file may be trashed too
        return None


def trash(path: Path, *, by: str = "operator", reason: str = "") -> Trashed:
    """Move an episode into the trash of its directory. EpisodeError when it is being recorded."""
    if path.name.endswith((PART, NEW)):
        raise EpisodeError(
            f"{path} is being recorded, or its recorder died: stop that recorder, or run "
            f"`robot-stack episode recover {path.parent}` first"
        )
    if not path.is_file():
        raise EpisodeError(f"{path} is not a file; give the path of an episode")
    if path.parent.name == TRASH:
        raise EpisodeError(f"{path} is in the trash already")
    directory = path.parent / TRASH
    directory.mkdir(exist_ok=True)
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    target = directory / f"{stamp}-{path.name}"
    entry = Trashed(target, path.name, now, by, reason, _uuid(path), path.stat().st_size)
    text = {k: v for k, v in dataclasses.asdict(entry).items() if k != "path"}
    # The note first: a note without its episode is passed over, an episode without one is lost.
    _note(target).write_text(json.dumps(text) + "\n")
    path.rename(target)
    sync_directory(directory)
    sync_directory(path.parent)
    return entry


def listing(directory: Path) -> list[Trashed]:
    """What lies in the trash of ``directory``, oldest first."""
    found = []
    for note in sorted((directory / TRASH).glob("*.json")):
        path = note.with_suffix("")
        if path.is_file():
            found.append(Trashed(path=path, **json.loads(note.read_text())))
    return found


def restore(path: Path) -> Path:
    """Put a trashed episode back; returns where it now is.

    ``path`` is where the episode was (the one trashed last, if several had the name) or where it
    lies in the trash. When its number has been given to another episode it gets the next one.
    """
    directory = path.parent.parent if path.parent.name == TRASH else path.parent
    found = [entry for entry in listing(directory) if path in (entry.path, directory / entry.name)]
    if not found:
        names = ", ".join(sorted({entry.name for entry in listing(directory)})) or "nothing"
        raise EpisodeError(f"{path.name} is not in {directory / TRASH} (there: {names})")
    entry = found[-1]
    target = directory / entry.name
    if target.exists() or with_suffix(target, PART).exists():
        target = next_episode(directory)
    held = claim(target)  # keeps every recorder off this name until the rename is done
    try:
        entry.path.rename(target)
        _note(entry.path).unlink()
    finally:
        with_suffix(target, NEW).unlink(missing_ok=True)
        os.close(held)
    sync_directory(directory)
    return target


def empty(entries: Iterable[Trashed]) -> int:
    """Delete trashed episodes for good; returns the bytes that this freed."""
    freed = 0
    for entry in entries:
        entry.path.unlink()
        _note(entry.path).unlink(missing_ok=True)
        freed += entry.bytes
    return freed
