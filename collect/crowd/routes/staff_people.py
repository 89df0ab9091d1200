"""For operators: nicknames that wait, calls for help, participants, the list of plays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Path, Query, Request
from sqlalchemy import Row, func, or_, select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from collect.crowd import names
from collect.crowd.deps import CurrentOperator, Db
from collect.crowd.names import public_name
from collect.crowd.security.redirects import redirect
from collect.crowd.tables import (
    AuditEntry,
    HelpRequest,
    LedgerEntry,
    NicknameCase,
    Participant,
    Play,
    ReviewVerdict,
    Station,
    Task,
    utc_now,
)
from collect.crowd.templating import render

__all__ = ["Id", "open_calls", "open_cases", "router"]

router = APIRouter()

Id = Annotated[str, Path(pattern=r"^[0-9a-f-]{36}$")]
Page = Annotated[int, Query(ge=1, le=10_000)]
Back = Annotated[str, Form(max_length=300)]  # the list as it was searched
PAGE = 50
MOST_CASES = 500
REASONS = ("insult", "person", "contact", "other")
Sort = Literal["newest", "oldest", "longest", "quality"]
SORTS = {
    "newest": (Play.started_at.desc(), Play.id),
    "oldest": (Play.started_at, Play.id),
    "longest": (
        func.coalesce(Play.metrics["seconds"].as_float(), Play.seconds, -1.0).desc(),
        Play.id,
    ),
    "quality": (func.coalesce(ReviewVerdict.quality, -1).desc(), Play.started_at.desc(), Play.id),
}


def open_cases(tx: Session) -> Sequence[Row[NicknameCase, Participant]]:
    """Nicknames that are still borne and that nobody has decided on: flagged ones first."""
    return tx.execute(
        select(NicknameCase, Participant)
        .join(Participant, Participant.id == NicknameCase.participant_id)
        .where(
            NicknameCase.decided_at.is_(None),
            Participant.nickname == NicknameCase.nickname,
            Participant.erased_at.is_(None),
        )
        .order_by(NicknameCase.reason == "new", NicknameCase.created_at, NicknameCase.id)
        .limit(MOST_CASES)
    ).all()


def open_calls(tx: Session) -> int:
    """How many calls for help nobody has answered."""
    waiting = select(func.count()).where(HelpRequest.answered_at.is_(None))
    return tx.scalar(waiting) or 0


@router.get("/staff/names")
def names_page(request: Request, db: Db, _: CurrentOperator) -> Response:
    """Nicknames that nobody else sees until they are approved."""
    with db.read() as tx:
        return render(request, "staff/names.html", cases=open_cases(tx), reasons=REASONS)


@router.post("/staff/names/{case_id}")
def decide_name(
    db: Db,
    staff: CurrentOperator,
    case_id: Id,
    approved: Annotated[bool, Form()],
    reason: Annotated[Literal["", "insult", "person", "contact", "other"], Form()] = "",
) -> Response:
    """Approve or refuse a nickname. A case that was decided meanwhile stays as it is."""
    with db.begin() as tx:
        case = tx.get(NicknameCase, case_id)
        if case is None:
            raise HTTPException(404, "there is no such nickname")
        if case.decided_at is None:
            names.decide(tx, case, approved=approved, staff_id=staff.id)
            _audit(
                tx,
                staff.id,
                "nickname approved" if approved else "nickname refused",
                case.participant_id,
                {} if approved else {"reason": reason},
            )
    return RedirectResponse("/staff/names", status_code=303)


@router.get("/staff/help")
def help_page(request: Request, db: Db, _: CurrentOperator) -> Response:
    """Who called for help, and what was answered lately."""
    with db.read() as tx:
        rows = tx.execute(
            select(HelpRequest, Station)
            .join(Station, Station.id == HelpRequest.station_id)
            .order_by(HelpRequest.answered_at.is_not(None), HelpRequest.created_at.desc())
            .limit(PAGE)
        ).all()
        return render(request, "staff/help.html", requests=rows)


@router.get("/api/staff/help")
def calls(request: Request, db: Db, _: CurrentOperator) -> Response:
    """How many wait, as the tab of every page of an operator shows it."""
    with db.read() as tx:
        return render(request, "staff/help_count.html", waiting=open_calls(tx))


@router.post("/staff/help/{help_id}")
def answer_help(db: Db, staff: CurrentOperator, help_id: Id) -> Response:
    """Somebody has gone there."""
    with db.begin() as tx:
        row = tx.get(HelpRequest, help_id)
        if row is None:
            raise HTTPException(404, "there is no such call")
        if row.answered_at is None:
            row.answered_at = utc_now()
            row.answered_by = staff.id
            _audit(tx, staff.id, "help answered", row.id)
    return RedirectResponse("/staff/help", status_code=303)


@router.get("/staff/participants")
def participants_page(
    request: Request,
    db: Db,
    _: CurrentOperator,
    q: Annotated[str, Query(max_length=32)] = "",
    show: Literal["all", "hidden"] = "all",
    page: Page = 1,
) -> Response:
    """Participants, newest first; ``q`` is part of a nickname or pseudonym."""
    query = select(Participant).where(Participant.erased_at.is_(None))
    if q:
        query = query.where(
            or_(
                Participant.nickname.icontains(q, autoescape=True),
                Participant.pseudonym.icontains(q, autoescape=True),
            )
        )
    if show == "hidden":
        query = query.where(Participant.hidden.is_(True))
    query = query.order_by(Participant.created_at.desc(), Participant.id)
    with db.read() as tx:
        found = tx.scalars(query.offset((page - 1) * PAGE).limit(PAGE + 1)).all()
        people = [person.id for person in found[:PAGE]]
        plays = _by_participant(tx, func.count(), Play, people)
        points = _by_participant(tx, func.sum(LedgerEntry.points), LedgerEntry, people)
        return render(
            request,
            "staff/participants.html",
            people=found[:PAGE],
            plays=plays,
            points=points,
            public_name=public_name,
            q=q,
            show=show,
            page=page,
            more=len(found) > PAGE,
        )


@router.post("/staff/participants/{participant_id}")
def hide(
    db: Db,
    staff: CurrentOperator,
    participant_id: Id,
    hidden: Annotated[bool, Form()],
    back: Back = "",
) -> Response:
    """Take somebody off every board and page, or back on."""
    with db.begin() as tx:
        person = tx.get(Participant, participant_id)
        if person is None or person.erased_at is not None:
            raise HTTPException(404, "there is no such participant")
        if person.hidden != hidden:
            person.hidden = hidden  # the boards' version counts up by itself
            _audit(tx, staff.id, "hidden" if hidden else "shown again", person.id)
    return redirect(back, "/staff/participants")


@router.post("/staff/participants/{participant_id}/age")
def ask_age_again(db: Db, staff: CurrentOperator, participant_id: Id, back: Back = "") -> Response:
    """Somebody has pressed "younger" by mistake: let the age gate ask once more."""
    with db.begin() as tx:
        person = tx.get(Participant, participant_id)
        if person is None or person.erased_at is not None:
            raise HTTPException(404, "there is no such participant")
        if person.adult is False:
            person.adult = None
            _audit(tx, staff.id, "age asked again", person.id)
    return redirect(back, "/staff/participants")


@router.get("/staff/plays")
def plays_page(
    request: Request,
    db: Db,
    _: CurrentOperator,
    state: Literal["", "running", "finished", "synced", "void"] = "",
    kind: Literal["", "tutorial", "task", "free"] = "",
    task: Annotated[str, Query(pattern=r"^[a-z0-9-]{0,48}$")] = "",
    station: Annotated[str, Query(pattern=r"^([0-9a-f-]{36})?$")] = "",
    verdict: Literal["", "none", "confirm", "reverse", "unclear"] = "",
    sort: Sort = "newest",
    page: Page = 1,
) -> Response:
    """Plays by what they are; nothing else can be asked for (no field of a person)."""
    query = (
        select(Play, Participant, Station, ReviewVerdict)
        .join(Station, Station.id == Play.station_id)
        .outerjoin(Participant, Participant.id == Play.participant_id)
        .outerjoin(ReviewVerdict, ReviewVerdict.play_id == Play.id)
    )
    for column, value in (
        (Play.state, state),
        (Play.kind, kind),
        (Play.task_id, task),
        (Play.station_id, station),
    ):
        if value:
            query = query.where(column == value)
    if verdict == "none":
        query = query.where(ReviewVerdict.play_id.is_(None))
    elif verdict:
        query = query.where(ReviewVerdict.decision == verdict)
    query = query.order_by(*SORTS[sort])
    with db.read() as tx:
        rows = tx.execute(query.offset((page - 1) * PAGE).limit(PAGE + 1)).all()
        return render(
            request,
            "staff/plays.html",
            rows=rows[:PAGE],
            public_name=public_name,
            stations=tx.scalars(select(Station).order_by(Station.name)).all(),
            tasks=tx.scalars(select(Task.id).order_by(Task.position, Task.id)).all(),
            chosen={
                "state": state,
                "kind": kind,
                "task": task,
                "station": station,
                "verdict": verdict,
                "sort": sort,
            },
            sorts=tuple(SORTS),
            page=page,
            more=len(rows) > PAGE,
        )


def _by_participant(
    tx: Session, what: object, table: type[Play] | type[LedgerEntry], people: list[str]
) -> dict[str, int]:
    rows = tx.execute(
        select(table.participant_id, what)  # type: ignore[call-overload]
        .where(table.participant_id.in_(people))
        .group_by(table.participant_id)
    )
    return {who: int(number) for who, number in rows}


def _audit(
    tx: Session, staff_id: str, action: str, subject: str, detail: dict[str, str] | None = None
) -> None:
    tx.add(AuditEntry(staff_id=staff_id, action=action, subject=subject, detail=detail or {}))
