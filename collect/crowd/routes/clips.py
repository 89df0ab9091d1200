"""Clips of tasks and their captions: public, as long as who drove agrees."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from collect.crowd.deps import Config, Db
from collect.crowd.tables import Clip
from collect.crowd.tasks import captions_file, shown_clip, video_type

__all__ = ["router"]

router = APIRouter()

ClipId = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]
# Asked again each time: a clip that was withdrawn is gone at once.
HEADERS = {"cache-control": "no-cache"}


@router.get("/clips/{clip_id}")
def clip_video(db: Db, config: Config, clip_id: ClipId) -> Response:
    """The video (MP4 or WebM; one Range at a time)."""
    clip = _shown(db, clip_id)
    path = config.media / clip.file
    if not path.is_file():
        raise HTTPException(404, "there is no such clip")
    return FileResponse(path, media_type=video_type(clip), headers=HEADERS)


@router.get("/clips/{clip_id}/{language}.vtt")
def clip_captions(
    db: Db,
    config: Config,
    clip_id: ClipId,
    language: Annotated[str, Path(pattern=r"^[a-z]{2,3}$")],
) -> Response:
    """Captions in one language (WebVTT)."""
    path = captions_file(config.media, _shown(db, clip_id), language)
    if not path.is_file():
        raise HTTPException(404, "there are no captions in this language")
    return FileResponse(path, media_type="text/vtt", headers=HEADERS)


def _shown(db: Db, clip_id: str) -> Clip:
    with db.read() as tx:
        clip = tx.get(Clip, clip_id)
        if clip is None or not shown_clip(tx, clip):
            raise HTTPException(404, "there is no such clip")
    return clip
