"""Videos of plays for the review desk: made one at a time beside the site, from the HDF5 file.

A request asks a bounded queue and is told to come back; a thread takes plays from it and has each
made apart (`collect.crowd.apart`), with lowest priority: a damaged file can't hurt the site, and a
robot on the same computer doesn't notice. All worker processes of a site share one lock, so one
video is made at a time. The index of a play's videos comes last: they are all there, or none is.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from collect.crowd import apart
from collect.crowd.apart import UnreadableError
from collect.crowd.log import log
from robot_stack.errors import RobotStackError

__all__ = [
    "INDEX",
    "Index",
    "QueueFullError",
    "VideoMaker",
    "folder",
    "forget",
    "forget_unless",
    "index_of",
]

State = Literal["ready", "making", "failed"]
PLAY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INDEX = "index.json"
FILE = re.compile(r"[0-9]{1,3}\.mp4")
POLL_S = 0.2
FAILED_S = 600.0  # then it may be tried again
MOST_FAILURES = 256


def _made_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # erased this moment
        return 0


class QueueFullError(RobotStackError):
    """Too many plays wait for their video; ``retry_s`` until there is room, about."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"many videos are being made; try again in {retry_s} s")
        self.retry_s = retry_s


@dataclass(frozen=True, slots=True)
class Index:
    """The videos of a play: frame i of every one is row ``i * step`` of the episode, shown at
    ``i / rate_hz``. ``cameras``: name -> file."""

    rate_hz: float
    step: int
    rows: int
    cameras: dict[str, str]

    @classmethod
    def read(cls, text: bytes | str) -> Index:
        """What another process has written; ValueError if no index can be that."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("an index is a mapping")
        cameras = {str(camera): str(name) for camera, name in values["cameras"].items()}
        if not all(map(FILE.fullmatch, cameras.values())):
            raise ValueError(f"videos are called 0.mp4 and so on, not {list(cameras.values())}")
        return cls(float(values["rate_hz"]), int(values["step"]), int(values["rows"]), cameras)


def folder(media: Path, play_id: str) -> Path:
    """Where a play's videos are; ValueError for what is no play's id."""
    if not PLAY_ID.fullmatch(play_id):
        raise ValueError(f"{play_id!r} is not the id of a play")
    return media / "review" / play_id


def index_of(media: Path, play_id: str) -> Index | None:
    """What videos of a play there are; None while there are none."""
    try:
        text = (folder(media, play_id) / INDEX).read_text()
    except FileNotFoundError:
        return None
    return Index.read(text)


def forget(media: Path, play_id: str) -> None:
    """Delete a play's videos and its view (see `views`). What is being made is deleted when it is
    done: erase first."""
    where = folder(media, play_id)
    for last in (False, False, True):
        try:
            shutil.rmtree(where)
        except FileNotFoundError:  # or one of its files got its name this moment
            if not where.exists():
                return
        except OSError:  # something was put there meanwhile
            if last:
                raise


def forget_unless(wanted: Callable[[str], bool], media: Path, play_id: str) -> None:
    """Forget what was just made of a play if it was erased meanwhile, or if nobody can tell. Who
    erases it from now on finds it."""
    keep = False
    try:
        keep = wanted(play_id)
    finally:
        if not keep:
            forget(media, play_id)


class VideoMaker:
    """A worker process' queue. ``wanted(play_id)`` says, after a video was made, whether the play
    is still there; ``capacity`` plays at most wait, and ``keep`` plays' videos stay on the disk."""

    def __init__(
        self, media: Path, capacity: int, wanted: Callable[[str], bool], keep: int = 300
    ) -> None:
        self._media = media
        self._keep = keep
        self._wanted = wanted
        self._queue: queue.Queue[tuple[str, Path] | None] = queue.Queue(capacity)  # None: the end
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._failed: dict[str, float] = {}
        self._stopping = threading.Event()

    def ask(self, play_id: str, episode: Path) -> State:
        """Whether a play's videos are there; they are made if not. QueueFullError."""
        if index_of(self._media, play_id) is not None:
            return "ready"
        with self._lock:
            if play_id in self._pending:
                return "making"
            if time.monotonic() < self._failed.get(play_id, 0.0):
                return "failed"
            try:
                self._queue.put_nowait((play_id, episode))
            except queue.Full:
                raise QueueFullError(retry_s=20) from None
            self._pending.add(play_id)
        return "making"

    @contextlib.contextmanager
    def running(self) -> Iterator[VideoMaker]:
        """Make what is asked for until the block ends; what is half done then is dropped."""
        thread = threading.Thread(target=self._run, name="crowd-videos")
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            with contextlib.suppress(queue.Full):  # then it does not wait for anything
                self._queue.put_nowait(None)
            thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            asked = self._queue.get()
            if asked is None:
                return
            play_id, episode = asked
            try:
                made = self._make(play_id, episode)
            except Exception as error:  # noqa: BLE001 - a full disk, no database: others wait
                log.error("a video could not be made", play=play_id, error=error)
                made = False
            with self._lock:
                self._pending.discard(play_id)
                if not made:
                    self._failed[play_id] = time.monotonic() + FAILED_S
                    while len(self._failed) > MOST_FAILURES:
                        self._failed.pop(next(iter(self._failed)))

    def _make(self, play_id: str, episode: Path) -> bool:
        """Whether the videos are there now (or are not wanted any more)."""
        goal = folder(self._media, play_id)
        goal.parent.mkdir(parents=True, exist_ok=True)
        with self._turn(goal.parent) as taken:
            if not taken or index_of(self._media, play_id) is not None:
                return True
            part = goal.parent / ".part"
            shutil.rmtree(part, ignore_errors=True)  # of one who was killed
            part.mkdir()
            try:
                index = self._encode(play_id, episode, part) if self._wanted(play_id) else None
                if index is None:
                    return self._stopping.is_set()
                goal.mkdir(exist_ok=True)
                for name in (*index.cameras.values(), INDEX):
                    (part / name).replace(goal / name)
                self._prune(goal.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            forget_unless(self._wanted, self._media, play_id)
        return True

    def _prune(self, where: Path) -> None:
        """Delete the oldest videos of too many."""
        made = [path for path in where.iterdir() if PLAY_ID.fullmatch(path.name)]
        made.sort(key=_made_at, reverse=True)
        for path in made[self._keep :]:
            forget(self._media, path.name)

    def _encode(self, play_id: str, episode: Path, part: Path) -> Index | None:
        """The videos are in ``part``, with their index; None when there are none to be had."""
        try:
            said = apart.run(apart.VIDEOS, episode, part, stopping=self._stopping)
            if said is None:
                return None
            index = Index.read(said)
            for name in index.cameras.values():
                if not stat.S_ISREG((part / name).lstat().st_mode):
                    raise ValueError(f"{name} is no file")
            (part / INDEX).write_text(json.dumps(asdict(index)))
        except UnreadableError as error:
            log.error("a video could not be made", play=play_id, error=error.said)
            return None
        return index

    @contextlib.contextmanager
    def _turn(self, where: Path) -> Iterator[bool]:
        """True once no other worker process makes videos; False when the site stops first."""
        with (where / ".lock").open("w") as file:
            while not self._stopping.is_set():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._stopping.wait(POLL_S)
                    continue
                yield True
                return
            yield False
