"""The review desk: who looks at which play, what they say of it, and what stands in the end.

The oldest play that nobody has looked at comes first. A share of the plays is given to two
reviewers, who don't see each other's; so is one of which the first could say nothing. When two
differ, a third looks, and what two of three say stands; when all three differ, an admin chooses.
Only what stands goes into the ledger, in the same transaction.

Which plays are looked at twice follows from their ids, so that it needs no place of its own and
nobody can ask again for another draw.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, delete, func, or_, select
from sqlalchemy.orm import Session

from collect.crowd import scoring
from collect.crowd.config import PointsConfig, ReviewConfig
from collect.crowd.segments import Labels, Segment, canonical, per_row
from collect.crowd.tables import (
    AuditEntry,
    GoldPlay,
    Play,
    Review,
    ReviewSegment,
    ReviewVerdict,
    Staff,
    Task,
    utc_now,
)
from robot_stack.errors import RobotStackError

__all__ = [
    "DECISIONS",
    "MAX_NOTE",
    "MOST_REVIEWS",
    "Outcome",
    "ReviewError",
    "Waiting",
    "assignment",
    "commit",
    "disputes",
    "forget",
    "labels",
    "next_play",
    "outcome",
    "segments_of",
    "set_gold",
    "settle",
    "subtasks_of",
    "upcoming",
    "waiting",
]

DECISIONS = ("confirm", "reverse", "unclear")
ASSIGNED = dt.timedelta(minutes=30)  # then somebody else may have the play
MOST_REVIEWS = 3
GOLD_EVERY = 10  # one of so many reviews, about, is of a play of known quality
BATCH = 200
MAX_NOTE = 500
DEFAULT = ReviewConfig()


class ReviewError(RobotStackError):
    """A decision that can't be. ``reason`` is for the page's texts: decision, quality, gone."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What reviewers together say; ``review`` is the one whose segments count."""

    decision: str
    quality: int | None
    review: Review


@dataclass(frozen=True, slots=True)
class Waiting:
    """How many plays wait for a reviewer, and for an admin to choose between three."""

    queue: int
    disputes: int


def next_play(
    tx: Session, staff: Staff, desk: ReviewConfig = DEFAULT, *, now: dt.datetime | None = None
) -> Play | None:
    """The play that ``staff`` looks at next, assigned for 30 min; None when none waits.

    In a write transaction. Who has one already is given it again.
    """
    now = now or utc_now()
    mine = tx.scalar(
        select(Play)
        .join(Review, Review.play_id == Play.id)
        .where(
            Review.staff_id == staff.id,
            Review.done_at.is_(None),
            Review.assigned_at > now - ASSIGNED,
            _reviewable(),
        )
        .order_by(Review.assigned_at)
        .limit(1)
    )
    if mine is not None:
        return mine
    play = _oldest(tx, staff, desk, now)
    if play is not None and (gold := _gold_turn(tx, staff)) is not None:
        play = gold
    if play is not None:
        _assign(tx, play, staff, now)
    return play


def upcoming(tx: Session, staff: Staff, play: Play, desk: ReviewConfig = DEFAULT) -> Play | None:
    """What ``staff`` would most likely be given after ``play``; nothing is assigned."""
    return _oldest(tx, staff, desk, utc_now(), besides=play.id)


def assignment(tx: Session, play_id: str, staff: Staff) -> Review | None:
    """The look that ``staff`` was asked to take at a play, or has taken."""
    return tx.scalar(
        select(Review).where(Review.play_id == play_id, Review.staff_id == staff.id).limit(1)
    )


def commit(
    tx: Session,
    review: Review,
    decision: str,
    quality: int | None,
    segments: Iterable[Segment],
    worth: PointsConfig,
    *,
    rows: int,
    note: str = "",
    desk: ReviewConfig = DEFAULT,
    now: dt.datetime | None = None,
) -> ReviewVerdict | None:
    """Write down what a reviewer says; the verdict, once there is one.

    ``rows`` of the episode. The same review committed twice counts once. ReviewError or
    SegmentError when something can't be; nothing was written then.
    """
    if decision not in DECISIONS:
        raise ReviewError("decision", f"{decision!r} is none of {', '.join(DECISIONS)}")
    if quality is not None and quality not in range(4):
        raise ReviewError("quality", f"quality {quality} is none of 0, 1, 2, 3")
    if decision == "confirm" and quality is None:
        raise ReviewError("quality", "who confirms a play says how well it was done: 0 to 3")
    play = tx.get_one(Play, review.play_id)
    if review.done_at is not None:
        return tx.get(ReviewVerdict, play.id)
    if play.state != "synced":
        raise ReviewError("gone", "this play was erased meanwhile")
    found = canonical(segments, rows, subtasks_of(tx, play))
    review.decision = decision
    review.quality = quality
    review.note = note[:MAX_NOTE]
    review.rows = rows
    review.done_at = now or utc_now()
    for segment in found:
        tx.add(
            ReviewSegment(
                review_id=review.id,
                first_row=segment.first_row,
                last_row=segment.last_row,
                label=segment.label,
                quality=segment.quality,
            )
        )
    tx.add(
        AuditEntry(
            staff_id=review.staff_id,
            action="reviewed",
            subject=play.id,
            detail={"decision": decision, "quality": quality},
        )
    )
    tx.flush()
    standing = tx.get(ReviewVerdict, play.id)
    if standing is not None:  # a gold play, or a look that came after the others
        return standing
    together = outcome(_done(tx, play.id), _wanted(play.id, desk))
    return None if together is None else _stand(tx, play, together, worth, None, now)


