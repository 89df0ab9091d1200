"""The directory of an export that isn't finished: names, a journal, a lock, and no gap in it.

What it remembers (which id of the site is called what in the export) is what the export must not
say: it goes before the directory gets its name.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collect.crowd.export_select import Chosen, Terms
from robot_stack.errors import ConfigError

__all__ = [
    "FOLDERS",
    "JOURNAL",
    "State",
    "begin",
    "close",
    "finished",
    "locked",
    "record",
    "sync",
    "tidy",
]

FOLDERS = ("episodes", "labels", "consent")
STATE = ".state.json"
JOURNAL = ".journal.jsonl"
LOCK = ".lock"


@dataclass(slots=True)
class State:
    """What a part directory remembers of itself, which is what the export must not say."""

    terms: dict[str, Any]
    names: dict[str, str]  # id of a play, participant or station -> what it is called here
    salt: str


@contextmanager
def locked(part: Path) -> Iterator[None]:
    """One export at a time writes here; ConfigError for the second."""
    with (part / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another export is writing {part}; wait for it to end") from error
        yield


def begin(part: Path, terms: Terms, chosen: Iterable[Chosen]) -> State:
    """The state on the disk, with names for what had none; a part directory of before goes on."""
    path = part / STATE
    if path.exists():
        state = State(**json.loads(path.read_text()))
        if state.terms != terms.as_dict():
            raise ConfigError(
                f"{part} was begun with other options ({json.dumps(state.terms)}); give those to "
                "go on with it, or remove it"
            )
    else:
        state = State(terms.as_dict(), {}, secrets.token_hex(32))
    for one in chosen:
        state.names.setdefault(one.play.id, str(uuid.uuid4()))
        state.names.setdefault(one.participant.id, f"contributor-{secrets.token_hex(8)}")
        state.names.setdefault(one.play.station_id, f"station-{secrets.token_hex(4)}")
    fresh = path.with_name(STATE + ".new")
    with fresh.open("w") as file:
        json.dump(asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return state


def finished(part: Path, chosen: dict[str, Chosen]) -> dict[str, dict[str, Any]]:
    """Episodes that an export which was cut short has finished, and of which reviewers say the
    same as then. A torn last line is none."""
    entries: dict[str, dict[str, Any]] = {}
    path = part / JOURNAL
    if not path.exists():
        return entries
    for line in path.read_text().splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue
        one, entry = chosen.get(said["play"]), said["entry"]
        episode = part / entry["file"]
        whole = episode.is_file() and episode.stat().st_size == entry["bytes"]
        if whole and one is not None and said["verdict"] == _stamp(one):
            entries[said["play"]] = entry
    # From a whole line on, whatever the last writer left.
    with path.open("w") as file:
        for play_id, entry in entries.items():
            file.write(record(play_id, chosen[play_id], entry))
        file.flush()
        os.fsync(file.fileno())
    return entries


def record(play_id: str, one: Chosen, entry: dict[str, Any]) -> str:
    """A line of the journal: this episode is on the disk, whole."""
    return json.dumps({"play": play_id, "verdict": _stamp(one), "entry": entry}) + "\n"


def _stamp(one: Chosen) -> str | None:
    verdict = one.verdict
    return None if verdict is None else f"{verdict.review_id} {verdict.settled_at.isoformat()}"


def tidy(part: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Remove what is not given out in the end."""
    wanted = {entry[name] for entry in kept.values() for name in ("file", "labels")}
    for folder in ("episodes", "labels"):
        for path in (part / folder).iterdir():
            if f"{folder}/{path.name}" not in wanted:
                path.unlink()


def close(part: Path) -> None:
    """Forget who was who."""
    for name in (STATE, JOURNAL, LOCK):
        (part / name).unlink(missing_ok=True)
    sync(part)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
