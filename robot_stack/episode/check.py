"""What is wrong with an episode file, if anything: structure, hashes, times, frames, actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from robot_stack.episode.digest import combine
from robot_stack.episode.layout import columns, depth_path, image_path, log_path
from robot_stack.episode.reader import Episode
from robot_stack.errors import EpisodeError

__all__ = ["Problem", "check"]


@dataclass(frozen=True, slots=True)
class Problem:
    """``error``: the file is not what was recorded. ``warning``: it is, and falls short."""

    severity: Literal["error", "warning"]
    code: str
    message: str


def check(path: Path | str, *, content: bool = True) -> list[Problem]:
    """All problems of a file, errors first; empty when it is good.

    ``content`` reads every byte and compares hashes; without it only small datasets are read.
    """
    try:
        with Episode.open(path) as episode:
            problems = [*_structure(episode)]
            if not problems:
                problems += [*_times(episode), *_frames(episode), *_actions(episode)]
                problems += _content(episode) if content else []
    except (EpisodeError, OSError, KeyError, ValueError) as error:
        return [Problem("error", "unreadable", str(error))]
    return sorted(problems, key=lambda problem: problem.severity)


def _structure(episode: Episode) -> list[Problem]:
    rows = len(episode)
    found = []
    paths = [column.path for column in columns(episode.schema) if column.path in episode.file]
    paths += [image_path(name) for name in episode.cameras]
    paths += [depth_path(n) for n in episode.cameras if episode.schema.cameras[n].depth]
    for path in paths:
        length = episode.file[path].shape[0]
        if length != rows:
            found.append(Problem("error", "length", f"/{path} has {length} rows of {rows}"))
    if "compress_len" in episode.file and episode.file["compress_len"].shape[1] != rows:
        found.append(Problem("error", "length", f"/compress_len does not have {rows} rows"))
    if rows == 0:
        found.append(Problem("error", "empty", "the episode has no row"))
    if episode.metadata.rows is not None and episode.metadata.rows != rows:
        found.append(
            Problem("error", "length", f"{rows} rows, {episode.metadata.rows} were recorded")
        )
    if episode.metadata.ended is None:
        found.append(Problem("error", "unfinished", "the recording was never completed"))
    elif episode.metadata.ended != "stopped":
        found.append(Problem("warning", "cut", f"recording ended early: {episode.metadata.ended}"))
    return found


def _times(episode: Episode) -> list[Problem]:
    found = []
    t_ns = episode.t_ns
    steps = np.diff(t_ns)
    period = 1e9 / episode.schema.rate_hz
    if (np.abs(steps - period) > 2).any():
        worst = float(steps[np.argmax(np.abs(steps - period))]) / 1e6
        found.append(
            Problem(
                "error", "grid", f"rows are not {period / 1e6:g} ms apart (one is {worst:g} ms)"
            )
        )
    if (episode.state_t_ns > t_ns[:, None]).any():
        found.append(Problem("error", "causality", "a row holds a state sampled after it"))
    for robot in episode.robots:
        times = episode.file[log_path(robot)]["t_ns"]
        # Equal times are fine: a tick whose bus read failed repeats the state before.
        if (np.diff(times) < 0).any():
            found.append(Problem("error", "log_order", f"/log/{robot} goes back in time"))
    return found


def _frames(episode: Episode) -> list[Problem]:
    found = []
    for camera in episode.cameras:
        seq, times = episode.frame_seq(camera), episode.frame_t_ns(camera)
        missing = int((seq < 0).sum())
        if missing:
            found.append(Problem("warning", "no_frame", f"{camera}: {missing} rows have no frame"))
        if (np.diff(times[seq >= 0]) < 0).any():
            found.append(Problem("error", "frame_order", f"{camera}: frames go back in time"))
        counts = episode.metadata.frames.get(camera, {})
        for kind in ("dropped", "lost", "stale_rows"):
            if counts.get(kind):
                found.append(
                    Problem("warning", f"frames_{kind}", f"{camera}: {kind} {counts[kind]}")
                )
    return found


def _actions(episode: Episode) -> list[Problem]:
    found = []
    for name in ("action", "action_sent", "observations/qpos"):
        rows = int(np.isnan(episode.column(name)).any(axis=1).sum())
        if rows:
            found.append(Problem("warning", "unknown", f"/{name} is unknown (NaN) in {rows} rows"))
    return found


def _content(episode: Episode) -> list[Problem]:
    bad = dict.fromkeys(episode.cameras, 0)

    def see(camera: str, data: bytes) -> None:
        bad[camera] += not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"))

    streams = episode.streams(see)
    found = [
        Problem("error", "jpeg", f"{camera}: {rows} rows are not whole JPEG")
        for camera, rows in bad.items()
        if rows
    ]
    known = episode.metadata.streams
    for name in sorted(streams):
        if known and known.get(name) != streams[name]:
            found.append(Problem("error", "hash", f"/{name} is not what was recorded"))
    if not known:
        found.append(Problem("warning", "no_hash", "the file carries no content hash"))
    elif episode.metadata.content_hash != combine(known):
        found.append(Problem("error", "hash", "the content hash does not follow from its parts"))
    return found
