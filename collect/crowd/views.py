"""What the review page draws of each play, made apart from the site and kept beside its videos.

Whoever asks first waits for a process that opens the file (see `apart`); after that it is a small
file of JSON. It also keeps that an episode could not be read, so that a file which takes its time
to fail does so once, and the page can say it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collect.crowd import apart
from collect.crowd.apart import SAYS, UnreadableError, Why
from collect.crowd.config import CrowdConfig
from collect.crowd.files import confined
from collect.crowd.log import log
from collect.crowd.scoring import SHORTEST
from collect.crowd.segments import MAX_ROWS
from collect.crowd.tables import Play, Task
from collect.crowd.video import folder, forget_unless
from robot_stack.errors import RobotStackError

__all__ = ["BusyError", "Views", "episode_file"]

KEPT = "view.json"
AT_ONCE = 4  # processes that read for a worker of the site
PATIENCE_S = 30.0
RETRY_S = 600.0  # then a file that could not be read may be tried again


class BusyError(RobotStackError):
    """The site can't read an episode at this moment, which is not the episode's fault: too many
    others are being read, or there is no process to be had. ``retry_s`` until it may, about."""

    def __init__(self) -> None:
        self.retry_s = 10
        super().__init__(f"episodes can't be read at this moment; try again in {self.retry_s} s")


def episode_file(config: CrowdConfig, play: Play) -> Path | None:
    """Where a play's episode is; None when there is none within the site's episodes."""
    path = confined(config.episodes, play.file)
    return path if path is not None and path.is_file() else None


class Views:
    """A worker process' views. ``wanted(play_id)`` says, after one was made, whether the play is
    still there."""

    def __init__(self, media: Path, wanted: Callable[[str], bool]) -> None:
        self._media = media
        self._wanted = wanted
        self._room = threading.Condition()
        self._open: set[str] = set()

    def of(self, play_id: str, episode: Path, task: Task | None) -> dict[str, Any]:
        """See `review_data.episode_view`. UnreadableError, BusyError; FileNotFoundError when the
        file has gone."""
        least_s = 0.0 if task is None else SHORTEST * task.par_s
        key = _key(episode, least_s)
        kept = self._kept(play_id, key)
        if kept is None:
            with self._turn(play_id):
                kept = self._kept(play_id, key)  # somebody else waited for it, too
                if kept is None:
                    kept = self._make(play_id, episode, least_s, key)
        if "view" not in kept:
            raise UnreadableError(kept["unreadable"])
        view: dict[str, Any] = kept["view"]
        return view

    def trouble(self, play_id: str, episode: Path) -> Why | None:
        """Why this file could not be read when somebody last wanted to; nobody tries now."""
        kept = self._read(play_id)
        try:
            if kept is None or kept["of"][:2] != _key(episode, 0.0)[:2]:
                return None
        except FileNotFoundError:  # erased this moment
            return None
        why: Why | None = kept.get("unreadable")
        return why

    @contextlib.contextmanager
    def _turn(self, play_id: str) -> Iterator[None]:
        with self._room:
            if not self._room.wait_for(
                lambda: play_id not in self._open and len(self._open) < AT_ONCE, PATIENCE_S
            ):
                raise BusyError
            self._open.add(play_id)
        try:
            yield
        finally:
            with self._room:
                self._open.discard(play_id)
                self._room.notify_all()

    def _make(self, play_id: str, episode: Path, least_s: float, key: list[float]) -> Any:
        try:
            said = apart.run(apart.VIEW, episode, least_s=least_s)
            kept = {"of": key, "view": _checked(said)}
        except UnreadableError as error:
            log.error("an episode could not be read", play=play_id, error=error.said)
            kept = {"of": key, "unreadable": error.why}
        except OSError as error:
            log.error("an episode could not be read", play=play_id, error=str(error))
            raise BusyError from error
        self._keep(play_id, kept)
        return kept

    def _keep(self, play_id: str, kept: dict[str, Any]) -> None:
        where = folder(self._media, play_id)
        part = where / f".{KEPT}.{os.getpid()}"  # one of a play at a time, in this process
        try:
            where.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(kept))
            part.replace(where / KEPT)
        except OSError as error:  # a full disk, or erased this moment: it is seen all the same
            log.error("a view could not be kept", play=play_id, error=error)
            return
        forget_unless(self._wanted, self._media, play_id)

    def _kept(self, play_id: str, key: list[float]) -> dict[str, Any] | None:
        """What is kept of this very file, unless it may be tried again."""
        kept = self._read(play_id)
        if kept is None or kept["of"] != key:
            return None
        if "view" not in kept:
            with contextlib.suppress(FileNotFoundError):
                tried = (folder(self._media, play_id) / KEPT).stat().st_mtime
                return kept if 0 <= time.time() - tried < RETRY_S else None
        return kept

    def _read(self, play_id: str) -> dict[str, Any] | None:
        try:
            kept = json.loads((folder(self._media, play_id) / KEPT).read_text())
        except (FileNotFoundError, ValueError):  # of an older version of this site, or cut short
            return None
        known = isinstance(kept, dict) and isinstance(kept.get("of"), list)
        return kept if known and ("view" in kept or kept.get("unreadable") in SAYS) else None


def _key(episode: Path, least_s: float) -> list[float]:
    """What a view is of: the file as it is, and the task's least time."""
    status = episode.stat()
    return [status.st_size, status.st_mtime_ns, least_s]


def _checked(said: bytes | None) -> dict[str, Any]:
    """A view as the other process says it, which may be the file's by now: the site itself counts
    on its rows alone, and JSON has no NaN."""
    try:
        view = json.loads(said or b"", parse_constant=_no_constant)
        rows, rate = view["rows"], view["rate_hz"]
        if type(rows) is not int or not 0 <= rows <= MAX_ROWS:
            raise ValueError(f"{rows} rows")
        if not math.isfinite(rate):
            raise ValueError(f"{rate} rows a second")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UnreadableError("damaged", str(error)) from error
    assert isinstance(view, dict)
    return view


def _no_constant(name: str) -> float:
    raise ValueError(f"JSON has no {name}")
