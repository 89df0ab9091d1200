"""`robot-stack episode recover`: save what a killed recorder left."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from robot_stack.episode import Recovery, recover, recover_all
from robot_stack.errors import EpisodeError

__all__ = ["add_arguments", "describe", "run"]


def describe(found: Recovery) -> str:
    """What became of a leftover, in one line."""
    if found.problem is not None:
        return f"{found.leftover.name}: {found.problem}; kept as {found.path}"
    if found.path is None:
        return f"{found.leftover.name}: held no row, removed"
    lost = f", {found.dropped_rows} unfinished rows cut" if found.dropped_rows else ""
    return f"{found.leftover.name}: recovered {found.rows} rows as {found.path}{lost}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Save the episodes that a killed recorder left unfinished (*.part). Recordings of living "
        "recorders are left alone. `robot-stack record` does this by itself when it starts."
    )
    parser.epilog = "example: robot-stack episode recover episodes"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="directories or .part")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    found: list[Recovery] = []
    for path in args.paths:
        if not path.exists():
            raise EpisodeError(f"{path} does not exist; give a directory or a .part file")
        found += recover_all(path) if path.is_dir() else [recover(path)]
    failed = [one for one in found if one.problem is not None]
    if args.json:
        files = [str(one.path) for one in found if one.path is not None and one.problem is None]
        problems = [describe(one) for one in failed]
        report = {"ok": not failed, "recovered": files, "leftovers": len(found)}
        print(json.dumps({**report, "problems": problems}))
        return int(bool(failed))
    for one in found:
        print(describe(one))
    if not found:
        print("nothing to recover")
    return int(bool(failed))
