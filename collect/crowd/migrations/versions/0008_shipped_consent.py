"""Which of the program's own texts a consent text was added beside."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("consent_text") as table:
        table.add_column(sa.Column("shipped", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("consent_text") as table:
        table.drop_column("shipped")
