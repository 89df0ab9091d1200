"""The crowd site's tables: who took part, what they drove, what it was worth, who said so.

Identifiers that leave the database are random UUIDs. Times are UTC. Points are never updated: the
ledger is append-only and `Standing` is what it adds up to (`collect.crowd.standings` rebuilds it).
Secrets are kept as keyed hashes (HMAC-SHA-256 with the site's key, which is not in the database).
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    or_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

__all__ = [
    "UNLISTED",
    "AuditEntry",
    "BadgeAward",
    "Base",
    "Clip",
    "Consent",
    "ConsentText",
    "Exposure",
    "GoldPlay",
    "HelpRequest",
    "IncentiveArm",
    "LedgerEntry",
    "NicknameCase",
    "PairingCode",
    "Participant",
    "PhoneLink",
    "Play",
    "Queued",
    "RateCount",
    "Review",
    "ReviewSegment",
    "ReviewVerdict",
    "RewardEntry",
    "RewardItem",
    "SiteVersion",
    "Staff",
    "Standing",
    "Station",
    "StationLease",
    "Task",
    "TaskText",
    "Tombstone",
    "WebSession",
    "new_id",
    "utc_now",
]


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def new_id() -> str:
    return str(uuid.uuid4())


class UtcTime(TypeDecorator[dt.datetime]):
    """An aware UTC time on every database (SQLite keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; pass an aware datetime")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Base(DeclarativeBase):
    """Constraint names are the same on every database, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {dt.datetime: UtcTime, dict[str, Any]: JSON, list[str]: JSON}


Id = String(36)


class Participant(Base):
    """Someone of the public. `skeleton` is the nickname with confusable characters made one, so
    that no two look alike; `card_hash` a keyed hash of the card that was tapped, never its number.

    `nickname_state` pending, approved or refused: until it is approved others see `pseudonym`.
    Erased participants keep their row's id and nothing else (see `Tombstone`).
    """

    __tablename__ = "participant"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    kind: Mapped[str] = mapped_column(String(8))  # card, phone, guest
    card_hash: Mapped[str | None] = mapped_column(String(64), unique=True)
    nickname: Mapped[str | None] = mapped_column(String(24))
    skeleton: Mapped[str | None] = mapped_column(String(96), unique=True)
    nickname_state: Mapped[str] = mapped_column(String(8), default="pending")
    pseudonym: Mapped[str] = mapped_column(String(32), unique=True)
    language: Mapped[str] = mapped_column(String(8), default="en")
    adult: Mapped[bool | None] = mapped_column(default=None)  # None: the age gate was not passed
    on_board: Mapped[bool] = mapped_column(default=True)  # the participant's own choice
    hidden: Mapped[bool] = mapped_column(default=False)  # staff's choice: absent everywhere
    tutorial_at: Mapped[dt.datetime | None] = mapped_column(default=None)  # passed
    arm: Mapped[str | None] = mapped_column(String(16))  # incentive arm, sticky
    # The latest answer has no consent to research in it: no arm is shown.
    no_research: Mapped[bool] = mapped_column(default=False, server_default=false())
    erased_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    __table_args__ = (
        CheckConstraint("kind in ('card', 'phone', 'guest')", name="kind"),
        CheckConstraint("nickname_state in ('pending', 'approved', 'refused')", name="nickname"),
    )


# Few: whom no board shows. A rank is a count of standings less the count of these people's.
UNLISTED = or_(
    Participant.hidden.is_(True),
    Participant.on_board.is_(False),
    Participant.erased_at.is_not(None),
)
Index(
    "ix_participant_unlisted",
    Participant.id,
    sqlite_where=UNLISTED,
    postgresql_where=UNLISTED,
)


class NicknameCase(Base):
    """A nickname that staff must look at, and what was decided."""

    __tablename__ = "nickname_case"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), index=True)
    nickname: Mapped[str] = mapped_column(String(24))
    reason: Mapped[str] = mapped_column(String(64))  # new, word list, reported
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    decided_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    decided_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    approved: Mapped[bool | None] = mapped_column(default=None)


class ConsentText(Base):
    """One version of what a participant agrees to, in one language.

    `shipped`: the digest of the text that came with the program when this was added; None in old
    databases.
    """

    __tablename__ = "consent_text"
    version: Mapped[str] = mapped_column(String(16), primary_key=True)
    language: Mapped[str] = mapped_column(String(8), primary_key=True)
    title: Mapped[str] = mapped_column(String(200))
    body: Mapped[str] = mapped_column(Text)
    active_from: Mapped[dt.datetime]
    shipped: Mapped[str | None] = mapped_column(String(64))


class Consent(Base):
    """What a participant agreed to, when, and since when no longer.

    `scopes` out of: record (episodes may be kept), research (used and published without a name),
    clips (a clip may be shown on the site). Only `record` is needed to play. `withdrawn` says of
    scopes that were taken back one by one since when (ISO 8601); `withdrawn_at` is of them all.
    """

    __tablename__ = "consent"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), index=True)
    version: Mapped[str] = mapped_column(String(16))
    language: Mapped[str] = mapped_column(String(8))
    scopes: Mapped[list[str]]
    withdrawn: Mapped[dict[str, Any]] = mapped_column(default=dict)
    given_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    withdrawn_at: Mapped[dt.datetime | None] = mapped_column(default=None)


class Tombstone(Base):
    """Somebody or something was erased; nothing of what it was."""

    __tablename__ = "tombstone"
    id: Mapped[str] = mapped_column(Id, primary_key=True)  # of what was erased
    kind: Mapped[str] = mapped_column(String(16))  # participant, play
    erased_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    reason: Mapped[str] = mapped_column(String(32))  # asked, retention, staff


class WebSession(Base):
    """A browser that is signed in. `token_hash` is of the cookie; the cookie is kept nowhere."""

    __tablename__ = "web_session"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(12))  # participant, staff, kiosk
    participant_id: Mapped[str | None] = mapped_column(ForeignKey("participant.id"), index=True)
    staff_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"), index=True)
    station_id: Mapped[str | None] = mapped_column(ForeignKey("station.id"))  # of its kiosk
    linked_id: Mapped[str | None] = mapped_column(ForeignKey("station.id"))  # whose kiosk sent it
    csrf: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[dt.datetime]


class PhoneLink(Base):
    """A link in a QR code by which one phone takes over from a kiosk, once, within minutes.

    `participant_id` is who was signed in at the kiosk; None makes somebody new. It goes with its
    use.
    """

    __tablename__ = "phone_link"
    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"))
    participant_id: Mapped[str | None] = mapped_column(ForeignKey("participant.id"), index=True)
    language: Mapped[str] = mapped_column(String(8))
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)


class RateCount(Base):
    """How often something was tried lately; `key` is a keyed hash of what and by whom."""

    __tablename__ = "rate_count"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)


class Staff(Base):
    """Somebody who works here. Roles: reviewer, operator (stations, rewards, names), admin."""

    __tablename__ = "staff"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(12))
    password_hash: Mapped[str] = mapped_column(String(200))
    totp_secret: Mapped[str] = mapped_column(String(200))  # encrypted with the site's key
    totp_step: Mapped[int] = mapped_column(BigInteger, default=0)  # last used: a code works once
    disabled: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    __table_args__ = (CheckConstraint("role in ('reviewer', 'operator', 'admin')", name="role"),)


class Station(Base):
    """A paired robot station. `state` is what its agent last told (see `collect.crowd.agent`)."""

    __tablename__ = "station"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    token_hash: Mapped[str | None] = mapped_column(String(64), unique=True)  # of the agent's token
    paired_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    seen_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    fence: Mapped[int] = mapped_column(BigInteger, default=0)  # grows with every lease
    state: Mapped[dict[str, Any]] = mapped_column(default=dict)
    closed: Mapped[bool] = mapped_column(default=False)  # by staff: takes nobody


class PairingCode(Base):
    """A code that pairs one agent or kiosk, once, within ten minutes."""

    __tablename__ = "pairing_code"
    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"))
    kind: Mapped[str] = mapped_column(String(8))  # agent, kiosk
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[dt.datetime]
    used_at: Mapped[dt.datetime | None] = mapped_column(default=None)


class StationLease(Base):
    """Whose turn it is at a station: one row a station that is taken."""

    __tablename__ = "station_lease"
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"), primary_key=True)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), unique=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    granted_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[dt.datetime]


class Queued(Base):
    """Somebody waits for a turn."""

    __tablename__ = "queued"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"), index=True)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), unique=True)
    joined_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    called_at: Mapped[dt.datetime | None] = mapped_column(default=None)


class HelpRequest(Base):
    """Somebody at a kiosk asked for staff."""

    __tablename__ = "help_request"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    answered_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    answered_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))


class Task(Base):
    """Something to do with the robot. Points: 10 easy, 20 hard."""

    __tablename__ = "task"
    id: Mapped[str] = mapped_column(String(48), primary_key=True)  # a slug
    difficulty: Mapped[str] = mapped_column(String(8))
    seconds: Mapped[int] = mapped_column(Integer)  # a play is ended after this
    par_s: Mapped[float]  # faster earns up to half as much again
    position: Mapped[int] = mapped_column(Integer, default=0)
    active: Mapped[bool] = mapped_column(default=True)
    checked: Mapped[bool] = mapped_column(default=False)  # the station itself judges success
    # What reviewers may call a part of it: short names, as in pick, place.
    subtasks: Mapped[list[str]] = mapped_column(default=list, server_default="[]")
    __table_args__ = (CheckConstraint("difficulty in ('easy', 'hard')", name="difficulty"),)


class TaskText(Base):
    """A task in one language."""

    __tablename__ = "task_text"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    language: Mapped[str] = mapped_column(String(8), primary_key=True)
    title: Mapped[str] = mapped_column(String(80))
    body: Mapped[str] = mapped_column(Text)


class Clip(Base):
    """A video of a task, shown before it is tried, with captions."""

    __tablename__ = "clip"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    file: Mapped[str] = mapped_column(String(200))  # below the site's media directory
    caption: Mapped[str] = mapped_column(String(200))
    participant_id: Mapped[str | None] = mapped_column(ForeignKey("participant.id"))


class Play(Base):
    """One time somebody drove the robot; its id is the episode's UUID.

    `state`: running; finished (the participant has ended it); synced (its file has come);
    void (nothing was recorded, or it was erased). `metrics`: seconds, path_m, jerk, idle_fraction,
    collisions, dropped_frames, as the station measured them.
    """

    __tablename__ = "play"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    station_id: Mapped[str] = mapped_column(ForeignKey("station.id"), index=True)
    participant_id: Mapped[str | None] = mapped_column(ForeignKey("participant.id"), index=True)
    consent_id: Mapped[str | None] = mapped_column(ForeignKey("consent.id"))
    task_id: Mapped[str | None] = mapped_column(ForeignKey("task.id"), index=True)
    kind: Mapped[str] = mapped_column(String(8))  # tutorial, task, free
    fence: Mapped[int] = mapped_column(BigInteger)  # of the lease that it ran under
    state: Mapped[str] = mapped_column(String(8), default="running", index=True)
    started_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    ended_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    ended_by: Mapped[str | None] = mapped_column(String(16))  # button, rest, time, lost, staff
    seconds: Mapped[float | None] = mapped_column(default=None)  # started_at to ended_at
    claimed: Mapped[bool | None] = mapped_column(default=None)  # the participant's own verdict
    checked: Mapped[bool | None] = mapped_column(default=None)  # the station's success check
    likert_intuitive: Mapped[int | None] = mapped_column(Integer)
    likert_fun: Mapped[int | None] = mapped_column(Integer)
    likert_did: Mapped[int | None] = mapped_column(Integer)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    file: Mapped[str | None] = mapped_column(String(300))
    sha256: Mapped[str | None] = mapped_column(String(64))
    synced_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    __table_args__ = (
        CheckConstraint("kind in ('tutorial', 'task', 'free')", name="kind"),
        CheckConstraint("state in ('running', 'finished', 'synced', 'void')", name="state"),
        *(
            CheckConstraint(f"likert_{item} between 1 and 5", name=f"likert_{item}")
            for item in ("intuitive", "fun", "did")
        ),
    )

    @property
    def took_s(self) -> float | None:
        """How long the robot was driven, as its station measured it; else `seconds`, which is from
        the request on and has the robot's way home in it, too."""
        measured = self.measured("seconds")
        return self.seconds if math.isnan(measured) else measured

    def measured(self, name: str) -> float:
        """A measurement of the station; NaN where it is missing or no number."""
        value = self.metrics.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return math.nan


class LedgerEntry(Base):
    """Points given or taken back, for ever. `key` makes each reason count once.

    `counts_at`: the moment whose day and week the points belong to: of a play's entries when it
    was played, of a reversal that of what it reverses.
    """

    __tablename__ = "ledger_entry"
    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    key: Mapped[str] = mapped_column(String(96), unique=True)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), index=True)
    play_id: Mapped[str | None] = mapped_column(ForeignKey("play.id"), index=True)
    task_id: Mapped[str | None] = mapped_column(ForeignKey("task.id"))
    kind: Mapped[str] = mapped_column(String(12))  # claim, evidence, review, reversal, staff
    points: Mapped[int] = mapped_column(Integer)
    quality: Mapped[int] = mapped_column(Integer, default=0)  # points of the quality board
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now, index=True)
    counts_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    reverses_id: Mapped[int | None] = mapped_column(ForeignKey("ledger_entry.id"), unique=True)
    note: Mapped[str] = mapped_column(String(200), default="")


