"""Up to the play: tutorial, tasks, the queue, the button that begins."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from collect.crowd import flow, plays, queue, tasks, turns
from collect.crowd.agent_messages import TUTORIAL_STEPS
from collect.crowd.config import CrowdConfig
from collect.crowd.deps import Config, CurrentParticipant, CurrentWho, Db
from collect.crowd.i18n import choose_language
from collect.crowd.kiosk_view import view
from collect.crowd.security.redirects import redirect
from collect.crowd.security.sessions import Who
from collect.crowd.tables import Play, Task, utc_now
from collect.crowd.templating import render
from collect.crowd.turns import Refused

__all__ = ["router"]

router = APIRouter()

TaskId = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,46}$")]
Reason = Annotated[str, Query(max_length=12)]
# Why nothing begins: what the texts know (`participant.refused`).
REASONS = frozenset(
    {
        "age",
        "away",
        "busy",
        "cap",
        "closed",
        "consent",
        "elsewhere",
        "fault",
        "lease",
        "offline",
        "over",
        "queue",
        "running",
        "task",
        "tutorial",
        "unreported",
    }
)
JUST_NOW = dt.timedelta(seconds=60)


@router.get("/tutorial")
def tutorial_page(
    request: Request, db: Db, who: CurrentWho, me: CurrentParticipant, refused: Reason = ""
) -> Response:
    """Learn to drive: four steps that the robot itself sees done."""
    turns.keep(db, who)
    with db.read() as tx:
        if where := flow.detour(tx, me, "/tutorial"):
            return redirect(where)
        at = flow.progress(tx, me)
        station = flow.station_of(tx, who)
        robot = None if station is None else view(tx, station.id)
        told: dict[str, Any] = {} if robot is None else robot["tutorial"]
        return render(
            request,
            "participant/tutorial.html",
            station=station,
            station_is=None if station is None else turns.status(tx, station, me),
            play=at.play,
            steps=TUTORIAL_STEPS,
            robot=robot,
            step=told.get("step"),
            done=told.get("done", []),
            passed=me.tutorial_at is not None,
            just_passed=me.tutorial_at is not None and utc_now() - me.tutorial_at < JUST_NOW,
            refused=_known(refused),
        )


@router.post("/tutorial")
def tutorial(db: Db, who: CurrentWho, me: CurrentParticipant, config: Config) -> Response:
    """Begin the tutorial, for the first time or again."""
    with db.read() as tx:
        if where := flow.detour(tx, me, "/tutorial"):
            return redirect(where)
    begun = turns.begin(db, config, who, "tutorial")
    return _refused(begun, "/tutorial") if isinstance(begun, Refused) else redirect("/tutorial")


@router.get("/tasks")
def tasks_page(
    request: Request,
    db: Db,
    who: CurrentWho,
    me: CurrentParticipant,
    config: Config,
    refused: Reason = "",
) -> Response:
    """What there is to do, how hard it is and what it is worth."""
    turns.keep(db, who)
    language = choose_language(request, me)
    with db.read() as tx:
        if where := flow.detour(tx, me, "/tasks"):
            return redirect(where)
        station = flow.station_of(tx, who)
        done = set(
            tx.scalars(
                select(Play.task_id).where(Play.participant_id == me.id, Play.claimed.is_(True))
            )
        )
        return render(
            request,
            "participant/tasks.html",
            station=station,
            station_is=None if station is None else turns.status(tx, station, me),
            tasks=[
                {**_shown(tx, config, task, language), "done": task.id in done}
                for task in tx.scalars(
                    select(Task).where(Task.active).order_by(Task.position, Task.id)
                )
            ],
            free_s=plays.FREE_S,
            refused=_known(refused),
        )


@router.get("/tasks/{task_id}")
def task_page(
    request: Request,
    db: Db,
    who: CurrentWho,
    me: CurrentParticipant,
    config: Config,
    task_id: TaskId,
    refused: Reason = "",
) -> Response:
    """One task, and the button that begins it after a countdown."""
    turns.keep(db, who)
    with db.read() as tx:
        if where := flow.detour(tx, me, "/tasks"):
            return redirect(where)
        task = tx.get(Task, task_id)
        if task is None or not task.active:
            return redirect("/tasks")
        return _detail(
            request, tx, who, _shown(tx, config, task, choose_language(request, me)), refused
        )


@router.post("/tasks/{task_id}/start")
def start_task(
    db: Db, who: CurrentWho, me: CurrentParticipant, config: Config, task_id: TaskId
) -> Response:
    """Begin to drive."""
    return _start(db, who, config, "/tasks", task_id)


@router.get("/free")
def free_page(
    request: Request, db: Db, who: CurrentWho, me: CurrentParticipant, refused: Reason = ""
) -> Response:
    """Free play: no task, no points."""
    turns.keep(db, who)
    with db.read() as tx:
        if where := flow.detour(tx, me, "/free"):
            return redirect(where)
        return _detail(request, tx, who, None, refused)


@router.post("/free/start")
def start_free(db: Db, who: CurrentWho, me: CurrentParticipant, config: Config) -> Response:
    """Begin to drive as one likes."""
    return _start(db, who, config, "/free", None)


@router.get("/queue")
def queue_page(
    request: Request, db: Db, who: CurrentWho, me: CurrentParticipant, refused: Reason = ""
) -> Response:
    """Where one stands in the queue and how long it will take."""
    with db.read() as tx:
        if where := flow.detour(tx, me, "/queue"):
            return redirect(where)
        station = flow.station_of(tx, who)
        status = None if station is None else turns.status(tx, station, me)
        if status == "yours":
            return redirect(flow.progress(tx, me).page)
        return render(
            request,
            "participant/queue.html",
            station=station,
            station_is=status,
            place=queue.place(tx, me),
            waiting=0 if station is None else queue.length(tx, station),
            refused=_known(refused),
        )


@router.post("/queue")
def take_turn(db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """Take the turn if it is there, else a place in the queue."""
    with db.begin() as tx:
        if where := flow.detour(tx, me, "/queue"):
            return redirect(where)
        taken = turns.take(tx, who)
        page = flow.progress(tx, me).page
    return _refused(taken, "/queue") if isinstance(taken, Refused) else redirect(page)


@router.post("/queue/leave")
def leave_queue(db: Db, who: CurrentWho, me: CurrentParticipant) -> Response:
    """Wait no longer."""
    with db.begin() as tx:
        queue.leave(tx, me)
        return redirect("/")


def _start(db: Db, who: Who, config: CrowdConfig, page: str, task_id: str | None) -> Response:
    me = who.participant
    assert me is not None
    with db.read() as tx:
        if where := flow.detour(tx, me, page):
            return redirect(where)
    begun = turns.begin(db, config, who, "free" if task_id is None else "task", task_id)
    if isinstance(begun, Refused):
        return _refused(begun, page if task_id is None else f"{page}/{task_id}")
    return redirect("/play")


def _refused(refused: Refused, page: str) -> Response:
    if refused.waits:
        return redirect("/queue")
    return RedirectResponse(f"{page}?refused={refused.reason}", status_code=303)


def _known(reason: str) -> str | None:
    return reason if reason in REASONS else None


def _shown(tx: Session, config: CrowdConfig, task: Task, language: str) -> dict[str, Any]:
    text = tasks.text_of(tx, task, language)
    return {
        "id": task.id,
        "title": text.title,
        "body": text.body,
        "difficulty": task.difficulty,
        "points": config.points.easy if task.difficulty == "easy" else config.points.hard,
        "seconds": task.seconds,
        "par_s": task.par_s,
        "clips": tasks.clips_of(tx, config.media, task.id),
    }


def _detail(
    request: Request, tx: Session, who: Who, task: dict[str, Any] | None, refused: str
) -> Response:
    station = flow.station_of(tx, who)
    return render(
        request,
        "participant/task.html",
        task=task,
        seconds=plays.FREE_S if task is None else task["seconds"],
        station=station,
        station_is=None if station is None else turns.status(tx, station, who.participant),
        refused=_known(refused),
    )
