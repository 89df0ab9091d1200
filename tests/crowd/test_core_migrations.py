"""Revisions lead to the tables of `collect.crowd.tables`, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from collect.crowd.database import Database
from collect.crowd.migrate import current, differences, head, migrate
from collect.crowd.tables import Base, Participant, new_id
from robot_stack.errors import ConfigError
from tests.crowd import factories


@pytest.fixture
def empty(database_kind, request, tmp_path):
    """A database with nothing in it."""
    if database_kind == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'empty.db'}")
        yield database
        database.close()
        return
    server = request.getfixturevalue("postgresql")
    name = f"crowd_{new_id().replace('-', '')}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    database = Database(make_url(server).set(database=name).render_as_string(False))
    yield database
    database.close()
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def described(database: Database) -> dict[str, Any]:
    """All that the database says of its tables, the checks too (which Alembic doesn't compare)."""
    look = inspect(database.engine)

    def items(found: list[Any], *keys: str) -> list[str]:
        return sorted(" ".join(str(item.get(key)) for key in keys) for item in found)

    return {
        name: {
            "columns": items(look.get_columns(name), "name", "type", "nullable"),
            "primary": look.get_pk_constraint(name)["constrained_columns"],
            "checks": items(look.get_check_constraints(name), "name", "sqltext"),
            "unique": items(look.get_unique_constraints(name), "name", "column_names"),
            "foreign": items(
                look.get_foreign_keys(name), "name", "constrained_columns", "referred_table"
            ),
            "indexes": items(
                [
                    {**index, "where": [str(v) for v in index["dialect_options"].values()]}
                    for index in look.get_indexes(name)
                ],
                "name",
                "column_names",
                "expressions",
                "unique",
                "where",
            ),
        }
        for name in look.get_table_names()
        if name != "alembic_version"
    }


def test_migrated_is_what_the_models_say(empty, database):
    assert migrate(empty) == (None, head())
    assert differences(empty) == []
    assert described(empty) == described(database)
    assert set(described(empty)) == set(Base.metadata.tables)


def test_migrating_again_changes_nothing_and_keeps_the_rows(empty):
    migrate(empty)
    with empty.begin() as tx:
        ada = factories.make_participant(tx, "Ada")
    assert migrate(empty) == (head(), head())
    with empty.read() as tx:
        assert tx.get(Participant, ada.id).nickname == "Ada"


def test_a_newer_database_is_refused(empty):
    migrate(empty)
    with empty.begin() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert current(empty) == "9999"
    with pytest.raises(ConfigError, match="9999, which is newer"):
        migrate(empty)


def test_a_forgotten_revision_is_seen(empty):
    migrate(empty)
    with empty.begin() as tx:
        tx.execute(text("ALTER TABLE station DROP COLUMN closed"))
    assert [difference[0] for difference in differences(empty)] == ["add_column"]
