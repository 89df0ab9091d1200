"""`robot-stack episode check`: every invariant of episodes and of their directory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from collect.dataset.paths import episode_files, missing_numbers
from robot_stack.episode import Episode, check
from robot_stack.episode.files import BROKEN, NEW, PART
from robot_stack.errors import EpisodeError

__all__ = [
    "Finding",
    "add_arguments",
    "add_options",
    "check_directory",
    "check_episode",
    "conclude",
    "examine",
    "run",
]

STALE_PERIODS = 3.0  # a frame older than so many of its camera's periods at its row is stale
STALE_SHARE = 0.02
LIMIT_TOLERANCE = 1e-4  # float32 of a value at its limit

# What to do, by the code of a problem.
ADVICE: dict[str, str] = {
    "unreadable": "if it was recorded here, look for its .part or .broken; else trash it",
    "length": "the file was cut or edited after recording; trash it",
    "empty": "nothing was recorded; trash it",
    "unfinished": "run `robot-stack episode recover`",
    "cut": "its end is missing: look at it with `episode view`, relabel it if the task is cut off",
    "grid": "rows are not evenly spaced; the file was edited after recording",
    "causality": "a state is newer than its row: report it, this is a fault of the recorder",
    "log_order": "a robot's clock went back: report it, this is a fault of the recorder",
    "frame_order": "a camera's clock went back; see that camera's driver",
    "no_frame": "the camera had not started; wait for all cameras before recording",
    "unknown": "the robot gave no value there; see the events in `episode info`",
    "jpeg": "the file is damaged; trash it, and check the disk",
    "hash": "the content changed after recording: restore it from a copy or trash it",
    "no_hash": "recover or record it with this version to get one",
    "limits": "the commands do not fit the robot's limits as recorded; do not replay it",
    "stale": "the camera stalled; look at the USB bandwidth and cable, trash it if it matters",
    "frames_dropped": "the camera runs faster than the rows, or the recorder fell behind",
    "frames_lost": "the recorder did not keep up; free the CPU or lower size or rate",
    "frames_stale_rows": "the camera stalled; look at the USB bandwidth and cable",
    "leftover": "run `robot-stack episode recover`",
    "broken": "it could not be recovered; keep it for analysis or delete it by hand",
    "gap": "fine for most uses; loaders that want gapless numbers need an export",
    "mixed": "train or export these apart, or leave out what is not of the kind",
    "twin": "the same recording lies there twice: trash one",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of one file (or directory), and what to do about it."""

    file: str
    severity: Literal["error", "warning"]
    code: str
    message: str

    @property
    def advice(self) -> str:
        return ADVICE.get(self.code, "")


def check_episode(path: Path, *, content: bool = True) -> list[Finding]:
    """All problems of one file; ``content`` also reads every image and compares the hashes."""
    found = [
        Finding(str(path), p.severity, p.code, p.message) for p in check(path, content=content)
    ]
    if any(problem.code in ("unreadable", "length", "empty") for problem in found):
        return found
    with Episode.open(path) as episode:
        extra = [*_limits(episode), *_stale(episode)]
    found += [Finding(str(path), *problem) for problem in extra]
    return sorted(found, key=lambda problem: problem.severity)


Problem = tuple[Literal["error", "warning"], str, str]


def _limits(episode: Episode) -> Iterable[Problem]:
    """What was sent must lie in the joint limits that the episode itself carries."""
    names = episode.schema.joint_names
    action = episode.metadata.action
    lower, upper = action.get("lower"), action.get("upper")
    if lower is None or upper is None or list(action.get("names", ())) != list(names):
        return
    sent = episode.action_sent
    low = np.fmin.reduce(sent, axis=0)
    high = np.fmax.reduce(sent, axis=0)
    for j, name in enumerate(names):
        if low[j] < lower[j] - LIMIT_TOLERANCE or high[j] > upper[j] + LIMIT_TOLERANCE:
            yield (
                "error",
                "limits",
                f"/action_sent of {name} spans {low[j]:.4f}..{high[j]:.4f}, allowed "
                f"{lower[j]:.4f}..{upper[j]:.4f}",
            )


