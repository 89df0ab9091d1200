"""No task lasts longer than an agent lets a play last: longer ones were once accepted, and every
agent refused them."""

from __future__ import annotations

import logging

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

LONGEST_S = 900

task = sa.table("task", sa.column("id"), sa.column("seconds"), sa.column("par_s"))


def upgrade() -> None:
    connection = op.get_bind()
    longer = connection.execute(sa.select(task.c.id).where(task.c.seconds > LONGEST_S)).scalars()
    for name in sorted(longer):
        logging.getLogger("crowd.migrations").warning(
            f"task {name} now lasts {LONGEST_S} s: no agent plays a longer one"
        )
    for column in (task.c.seconds, task.c.par_s):
        connection.execute(
            sa.update(task).where(column > LONGEST_S).values({column.name: LONGEST_S})
        )


def downgrade() -> None:
    """What they lasted before is known no more."""
