"""How many pieces of a reward everybody together may take a day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("reward_item") as table:
        table.add_column(
            sa.Column("pieces_a_day", sa.Integer(), nullable=False, server_default="50")
        )


def downgrade() -> None:
    with op.batch_alter_table("reward_item") as table:
        table.drop_column("pieces_a_day")
