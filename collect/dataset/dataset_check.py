"""`robot-stack dataset check`: episodes one by one, and whether they are of one kind."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collect.dataset.checks import Finding, add_options, conclude, examine
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["add_arguments", "consistency", "run"]

# What must be one for all episodes that are learnt from together; the others merely should.
NEEDED = ("joints", "units", "embodiment", "rows a second", "cameras", "columns of env_state")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "All that `robot-stack episode check` checks, and whether the episodes belong together: "
        "joints and their order, units, embodiments, rate, cameras and their sizes, env_state "
        "(errors); task and image encoding (warnings). Exit status 1 when something is wrong."
    )
    parser.epilog = """examples:
  robot-stack dataset check data/pusht
  robot-stack dataset check --quick episodes            without reading the images
  robot-stack dataset check --strict episodes others    warnings count as failures
"""
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    files, findings = examine(args)
    return conclude(args, files, findings + consistency(files))


def consistency(files: Sequence[Path]) -> list[Finding]:
    """Each file that differs from what most of them have; files that can't be read are left out."""
    traits: dict[Path, dict[str, Any]] = {}
    for path in files:
        try:
            with Episode.open(path) as episode:
                traits[path] = _traits(episode)
        except (EpisodeError, OSError, KeyError, ValueError):  # examine tells
            continue
    usual = {
        name: Counter(repr(found[name]) for found in traits.values()).most_common(1)[0][0]
        for name in next(iter(traits.values()), {})
    }
    return [
        Finding(
            str(path),
            "error" if name in NEEDED else "warning",
            "mixed",
            f"{name}: {value}, in most episodes {usual[name]}",
        )
        for path, found in traits.items()
        for name, value in found.items()
        if repr(value) != usual[name]
    ]


def _traits(episode: Episode) -> dict[str, Any]:
    schema, said = episode.schema, episode.metadata
    return {
        "joints": list(schema.joint_names),
        "units": list(said.action.get("units", ())),
        "embodiment": [
            said.robots.get(robot.name, {}).get("embodiment") for robot in schema.row_robots
        ],
        "rows a second": schema.rate_hz,
        "cameras": {
            name: f"{schema.cameras[name].width}x{schema.cameras[name].height}"
            + (" and depth" if schema.cameras[name].depth else "")
            for name in schema.camera_names
        },
        "columns of env_state": schema.env_dim,
        "task": said.task,
        "image encoding": schema.encoding if schema.cameras else None,
    }
