"""`robot-stack crowd retention`: forget what is due, or say what would be."""

from __future__ import annotations

import argparse
import json

from collect.crowd import retention
from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.migrate import migrate

__all__ = ["add_arguments", "run"]

NAMES = {
    "cards": "keyed hashes of cards that were long not seen",
    "guests": "guests without a nickname or a recording for research",
    "recordings": "recordings of people long not seen, which they did not give for research",
    "sessions": "sessions that have ended",
    "pairing_codes": "pairing codes that have ended",
    "phone_links": "links to a phone that have ended",
    "rate_counts": "counters of attempts that have ended",
    "audit": "notes of what staff did",
    "files": "files of what was erased",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Forget what the settings' `retention:` says: hashes of cards after card_days without a "
        "visit, guests who left neither nickname nor recording for research after guest_days, "
        "everybody's other recordings after the same days, ended sessions and codes after "
        "session_days, what staff did after audit_days. `serve` does it daily."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd retention --dry-run   only say what is due\n"
        "  robot-stack crowd retention             do it; the second time there is nothing to do"
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing")
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    database = Database(config.database)
    try:
        migrate(database)
        if args.dry_run:
            with database.read() as tx:
                found = retention.due(tx, config.retention)
        else:
            found = retention.apply(database, config)
    finally:
        database.close()
    counts = found.as_dict()
    if not args.json:
        verb = "would forget" if args.dry_run else "forgot"
        for name, count in counts.items():
            print(f"{verb} {count:6}  {NAMES[name]}")
    print(json.dumps({"ok": True, "dry_run": args.dry_run, "forgotten": counts}))
    return 0
