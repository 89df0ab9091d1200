"""Incentive experiment: who sees rewards, badges or leaderboards, by chance and for good.

A participant without an arm (no experiment ran when it came) sees everything. Whoever has one sees
what its arm is about, whatever becomes of the experiment, and each look is logged once a visit: a
visit begins with a sign-in. `collect.crowd.experiment_report` says what came of it.

Nobody is part of it without consent to research. Who refuses that gets no arm, not even when
agreeing at a later visit: they have seen everything by then. Who takes it back sees everything from
then on; agreeing again brings the same arm back.
"""

from __future__ import annotations

import datetime as dt
import secrets
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from collect.crowd import consent
from collect.crowd.database import Database
from collect.crowd.tables import Consent, Exposure, IncentiveArm, Participant, WebSession, utc_now

__all__ = ["ARMS", "What", "assign", "expose", "log_exposure", "set_arm", "shows"]

What = Literal["rewards", "badges", "board"]
# What each arm sees, and no other does.
ARMS: dict[str, What] = {"material": "rewards", "intrinsic": "badges", "social": "board"}
VISIT = dt.timedelta(minutes=30)  # of who has no session any more, or never had one
MAX_WEIGHT = 1000.0


def assign(tx: Session, participant: Participant) -> str | None:
    """The participant's arm: drawn by weight with the first consent, the same one ever after.

    None while no arm is active, for who does not agree to research, and for who has taken part
    without an arm before. The draw is the operating system's randomness: nobody can know or repeat
    it.
    """
    row = tx.get_one(Participant, participant.id)  # the caller's may be older, from elsewhere
    if row.arm is not None or row.erased_at is not None:
        participant.arm = row.arm
        return row.arm
    answers = tx.scalars(select(Consent).where(Consent.participant_id == row.id)).all()
    if len(answers) != 1 or not consent.covers(answers[0], consent.RESEARCH):
        return None
    arms = tx.scalars(
        select(IncentiveArm)
        .where(IncentiveArm.active, IncentiveArm.weight > 0.0)
        .order_by(IncentiveArm.name)
    ).all()
    if not arms:
        return None
    weights = [arm.weight for arm in arms]
    drawn = secrets.SystemRandom().choices(arms, weights)[0]
    row.arm = participant.arm = drawn.name
    tx.flush()
    return drawn.name


def shows(participant: Participant | None, what: What) -> bool:
    """Whether to show somebody rewards, badges or the leaderboard."""
    arm = None if participant is None else _arm(participant)
    return arm is None or ARMS.get(arm) == what


def expose(
    tx: Session, participant: Participant, page: What, now: dt.datetime | None = None
) -> bool:
    """Log that a participant sees what its arm is about; whether it is the first time this visit.

    Nothing is logged of who has no arm or is not to be studied, or of a page that isn't its arm's.
    """
    now = now or utc_now()
    arm = _arm(participant)
    if arm is None or not shows(participant, page) or _seen(tx, participant, page, now):
        return False
    tx.add(Exposure(participant_id=participant.id, arm=arm, page=page, seen_at=now))
    tx.flush()
    return True


def log_exposure(database: Database, participant: Participant | None, page: What) -> None:
    """`expose` for a page that only reads: writes when there is something to write."""
    if participant is None or _arm(participant) is None or not shows(participant, page):
        return
    with database.read() as tx:
        seen = _seen(tx, participant, page, utc_now())
    if not seen:
        with database.begin() as tx:
            expose(tx, participant, page)


def set_arm(
    tx: Session, name: str, weight: float | None = None, active: bool | None = None
) -> None:
    """Make or change an arm; ValueError for one that nobody knows, or no weight.

    Who has an arm keeps it: weights are of those who come from now on.
    """
    if name not in ARMS:
        raise ValueError(f"no arm is called {name!r}; there are {', '.join(ARMS)}")
    if weight is not None and not 0.0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight {weight} of {name} must be 0 to {MAX_WEIGHT:.0f}")
    arm = tx.get(IncentiveArm, name)
    if arm is None:
        arm = IncentiveArm(name=name, weight=1.0, active=True)
        tx.add(arm)
    if weight is not None:
        arm.weight = weight
    if active is not None:
        arm.active = active
    tx.flush()


def _arm(participant: Participant) -> str | None:
    """The arm that counts now."""
    return None if participant.no_research else participant.arm


def _seen(tx: Session, participant: Participant, page: str, now: dt.datetime) -> bool:
    began = tx.scalar(
        select(func.max(WebSession.created_at)).where(WebSession.participant_id == participant.id)
    )
    since = now - VISIT if began is None else began
    return (
        tx.scalar(
            select(Exposure.id)
            .where(
                Exposure.participant_id == participant.id,
                Exposure.page == page,
                Exposure.seen_at >= since,
            )
            .limit(1)
        )
        is not None
    )
