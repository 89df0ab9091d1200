"""Everything that the site has of a participant, as a ZIP that is made while it is sent.

The tables are read at once, in one consistent look (one person's rows are few); episodes follow in
pieces, with no database session open, so that memory doesn't grow with what is sent. What is
erased meanwhile is left out of the rest.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from collect.crowd.database import Database
from collect.crowd.files import confined
from collect.crowd.i18n import translator
from collect.crowd.tables import (
    BadgeAward,
    Base,
    Clip,
    Consent,
    Exposure,
    LedgerEntry,
    NicknameCase,
    Participant,
    Play,
    Queued,
    Review,
    RewardEntry,
    Standing,
    StationLease,
    WebSession,
)

__all__ = ["TABLES", "MyData", "collect", "stream"]

CHUNK = 1 << 20
# File in the ZIP: table and the columns of it that aren't the participant's own to see: secrets,
# and who of the staff it was.
TABLES: dict[str, tuple[type[Base], frozenset[str]]] = {
    "consents": (Consent, frozenset()),
    "plays": (Play, frozenset({"fence"})),
    "points": (LedgerEntry, frozenset()),
    "boards": (Standing, frozenset()),
    "badges": (BadgeAward, frozenset()),
    "rewards": (RewardEntry, frozenset({"staff_id"})),
    "exposures": (Exposure, frozenset()),
    "nicknames": (NicknameCase, frozenset({"decided_by"})),
    "clips": (Clip, frozenset()),
    "visits": (WebSession, frozenset({"token_hash", "csrf", "staff_id"})),
    "queue": (Queued, frozenset()),
    "turns": (StationLease, frozenset({"fence"})),
}
REVIEW_COLUMNS = ("play_id", "done_at", "decision", "quality")


class MyData:
    """A participant's rows by the file of the ZIP that they go into, and its episodes.

    ``episodes``: (play's id, path below the site's episodes).
    """

    def __init__(
        self, documents: dict[str, Any], episodes: list[tuple[str, str]], language: str
    ) -> None:
        self.documents = documents
        self.episodes = episodes
        self.language = language


def collect(tx: Session, participant: Participant, language: str) -> MyData:
    """All that the tables have of a participant."""
    row = tx.get_one(Participant, participant.id)
    profile = _plain(row, frozenset({"card_hash", "skeleton"}))
    profile["card"] = row.card_hash is not None  # the hash itself would say nothing to anybody
    documents: dict[str, Any] = {"profile": profile}
    for name, (table, hidden) in TABLES.items():
        rows = tx.scalars(select(table).where(table.participant_id == row.id))  # type: ignore[attr-defined]
        documents[name] = [_plain(item, hidden) for item in rows]
    reviews = tx.scalars(
        select(Review)
        .join(Play, Play.id == Review.play_id)
        .where(Play.participant_id == row.id, Review.done_at.is_not(None))
    )
    everything = frozenset(column.key for column in inspect(Review).columns)
    documents["reviews"] = [_plain(item, everything - set(REVIEW_COLUMNS)) for item in reviews]
    plays = tx.scalars(
        select(Play)
        .where(Play.participant_id == row.id, Play.state == "synced", Play.file.is_not(None))
        .order_by(Play.started_at, Play.id)
    ).all()
    documents["episodes"] = [
        {
            "play": play.id,
            "file": f"episodes/{play.id}.hdf5",
            "sha256": play.sha256,
            "task": play.task_id,
            "started_at": play.started_at.isoformat(),
        }
        for play in plays
    ]
    return MyData(documents, [(play.id, str(play.file)) for play in plays], language)


def stream(
    data: MyData, database: Database | None = None, episodes: Path | None = None
) -> Iterator[bytes]:
    """The ZIP in pieces of about a mebibyte; with ``episodes`` the recordings are in it, too."""
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", translator(data.language)("account.readme"))
        for name, document in data.documents.items():
            archive.writestr(
                f"{name}.json", json.dumps(document, ensure_ascii=False, indent=1) + "\n"
            )
            yield from buffer.take()
        if episodes is not None and database is not None:
            for play_id, relative in data.episodes:
                yield from _episode(archive, buffer, database, episodes, play_id, relative)
    yield from buffer.take()


def _episode(
    archive: zipfile.ZipFile,
    buffer: _Buffer,
    database: Database,
    episodes: Path,
    play_id: str,
    relative: str,
) -> Iterator[bytes]:
    path = confined(episodes, relative)
    with database.read() as tx:
        play = tx.get(Play, play_id)
        if path is None or play is None or play.state != "synced":
            return
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return
    # Stored: images in it are compressed already.
    entry = zipfile.ZipInfo(f"episodes/{play_id}.hdf5", play.started_at.timetuple()[:6])
    with source, archive.open(entry, "w", force_zip64=True) as target:
        while block := source.read(CHUNK):
            target.write(block)
            yield from buffer.take()


class _Buffer(io.RawIOBase):
    """What `zipfile` writes to: a place that can't be sought, emptied as it fills."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def take(self) -> Iterator[bytes]:
        """What was written since, as one piece."""
        if self._parts:
            yield b"".join(self._parts)
            self._parts.clear()


def _plain(row: Base, hidden: frozenset[str]) -> dict[str, Any]:
    return {
        column.key: value.isoformat() if isinstance(value, dt.datetime) else value
        for column in inspect(type(row)).columns
        if column.key not in hidden
        for value in (getattr(row, column.key),)
    }
