"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "consent_text",
        sa.Column("version", sa.String(length=16), nullable=False),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("active_from", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("version", "language", name=op.f("pk_consent_text")),
    )
    op.create_table(
        "incentive_arm",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_incentive_arm")),
    )
    op.create_table(
        "participant",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("card_hash", sa.String(length=64), nullable=True),
        sa.Column("nickname", sa.String(length=24), nullable=True),
        sa.Column("skeleton", sa.String(length=96), nullable=True),
        sa.Column("nickname_state", sa.String(length=8), nullable=False),
        sa.Column("pseudonym", sa.String(length=32), nullable=False),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("adult", sa.Boolean(), nullable=True),
        sa.Column("on_board", sa.Boolean(), nullable=False),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("tutorial_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("arm", sa.String(length=16), nullable=True),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('card', 'phone', 'guest')", name=op.f("ck_participant_kind")),
        sa.CheckConstraint(
            "nickname_state in ('pending', 'approved', 'refused')",
            name=op.f("ck_participant_nickname"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_participant")),
        sa.UniqueConstraint("card_hash", name=op.f("uq_participant_card_hash")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_participant_pseudonym")),
        sa.UniqueConstraint("skeleton", name=op.f("uq_participant_skeleton")),
    )
    with op.batch_alter_table("participant", schema=None) as batch_op:
        batch_op.create_index(
            "ix_participant_unlisted",
            ["id"],
            unique=False,
            sqlite_where=sa.text("hidden IS 1 OR on_board IS 0 OR erased_at IS NOT NULL"),
            postgresql_where=sa.text(
                "hidden IS true OR on_board IS false OR erased_at IS NOT NULL"
            ),
        )

    op.create_table(
        "rate_count",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_rate_count")),
    )
    with op.batch_alter_table("rate_count", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rate_count_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "reward_item",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("daily_cap", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reward_item")),
    )
    op.create_table(
        "site_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("boards", sa.BigInteger(), nullable=False),
        sa.Column("zone", sa.String(length=48), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_version")),
    )
    op.create_table(
        "staff",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=12), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=False),
        sa.Column("totp_secret", sa.String(length=200), nullable=False),
        sa.Column("totp_step", sa.BigInteger(), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("role in ('reviewer', 'operator', 'admin')", name=op.f("ck_staff_role")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_staff")),
        sa.UniqueConstraint("name", name=op.f("uq_staff_name")),
    )
    op.create_table(
        "station",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=True),
        sa.Column("paired_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_station")),
        sa.UniqueConstraint("name", name=op.f("uq_station_name")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_station_token_hash")),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.String(length=48), nullable=False),
        sa.Column("difficulty", sa.String(length=8), nullable=False),
        sa.Column("seconds", sa.Integer(), nullable=False),
        sa.Column("par_s", sa.Double(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("checked", sa.Boolean(), nullable=False),
        sa.CheckConstraint("difficulty in ('easy', 'hard')", name=op.f("ck_task_difficulty")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
    )
    op.create_table(
        "tombstone",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tombstone")),
    )
    op.create_table(
        "audit_entry",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("staff_id", sa.String(length=36), nullable=True),
        sa.Column("action", sa.String(length=48), nullable=False),
        sa.Column("subject", sa.String(length=96), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["staff_id"], ["staff.id"], name=op.f("fk_audit_entry_staff_id_staff")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entry")),
    )
    with op.batch_alter_table("audit_entry", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_entry_staff_id"), ["staff_id"], unique=False)

    op.create_table(
        "badge_award",
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("badge", sa.String(length=32), nullable=False),
        sa.Column("awarded_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_badge_award_participant_id_participant"),
        ),
        sa.PrimaryKeyConstraint("participant_id", "badge", name=op.f("pk_badge_award")),
    )
    op.create_table(
        "clip",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("task_id", sa.String(length=48), nullable=False),
        sa.Column("file", sa.String(length=200), nullable=False),
        sa.Column("caption", sa.String(length=200), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participant.id"], name=op.f("fk_clip_participant_id_participant")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_clip_task_id_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clip")),
    )
    with op.batch_alter_table("clip", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_clip_task_id"), ["task_id"], unique=False)

    op.create_table(
        "consent",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=16), nullable=False),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_consent_participant_id_participant"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent")),
    )
    with op.batch_alter_table("consent", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_consent_participant_id"), ["participant_id"], unique=False
        )

    op.create_table(
        "exposure",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("arm", sa.String(length=16), nullable=False),
        sa.Column("page", sa.String(length=32), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_exposure_participant_id_participant"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exposure")),
    )
    with op.batch_alter_table("exposure", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_exposure_participant_id"), ["participant_id"], unique=False
        )

    op.create_table(
        "help_request",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answered_by", sa.String(length=36), nullable=True),
        sa.ForeignKeyConstraint(
            ["answered_by"], ["staff.id"], name=op.f("fk_help_request_answered_by_staff")
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_help_request_station_id_station")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_help_request")),
    )
    with op.batch_alter_table("help_request", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_help_request_station_id"), ["station_id"], unique=False
        )

    op.create_table(
        "nickname_case",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("nickname", sa.String(length=24), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decided_by", sa.String(length=36), nullable=True),
        sa.Column("approved", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(
            ["decided_by"], ["staff.id"], name=op.f("fk_nickname_case_decided_by_staff")
        ),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_nickname_case_participant_id_participant"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nickname_case")),
    )
    with op.batch_alter_table("nickname_case", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_nickname_case_participant_id"), ["participant_id"], unique=False
        )

    op.create_table(
        "pairing_code",
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_pairing_code_station_id_station")
        ),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_pairing_code")),
    )
    op.create_table(
        "queued",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("joined_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("called_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_queued_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_queued_station_id_station")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queued")),
        sa.UniqueConstraint("participant_id", name=op.f("uq_queued_participant_id")),
    )
    with op.batch_alter_table("queued", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_queued_station_id"), ["station_id"], unique=False)

    op.create_table(
        "reward_entry",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=96), nullable=False),
        sa.Column("item_id", sa.String(length=48), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=True),
        sa.Column("staff_id", sa.String(length=36), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["item_id"], ["reward_item.id"], name=op.f("fk_reward_entry_item_id_reward_item")
        ),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_reward_entry_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["staff_id"], ["staff.id"], name=op.f("fk_reward_entry_staff_id_staff")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reward_entry")),
        sa.UniqueConstraint("key", name=op.f("uq_reward_entry_key")),
    )
    with op.batch_alter_table("reward_entry", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_reward_entry_item_id"), ["item_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_reward_entry_participant_id"), ["participant_id"], unique=False
        )

    op.create_table(
        "standing",
        sa.Column("scope", sa.String(length=56), nullable=False),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("reached_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_standing_participant_id_participant"),
        ),
        sa.PrimaryKeyConstraint("scope", "period", "participant_id", name=op.f("pk_standing")),
    )
    with op.batch_alter_table("standing", schema=None) as batch_op:
        batch_op.create_index(
            "ix_standing_board",
            ["scope", "period", sa.literal_column("score DESC"), "reached_at", "participant_id"],
            unique=False,
        )

    op.create_table(
        "station_lease",
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("granted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_station_lease_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_station_lease_station_id_station")
        ),
        sa.PrimaryKeyConstraint("station_id", name=op.f("pk_station_lease")),
        sa.UniqueConstraint("participant_id", name=op.f("uq_station_lease_participant_id")),
    )
    op.create_table(
        "task_text",
        sa.Column("task_id", sa.String(length=48), nullable=False),
        sa.Column("language", sa.String(length=8), nullable=False),
        sa.Column("title", sa.String(length=80), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_task_text_task_id_task")),
        sa.PrimaryKeyConstraint("task_id", "language", name=op.f("pk_task_text")),
    )
    op.create_table(
        "web_session",
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=True),
        sa.Column("staff_id", sa.String(length=36), nullable=True),
        sa.Column("station_id", sa.String(length=36), nullable=True),
        sa.Column("csrf", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_web_session_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["staff_id"], ["staff.id"], name=op.f("fk_web_session_staff_id_staff")
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_web_session_station_id_station")
        ),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_web_session")),
    )
    with op.batch_alter_table("web_session", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_web_session_participant_id"), ["participant_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_web_session_staff_id"), ["staff_id"], unique=False)

    op.create_table(
        "play",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("station_id", sa.String(length=36), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=True),
        sa.Column("consent_id", sa.String(length=36), nullable=True),
        sa.Column("task_id", sa.String(length=48), nullable=True),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(length=16), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("claimed", sa.Boolean(), nullable=True),
        sa.Column("checked", sa.Boolean(), nullable=True),
        sa.Column("likert_intuitive", sa.Integer(), nullable=True),
        sa.Column("likert_fun", sa.Integer(), nullable=True),
        sa.Column("likert_did", sa.Integer(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("file", sa.String(length=300), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("synced_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("kind in ('tutorial', 'task', 'free')", name=op.f("ck_play_kind")),
        sa.CheckConstraint(
            "state in ('running', 'finished', 'synced', 'void')", name=op.f("ck_play_state")
        ),
        sa.CheckConstraint("likert_did between 1 and 5", name=op.f("ck_play_likert_did")),
        sa.CheckConstraint("likert_fun between 1 and 5", name=op.f("ck_play_likert_fun")),
        sa.CheckConstraint(
            "likert_intuitive between 1 and 5", name=op.f("ck_play_likert_intuitive")
        ),
        sa.ForeignKeyConstraint(
            ["consent_id"], ["consent.id"], name=op.f("fk_play_consent_id_consent")
        ),
        sa.ForeignKeyConstraint(
            ["participant_id"], ["participant.id"], name=op.f("fk_play_participant_id_participant")
        ),
        sa.ForeignKeyConstraint(
            ["station_id"], ["station.id"], name=op.f("fk_play_station_id_station")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_play_task_id_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_play")),
    )
    with op.batch_alter_table("play", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_play_participant_id"), ["participant_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_play_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_play_station_id"), ["station_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_play_task_id"), ["task_id"], unique=False)

    op.create_table(
        "ledger_entry",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("key", sa.String(length=96), nullable=False),
        sa.Column("participant_id", sa.String(length=36), nullable=False),
        sa.Column("play_id", sa.String(length=36), nullable=True),
        sa.Column("task_id", sa.String(length=48), nullable=True),
        sa.Column("kind", sa.String(length=12), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("counts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "reverses_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True
        ),
        sa.Column("note", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(
            ["participant_id"],
            ["participant.id"],
            name=op.f("fk_ledger_entry_participant_id_participant"),
        ),
        sa.ForeignKeyConstraint(
            ["play_id"], ["play.id"], name=op.f("fk_ledger_entry_play_id_play")
        ),
        sa.ForeignKeyConstraint(
            ["reverses_id"],
            ["ledger_entry.id"],
            name=op.f("fk_ledger_entry_reverses_id_ledger_entry"),
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["task.id"], name=op.f("fk_ledger_entry_task_id_task")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entry")),
        sa.UniqueConstraint("key", name=op.f("uq_ledger_entry_key")),
        sa.UniqueConstraint("reverses_id", name=op.f("uq_ledger_entry_reverses_id")),
    )
    with op.batch_alter_table("ledger_entry", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_ledger_entry_created_at"), ["created_at"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_ledger_entry_participant_id"), ["participant_id"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_ledger_entry_play_id"), ["play_id"], unique=False)

    op.create_table(
        "review",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("play_id", sa.String(length=36), nullable=False),
        sa.Column("staff_id", sa.String(length=36), nullable=False),
        sa.Column("assigned_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("decision", sa.String(length=8), nullable=True),
        sa.Column("quality", sa.Integer(), nullable=True),
        sa.Column("note", sa.String(length=500), nullable=False),
        sa.CheckConstraint(
            "decision in ('confirm', 'reverse', 'unclear')", name=op.f("ck_review_decision")
        ),
        sa.CheckConstraint("quality between 0 and 3", name=op.f("ck_review_quality")),
        sa.ForeignKeyConstraint(["play_id"], ["play.id"], name=op.f("fk_review_play_id_play")),
        sa.ForeignKeyConstraint(["staff_id"], ["staff.id"], name=op.f("fk_review_staff_id_staff")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review")),
        sa.UniqueConstraint("play_id", "staff_id", name=op.f("uq_review_play_id_staff_id")),
    )
    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_review_play_id"), ["play_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_review_staff_id"), ["staff_id"], unique=False)

    op.create_table(
        "review_segment",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("review_id", sa.String(length=36), nullable=False),
        sa.Column("first_row", sa.Integer(), nullable=False),
        sa.Column("last_row", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=32), nullable=False),
        sa.Column("quality", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["review_id"], ["review.id"], name=op.f("fk_review_segment_review_id_review")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_segment")),
    )
    with op.batch_alter_table("review_segment", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_review_segment_review_id"), ["review_id"], unique=False
        )


def downgrade() -> None:
    with op.batch_alter_table("review_segment", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_review_segment_review_id"))

    op.drop_table("review_segment")
    with op.batch_alter_table("review", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_review_staff_id"))
        batch_op.drop_index(batch_op.f("ix_review_play_id"))

    op.drop_table("review")
    with op.batch_alter_table("ledger_entry", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ledger_entry_play_id"))
        batch_op.drop_index(batch_op.f("ix_ledger_entry_participant_id"))
        batch_op.drop_index(batch_op.f("ix_ledger_entry_created_at"))

    op.drop_table("ledger_entry")
    with op.batch_alter_table("play", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_play_task_id"))
        batch_op.drop_index(batch_op.f("ix_play_station_id"))
        batch_op.drop_index(batch_op.f("ix_play_state"))
        batch_op.drop_index(batch_op.f("ix_play_participant_id"))

    op.drop_table("play")
    with op.batch_alter_table("web_session", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_web_session_staff_id"))
        batch_op.drop_index(batch_op.f("ix_web_session_participant_id"))

    op.drop_table("web_session")
    op.drop_table("task_text")
    op.drop_table("station_lease")
    with op.batch_alter_table("standing", schema=None) as batch_op:
        batch_op.drop_index("ix_standing_board")

    op.drop_table("standing")
    with op.batch_alter_table("reward_entry", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_reward_entry_participant_id"))
        batch_op.drop_index(batch_op.f("ix_reward_entry_item_id"))

    op.drop_table("reward_entry")
    with op.batch_alter_table("queued", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_queued_station_id"))

    op.drop_table("queued")
    op.drop_table("pairing_code")
    with op.batch_alter_table("nickname_case", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nickname_case_participant_id"))

    op.drop_table("nickname_case")
    with op.batch_alter_table("help_request", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_help_request_station_id"))

    op.drop_table("help_request")
    with op.batch_alter_table("exposure", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_exposure_participant_id"))

    op.drop_table("exposure")
    with op.batch_alter_table("consent", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_consent_participant_id"))

    op.drop_table("consent")
    with op.batch_alter_table("clip", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_clip_task_id"))

    op.drop_table("clip")
    op.drop_table("badge_award")
    with op.batch_alter_table("audit_entry", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_entry_staff_id"))

    op.drop_table("audit_entry")
    op.drop_table("tombstone")
    op.drop_table("task")
    op.drop_table("station")
    op.drop_table("staff")
    op.drop_table("site_version")
    op.drop_table("reward_item")
    with op.batch_alter_table("rate_count", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rate_count_expires_at"))

    op.drop_table("rate_count")
    with op.batch_alter_table("participant", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_participant_unlisted",
            sqlite_where=sa.text("hidden IS 1 OR on_board IS 0 OR erased_at IS NOT NULL"),
            postgresql_where=sa.text(
                "hidden IS true OR on_board IS false OR erased_at IS NOT NULL"
            ),
        )

    op.drop_table("participant")
    op.drop_table("incentive_arm")
    op.drop_table("consent_text")