class Standing(Base):
    """What a participant's entries add up to on one board.

    `scope`: all, quality, newcomers, or task:<id>; `period`: all, 2026-11-21 (a day), 2026-W47.
    `reached_at`: when this score was reached: of equals, the first stands first.
    """

    __tablename__ = "standing"
    scope: Mapped[str] = mapped_column(String(56), primary_key=True)
    period: Mapped[str] = mapped_column(String(10), primary_key=True)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), primary_key=True)
    score: Mapped[int] = mapped_column(Integer)
    reached_at: Mapped[dt.datetime]


Index(
    "ix_standing_board",
    Standing.scope,
    Standing.period,
    Standing.score.desc(),
    Standing.reached_at,
    Standing.participant_id,
)


class BadgeAward(Base):
    """A badge that somebody has earned."""

    __tablename__ = "badge_award"
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), primary_key=True)
    badge: Mapped[str] = mapped_column(String(32), primary_key=True)
    awarded_at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class RewardItem(Base):
    """Something to be had for points (candy); its stock is what its entries add up to."""

    __tablename__ = "reward_item"
    id: Mapped[str] = mapped_column(String(48), primary_key=True)
    name: Mapped[str] = mapped_column(String(80))
    points: Mapped[int] = mapped_column(Integer)
    daily_cap: Mapped[int] = mapped_column(Integer, default=1)  # a participant and day
    pieces_a_day: Mapped[int] = mapped_column(Integer, default=50)  # of all participants
    active: Mapped[bool] = mapped_column(default=True)


