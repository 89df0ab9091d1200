"""The review desk: the next play, its videos and joints, what the reviewer says of it.

A reviewer opens what the queue has assigned to them, and nothing else; an admin may look at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, FastAPI, Form, Path, Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response

from collect.crowd import review, segments, video
from collect.crowd.apart import UnreadableError
from collect.crowd.deps import CurrentReviewer, CurrentSite, Db
from collect.crowd.i18n import choose_language
from collect.crowd.ranges import FileRange
from collect.crowd.review import ReviewError
from collect.crowd.routes.staff_people import Id
from collect.crowd.segments import QUALITIES, SegmentError
from collect.crowd.site import Site
from collect.crowd.tables import GoldPlay, Play, Review, ReviewVerdict, Staff, Task, TaskText
from collect.crowd.templating import render
from collect.crowd.video import QueueFullError, VideoMaker
from collect.crowd.views import BusyError, Views, episode_file

__all__ = ["may_look", "router"]

MAX_SEGMENT_TEXT = 32_000
MAKING_S = 2  # how soon to ask again for a video that is being made


PARTS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that Range asks for"},
    304: {"description": "The same as If-None-Match has"},
    416: {"description": "There is no such part"},
}


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site

    def wanted(play_id: str) -> bool:
        with site.database.read() as tx:
            play = tx.get(Play, play_id)
        return play is not None and play.state == "synced"

    settings = site.config.review
    maker = VideoMaker(site.config.media, settings.video_queue, wanted, settings.video_keep)
    with contextlib.ExitStack() as stack:
        stack.enter_context(maker.running())
        app.state.videos = maker
        app.state.views = Views(site.config.media, wanted)
        try:
            yield
        finally:
            await asyncio.to_thread(stack.close)


router = APIRouter(lifespan=_lifespan)


def may_look(tx: Session, play_id: str, staff: Staff) -> tuple[Play, Review | None]:
    """The play, and the reviewer's own look at it. 404 for what is not theirs to see."""
    play = tx.get(Play, play_id)
    mine = review.assignment(tx, play_id, staff)
    if play is None or play.state != "synced" or (mine is None and staff.role != "admin"):
        raise HTTPException(404, "there is no such play for you to look at")
    return play, mine


@router.get("/staff/review")
def desk(request: Request, db: Db, staff: CurrentReviewer) -> Response:
    """How much waits, what the reviewer has done, and the way to the next play."""
    with db.read() as tx:
        done = tx.scalar(
            select(func.count())
            .select_from(Review)
            .where(Review.staff_id == staff.id, Review.done_at.is_not(None))
        )
        return render(request, "staff/desk.html", waiting=review.waiting(tx), done=done)


@router.post("/staff/review/next")
def take_next(
    request: Request, site: CurrentSite, staff: CurrentReviewer, afterwards: BackgroundTasks
) -> Response:
    """Have the next play assigned, for half an hour, and go there."""
    with site.database.begin() as tx:
        play = review.next_play(tx, staff, site.config.review)
    if play is None:
        return RedirectResponse("/staff/review", status_code=303)
    with site.database.read() as tx:
        after = review.upcoming(tx, staff, play, site.config.review)
    for one in (play, after):  # what there is to see of the next is there when this one is done
        if one is not None:
            with contextlib.suppress(HTTPException):  # the page asks again
                _ask(request, site, one)
    if after is not None:
        afterwards.add_task(_prepare, request, site, after)
    return RedirectResponse(f"/staff/review/{play.id}", status_code=303)


@router.get("/staff/review/{play_id}")
def review_page(
    request: Request, site: CurrentSite, staff: CurrentReviewer, play_id: Id
) -> Response:
    """Cameras in step, joints, flags, segments, the decision."""
    return _page(request, site, staff, play_id)


@router.post("/staff/review/{play_id}")
def commit_review(
    request: Request,
    site: CurrentSite,
    staff: CurrentReviewer,
    play_id: Id,
    decision: Annotated[Literal["confirm", "reverse", "unclear"], Form()],
    quality: Annotated[Literal["", "0", "1", "2", "3"], Form()] = "",
    segment_lines: Annotated[str, Form(max_length=MAX_SEGMENT_TEXT)] = "",
    note: Annotated[str, Form(max_length=review.MAX_NOTE)] = "",
) -> Response:
    """Write the review down; the same form sent twice counts once."""
    with site.database.read() as tx:
        play, mine = may_look(tx, play_id, staff)
    if mine is None:
        raise HTTPException(403, "take a play from the queue to review it")
    try:
        view = _view(request, site, play)
    except UnreadableError:
        view = None
    rows = 0 if view is None else view["rows"]
    try:
        said = segments.parse(segment_lines)
        with site.database.begin() as tx:
            own = review.assignment(tx, play_id, staff)
            if own is None:
                raise ReviewError("gone", "this play was erased meanwhile")
            review.commit(
                tx,
                own,
                decision,
                int(quality) if quality else None,
                said,
                site.config.points,
                rows=rows,
                note=note.strip(),
                desk=site.config.review,
            )
    except (ReviewError, SegmentError) as error:
        reason = error.reason if isinstance(error, ReviewError) else "segments"
        if reason == "gone":
            return RedirectResponse("/staff/review", status_code=303)
        typed = {
            "decision": decision,
            "quality": quality,
            "segments": segment_lines,
            "note": note,
        }
        return _page(request, site, staff, play_id, problem=reason, typed=typed)
    return RedirectResponse("/staff/review", status_code=303)


