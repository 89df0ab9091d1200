"""`robot-stack crowd consent`: the text that participants agree to."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from collect.crowd import consent
from collect.crowd.commands import config_argument, config_of
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.migrate import migrate
from collect.crowd.tables import Consent, ConsentText, utc_now
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]

EPILOG = """examples:
  robot-stack crowd consent show > text.yaml     the text in force, to begin from
  robot-stack crowd consent add text.yaml        a new version: everybody is asked again
  robot-stack crowd consent add text.yaml --from 2027-01-01
  robot-stack crowd consent list
  robot-stack crowd consent show --shipped       the text that comes with this robot-stack

Write down who runs the site and whom to ask. The scopes are fixed: record (needed to play),
research and clips. A version that exists can't be changed: people have agreed to its very words.
An upgrade of robot-stack changes no text that is in force. When the one that comes with it has
changed, `list`, the site's log and the staff's overview say so until you add a version: take over
what you want of it, give it a version of its own, and `consent add` it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The consent text by version and language. A new version asks everybody again, at their "
        "next visit; what was agreed to under an earlier one stands until it is taken back."
    )
    parser.epilog = EPILOG
    parser.add_argument("action", choices=("add", "list", "show"))
    parser.add_argument("name", nargs="?", help="add: a YAML file; show: a version")
    parser.add_argument(
        "--shipped", action="store_true", help="with show: the text that comes with robot-stack"
    )
    parser.add_argument(
        "--from",
        dest="active_from",
        type=dt.date.fromisoformat,
        metavar="DATE",
        help="with add: in force from this day on (UTC), now by default",
    )
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    database = Database(config.database)
    try:
        migrate(database)
        if args.action == "add":
            answer = _add(args, config, database)
        elif args.action == "list":
            answer = _list(args, database)
        else:
            return _show(args, database)
    finally:
        database.close()
    print(json.dumps(answer))
    return 0


def _add(args: argparse.Namespace, config: CrowdConfig, database: Database) -> dict[str, Any]:
    if args.name is None:
        raise ConfigError("name the YAML file of the new text; `consent show` writes one")
    version, texts = consent.read_texts(Path(args.name))
    missing = [name for name in config.languages if name not in texts]
    if missing:
        raise ConfigError(
            f"{args.name} has no text in {', '.join(missing)}, which the site offers; write it, or "
            "take the language out of `languages:` in the settings"
        )
    active_from = utc_now()
    if args.active_from is not None:
        active_from = dt.datetime.combine(args.active_from, dt.time(), dt.UTC)
    with database.begin() as tx:
        consent.add(tx, version, texts, active_from)
    if not args.json:
        print(
            f"version {version} ({', '.join(texts)}) is in force from {active_from:%Y-%m-%d %H:%M}"
        )
    return {
        "ok": True,
        "version": version,
        "languages": sorted(texts),
        "active_from": active_from.isoformat(timespec="seconds"),
    }


def _list(args: argparse.Namespace, database: Database) -> dict[str, Any]:
    with database.read() as tx:
        texts = tx.scalars(
            select(ConsentText).order_by(ConsentText.active_from, ConsentText.language)
        ).all()
        given = dict(
            tx.execute(select(Consent.version, func.count()).group_by(Consent.version)).all()
        )
        in_force = consent.current_version(tx) if texts else None
        news = consent.outdated(tx)
    versions: dict[str, dict[str, Any]] = {}
    for text in texts:
        row = versions.setdefault(
            text.version,
            {
                "version": text.version,
                "languages": [],
                "active_from": text.active_from.isoformat(timespec="seconds"),
                "in_force": text.version == in_force,
                "given": given.get(text.version, 0),
            },
        )
        row["languages"].append(text.language)
    if not args.json:
        for row in versions.values():
            mark = "*" if row["in_force"] else " "
            print(
                f"{mark} {row['version']:16} {','.join(row['languages']):8} "
                f"from {row['active_from'][:16]}  given {row['given']} times"
            )
        if news is not None:
            print(news)
    return {"ok": True, "versions": list(versions.values()), "outdated": news is not None}


def _show(args: argparse.Namespace, database: Database) -> int:
    if args.shipped and args.name is not None:
        raise ConfigError("show a version, or --shipped")
    with database.read() as tx:
        version = args.name or consent.current_version(tx)
        rows = tx.scalars(select(ConsentText).where(ConsentText.version == version)).all()
    texts = {row.language: (row.title, row.body) for row in rows}
    if args.shipped:
        version, texts = "", consent.shipped()
    if not texts:
        raise ConfigError(f"there is no version {version!r}; see `robot-stack crowd consent list`")
    if args.json:
        content = {name: {"title": title, "body": body} for name, (title, body) in texts.items()}
        print(json.dumps({"ok": True, "version": version, "texts": content}))
        return 0
    print(f'version: "{version}"  # give a changed text another one\ntexts:')
    for language, (title, body) in texts.items():
        print(f"  {language}:\n    title: {json.dumps(title, ensure_ascii=False)}")
        print("    body: |")
        for line in body.splitlines():
            print(f"      {line}".rstrip())
    return 0
