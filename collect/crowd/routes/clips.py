"""Clips of tasks and their captions: public, as long as who drove agrees."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from collect.crowd.deps import Config, Db
from collect.crowd.ranges import FileRange
from collect.crowd.tables import Clip
from collect.crowd.tasks import captions_file, shown_clip, video_type

__all__ = ["router"]

router = APIRouter()

PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that Range asks for"},
    416: {"description": "There is no such part"},
}
ClipId = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]


@router.get("/clips/{clip_id}", responses=PARTS)
def clip_video(request: Request, db: Db, config: Config, clip_id: ClipId) -> Response:
    """The video (MP4 or WebM). Browsers ask again each time: one that was withdrawn is gone."""
    clip = _shown(db, clip_id)
    return _file(request, config.media / clip.file, video_type(clip))


@router.get("/clips/{clip_id}/{language}.vtt", responses=PARTS)
def clip_captions(
    request: Request,
    db: Db,
    config: Config,
    clip_id: ClipId,
    language: Annotated[str, Path(pattern=r"^[a-z]{2,3}$")],
) -> Response:
    """Captions in one language (WebVTT)."""
    clip = _shown(db, clip_id)
    return _file(request, captions_file(config.media, clip, language), "text/vtt; charset=utf-8")


def _file(request: Request, path: pathlib.Path, media_type: str) -> Response:
    try:
        return FileRange(request, path, media_type)
    except FileNotFoundError as error:
        raise HTTPException(404, "there is no such clip") from error


def _shown(db: Db, clip_id: str) -> Clip:
    with db.read() as tx:
        clip = tx.get(Clip, clip_id)
        if clip is None or not shown_clip(tx, clip):
            raise HTTPException(404, "there is no such clip")
    return clip
