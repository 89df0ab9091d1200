"""`robot-stack crowd export`: consented recordings, with labels, for others to use."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.export import Summary, export, survey
from collect.crowd.export_select import REASONS, Terms
from collect.crowd.keys import load_key
from collect.crowd.migrate import migrate

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a dataset of the plays that were given for research: before they were played, not "
        "taken back, by nobody who was erased or hidden, each with the very file that the station "
        "sent. Contributors get new pseudonyms in every export. Reviewers' labels lie beside the "
        "recordings, one line a row. Killed, it is taken up again by the same command."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd export cafe-2026 --dry-run    what would be in it, and what not\n"
        "  robot-stack crowd export cafe-2026\n"
        "  robot-stack crowd export best --min-quality 3 --since 2026-11-01"
    )
    parser.add_argument("directory", type=Path, help="must not exist; DIR.part is written first")
    parser.add_argument(
        "--min-quality", type=int, choices=range(4), metavar="0-3", help="by reviewers, at least"
    )
    parser.add_argument(
        "--since", type=dt.date.fromisoformat, metavar="DATE", help="played on this day or later"
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    key = load_key(config.key_file)
    since = None
    if args.since is not None:
        since = dt.datetime.combine(args.since, dt.time(), dt.UTC)
    terms = Terms(args.min_quality, since)
    database = Database(config.database)
    try:
        migrate(database)
        if args.dry_run:
            summary = survey(database, config, terms)
        else:
            shown = not args.json and sys.stderr.isatty()
            with Progress(
                "copying",
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                disable=not shown,
            ) as bar:
                task = bar.add_task("copying", total=None)
                summary = export(
                    database,
                    config,
                    key,
                    args.directory,
                    terms,
                    lambda done, total: bar.update(task, completed=done, total=total),
                )
    finally:
        database.close()
    if not args.json:
        _tell(summary, args.dry_run)
    print(json.dumps({"ok": True, "dry_run": args.dry_run, **summary.as_dict()}))
    return 0


def _tell(summary: Summary, dry_run: bool) -> None:
    verb = "would be in it" if dry_run else f"are in {summary.path}"
    print(
        f"{summary.episodes} episodes by {summary.contributors} contributors "
        f"({summary.bytes / 1e6:.1f} MB) {verb}"
    )
    for name, count in summary.left_out.items():
        print(f"{count:6} left out: {REASONS[name]}")