@router.get("/api/staff/review/{play_id}")
def review_data(
    request: Request, site: CurrentSite, staff: CurrentReviewer, play_id: Id
) -> Response:
    """What `review.js` draws (see `collect.crowd.review_data.episode_view`). 503 when many other
    plays are opened at this moment."""
    with site.database.read() as tx:
        play, _ = may_look(tx, play_id, staff)
    try:
        view = _view(request, site, play)
    except UnreadableError as error:
        raise HTTPException(404, str(error)) from error
    if view is None:
        raise HTTPException(404, "the episode's file is not there")
    return JSONResponse(view)


@router.get(
    "/api/staff/review/{play_id}/video",
    responses={202: {"description": "They are being made; Retry-After"}},
)
def video_state(
    request: Request, site: CurrentSite, staff: CurrentReviewer, play_id: Id
) -> Response:
    """Whether the videos are there: ready, making (202) or failed. 503 when many wait."""
    with site.database.read() as tx:
        play, _ = may_look(tx, play_id, staff)
    state = _ask(request, site, play)
    index = video.index_of(site.config.media, play_id) if state == "ready" else None
    return JSONResponse(
        {
            "state": state,
            "cameras": [] if index is None else list(index.cameras),
            "rate_hz": None if index is None else index.rate_hz,
            "step": None if index is None else index.step,
        },
        status_code=202 if state == "making" else 200,
        headers={"retry-after": str(MAKING_S)} if state == "making" else None,
    )


@router.get("/staff/review/{play_id}/video/{camera}.mp4", responses=PARTS)
def video_file(
    request: Request,
    site: CurrentSite,
    staff: CurrentReviewer,
    play_id: Id,
    camera: Annotated[str, Path(max_length=80)],
) -> Response:
    """The video of one camera, or the part of it that Range asks for."""
    with site.database.read() as tx:
        play, _ = may_look(tx, play_id, staff)
    index = video.index_of(site.config.media, play_id)
    if index is None:
        if _ask(request, site, play) == "failed":
            raise HTTPException(404, "no video could be made of this play")
        raise HTTPException(503, "the video is being made", headers={"retry-after": str(MAKING_S)})
    name = index.cameras.get(camera)
    if name is None:
        raise HTTPException(404, "the play has no such camera")
    try:
        return FileRange(request, video.folder(site.config.media, play_id) / name, "video/mp4")
    except FileNotFoundError:
        raise HTTPException(404, "the video was deleted") from None


def _ask(request: Request, site: Site, play: Play) -> video.State:
    path = episode_file(site.config, play)
    if path is None:
        return "failed"
    views: Views = request.app.state.views
    maker: VideoMaker = request.app.state.videos
    try:
        if views.trouble(play.id, path) is not None:
            return "failed"
        return maker.ask(play.id, path)
    except QueueFullError as error:
        raise HTTPException(503, str(error), headers={"retry-after": str(error.retry_s)}) from error


def _view(request: Request, site: Site, play: Play) -> dict[str, Any] | None:
    """What there is to draw of a play; None without its file. UnreadableError."""
    path = episode_file(site.config, play)
    if path is None:
        return None
    with site.database.read() as tx:
        task = None if play.task_id is None else tx.get(Task, play.task_id)
    views: Views = request.app.state.views
    try:
        return views.of(play.id, path, task)
    except FileNotFoundError:  # erased this moment
        return None
    except BusyError as error:
        raise HTTPException(503, str(error), headers={"retry-after": str(error.retry_s)}) from error


def _prepare(request: Request, site: Site, play: Play) -> None:
    with contextlib.suppress(HTTPException, UnreadableError):  # the page says it
        _view(request, site, play)


def _page(
    request: Request,
    site: Site,
    staff: Staff,
    play_id: str,
    problem: str | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    views: Views = request.app.state.views
    with site.database.read() as tx:
        play, mine = may_look(tx, play_id, staff)
        path = episode_file(site.config, play)
        language = choose_language(request, None)
        text = None if play.task_id is None else tx.get(TaskText, (play.task_id, language))
        subtasks = review.subtasks_of(tx, play)
        done = mine is not None and mine.done_at is not None
        if typed is None:
            typed = {"decision": "", "quality": "", "segments": "", "note": ""}
            if mine is not None and done:
                typed = {
                    "decision": mine.decision or "",
                    "quality": "" if mine.quality is None else str(mine.quality),
                    "segments": segments.lines(review.segments_of(tx, mine.id)),
                    "note": mine.note,
                }
        admin = staff.role == "admin"
        verdict = tx.get(ReviewVerdict, play_id) if admin else None
        others = _others(tx, play_id) if admin else []
        # An admin may be the next to look: until all is said, nobody reads what others said.
        over = verdict is not None or len(others) >= review.MOST_REVIEWS
        return render(
            request,
            "staff/review.html",
            422 if problem else 200,
            play=play,
            title=play.task_id if text is None else text.title,
            labels=(*segments.LABELS, *(f"task:{name}" for name in subtasks)),
            qualities=QUALITIES,
            typed=typed,
            problem=problem,
            editable=mine is not None and not done,
            file_there=path is not None,
            trouble=None if path is None else views.trouble(play_id, path),
            others=others if admin and (done or (mine is None and over)) else None,
            verdict=verdict,
            gold=tx.get(GoldPlay, play_id) if admin else None,
            lines=segments.lines,
            segments_of=lambda review_id: review.segments_of(tx, review_id),
        )


def _others(tx: Session, play_id: str) -> list[tuple[Review, str]]:
    """Every finished review of a play with its reviewer's name: for admins who don't review it."""
    rows = tx.execute(
        select(Review, Staff.name)
        .join(Staff, Staff.id == Review.staff_id)
        .where(Review.play_id == play_id, Review.done_at.is_not(None))
        .order_by(Review.done_at)
    )
    return [(row.Review, row.name) for row in rows]
