"""Tasks of the site: their texts, and clips with captions that show how it is done.

A clip is copied below the site's media directory under a name of its own making; what the file
was called is kept nowhere. A participant's clip is shown only while its consent covers that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd import consent
from collect.crowd.agent_messages import LONGEST_PLAY_S
from collect.crowd.tables import Clip, Consent, Participant, Task, TaskText, new_id
from robot_stack.config import parse, read_yaml, within
from robot_stack.errors import ConfigError

__all__ = [
    "CLIPS",
    "ClipFile",
    "ClipView",
    "TaskFile",
    "Texts",
    "add_clip",
    "captions_file",
    "clips_of",
    "put_task",
    "read_task",
    "remove_clip",
    "shown_clip",
    "text_of",
    "video_type",
]

CLIPS = "clips"  # below the media directory
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,46}")
LANGUAGE = re.compile(r"[a-z]{2,3}")
MAX_VIDEO = 64 << 20
MAX_CAPTIONS = 256 << 10
MAX_CAPTION = 200
# By the first bytes: ISO base media (ISO/IEC 14496-12: size, then `ftyp`), and EBML (RFC 8794).
TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class Texts:
    """A task in one language."""

    title: str
    body: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.title.strip()) <= 80 or not 1 <= len(self.body.strip()) <= 4000:
            raise ValueError("a task's title has 1 to 80 characters, its body 1 to 4000")


@dataclass(frozen=True)
class ClipFile:
    """A clip to be copied: ``captions`` maps a language to a WebVTT file. Paths are relative to
    the task's file."""

    file: Path
    caption: str
    captions: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= len(self.caption.strip()) <= MAX_CAPTION:
            raise ValueError(f"a clip's caption has 1 to {MAX_CAPTION} characters")


@dataclass(frozen=True)
class TaskFile:
    """A task as its YAML file says it; ``par_s`` is a good time, ``seconds`` when it is ended."""

    id: str
    difficulty: str
    texts: dict[str, Texts]
    seconds: int = within(10, LONGEST_PLAY_S, "s", default=120)
    par_s: float = within(1, 3600, "s", default=45.0)
    position: int = 0
    active: bool = True
    checked: bool = False
    subtasks: tuple[str, ...] = ()
    clips: tuple[ClipFile, ...] = ()

    def __post_init__(self) -> None:
        if not SLUG.fullmatch(self.id):
            raise ValueError(f"id {self.id!r} must be a-z, 0-9 and dashes, 47 at most")
        if self.difficulty not in ("easy", "hard"):
            raise ValueError(f"difficulty {self.difficulty!r} must be easy or hard")
        if self.par_s > self.seconds:
            raise ValueError(f"par_s {self.par_s} is longer than the {self.seconds} s there are")
        if not self.texts or not all(LANGUAGE.fullmatch(name) for name in self.texts):
            raise ValueError("texts must map languages (en, de) to a title and a body")


@dataclass(frozen=True)
class ClipView:
    """What a page needs of a clip; ``captions``: (language, URL) pairs."""

    id: str
    url: str
    type: str
    caption: str
    captions: tuple[tuple[str, str], ...]


def read_task(path: Path) -> TaskFile:
    """The task of a YAML file, with its clips' paths made absolute; ConfigError says what is
    wrong, in which line, and for paths that leave the file's own directory."""
    task = parse(TaskFile, read_yaml(path, "task file", "docs/crowd.md"), str(path))
    here = path.resolve().parent
    clips = tuple(
        ClipFile(
            _below(here, clip.file),
            clip.caption,
            {language: _below(here, file) for language, file in clip.captions.items()},
        )
        for clip in task.clips
    )
    return TaskFile(**{**vars(task), "clips": clips})


def put_task(tx: Session, task: TaskFile) -> bool:
    """Add a task, or change the one of this id (not its clips); whether it is new."""
    row = tx.get(Task, task.id)
    new = row is None
    if row is None:
        row = Task(id=task.id)
        tx.add(row)
    for name in ("difficulty", "seconds", "par_s", "position", "active", "checked"):
        setattr(row, name, getattr(task, name))
    row.subtasks = list(task.subtasks)
    tx.flush()
    for old in tx.scalars(select(TaskText).where(TaskText.task_id == task.id)):
        if old.language not in task.texts:
            tx.delete(old)
    for language, text in task.texts.items():
        tx.merge(
            TaskText(
                task_id=task.id,
                language=language,
                title=text.title.strip(),
                body=text.body.strip(),
            )
        )
    tx.flush()
    return new