class RewardEntry(Base):
    """A reward handed out (-1), stocked (+n) or corrected at a count; points are not spent."""

    __tablename__ = "reward_entry"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(String(96), unique=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("reward_item.id"), index=True)
    participant_id: Mapped[str | None] = mapped_column(ForeignKey("participant.id"), index=True)
    staff_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    count: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str] = mapped_column(String(12))  # handed, stocked, counted
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class IncentiveArm(Base):
    """An arm of the incentive experiment (material, intrinsic, social) and its share."""

    __tablename__ = "incentive_arm"
    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    weight: Mapped[float] = mapped_column(default=1.0)
    active: Mapped[bool] = mapped_column(default=True)


class Exposure(Base):
    """A participant has seen what its arm is about."""

    __tablename__ = "exposure"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    participant_id: Mapped[str] = mapped_column(ForeignKey("participant.id"), index=True)
    arm: Mapped[str] = mapped_column(String(16))
    page: Mapped[str] = mapped_column(String(32))
    seen_at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class Review(Base):
    """One reviewer's look at a play, which no other reviewer sees.

    `decision`: confirm, reverse or unclear; `quality` 0-3 by RoboCrowd's rules; `rows` of the
    episode that was looked at. Without `done_at` it is an assignment, good for half an hour.
    """

    __tablename__ = "review"
    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    play_id: Mapped[str] = mapped_column(ForeignKey("play.id"), index=True)
    staff_id: Mapped[str] = mapped_column(ForeignKey("staff.id"), index=True)
    assigned_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    done_at: Mapped[dt.datetime | None] = mapped_column(default=None)
    decision: Mapped[str | None] = mapped_column(String(8))
    quality: Mapped[int | None] = mapped_column(Integer)
    note: Mapped[str] = mapped_column(String(500), default="")
    rows: Mapped[int | None] = mapped_column(Integer)
    __table_args__ = (
        UniqueConstraint("play_id", "staff_id"),
        CheckConstraint("quality between 0 and 3", name="quality"),
        CheckConstraint("decision in ('confirm', 'reverse', 'unclear')", name="decision"),
    )


