"""`robot-stack crowd report`: what the incentive arms have brought about."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.experiment_plots import write_plots
from collect.crowd.experiment_report import analyse, as_text, gather
from collect.crowd.migrate import migrate

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare the arms of the incentive experiment: participants, who was exposed, confirmed "
        "episodes and their quality by reviewers, with Mann-Whitney tests for each pair of arms "
        "(exact for small groups, corrected by Holm) and bootstrap intervals. Everybody who "
        "has agreed to research counts in the arm that chance gave them. Who has taken that back, "
        "was hidden or erased does not; the report says how many they are."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd report                   in the terminal\n"
        "  robot-stack crowd report --out report      report.md, report.json and plots, too"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write files into this directory")
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    database = Database(config_of(args).database)
    try:
        migrate(database)
        with database.read() as tx:
            sample = gather(tx)
    finally:
        database.close()
    report = analyse(sample)
    text = as_text(report)
    files: list[str] = []
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text(text)
        (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        plots = write_plots(sample.people, report, args.out)
        files = [str(args.out / "report.md"), str(args.out / "report.json"), *map(str, plots)]
    answer: dict[str, Any] = {"ok": True, **report, "files": files}
    if not args.json:
        print(text)
        for file in files:
            print(f"wrote {file}")
    print(json.dumps(answer))
    return 0