def add_clip(
    tx: Session,
    media: Path,
    task_id: str,
    clip: ClipFile,
    participant_id: str | None = None,
) -> Clip:
    """Copy a clip and its captions below ``media`` and add its row.

    ConfigError when it is no MP4 or WebM of at most 64 MiB, or captions aren't WebVTT; then
    nothing is left behind. (Call it with files that were looked at; it copies inside ``tx``.)
    """
    if tx.get(Task, task_id) is None:
        raise ConfigError(f"there is no task {task_id!r}; see `robot-stack crowd task list`")
    suffix = _check_video(clip.file)
    for language, file in clip.captions.items():
        if not LANGUAGE.fullmatch(language):
            raise ConfigError(f"{language!r} is no language for captions; write en or de")
        _check_captions(file)
    row = Clip(
        id=new_id(),
        task_id=task_id,
        caption=clip.caption.strip(),
        participant_id=participant_id,
    )
    row.file = f"{CLIPS}/{row.id}{suffix}"
    try:
        _copy(clip.file, media / row.file, MAX_VIDEO)
        for language, file in clip.captions.items():
            _copy(file, captions_file(media, row, language), MAX_CAPTIONS)
        tx.add(row)
        tx.flush()
    except BaseException:
        _remove_files(media, row)
        raise
    return row


def remove_clip(tx: Session, media: Path, clip: Clip) -> None:
    """Remove a clip: its files first, so that a kill leaves a row that can be removed again."""
    _remove_files(media, clip)
    tx.delete(clip)
    tx.flush()


def captions_file(media: Path, clip: Clip, language: str) -> Path:
    """Where a clip's captions in a language are, if there are any."""
    return media / CLIPS / f"{clip.id}.{language}.vtt"


def shown_clip(tx: Session, clip: Clip) -> bool:
    """Whether a clip may be shown: the site's own, or of somebody who still agrees to it."""
    if clip.participant_id is None:
        return True
    participant = tx.get(Participant, clip.participant_id)
    if participant is None or participant.hidden or participant.erased_at is not None:
        return False
    given = tx.scalars(select(Consent).where(Consent.participant_id == participant.id))
    return any(consent.covers(row, "clips") for row in given)


def clips_of(tx: Session, media: Path, task_id: str) -> list[ClipView]:
    """The clips of a task that may be shown and whose files are there, oldest name first."""
    clips = tx.scalars(select(Clip).where(Clip.task_id == task_id).order_by(Clip.id)).all()
    return [
        ClipView(
            clip.id,
            f"/{CLIPS}/{clip.id}",
            video_type(clip),
            clip.caption,
            tuple(
                (file.name.split(".")[1], f"/{CLIPS}/{clip.id}/{file.name.split('.')[1]}.vtt")
                for file in sorted((media / CLIPS).glob(f"{clip.id}.*.vtt"))
            ),
        )
        for clip in clips
        if shown_clip(tx, clip) and (media / clip.file).is_file()
    ]


def text_of(tx: Session, task: Task, language: str) -> TaskText:
    """The task's text in ``language``, else in English, else in whatever there is."""
    texts = tx.scalars(select(TaskText).where(TaskText.task_id == task.id)).all()
    preferred = {language: 0, "en": 1}
    return min(texts, key=lambda text: (preferred.get(text.language, 2), text.language))


def video_type(clip: Clip) -> str:
    """The media type of a clip."""
    return TYPES.get(Path(clip.file).suffix, TYPES[".mp4"])


def _below(here: Path, path: Path) -> Path:
    found = (here / path).resolve()
    if not found.is_relative_to(here):
        raise ConfigError(f"{path} leaves {here}: a task's clips lie beside its file or below")
    return found


def _check_video(path: Path) -> str:
    head = _head(path, 16, MAX_VIDEO)
    if head[4:8] == b"ftyp":
        return ".mp4"
    if head.startswith(EBML):
        return ".webm"
    raise ConfigError(f"{path} is neither MP4 nor WebM; make one with `ffmpeg -i {path} clip.mp4`")


def _check_captions(path: Path) -> None:
    _head(path, 16, MAX_CAPTIONS)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the captions {path} aren't UTF-8 text") from error
    lines = text.splitlines()
    if not lines or not re.fullmatch(r"WEBVTT([ \t].*)?", lines[0]) or "-->" not in text:
        raise ConfigError(
            f"{path} is no WebVTT: its first line must be WEBVTT, then times such as "
            "00:01.000 --> 00:04.000 with a text below each"
        )


def _head(path: Path, size: int, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if not path.is_file() or not 0 < length <= most:
                raise ConfigError(f"{path} has {length} bytes; allowed are 1 to {most}")
            return file.read(size)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _copy(source: Path, target: Path, most: int) -> None:
    """All of it or nothing under the target's name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with source.open("rb") as reader, part.open("wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
            if writer.tell() > most:
                raise ConfigError(f"{source} grew beyond {most} bytes while it was copied")
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove_files(media: Path, clip: Clip) -> None:
    (media / CLIPS / Path(clip.file).name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        for file in (media / CLIPS).glob(f"{clip.id}.*"):
            file.unlink(missing_ok=True)
