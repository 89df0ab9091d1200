"""What participants may demand of their data: take consent back, be erased, have a copy.

Erasing is two steps, so that being killed between them loses nothing: the database forgets first
(in one transaction, with tombstones of the participant and of each play), then `sweep` removes the
files of what is gone. Points stay in the ledger under an id that means nobody any more, so that
sums are right; that id is on no board, in no count and in no export.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import secrets
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from sqlalchemy import Table, Text, cast, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from collect.crowd import consent, review, tasks, video
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.files import confined
from collect.crowd.tables import (
    AuditEntry,
    Base,
    Clip,
    Consent,
    LedgerEntry,
    NicknameCase,
    Participant,
    Play,
    Tombstone,
    utc_now,
)

__all__ = ["KEPT", "REASONS", "erase", "erase_again", "forget_plays", "sweep", "withdraw"]

REASONS = ("asked", "retention", "staff")
# Tables whose rows of a participant stay, under its id alone: sums and stocks must be right.
# Plays are emptied, clips go with their files.
KEPT = frozenset({"ledger_entry", "standing", "reward_entry", "play", "clip"})


def erase(
    tx: Session, participant: Participant, *, reason: str = "asked", now: dt.datetime | None = None
) -> bool:
    """Forget a participant; False when that was done before. `sweep` must follow the commit.

    What is left: the row's id and when it was made, points and rewards handed out by that id, and
    tombstones.
    """
    if reason not in REASONS:
        raise ValueError(f"reason {reason!r} must be one of {', '.join(REASONS)}")
    now = now or utc_now()
    row = tx.get_one(Participant, participant.id, populate_existing=True)
    if row.erased_at is not None:
        return False
    cases = tx.scalars(select(NicknameCase).where(NicknameCase.participant_id == row.id)).all()
    words = {row.nickname, row.pseudonym, *(case.nickname for case in cases)} - {None}
    subjects = {row.id, *(case.id for case in cases)}
    for play in tx.scalars(select(Play).where(Play.participant_id == row.id)).all():
        _forget_play(tx, play, reason, now)
        subjects.add(play.id)
        play.participant_id = play.task_id = play.consent_id = None
    tx.flush()
    _forget_audit(tx, subjects, {str(word) for word in words})
    for table in reversed(Base.metadata.sorted_tables):
        if table.name not in KEPT:
            _delete_rows(tx, table, row.id)
    tx.execute(
        update(LedgerEntry)
        .where(LedgerEntry.participant_id == row.id, LedgerEntry.note != "")
        .values(note="")
    )
    row.kind = "guest"
    row.card_hash = row.nickname = row.skeleton = row.adult = None
    row.nickname_state = "pending"
    row.pseudonym = f"erased-{secrets.token_hex(8)}"
    row.language = "en"
    row.on_board = row.hidden = row.no_research = False
    row.tutorial_at = row.arm = None
    row.erased_at = now
    tx.add(Tombstone(id=row.id, kind="participant", erased_at=now, reason=reason))
    tx.flush()
    return True


def erase_again(tx: Session, tombstone: Tombstone) -> bool:
    """Erase what a tombstone of elsewhere names: a database that was brought back from a backup has
    it still. False when there is nothing of it, or nothing any more; a station that has a play that
    this database does not know is told that it was erased."""
    if tombstone.kind == "participant":
        row = tx.get(Participant, tombstone.id)
        return row is not None and erase(tx, row, reason=tombstone.reason, now=tombstone.erased_at)
    play = tx.get(Play, tombstone.id)
    if play is None:
        tx.merge(tombstone)
        return False
    return bool(forget_plays(tx, [play], reason=tombstone.reason, now=tombstone.erased_at))


def withdraw(
    tx: Session,
    participant: Participant,
    scopes: Iterable[str],
    now: dt.datetime | None = None,
) -> list[str]:
    """Take consent back; the ids of plays that are gone with it. `sweep` must follow the commit.

    Without `record` the recordings and what was measured, answered and noted of them go; the points
    that they earned stay. Without `clips` no clip is shown any more, and its files go. Without
    `research` nothing goes: no export has it from now on.
    """
    now = now or utc_now()
    consent.withdraw(tx, participant, scopes, now)
    if consent.REQUIRED not in set(scopes):
        return []
    theirs = tx.scalars(select(Play).where(Play.participant_id == participant.id)).all()
    return forget_plays(tx, theirs, reason="asked", now=now)


def forget_plays(tx: Session, plays: Iterable[Play], *, reason: str, now: dt.datetime) -> list[str]:
    """Forget what was recorded, measured and answered of plays, and what staff said of them; the
    ids of those that had not been forgotten before. `sweep` must follow the commit."""
    gone = [play.id for play in plays if _forget_play(tx, play, reason, now)]
    tx.flush()
    _forget_audit(tx, set(gone))
    return gone


def sweep(database: Database, config: CrowdConfig) -> int:
    """Remove the files of erased plays and of clips that may not be shown; how many went.

    May be killed and run again at any time; beside it others may sweep, too.
    """
    with database.read() as tx:
        graves = tx.scalars(select(Tombstone.id).where(Tombstone.kind == "play")).all()
        files = dict(
            tx.execute(
                select(Play.id, Play.file).where(
                    Play.file.is_not(None),
                    exists().where(Tombstone.id == Play.id),
                )
            ).all()
        )
        clips = [
            clip
            for clip in tx.scalars(select(Clip).where(Clip.participant_id.is_not(None)))
            if _clip_is_over(tx, clip)
        ]
    removed = 0
    present = _episodes(config.episodes) if graves else {}
    for play_id in graves:
        paths = {*present.get(play_id, ())}
        if file := files.get(play_id):
            path = confined(config.episodes, file)
            if path is None:
                raise ValueError(f"the file {file!r} of a play is outside of {config.episodes}")
            paths.add(path)
        for path in paths:
            removed += _unlink(path)
        if video.folder(config.media, play_id).is_dir():
            video.forget(config.media, play_id)
            removed += 1
    if files or clips:
        with database.begin() as tx:
            tx.execute(update(Play).where(Play.id.in_(list(files))).values(file=None, sha256=None))
            for clip in clips:
                row = tx.get(Clip, clip.id)
                if row is not None and _clip_is_over(tx, row):
                    tasks.remove_clip(tx, config.media, row)
                    removed += 1
    return removed


def _forget_play(tx: Session, play: Play, reason: str, now: dt.datetime) -> bool:
    """Empty a play of what was recorded, measured and answered; its file is named until it is
    gone. False when that was done before."""
    review.forget(tx, play.id)
    if play.state == "running":
        play.ended_at = now
    play.state = "void"
    play.metrics = {}
    play.seconds = play.claimed = play.checked = play.ended_by = None
    play.likert_intuitive = play.likert_fun = play.likert_did = None
    play.synced_at = None
    if tx.get(Tombstone, play.id) is not None:
        return False
    tx.add(Tombstone(id=play.id, kind="play", erased_at=now, reason=reason))
    return True


def _delete_rows(tx: Session, table: Table, participant_id: str) -> None:
    """Delete what a table has of a participant, by any column that refers to one."""
    columns = [
        column
        for column in table.columns
        for key in column.foreign_keys
        if key.target_fullname == "participant.id"
    ]
    if columns:
        tx.execute(delete(table).where(or_(*(c == participant_id for c in columns))))


def _forget_audit(tx: Session, subjects: set[str], words: Set[str] = frozenset()) -> None:
    """That staff did something stays; to which of ``subjects``, and any of ``words``, goes."""
    detail = cast(AuditEntry.detail, Text)  # all that was ever done is too much to be loaded
    somewhere = [detail.contains(json.dumps(word)[1:-1], autoescape=True) for word in sorted(words)]
    for entry in tx.scalars(
        select(AuditEntry).where(or_(AuditEntry.subject.in_(subjects | words), *somewhere))
    ):
        named = any(word == entry.subject or _mentions(entry.detail, word) for word in words)
        if named or entry.subject in subjects:
            entry.detail = {}
            entry.subject = "erased"
    tx.flush()


def _mentions(value: Any, word: str) -> bool:
    if isinstance(value, dict):
        return any(_mentions(item, word) for item in value.values())
    if isinstance(value, list):
        return any(_mentions(item, word) for item in value)
    return bool(value == word)


def _clip_is_over(tx: Session, clip: Clip) -> bool:
    """Whether somebody's clip must go: erased, or it agreed to it no longer. Hidden is not gone."""
    participant = None if clip.participant_id is None else tx.get(Participant, clip.participant_id)
    if participant is None:
        return False
    given = tx.scalars(select(Consent).where(Consent.participant_id == participant.id))
    return participant.erased_at is not None or not any(
        consent.covers(row, "clips") for row in given
    )


def _episodes(episodes: Path) -> dict[str, list[Path]]:
    """Files by the play whose id they begin with, of all stations and of uploads under way."""
    found: dict[str, list[Path]] = {}
    for folder in episodes.glob("*/"):  # .incoming among them
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                found.setdefault(path.name.split(".")[0], []).append(path)
    return found


def _unlink(path: Path) -> int:
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return 1
