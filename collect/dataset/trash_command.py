"""`robot-stack episode trash`: put episodes away, look there, bring them back, delete for good."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from collect.dataset.trash import Trashed, empty, listing, restore, trash
from robot_stack.errors import EpisodeError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Move episodes into the trash of their directory (.trash/), from which they can be brought "
        "back. The next recording takes over a freed number only when it was the highest."
    )
    parser.epilog = """examples:
  robot-stack episode trash episodes/episode_3.hdf5 --reason "camera was covered"
  robot-stack episode trash --list episodes
  robot-stack episode trash --restore episodes/episode_3.hdf5
  robot-stack episode trash --empty episodes --older-than 30
"""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="episodes; directories for --list"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show what lies in the trash")
    action.add_argument("--restore", action="store_true", help="bring episodes back")
    action.add_argument("--empty", action="store_true", help="delete what lies there for good")
    parser.add_argument(
        "--older-than", type=float, default=0.0, metavar="DAYS", help="with --empty: only these"
    )
    parser.add_argument("--yes", action="store_true", help="with --empty: do not ask")
    parser.add_argument("--reason", default="", help="kept with the trashed episode")
    parser.add_argument("--by", default="operator", metavar="NAME", help="pseudonym of who did it")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.list or args.empty:
        for path in args.paths:
            if not path.is_dir():
                raise EpisodeError(f"{path} is not a directory; name the directory of the episodes")
    if args.list:
        return _list(args)
    if args.empty:
        return _empty(args)
    moved = []
    for path in args.paths:
        if args.restore:
            moved.append(restore(path))
            text = f"restored {moved[-1]}"
            if moved[-1].name not in path.name:
                text += f" (the number of {path.name} has been given to another episode)"
        else:
            moved.append(trash(path, by=args.by, reason=args.reason).path)
            text = f"trashed {path}; back with `robot-stack episode trash --restore {path}`"
        if not args.json:
            print(text)
    if args.json:
        print(json.dumps({"ok": True, "files": [str(path) for path in moved]}))
    return 0


def _list(args: argparse.Namespace) -> int:
    entries = [entry for path in args.paths for entry in listing(path)]
    if args.json:
        print(json.dumps({"ok": True, "trash": [_plain(entry) for entry in entries]}))
        return 0
    for entry in entries:
        why = f", {entry.reason}" if entry.reason else ""
        size = entry.bytes / 1e6
        print(f"{entry.name}: {entry.age_days:.1f} days ago by {entry.by}{why}, {size:.1f} MB")
        print(f"  {entry.path}")
    print(f"{len(entries)} episodes in the trash")
    return 0


def _empty(args: argparse.Namespace) -> int:
    entries = [e for path in args.paths for e in listing(path) if e.age_days >= args.older_than]
    size = sum(entry.bytes for entry in entries) / 1e6
    if entries and not args.yes:
        if not sys.stdin.isatty():
            raise EpisodeError(
                f"{len(entries)} episodes would be deleted for good; add --yes to do it unasked"
            )
        question = f"delete {len(entries)} episodes ({size:.1f} MB) for good? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing deleted", file=sys.stderr)
            return 1
    empty(entries)
    if args.json:
        print(json.dumps({"ok": True, "deleted": len(entries), "megabytes": size}))
    else:
        print(f"deleted {len(entries)} episodes, {size:.1f} MB")
    return 0


def _plain(entry: Trashed) -> dict[str, object]:
    return {
        "file": str(entry.path),
        "name": entry.name,
        "uuid": entry.uuid,
        "age_days": entry.age_days,
        "by": entry.by,
        "reason": entry.reason,
        "megabytes": entry.bytes / 1e6,
    }
