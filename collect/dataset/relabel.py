"""`robot-stack episode relabel`: say what an episode shows."""

from __future__ import annotations

import argparse
import json
from typing import Any

from collect.dataset.labels import label
from collect.dataset.paths import episode_files
from robot_stack.errors import EpisodeError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Label episodes. Each label is appended to labels.jsonl beside them (who, when, what it "
        "was before) and written into the episode's metadata in place; the recorded content and "
        "its hash stay. Scores of methods do not belong into episodes."
    )
    parser.epilog = """examples:
  robot-stack episode relabel episodes/episode_3.hdf5 --success --by p07
  robot-stack episode relabel episodes/episode_4.hdf5 --failure --tag dropped_cube
  robot-stack episode relabel episodes --task "hand the cube over"
"""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="episode files or directories")
    verdict = parser.add_mutually_exclusive_group()
    verdict.add_argument("--success", action="store_true", help="the task was done")
    verdict.add_argument("--failure", action="store_true", help="it was not")
    verdict.add_argument("--unknown", action="store_true", help="take the label back")
    parser.add_argument("--tag", metavar="TAG", help="what went wrong, in one word")
    parser.add_argument("--task", metavar="TEXT", help="what was to be done")
    parser.add_argument("--notes", metavar="TEXT", help="anything else worth knowing")
    parser.add_argument(
        "--by", default="operator", metavar="NAME", help="pseudonym of the labeller"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def _values(args: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if args.success or args.failure or args.unknown:
        values["success"] = None if args.unknown else bool(args.success)
    if args.success or args.unknown:
        values["failure_tag"] = None  # a tag of an earlier verdict no longer holds
    if args.tag is not None:
        if args.success or args.unknown:
            raise EpisodeError("--tag says what went wrong: it goes with --failure")
        values["failure_tag"] = args.tag
    for name in ("task", "notes"):
        if (text := getattr(args, name)) is not None:
            values[name] = text
    if not values:
        raise EpisodeError(
            "nothing to change: give --success, --failure, --unknown, --tag, --task or --notes"
        )
    return values


def run(args: argparse.Namespace) -> int:
    values = _values(args)
    files = episode_files(args.paths)
    for path in files:
        label(path, by=args.by, **values)
        if not args.json:
            print(f"{path}: {', '.join(f'{k} = {v}' for k, v in values.items())}")
    if args.json:
        print(json.dumps({"ok": True, "files": [str(path) for path in files], "label": values}))
    return 0
