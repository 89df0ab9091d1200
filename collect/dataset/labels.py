"""Labels of episodes: who said what and when, kept for good beside the episodes.

``labels.jsonl`` in the episodes' directory is append-only: one JSON object a label, with the
episode's UUID, the labeller, the time and the values before. The newest values also stand in the
episode's own metadata, so a file says by itself what it shows. Scores that methods compute never
go into an episode nor into this table.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_stack.episode import Episode, EpisodeMetadata
from robot_stack.episode import relabel as write_metadata
from robot_stack.errors import EpisodeError

__all__ = ["LABELS", "history", "label"]

LABELS = "labels.jsonl"
FIELDS = ("success", "task", "failure_tag", "notes")


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """One whole line in one write, after repairing a line that a killed writer left unfinished."""
    line = json.dumps(record, allow_nan=False).encode() + b"\n"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)


def label(path: Path, *, by: str, **values: Any) -> EpisodeMetadata:
    """Label an episode: ``success`` (True, False or None), ``task``, ``failure_tag``, ``notes``.

    First the table, then the episode's metadata (in place, safe against being killed). Content and
    content hash stay as they are. Returns the metadata that now hold.
    """
    unknown = [name for name in values if name not in FIELDS]
    if unknown or not values:
        raise EpisodeError(f"a label has some of {', '.join(FIELDS)}, not {unknown or 'nothing'}")
    with Episode.open(path) as episode:
        metadata = episode.metadata
    before = {**metadata.to_dict(), "notes": metadata.extra.get("notes")}
    record = {
        "episode": metadata.uuid,
        "file": path.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "labeller": by,
        **values,
        "before": {name: before[name] for name in values},
    }
    _append(path.parent / LABELS, record)
    changes = {name: value for name, value in values.items() if name != "notes"}
    if "success" in values:
        changes["labeller"] = by
    if "notes" in values:
        changes["extra"] = {**metadata.extra, "notes": values["notes"]}
    return write_metadata(path, **changes)


def history(directory: Path, uuid: str | None = None) -> list[dict[str, Any]]:
    """The labels given in ``directory``, oldest first; only those of one episode with ``uuid``.

    Lines that a killed writer left unfinished are passed over.
    """
    path = directory / LABELS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and uuid in (None, record.get("episode")):
            found.append(record)
    return found
