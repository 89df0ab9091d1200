"""`robot-stack crowd pair`: a code that makes a station's agent or a kiosk known to the site."""

from __future__ import annotations

import argparse
import json

from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.pairing import LIFETIME, new_code

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a code that pairs the agent beside a robot, or a kiosk's browser, with the site. It "
        "works once, within ten minutes; pairing an agent again makes the earlier one a stranger."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd pair cafe agent     then, beside the robot:\n"
        "                                        robot-stack crowd station --help\n"
        "  robot-stack crowd pair cafe kiosk     type the code at the kiosk's /pair page"
    )
    parser.add_argument("station", help="the station's name; made when there is none")
    parser.add_argument("kind", choices=("agent", "kiosk"), help="what is paired")
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    key = load_key(config.key_file)
    database = Database(config.database)
    try:
        with database.begin() as tx:
            code = new_code(tx, key, args.station, args.kind)
    finally:
        database.close()
    minutes = int(LIFETIME.total_seconds() // 60)
    if not args.json:
        print(f"code for the {args.kind} of {args.station}, for {minutes} minutes: {code}")
    print(json.dumps({"ok": True, "station": args.station, "kind": args.kind, "code": code}))
    return 0
