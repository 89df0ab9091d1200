"""Which episodes an export takes, which of their rows, and whether they belong together."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collect.dataset.paths import episode_files
from collect.jpeg import decode
from robot_stack.episode import Episode, ImageLayout
from robot_stack.errors import EpisodeError

__all__ = ["Advance", "Only", "Selection", "Source", "appearing", "images", "select"]

Advance = Callable[[], None]
Only = Literal["success", "all"]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows [start, stop) of one episode: those in which state, action and every image are known."""

    path: Path
    start: int
    stop: int
    uuid: str
    task: str
    success: bool | None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Selection:
    """Episodes of one layout: the same joints, cameras and rate. ``left_out`` says why, by file."""

    sources: tuple[Source, ...]
    left_out: Mapping[str, str]
    joints: tuple[str, ...]
    cameras: Mapping[str, ImageLayout]
    rate_hz: float
    sim: bool
    station: str
    embodiment: str

    @property
    def rows(self) -> int:
        return sum(len(source) for source in self.sources)


def select(paths: Iterable[str | Path], only: Only) -> Selection:
    """The episodes of ``paths`` to export; with ``only="success"`` those labelled a success.

    Rows at either end in which something is unknown are left off. EpisodeError when none is left,
    when something is unknown between known rows, or when layouts differ.
    """
    sources: list[Source] = []
    left_out: dict[str, str] = {}
    first: dict[str, Any] = {}
    for path in episode_files(paths):
        with Episode.open(path) as episode:
            said = episode.metadata
            if only == "success" and said.success is not True:
                verdict = "unlabelled" if said.success is None else "a failure"
                left_out[str(path)] = verdict
                continue
            layout = _layout(episode)
            first = first or {**layout, "file": path}
            for key, value in layout.items():
                if key != "station" and first[key] != value:
                    raise EpisodeError(
                        f"{path} has other {key} than {first['file']} ({value}, not {first[key]}); "
                        "export them apart"
                    )
            span = _known(episode)
            if span is None:
                left_out[str(path)] = "no row in which state, action and images are all known"
                continue
            task = said.language or said.task or said.task_id or ""
            sources.append(Source(path, span.start, span.stop, said.uuid, task, said.success))
    if not sources:
        reasons = ", ".join(sorted(set(left_out.values())))
        hint = (
            "label them with `robot-stack episode relabel` or export with --only all"
            if only == "success"
            else "`robot-stack episode check` says what they lack"
        )
        raise EpisodeError(f"no episode to export (they are: {reasons}); {hint}")
    first.pop("file")
    return Selection(tuple(sources), left_out, **first)


def _layout(episode: Episode) -> dict[str, Any]:
    schema = episode.schema
    robots = episode.metadata.robots
    kinds = [
        str(robots.get(robot.name, {}).get("embodiment", "unknown")) for robot in schema.row_robots
    ]
    return {
        "joints": schema.joint_names,
        "cameras": {
            name: ImageLayout(schema.cameras[name].width, schema.cameras[name].height)
            for name in schema.camera_names
        },
        "rate_hz": schema.rate_hz,
        "sim": schema.sim,
        "station": episode.metadata.station or "",
        "embodiment": "+".join(dict.fromkeys(kinds)),
    }


def _known(episode: Episode) -> slice | None:
    known = np.asarray(np.isfinite(np.hstack([episode.qpos, episode.action])).all(axis=1))
    for camera in episode.cameras:
        known &= episode.frame_seq(camera) >= 0
    rows = np.flatnonzero(known)
    if not len(rows):
        return None
    start, stop = int(rows[0]), int(rows[-1]) + 1
    if len(rows) != stop - start:
        gap = start + int(np.argmin(known[start:stop]))
        raise EpisodeError(
            f"{episode.path}: state, action or an image is unknown in row {gap}, between known "
            "rows; other formats can't say so. Put the episode away "
            "(`robot-stack episode trash`) or export the others by name"
        )
    return slice(start, stop)


def images(episode: Episode, source: Source, camera: str) -> Iterator[NDArray[np.uint8]]:
    """The RGB images (H, W, 3) of the exported rows, one in memory at a time."""
    return (episode.image(camera, row, decode) for row in range(source.start, source.stop))


@contextlib.contextmanager
def appearing(out: Path, *, directory: bool) -> Iterator[Path]:
    """A path to write to that becomes ``out`` when the block ends well and vanishes when not.

    EpisodeError when ``out`` exists: an export overwrites nothing.
    """
    part = out.with_name(f".{out.name}.part")
    for path, hint in (
        (out, "choose another --out or move it away"),
        (part, "another export is writing it, or was killed; remove it when none is"),
    ):
        if path.exists():
            raise EpisodeError(f"{path} exists: {hint}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if directory:
            part.mkdir()
        yield part
        os.rename(part, out)  # noqa: PTH104 - replaces no directory, unlike Path.replace
    except BaseException:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
        raise