def outcome(done: Sequence[Review], wanted: int) -> Outcome | None:
    """What finished reviews (oldest first) say together; None while another is needed."""
    if len(done) < wanted or (len(done) == 1 and done[0].decision == "unclear"):
        return None
    if len(done) < MOST_REVIEWS:
        said = {(review.decision, review.quality) for review in done}
        first = done[0]
        assert first.decision is not None
        return Outcome(first.decision, first.quality, first) if len(said) == 1 else None
    decision, votes = Counter(review.decision for review in done).most_common(1)[0]
    if votes < 2 or decision is None:
        return None
    agreeing = sorted(
        (review for review in done if review.decision == decision),
        key=lambda review: -1 if review.quality is None else review.quality,
    )
    median = agreeing[(len(agreeing) - 1) // 2]
    return Outcome(decision, median.quality, median)


def settle(
    tx: Session, admin: Staff, review: Review, worth: PointsConfig, now: dt.datetime | None = None
) -> ReviewVerdict:
    """An admin says which of a play's reviews stands, in place of what stood before."""
    if review.done_at is None or review.decision is None:
        raise ReviewError("decision", "this reviewer has not said anything yet")
    play = tx.get_one(Play, review.play_id)
    if play.state != "synced":
        raise ReviewError("gone", "this play was erased meanwhile")
    tx.add(
        AuditEntry(
            staff_id=admin.id,
            action="review settled",
            subject=play.id,
            detail={"review": review.id, "decision": review.decision, "quality": review.quality},
        )
    )
    chosen = Outcome(review.decision, review.quality, review)
    return _stand(tx, play, chosen, worth, admin.id, now)


def set_gold(tx: Session, admin: Staff, play: Play, gold: bool) -> None:
    """Make a play whose verdict stands one of known quality, or an ordinary one again."""
    row = tx.get(GoldPlay, play.id)
    verdict = tx.get(ReviewVerdict, play.id)
    if gold and row is None:
        if verdict is None or verdict.quality is None:
            raise ReviewError("quality", "only a play with a verdict and a quality can be gold")
        tx.add(
            GoldPlay(
                play_id=play.id,
                decision=verdict.decision,
                quality=verdict.quality,
                set_by=admin.id,
            )
        )
    elif not gold and row is not None:
        tx.delete(row)
    tx.add(
        AuditEntry(
            staff_id=admin.id, action="gold play" if gold else "gold play ended", subject=play.id
        )
    )
    tx.flush()


def labels(tx: Session, play: Play) -> Labels | None:
    """What each row of a play is, by the review that stands; None while none does."""
    found = tx.execute(
        select(Review.id, Review.rows)
        .join(ReviewVerdict, ReviewVerdict.review_id == Review.id)
        .where(ReviewVerdict.play_id == play.id)
    ).one_or_none()
    if found is None or found.rows is None:
        return None
    return per_row(segments_of(tx, found.id), found.rows)


def segments_of(tx: Session, review_id: str) -> list[Segment]:
    """The segments of a review, in order."""
    rows = tx.scalars(
        select(ReviewSegment)
        .where(ReviewSegment.review_id == review_id)
        .order_by(ReviewSegment.first_row)
    )
    return [Segment(row.first_row, row.last_row, row.label, row.quality) for row in rows]


def subtasks_of(tx: Session, play: Play) -> tuple[str, ...]:
    """The subtasks of a play's task."""
    task = None if play.task_id is None else tx.get(Task, play.task_id)
    return () if task is None else tuple(task.subtasks)


def waiting(tx: Session) -> Waiting:
    """What waits at the desk. Plays that a reviewer holds are among them."""
    done = _count_done()
    open_plays = select(func.count()).select_from(Play).where(_reviewable(), ~_settled())
    return Waiting(
        queue=tx.scalar(open_plays.where(done < MOST_REVIEWS)) or 0,
        disputes=tx.scalar(open_plays.where(done >= MOST_REVIEWS)) or 0,
    )


def disputes(tx: Session) -> Sequence[Play]:
    """Plays of which three reviewers say three things, oldest first."""
    return tx.scalars(
        select(Play)
        .where(_reviewable(), ~_settled(), _count_done() >= MOST_REVIEWS)
        .order_by(Play.started_at, Play.id)
        .limit(BATCH)
    ).all()


def forget(tx: Session, play_id: str) -> None:
    """Delete what reviewers have said of a play that is erased. Points are the ledger's."""
    reviews = select(Review.id).where(Review.play_id == play_id)
    tx.execute(delete(ReviewSegment).where(ReviewSegment.review_id.in_(reviews)))
    tx.execute(delete(GoldPlay).where(GoldPlay.play_id == play_id))
    tx.execute(delete(ReviewVerdict).where(ReviewVerdict.play_id == play_id))
    tx.execute(delete(Review).where(Review.play_id == play_id))


def _reviewable() -> ColumnElement[bool]:
    return and_(Play.state == "synced", Play.file.is_not(None))


def _settled() -> ColumnElement[bool]:
    return select(ReviewVerdict.play_id).where(ReviewVerdict.play_id == Play.id).exists()


def _count_done() -> ColumnElement[int]:
    return _count(Review.done_at.is_not(None))


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return (
        select(func.count())
        .select_from(Review)
        .where(Review.play_id == Play.id, condition)
        .correlate(Play)
        .scalar_subquery()
    )


def _oldest(
    tx: Session, staff: Staff, desk: ReviewConfig, now: dt.datetime, besides: str = ""
) -> Play | None:
    done, taken = _count_done(), _taken(now)
    said = (
        select(Review.id)
        .where(Review.play_id == Play.id, Review.staff_id == staff.id, Review.done_at.is_not(None))
        .exists()
    )
    query: Select[Play, int, int] = (
        select(Play, done, taken)
        .where(_reviewable(), ~_settled(), ~said, done < MOST_REVIEWS, Play.id != besides)
        .order_by(Play.started_at, Play.id)
    )
    start = 0
    while batch := tx.execute(query.offset(start).limit(BATCH)).all():
        for play, finished, held in batch:
            # One without a verdict needs another look, however many there were.
            if held < max(_wanted(play.id, desk), finished + 1):
                return play
        start += BATCH
    return None


def _taken(now: dt.datetime) -> ColumnElement[int]:
    """Reviews that are finished or under way."""
    return _count(or_(Review.done_at.is_not(None), Review.assigned_at > now - ASSIGNED))


def _wanted(play_id: str, desk: ReviewConfig) -> int:
    """How many reviewers look at a play at least."""
    draw = int.from_bytes(hashlib.sha256(play_id.encode()).digest()[:4]) / 2**32
    return 2 if draw < desk.double_share else 1


def _gold_turn(tx: Session, staff: Staff) -> Play | None:
    """A gold play that ``staff`` has not met, when it is time for one."""
    mine = select(Review.play_id).where(Review.staff_id == staff.id, Review.done_at.is_not(None))
    count = tx.scalar(select(func.count()).select_from(mine.subquery())) or 0
    draw = hashlib.sha256(f"{staff.id} {count}".encode()).digest()
    if int.from_bytes(draw[:4]) % GOLD_EVERY:
        return None
    return tx.scalar(
        select(Play)
        .join(GoldPlay, GoldPlay.play_id == Play.id)
        .where(_reviewable(), Play.id.not_in(mine))
        .order_by(GoldPlay.created_at, Play.id)
        .limit(1)
    )


def _assign(tx: Session, play: Play, staff: Staff, now: dt.datetime) -> None:
    review = assignment(tx, play.id, staff)
    if review is None:
        tx.add(Review(play_id=play.id, staff_id=staff.id, assigned_at=now))
    else:
        review.assigned_at = now
    tx.flush()


def _done(tx: Session, play_id: str) -> Sequence[Review]:
    return tx.scalars(
        select(Review)
        .where(Review.play_id == play_id, Review.done_at.is_not(None))
        .order_by(Review.done_at, Review.id)
    ).all()


def _stand(
    tx: Session,
    play: Play,
    what: Outcome,
    worth: PointsConfig,
    admin_id: str | None,
    now: dt.datetime | None,
) -> ReviewVerdict:
    verdict = tx.get(ReviewVerdict, play.id)
    if verdict is None:
        verdict = ReviewVerdict(play_id=play.id)
        tx.add(verdict)
    verdict.review_id = what.review.id
    verdict.decision = what.decision
    verdict.quality = what.quality
    verdict.settled_at = now or utc_now()
    verdict.settled_by = admin_id
    tx.flush()
    scoring.review(tx, play, what.decision, what.quality, worth=worth, at=now)
    return verdict
