"""Plays: one at a time at a station, each ended once, reported once, synced once.

    start ──► running ── finish ──► finished ── result + file ──► synced
                  └── ended before the robot began, or nothing was recorded ──► void

Whoever is first says how a play ended; everything else that says so again, in any order and any
number of times, changes nothing. A play that was lost with its station stays open for its file, and
so does a void one that was not erased: if there is a recording after all, it counts.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from collect.crowd import observe, scoring
from collect.crowd.config import CapsConfig, PointsConfig
from collect.crowd.leases import current, holder, online, running
from collect.crowd.ledger import reverse, standing_entries
from collect.crowd.standings import midnight
from collect.crowd.tables import (
    Consent,
    LedgerEntry,
    Participant,
    Play,
    Station,
    Task,
    Tombstone,
    utc_now,
)
from robot_stack.errors import RobotStackError

__all__ = [
    "EndedBy",
    "Kind",
    "PlayError",
    "Result",
    "arrived",
    "erased",
    "finish",
    "limit_s",
    "report",
    "result",
    "running",
    "start",
    "today",
    "unreported",
]

Kind = Literal["tutorial", "task", "free"]
EndedBy = Literal["button", "rest", "time", "lost", "staff"]
Reason = Literal[
    "age",
    "cap",
    "closed",
    "consent",
    "fault",
    "file",
    "lease",
    "offline",
    "over",
    "running",
    "task",
    "tutorial",
    "unreported",
    "void",
]

TUTORIAL_S = 180
FREE_S = 300
REPORT_WITHIN = dt.timedelta(minutes=30)  # nobody is asked about yesterday
DEFAULT_CAPS = CapsConfig()
DEFAULT_POINTS = PointsConfig()
LIKERT = range(1, 6)
ASKED = ("button", "staff", "time")  # how the site ends a play, and not the robot
ANSWERED = dt.timedelta(seconds=1.5)  # what an agent says later than this it says of this play


class PlayError(RobotStackError):
    """This can't be done now; ``reason`` is a key for a text in the participant's language."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Result:
    """What a station says of a play that it has recorded.

    ``rows`` of the recording, 0 when there is none; ``metrics`` as in `tables.Play`; ``checked``
    the task's own success check, None where there is none; ``sha256`` of the file; ``file`` where
    it is below the site's episodes, once it is there.
    """

    ended_by: EndedBy
    rows: int
    metrics: dict[str, float] = field(default_factory=dict)
    checked: bool | None = None
    sha256: str | None = None
    file: str | None = None


def start(
    tx: Session,
    station: Station,
    participant: Participant,
    *,
    task: Task | None,
    kind: Kind,
    consent: Consent,
    per_day: int = DEFAULT_CAPS.plays_per_day,
    now: dt.datetime | None = None,
) -> Play:
    """Ask the station to begin a play; the one that the participant has begun already is given
    again. It needs their lease of the station, and every step that comes before. PlayError."""
    now = now or utc_now()
    station = current(tx, station)
    lease = holder(tx, station, now)
    if lease is None or lease.participant_id != participant.id:
        raise PlayError("lease", "it is not your turn at this station")
    task_id = None if task is None else task.id
    before = running(tx, station)
    if before is not None:
        if before.participant_id == participant.id and (before.kind, before.task_id) == (
            kind,
            task_id,
        ):
            return before
        raise PlayError("running", "the robot is being driven; end that first")
    _check_steps(tx, participant, task, kind, consent, now)
    if station.closed:
        raise PlayError("closed", "staff have closed this station")
    if not online(station, now):
        raise PlayError("offline", "the robot is not connected at the moment")
    if station.state.get("phase") == "fault":
        raise PlayError("fault", "the robot needs a hand of the staff")
    if today(tx, participant, now) >= per_day:
        raise PlayError("cap", f"{per_day} plays a day are enough; come back tomorrow")
    play = Play(
        station_id=station.id,
        participant_id=participant.id,
        consent_id=consent.id,
        task_id=task_id,
        kind=kind,
        fence=lease.fence,
        state="running",
        started_at=now,
        metrics={},
    )
    tx.add(play)
    tx.flush()
    return play


def limit_s(play: Play, task: Task | None) -> int:
    """After how many seconds the station ends a play by itself."""
    if play.kind == "tutorial":
        return TUTORIAL_S
    return FREE_S if task is None else task.seconds


def finish(tx: Session, play: Play, *, by: EndedBy, now: dt.datetime | None = None) -> bool:
    """End a running play; False when it has ended already, however that was.

    ``now``: when it ended, which is not before it began. A play that the robot had not begun by
    then is void: there is nothing to be reported.
    """
    now = max(now or utc_now(), play.started_at)
    tx.flush()
    state = "void" if by in ASKED and not _begun(tx, play, now) else "finished"
    ended = tx.execute(
        update(Play)
        .where(Play.id == play.id, Play.state == "running")
        .values(
            state=state,
            ended_at=now,
            ended_by=by,
            seconds=(now - play.started_at).total_seconds(),
        )
        .returning(Play.id)
        .execution_options(synchronize_session=False)
    ).all()
    _row(tx, play)
    if ended:
        observe.count(tx, observe.plays.labels(by))
    return bool(ended)


