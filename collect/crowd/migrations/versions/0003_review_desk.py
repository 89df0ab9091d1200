"""The review desk's verdicts and gold plays; subtasks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gold_play",
        sa.Column("play_id", sa.String(length=36), nullable=False),
        sa.Column("decision", sa.String(length=8), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=False),
        sa.Column("set_by", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["play_id"], ["play.id"], name=op.f("fk_gold_play_play_id_play")),
        sa.ForeignKeyConstraint(["set_by"], ["staff.id"], name=op.f("fk_gold_play_set_by_staff")),
        sa.PrimaryKeyConstraint("play_id", name=op.f("pk_gold_play")),
    )
    op.create_table(
        "review_verdict",
        sa.Column("play_id", sa.String(length=36), nullable=False),
        sa.Column("review_id", sa.String(length=36), nullable=False),
        sa.Column("decision", sa.String(length=8), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_by", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(
            ["play_id"], ["play.id"], name=op.f("fk_review_verdict_play_id_play")
        ),
        sa.ForeignKeyConstraint(
            ["review_id"], ["review.id"], name=op.f("fk_review_verdict_review_id_review")
        ),
        sa.ForeignKeyConstraint(
            ["settled_by"], ["staff.id"], name=op.f("fk_review_verdict_settled_by_staff")
        ),
        sa.PrimaryKeyConstraint("play_id", name=op.f("pk_review_verdict")),
    )
    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rows", sa.Integer(), nullable=True))

    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.add_column(sa.Column("subtasks", sa.JSON(), server_default="[]", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("task", schema=None) as batch_op:
        batch_op.drop_column("subtasks")

    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.drop_column("rows")

    op.drop_table("review_verdict")
    op.drop_table("gold_play")
