"""Revisions lead to the tables of `collect.crowd.tables`, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, make_url, text

from collect.crowd.agent_messages import LONGEST_PLAY_S
from collect.crowd.database import Database
from collect.crowd.migrate import _alembic, _connection, current, differences, head, migrate
from collect.crowd.tables import Base, Participant, Task, new_id
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


def back_to(database: Database, revision: str) -> None:
    with _connection(database) as connection:
        command.downgrade(_alembic(connection), revision)


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


def test_tasks_that_no_agent_plays_are_made_shorter(empty, caplog):
    """They could last an hour once."""
    migrate(empty)
    with empty.begin() as tx:
        hour = factories.make_task(tx, seconds=3600, par_s=1800.0).id
        longest = factories.make_task(tx, seconds=LONGEST_PLAY_S, par_s=40.0).id
    back_to(empty, "0005")
    assert migrate(empty) == ("0005", head())
    with empty.read() as tx:
        found = {task.id: (task.seconds, task.par_s) for task in tx.query(Task)}
    assert found == {hour: (LONGEST_PLAY_S, 900.0), longest: (LONGEST_PLAY_S, 40.0)}
    assert [hour in line for line in caplog.messages] == [True], "said, and of no other"


def test_who_did_not_agree_to_research_is_shown_no_arm_any_more(empty):
    migrate(empty)
    with empty.begin() as tx:
        people = [factories.make_participant(tx, arm="social") for _ in range(4)]
        agrees, refused, took_back, silent = [who.id for who in people]
        factories.make_consent(tx, people[0], scopes=["record"])
        factories.make_consent(tx, people[0], scopes=["record", "research"])
        factories.make_consent(tx, people[1], scopes=["record", "clips"])
        factories.make_consent(tx, people[2], withdrawn={"research": "2026-11-01T00:00:00+00:00"})
    back_to(empty, "0006")
    migrate(empty)
    with empty.read() as tx:
        found = {who.id for who in tx.query(Participant) if who.no_research}
    assert agrees not in found and found == {refused, took_back, silent}