def _stale(episode: Episode) -> Iterable[Problem]:
    """Rows whose frame is much older than the camera's rate explains."""
    t_ns = episode.t_ns
    for camera in episode.cameras:
        fps = episode.metadata.cameras.get(camera, {}).get("fps")
        taken = episode.frame_t_ns(camera)
        known = taken >= 0
        if not fps or not known.any():
            continue
        allowed_ns = STALE_PERIODS * 1e9 / min(fps, episode.schema.rate_hz)
        age_ns = (t_ns - taken)[known]
        stale = int((age_ns > allowed_ns).sum())
        if stale > STALE_SHARE * known.sum():
            yield (
                "warning",
                "stale",
                f"{camera}: {stale} of {known.sum()} rows hold a frame older than "
                f"{allowed_ns / 1e6:.0f} ms (oldest {age_ns.max() / 1e6:.0f} ms)",
            )


def check_directory(directory: Path) -> list[Finding]:
    """Problems between files: leftovers of dead recorders, gaps in the numbers, twins."""
    found = []
    for path in sorted(directory.glob("*.hdf5.*")):
        if path.suffix in (PART, NEW):
            text = "is being recorded, or its recorder died"
            found.append(Finding(str(path), "warning", "leftover", text))
        elif path.suffix == BROKEN:
            found.append(Finding(str(path), "warning", "broken", "could not be recovered"))
    missing = missing_numbers(directory)
    if missing:
        numbers = ", ".join(map(str, missing))
        found.append(Finding(str(directory), "warning", "gap", f"no episode has number {numbers}"))
    seen: dict[str, Path] = {}
    for path in sorted(directory.glob("*.hdf5")):
        try:
            with Episode.open(path) as episode:
                keys = {episode.metadata.uuid, episode.metadata.content_hash} - {None}
        except (EpisodeError, OSError, KeyError, ValueError):  # check_episode tells
            continue
        twin = next((seen[key] for key in keys if key in seen), None)
        if twin is not None:
            found.append(Finding(str(path), "error", "twin", f"is the same episode as {twin.name}"))
        seen.update(dict.fromkeys((key for key in keys if key is not None), path))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check episodes: layout, row counts, even and monotone times, frames (none missing, stale "
        "or out of order), NaN, joint limits, JPEG data and the content hash; of directories also "
        "leftovers, gaps in the numbers and twins. Exit status 1 when something is wrong."
    )
    parser.epilog = """examples:
  robot-stack episode check episodes
  robot-stack episode check --quick episodes/episode_0.hdf5   without reading the images
  robot-stack episode check --strict episodes                 warnings count as failures
"""
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `examine` and `conclude` read."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="episode files or directories")
    parser.add_argument("--quick", action="store_true", help="do not read images and hashes")
    parser.add_argument("--strict", action="store_true", help="warnings fail too")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    return conclude(args, *examine(args))


def examine(args: argparse.Namespace) -> tuple[list[Path], list[Finding]]:
    """The episodes that the command line names, and what is wrong with each and their directories.

    EpisodeError when it names what is no finished episode, or nothing.
    """
    findings: list[Finding] = []
    files: list[Path] = []
    for path in map(Path, args.paths):
        if path.is_dir():
            findings += check_directory(path)
        if path.suffix in (PART, NEW, BROKEN):
            raise EpisodeError(f"{path} is no finished episode; `robot-stack episode recover` it")
        inside = episode_files([path]) if not path.is_dir() or any(path.glob("*.hdf5")) else []
        if path.is_dir() and not inside and not findings:
            raise EpisodeError(f"{path} holds no episode (*.hdf5)")
        files += inside
    for path in files:
        found = check_episode(path, content=not args.quick)
        findings += found
        if not args.json and not found:
            print(f"ok       {path}")
    return files, findings


def conclude(args: argparse.Namespace, files: list[Path], findings: list[Finding]) -> int:
    """Print findings as the command line wants them; the exit status."""
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    failed = bool(errors or (args.strict and warnings))
    if args.json:
        print(json.dumps(_report(files, findings, failed)))
        return int(failed)
    for finding in findings:
        print(f"{finding.severity:8} {finding.file}: {finding.message} [{finding.code}]")
        if finding.advice:
            print(f"         -> {finding.advice}")
    print(f"{len(files)} episodes, {errors} errors, {warnings} warnings")
    return int(failed)


def _report(files: list[Path], findings: list[Finding], failed: bool) -> dict[str, Any]:
    return {
        "ok": not failed,
        "episodes": len(files),
        "errors": sum(finding.severity == "error" for finding in findings),
        "warnings": sum(finding.severity == "warning" for finding in findings),
        "findings": [
            {
                "file": finding.file,
                "severity": finding.severity,
                "code": finding.code,
                "message": finding.message,
                "advice": finding.advice,
            }
            for finding in findings
        ],
    }
