"""`robot-stack crowd migrate`: brings a database to this version's tables, or says what lacks."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from collect.crowd.commands import config_argument, config_of
from collect.crowd.consent import install_default
from collect.crowd.database import WRITE_LOCK, Database
from collect.crowd.tables import Base
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "current", "differences", "head", "migrate", "run"]

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(database: Database) -> tuple[str | None, str]:
    """Bring the tables to this version; the revisions before and after.

    A site without a consent text gets the default one, so that it can take somebody.
    In one transaction: it is done wholly or not at all. Several that start at once take turns.
    ConfigError when the database is of a newer version or can't be reached.
    """
    with _connection(database) as connection:
        before = _revision(connection)
        known = {script.revision for script in _scripts().walk_revisions()}
        if before is not None and before not in known:
            raise ConfigError(
                f"the database has revision {before}, which is newer than this program's "
                f"{head()}; install the robot-stack that made it, or restore a backup"
            )
        command.upgrade(_alembic(connection), "head")
        if database.sqlite:
            broken = connection.execute(text("PRAGMA foreign_key_check")).all()
            if broken:
                raise ConfigError(f"the migration would orphan rows of {broken[0][0]}; undone")
        with Session(connection, join_transaction_mode="rollback_only") as tx:
            install_default(tx)
            tx.flush()
    return before, head()


def current(database: Database) -> str | None:
    """The revision that the database has; None for an empty one."""
    with _connection(database) as connection:
        return _revision(connection)


def head() -> str:
    """The revision of this program's tables."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


def differences(database: Database) -> list[Any]:
    """How the database differs from `collect.crowd.tables`, as Alembic says it; none after
    ``migrate`` unless a revision was forgotten."""
    with _connection(database) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Bring the site's database to this version's tables. `serve` does it by itself; run it "
        "alone after an upgrade to see that it goes well. Make a backup first: "
        "`sqlite3 crowd.db '.backup crowd-backup.db'` or pg_dump."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd migrate                 do it\n"
        "  robot-stack crowd migrate --check         1 if something is to be done\n"
        "  robot-stack crowd migrate --new 'why'     developers: write a revision for what\n"
        "                                            collect/crowd/tables.py has and this\n"
        "                                            migrated database lacks"
    )
    config_argument(parser)
    parser.add_argument("--check", action="store_true", help="only say whether it is needed")
    parser.add_argument("--new", metavar="WHY", help="write the next revision (developers)")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    database = Database(config_of(args).database)
    try:
        if args.new:
            with _connection(database) as connection:
                number = f"{int(_scripts().get_current_head() or 0) + 1:04d}"
                command.revision(
                    _alembic(connection), message=args.new, autogenerate=True, rev_id=number
                )
            return _say(args, {"ok": True, "revision": number})
        if args.check:
            found = current(database)
            return _say(args, {"ok": found == head(), "revision": found, "wanted": head()})
        before, after = migrate(database)
        return _say(args, {"ok": True, "before": before, "revision": after})
    finally:
        database.close()


def _say(args: argparse.Namespace, answer: dict[str, Any]) -> int:
    if not args.json:
        print("the database is at revision", answer["revision"])
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic(None))


def _alembic(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@contextlib.contextmanager
def _connection(database: Database) -> Iterator[Connection]:
    """A write of its own, in which no other writer runs.

    SQLite copies tables to alter them, which foreign keys would take for deletions; they can be
    switched off before a transaction only, hence a connection that is not the site's.
    """
    engine = create_engine(database.url, poolclass=NullPool)
    if database.sqlite:

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA foreign_keys = off")

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    try:
        with engine.begin() as connection:
            if not database.sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": WRITE_LOCK})
            yield connection
    except OperationalError as error:
        raise ConfigError(
            f"cannot use the database {database.url.render_as_string()}: {error.orig}"
        ) from error
    finally:
        engine.dispose()