def report(
    tx: Session,
    play: Play,
    *,
    claimed: bool,
    likert: tuple[int, int, int],
    worth: PointsConfig = DEFAULT_POINTS,
    now: dt.datetime | None = None,
) -> LedgerEntry | None:
    """What the participant says of a play that has ended; the second time says nothing.

    ``likert``: intuitive, fun, did what I wanted, 1 to 5. The entry that it earned, or None.
    """
    if any(item not in LIKERT for item in likert):
        raise ValueError(f"answers {likert} must be 1 to 5")
    play = _row(tx, play)
    if play.state == "running":
        raise PlayError("running", "the play has not ended yet")
    if play.claimed is not None or erased(tx, play.id):
        return None
    play.claimed = claimed
    play.likert_intuitive, play.likert_fun, play.likert_did = likert
    tx.flush()
    entry = scoring.claim(tx, play, worth=worth, at=now)
    # The file may have been faster than the participant: then it is known what to believe.
    return scoring.evidence(tx, play, worth=worth, at=now) or entry


def result(
    tx: Session,
    play: Play,
    told: Result,
    *,
    worth: PointsConfig = DEFAULT_POINTS,
    now: dt.datetime | None = None,
    ended_at: dt.datetime | None = None,
) -> None:
    """What the station says of a play. Twice, before the end or days after it: the first word
    counts. PlayError ``file`` when another file is told of than was before.

    ``ended_at``: when it ended by the site's clock, if nobody has said so yet.
    """
    now = now or utc_now()
    finish(tx, play, by=told.ended_by, now=min(now, ended_at or now))
    play = _row(tx, play)
    if erased(tx, play.id) or (play.state == "void" and told.rows == 0):
        return
    if told.sha256 is not None and play.sha256 not in (None, told.sha256):
        raise PlayError("file", f"play {play.id} has another file already")
    if told.rows > 0 and play.state == "void":
        play.state = "finished"
    if told.rows == 0 and play.file is None:
        play.state = "void"
        tx.flush()
        for given in standing_entries(tx, play.id):
            reverse(tx, given, at=now, note="nothing was recorded")
        return
    play.sha256 = play.sha256 or told.sha256
    play.metrics = play.metrics or dict(told.metrics)
    play.checked = told.checked if play.checked is None else play.checked
    play.file = play.file or told.file
    _settle(tx, play, worth, now)


def arrived(
    tx: Session,
    play: Play,
    *,
    file: str,
    sha256: str,
    worth: PointsConfig = DEFAULT_POINTS,
    now: dt.datetime | None = None,
) -> None:
    """The play's file is there; what the station measured may come before or after it."""
    play = _row(tx, play)
    if play.state == "void":
        play.state = "finished"
    play.file, play.sha256 = file, sha256
    _settle(tx, play, worth, now or utc_now())


def unreported(
    tx: Session, participant: Participant, now: dt.datetime | None = None
) -> Play | None:
    """The play of a task that a participant has just ended and not yet said anything of."""
    return tx.scalar(
        select(Play)
        .where(
            Play.participant_id == participant.id,
            Play.kind == "task",
            Play.state.in_(("finished", "synced")),
            Play.claimed.is_(None),
            Play.ended_at > (now or utc_now()) - REPORT_WITHIN,
        )
        .order_by(Play.ended_at.desc())
        .limit(1)
    )


def today(tx: Session, participant: Participant, now: dt.datetime | None = None) -> int:
    """How many plays a participant has begun since the site's midnight; void ones don't count."""
    return (
        tx.scalar(
            select(func.count()).where(
                Play.participant_id == participant.id,
                Play.started_at >= midnight(tx, now or utc_now()),
                Play.state != "void",
            )
        )
        or 0
    )


def erased(tx: Session, play_id: str) -> bool:
    """Whether a play was erased: what a station still has of it must go, too."""
    return tx.get(Tombstone, play_id) is not None


def _begun(tx: Session, play: Play, now: dt.datetime) -> bool:
    """Whether the robot may be at the play: yes, unless its agent has said meanwhile that it is
    not."""
    station = tx.get(Station, play.station_id)
    assert station is not None
    told = station.state
    if "boot" not in told or station.seen_at is None or not online(station, now):
        return True  # no agent has spoken lately
    if station.seen_at < play.started_at + ANSWERED:
        return True
    ended = told.get("ended") or {}
    return play.id in (told.get("play"), ended.get("play"))


def _settle(tx: Session, play: Play, worth: PointsConfig, now: dt.datetime) -> None:
    """A play whose file and measurements are there is synced, and judged by them."""
    if play.state == "finished" and play.file is not None and play.metrics:
        play.state, play.synced_at = "synced", now
    tx.flush()
    # Nothing is decided before the participant has spoken, unless the station itself saw it done.
    if play.claimed is not None or play.checked:
        scoring.evidence(tx, play, worth=worth, at=now)


def _check_steps(
    tx: Session,
    participant: Participant,
    task: Task | None,
    kind: Kind,
    consent: Consent,
    now: dt.datetime,
) -> None:
    """What must come before a play, whatever page it was asked from."""
    given = consent.participant_id == participant.id and consent.withdrawn_at is None
    if not given or "record" not in consent.scopes:
        raise PlayError("consent", "driving needs your consent to be recorded")
    if participant.adult is not True:
        raise PlayError("age", "driving needs an answer to the question of age")
    if kind != "tutorial" and participant.tutorial_at is None:
        raise PlayError("tutorial", "the tutorial comes first")
    if (kind == "task") != (task is not None) or (task is not None and not task.active):
        raise PlayError("task", "choose one of the tasks")
    if unreported(tx, participant, now) is not None:
        raise PlayError("unreported", "say first how the last one went")


def _row(tx: Session, play: Play) -> Play:
    """The play as the database has it now, in this transaction."""
    row = tx.get(Play, play.id, populate_existing=True)
    if row is None:
        raise PlayError("void", f"play {play.id} was erased")
    return row
