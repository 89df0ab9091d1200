"""Links by which a phone takes over from a kiosk, and the station that sent a phone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "phone_link",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=True),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_phone_link_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_phone_link_station_id_station")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_phone_link")),
    )
    with op.batch_alter_table("phone_link", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_phone_link_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_phone_link_participant_id"), ["participant_id"], unique=False
        )

    with op.batch_alter_table("web_session", schema=None) as batch_op:
        batch_op.add_column(sa.Column("linked_id", sa.String(length=36), nullable=True))
        batch_op.create_foreign_key(
            batch_op.f("fk_web_session_linked_id_station"), "station", ["linked_id"], ["id"]
        )


def downgrade() -> None:
    with op.batch_alter_table("web_session", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_web_session_linked_id_station"), type_="foreignkey")
        batch_op.drop_column("linked_id")

    with op.batch_alter_table("phone_link", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_phone_link_participant_id"))
        batch_op.drop_index(batch_op.f("ix_phone_link_expires_at"))

    op.drop_table("phone_link")