class ReviewSegment(Base):
    """Rows [first, last] of an episode and what a reviewer says of them."""

    __tablename__ = "review_segment"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    review_id: Mapped[str] = mapped_column(ForeignKey("review.id"), index=True)
    first_row: Mapped[int] = mapped_column(Integer)
    last_row: Mapped[int] = mapped_column(Integer)
    label: Mapped[str] = mapped_column(String(32))  # play, tutorial, task, or a subtask
    quality: Mapped[int] = mapped_column(Integer)


class ReviewVerdict(Base):
    """What the review desk says of a play in the end: `review_id`'s segments are its labels.

    `settled_by` is an admin who chose between reviewers that disagreed, else None.
    """

    __tablename__ = "review_verdict"
    play_id: Mapped[str] = mapped_column(ForeignKey("play.id"), primary_key=True)
    review_id: Mapped[str] = mapped_column(ForeignKey("review.id"))
    decision: Mapped[str] = mapped_column(String(8))
    quality: Mapped[int | None] = mapped_column(Integer)
    settled_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    settled_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))


class GoldPlay(Base):
    """A play of known quality, which every reviewer meets once without being told."""

    __tablename__ = "gold_play"
    play_id: Mapped[str] = mapped_column(ForeignKey("play.id"), primary_key=True)
    decision: Mapped[str] = mapped_column(String(8))
    quality: Mapped[int] = mapped_column(Integer)
    set_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)


class SiteVersion(Base):
    """One row: grows with every change of a standing, so that pages know when to look again."""

    __tablename__ = "site_version"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, default=1)
    boards: Mapped[int] = mapped_column(BigInteger, default=0)
    # Days and weeks of the boards begin at this zone's midnight; standings are kept by it, so it
    # is changed by `collect.crowd.standings.set_zone` only.
    zone: Mapped[str] = mapped_column(String(48), default="UTC")


class AuditEntry(Base):
    """Who of the staff did what, to what."""

    __tablename__ = "audit_entry"
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    staff_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id"), index=True)
    action: Mapped[str] = mapped_column(String(48))
    subject: Mapped[str] = mapped_column(String(96))
    created_at: Mapped[dt.datetime] = mapped_column(default=utc_now)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
