"""`robot-stack crowd staff`: accounts of those who work at the site."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from typing import Any

import segno
from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.accounts import ROLES, add_staff, disable, enrolment_uri, renew
from collect.crowd.commands import config_argument, config_of
from collect.crowd.config import ENVIRONMENT
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.migrate import migrate
from collect.crowd.tables import Staff
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]

PASSWORD_VARIABLE = ENVIRONMENT + "STAFF_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Accounts of staff. Roles: reviewer (the review desk), operator (stations, rewards, "
        "nicknames, help), admin (all of it). The password is asked for, or taken from "
        f"{PASSWORD_VARIABLE}; the second factor is shown once, as a QR code for an authenticator."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd staff add ada --role admin\n"
        "  robot-stack crowd staff renew ada      new password and second factor; signs ada out\n"
        "  robot-stack crowd staff disable ada\n"
        "  robot-stack crowd staff list"
    )
    parser.add_argument("action", choices=("add", "renew", "disable", "list"))
    parser.add_argument("name", nargs="?", help="a-z, 0-9, '.', '_' and '-'")
    parser.add_argument("--role", choices=ROLES, help="with add")
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if (args.name is None) != (args.action == "list"):
        raise ConfigError("give a name with add, renew and disable, and none with list")
    config = config_of(args)
    key = load_key(config.key_file)
    database = Database(config.database)
    try:
        migrate(database)
        if args.action == "list":
            with database.read() as tx:
                rows = tx.scalars(select(Staff).order_by(Staff.name)).all()
            staff = [{"name": r.name, "role": r.role, "disabled": r.disabled} for r in rows]
            if not args.json:
                for row in rows:
                    print(f"{row.name:24} {row.role:10} {'disabled' if row.disabled else ''}")
            return _end({"ok": True, "staff": staff})
        if args.action == "disable":
            with database.begin() as tx:
                disable(tx, _existing(tx, args.name))
            return _end({"ok": True, "name": args.name, "disabled": True})
        if args.action == "add" and args.role is None:
            raise ConfigError(f"say --role, one of {', '.join(ROLES)}")
        password = _password()
        with database.begin() as tx:
            if args.action == "add":
                _, secret = add_staff(tx, key, args.name, args.role, password)
            else:
                secret = renew(tx, key, _existing(tx, args.name), password)
    finally:
        database.close()
    uri = enrolment_uri(config.origin, args.name, secret)
    if not args.json:
        print("scan this with an authenticator; it is shown only now\n")
        segno.make(uri).terminal(out=sys.stdout, compact=True)
    return _end({"ok": True, "name": args.name, "totp_uri": uri})


def _existing(tx: Session, name: str) -> Staff:
    staff = tx.scalar(select(Staff).where(Staff.name == name))
    if staff is None:
        raise ConfigError(f"nobody is called {name!r}; see `robot-stack crowd staff list`")
    return staff


def _password() -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise ConfigError(f"there is no terminal to ask for a password; set {PASSWORD_VARIABLE}")
    first = getpass.getpass("password (12 characters or more): ")
    if getpass.getpass("again: ") != first:
        raise ConfigError("the two passwords differ; try again")
    return first


def _end(answer: dict[str, Any]) -> int:
    print(json.dumps(answer))
    return 0
