"""What a station's agent has to do and to tell, on disk: it survives being killed at any moment.

One JSON file a play below ``plays/``, replaced in one step and pushed to the disk. A play is

    begun ──► ended (its result stands) ──► done (the site has it)

and never begun twice. A full disk takes no new play; that one has ended is kept in memory then, and
written as soon as there is room (an agent that is killed meanwhile finds it begun, and its
recording). ``episodes/`` is where the recorder writes; ``site.json`` (mode 0600) is the
pairing with the site.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robot_stack.errors import ConfigError

__all__ = ["KEPT_DONE_S", "Entry", "Outbox", "Pairing", "file_sha256"]

# The site asks for nothing twice for longer than that, and damaged recordings of people don't lie
# about for ever.
KEPT_DONE_S = 30 * 86400.0
CHUNK = 1 << 20
PROBE = 1 << 16  # more than a play's entry has


@dataclass(frozen=True, slots=True)
class Pairing:
    """The site that an agent belongs to: its address, the station's name there, and the token."""

    site: str
    station: str
    token: str

    def __repr__(self) -> str:
        return f"Pairing({self.site}, {self.station})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One play: the order that it was begun by, and what came of it.

    ``ended_at`` is of this computer's clock, for differences only. ``result`` is the report without
    the times; ``file`` the episode, relative to the episodes' directory: of a play that is done,
    what the site did not want of it. ``unknown_at``: when the site first said that it does not know
    the play.
    """

    play: str
    state: Literal["begun", "ended", "done"]
    order: dict[str, Any] = field(default_factory=dict)
    ended_at: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    file: str | None = None
    unknown_at: float | None = None

    @property
    def ago_s(self) -> float:
        """How long ago it ended."""
        return 0.0 if self.ended_at is None else max(0.0, time.time() - self.ended_at)


class Outbox:
    """The directory of one agent; one process at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.episodes = directory / "episodes"
        self._plays = directory / "plays"
        self._lock = threading.Lock()
        self._known: dict[str, Entry] = {}
        self._unwritten: set[str] = set()
        self._refusing = False  # the disk did not take the last write
        for folder in (directory, self.episodes, self._plays):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._plays.glob("*.json")):
            entry = Entry(**json.loads(path.read_text()))
            self._known[entry.play] = entry
        self.tidy()

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Be the directory's only agent; ConfigError while another one lives."""
        handle = os.open(
            self.directory / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another agent works in {self.directory}; end it, or give --outbox another "
                    "directory"
                ) from error
            yield
        finally:
            os.close(handle)

    # -- the pairing -------------------------------------------------------------------------

    def pairing(self) -> Pairing | None:
        """The site that this agent is paired with, None before; ConfigError if others may read
        the token."""
        path = self.directory / "site.json"
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            return None
        if mode & 0o077:
            raise ConfigError(f"others may read the token in {path}: `chmod 600 {path}`")
        return Pairing(**json.loads(path.read_text()))

    def pair(self, pairing: Pairing) -> None:
        """Keep the token, for its owner only. Turns that are over are no turns of this pairing:
        their fences are forgotten."""
        for entry in self.entries("done"):
            self.put(replace(entry, order={}))
        self._write(self.directory / "site.json", asdict(pairing))

    @property
    def fence(self) -> int:
        """The highest fence of an order that was taken; what has a lower one is of an earlier
        turn."""
        with self._lock:
            return max((int(e.order.get("fence", 0)) for e in self._known.values()), default=0)

    # -- plays -------------------------------------------------------------------------------

    def get(self, play: str) -> Entry | None:
        with self._lock:
            return self._known.get(play)

    def entries(self, *states: str) -> list[Entry]:
        """The plays in one of these states, those that ended first before others."""
        with self._lock:
            found = [entry for entry in self._known.values() if entry.state in states]
        return sorted(found, key=lambda entry: (entry.ended_at or 0.0, entry.play))

    def put(self, entry: Entry) -> None:
        """Keep an entry; it is on the disk when this returns. OSError when that can't be."""
        with self._lock:
            self._store(entry)
            self._known[entry.play] = entry

    def keep(self, entry: Entry) -> None:
        """Keep an entry that says what has happened: in memory until `settle`, if the disk does not
        take it now."""
        with self._lock:
            self._known[entry.play] = entry
            try:
                self._store(entry)
            except OSError:
                self._unwritten.add(entry.play)

    def settle(self) -> None:
        """Write what the disk did not take; OSError while it takes nothing."""
        with self._lock:
            if not self._refusing:
                return
            for play in sorted(self._unwritten):
                self._store(self._known[play])
        self.probe()

    def probe(self) -> None:
        """OSError when the disk does not take a small file."""
        path = self.directory / "probe"
        with self._lock:
            try:
                self._write(path, {"probe": "x" * PROBE})
            except OSError:
                self._refusing = True
                raise
            path.unlink()
            self._refusing = False

    def done(self, entry: Entry, *, keep: bool = False) -> None:
        """The site has all of it: the episode is the site's now, and goes from here, unless it is
        to be kept until `tidy`; that the play was begun stays known."""
        if not keep:
            self._remove(entry)
        self.keep(replace(entry, state="done", result={}, file=entry.file if keep else None))

    def tidy(self) -> None:
        """Forget what was done a month ago, and remove what was kept of it."""
        for entry in self.entries("done"):
            if entry.ago_s > KEPT_DONE_S:
                self._remove(entry)
                (self._plays / f"{entry.play}.json").unlink(missing_ok=True)
                with self._lock:
                    del self._known[entry.play]
                    self._unwritten.discard(entry.play)

    def _remove(self, entry: Entry) -> None:
        if entry.file is not None:
            (self.episodes / entry.file).unlink(missing_ok=True)

    def _store(self, entry: Entry) -> None:
        """To the disk, under the lock."""
        try:
            self._write(self._plays / f"{entry.play}.json", asdict(entry))
        except OSError:
            self._refusing = True
            raise
        self._unwritten.discard(entry.play)

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        part = path.with_suffix(".new")
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)  # half of it: a full disk can do without
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()
