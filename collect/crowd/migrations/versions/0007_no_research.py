"""Who does not agree to research (any more) is shown no incentive arm."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

participant = sa.table(
    "participant", sa.column("id"), sa.column("arm"), sa.column("no_research", sa.Boolean)
)
consent = sa.table(
    "consent",
    sa.column("participant_id"),
    sa.column("scopes", sa.JSON),
    sa.column("withdrawn", sa.JSON),
)


def upgrade() -> None:
    with op.batch_alter_table("participant") as table:
        table.add_column(
            sa.Column("no_research", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    connection = op.get_bind()
    agree = {
        who
        for who, scopes, withdrawn in connection.execute(sa.select(consent))
        if "research" in scopes and "research" not in withdrawn
    }
    with_arm = connection.execute(
        sa.select(participant.c.id).where(participant.c.arm.is_not(None))
    ).scalars()
    for who in set(with_arm) - agree:
        connection.execute(
            sa.update(participant).where(participant.c.id == who).values(no_research=True)
        )


def downgrade() -> None:
    with op.batch_alter_table("participant") as table:
        table.drop_column("no_research")
