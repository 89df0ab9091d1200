"""What Alembic runs: on the connection that `collect.crowd.migrate` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from collect.crowd.tables import Base, UtcTime

__all__: list[str] = []


def _render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    # A revision must go on meaning the same when our classes change.
    if kind == "type" and isinstance(item, UtcTime):
        return "sa.DateTime(timezone=True)"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_item=_render,
    # SQLite alters little: Alembic copies the table instead.
    render_as_batch=True,
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
