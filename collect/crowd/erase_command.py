"""`robot-stack crowd erase`: erase somebody who asked in person, or again after a backup."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import Any

from sqlalchemy import select

from collect.crowd import consent, data_rights
from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.migrate import migrate
from collect.crowd.tables import AuditEntry, Consent, Participant, Tombstone
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]

KINDS = ("participant", "play")
CONSENT = "consent"  # lines of the list that are no tombstones


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Erase participants for good, as they can do themselves at /me/data: recordings, nickname, "
        "card, answers. Ids are those of the staff's page of participants. A database that was "
        "brought back from a backup has whoever was erased since in it again, and every consent "
        "that was taken back since: keep the list of both apart from the database, and have it "
        "done anew before the site is served."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd erase 0d1f4f3e-4c9e-4a52-9b57-0f2a2c8a2d11\n"
        "  robot-stack crowd erase --list > forgotten.jsonl     often, kept elsewhere\n"
        "  robot-stack crowd erase --again forgotten.jsonl      after a backup was brought back"
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="participants to erase")
    parser.add_argument(
        "--list", action="store_true", help="print what was erased and taken back, a line each"
    )
    parser.add_argument(
        "--again", type=Path, metavar="FILE", help="erase and take back what these lines name"
    )
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if bool(args.ids) + args.list + (args.again is not None) != 1:
        raise ConfigError("give ids of participants, or --list, or --again FILE; see --help")
    config = config_of(args)
    database = Database(config.database)
    try:
        migrate(database)
        if args.list:
            return _list(database, args.json)
        withdrawn = 0
        if args.again:
            erased, withdrawn = _again(database, args.again)
        else:
            erased = _erase(database, args.ids)
        files = data_rights.sweep(database, config)
    finally:
        database.close()
    if not args.json:
        print(f"erased {erased}, took {withdrawn} consents back; {files} files went with them")
    print(json.dumps({"ok": True, "erased": erased, "withdrawn": withdrawn, "files": files}))
    return 0


def _list(database: Database, only_json: bool) -> int:
    with database.read() as tx:
        graves = tx.scalars(select(Tombstone).order_by(Tombstone.erased_at, Tombstone.id)).all()
        given = tx.scalars(select(Consent).order_by(Consent.given_at, Consent.id)).all()
    rows: list[dict[str, Any]] = [
        {
            "id": grave.id,
            "kind": grave.kind,
            "erased_at": grave.erased_at.isoformat(),
            "reason": grave.reason,
        }
        for grave in graves
    ]
    rows += [
        {"id": row.id, "kind": CONSENT, "withdrawn": row.withdrawn}
        for row in given
        if row.withdrawn
    ]
    if only_json:
        print(json.dumps({"ok": True, "forgotten": rows}))
    else:  # lines alone: they are for a file
        for row in rows:
            print(json.dumps(row))
    return 0


def _erase(database: Database, ids: list[str]) -> int:
    with database.begin() as tx:
        people = [tx.get(Participant, row_id) for row_id in ids]
        for row_id, participant in zip(ids, people, strict=True):
            if participant is None:
                raise ConfigError(f"there is no participant {row_id!r}; nobody was erased")
        count = 0
        for participant in people:
            if participant is not None and data_rights.erase(tx, participant, reason="staff"):
                tx.add(AuditEntry(action="erased", subject="erased", detail={"by": "command"}))
                count += 1
    return count


def _again(database: Database, path: Path) -> tuple[int, int]:
    """How many were erased, and how many consents taken back, that a backup had again."""
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        graves = [_grave(line) for line in lines if line["kind"] != CONSENT]
        taken = [_taken_back(line) for line in lines if line["kind"] == CONSENT]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no list of what was erased ({error}); `crowd erase --list` prints one"
        ) from error
    # Participants first: their plays go with them.
    graves.sort(key=lambda grave: KINDS.index(grave.kind))
    with database.begin() as tx:
        erased = sum(data_rights.erase_again(tx, grave) for grave in graves)
        return erased, sum(consent.withdraw_again(tx, *row) for row in taken)


def _grave(row: dict[str, Any]) -> Tombstone:
    grave = Tombstone(
        id=str(row["id"]),
        kind=str(row["kind"]),
        reason=str(row["reason"]),
        erased_at=dt.datetime.fromisoformat(row["erased_at"]),
    )
    if grave.kind not in KINDS or grave.reason not in data_rights.REASONS:
        raise ValueError(f"{grave.kind!r} or {grave.reason!r} is unknown")
    if grave.erased_at.tzinfo is None:
        raise ValueError(f"{grave.erased_at} has no time zone")
    return grave


def _taken_back(row: dict[str, Any]) -> tuple[str, dict[str, dt.datetime]]:
    """A consent's id, and since when which of its scopes holds no longer."""
    withdrawn = {
        str(scope): dt.datetime.fromisoformat(when) for scope, when in row["withdrawn"].items()
    }
    if unknown := set(withdrawn) - set(consent.SCOPES):
        raise ValueError(f"scope {min(unknown)!r} is unknown")
    if any(when.tzinfo is None for when in withdrawn.values()):
        raise ValueError(f"{row['withdrawn']} has no time zone")
    return str(row["id"]), withdrawn
