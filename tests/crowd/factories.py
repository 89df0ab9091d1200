"""Rows that tests need, made in a transaction of the caller's; columns are given by name."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
from typing import Any

import pyotp
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy.orm import Session

from collect.crowd.keys import SiteKey
from collect.crowd.names import skeleton
from collect.crowd.tables import (
    Consent,
    Participant,
    Play,
    Staff,
    Station,
    StationLease,
    Task,
    TaskText,
    utc_now,
)

__all__ = [
    "PASSWORD",
    "TOTP_SECRET",
    "make_consent",
    "make_lease",
    "make_participant",
    "make_play",
    "make_staff",
    "make_station",
    "make_task",
]

PASSWORD = "correct horse battery staple"
TOTP_SECRET = pyotp.random_base32()
# As weak as argon2 allows: the tests' logins shall cost nothing.
_HASHER = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=8, parallelism=1),))
_counter = itertools.count(1)


def make_participant(tx: Session, nickname: str | None = "auto", **columns: Any) -> Participant:
    """Someone with an approved nickname, grown up, past the tutorial. ``nickname=None``: none."""

    n = next(_counter)
    name = f"Tester {n:05d}"[:24] if nickname == "auto" else nickname
    values: dict[str, Any] = {
        "kind": "guest",
        "nickname": name,
        "skeleton": None if name is None else skeleton(name),
        "nickname_state": "approved" if name is not None else "pending",
        "pseudonym": f"Otter {n}",
        "adult": True,
        "tutorial_at": utc_now(),
    }
    participant = Participant(**{**values, **columns})
    tx.add(participant)
    tx.flush()
    return participant


def make_consent(tx: Session, participant: Participant, **columns: Any) -> Consent:
    """Consent to everything, version "1"."""
    values: dict[str, Any] = {
        "participant_id": participant.id,
        "version": "1",
        "language": "en",
        "scopes": ["record", "research", "clips"],
    }
    consent = Consent(**{**values, **columns})
    tx.add(consent)
    tx.flush()
    return consent


@functools.cache
def _password_hash() -> str:
    """Made once: it is slow by design."""
    return _HASHER.hash(PASSWORD)


def make_staff(tx: Session, key: SiteKey, role: str = "admin", **columns: Any) -> Staff:
    """Staff with ``PASSWORD`` and the TOTP secret ``TOTP_SECRET``."""
    values: dict[str, Any] = {
        "name": f"{role}-{next(_counter)}",
        "role": role,
        "password_hash": _password_hash(),
        "totp_secret": key.encrypt("totp", TOTP_SECRET),
    }
    staff = Staff(**{**values, **columns})
    tx.add(staff)
    tx.flush()
    return staff


def make_station(tx: Session, key: SiteKey, token: str | None = None, **columns: Any) -> Station:
    """A station that was heard of just now, paired with the agent's ``token`` where one is."""
    values: dict[str, Any] = {
        "name": f"station-{next(_counter):05d}",
        "token_hash": None if token is None else key.mac("agent token", token),
        "paired_at": utc_now(),
        "seen_at": utc_now(),
        "state": {},
    }
    station = Station(**{**values, **columns})
    tx.add(station)
    tx.flush()
    return station


def make_lease(
    tx: Session, station: Station, participant: Participant, **columns: Any
) -> StationLease:
    """It is the participant's turn for ten minutes."""
    station.fence += 1
    values: dict[str, Any] = {
        "station_id": station.id,
        "participant_id": participant.id,
        "fence": station.fence,
        "expires_at": utc_now() + dt.timedelta(minutes=10),
    }
    lease = StationLease(**{**values, **columns})
    tx.add(lease)
    tx.flush()
    return lease


def make_task(tx: Session, difficulty: str = "easy", **columns: Any) -> Task:
    """An active task with English and German texts."""
    n = next(_counter)
    values: dict[str, Any] = {
        "id": f"task-{n}",
        "difficulty": difficulty,
        "seconds": 120,
        "par_s": 40.0,
        "position": n,
    }
    task = Task(**{**values, **columns})
    tx.add(task)
    tx.flush()
    for language, title in (("en", f"Task {n}"), ("de", f"Aufgabe {n}")):
        tx.add(TaskText(task_id=task.id, language=language, title=title, body=f"{title}."))
    tx.flush()
    return task


def make_play(
    tx: Session, participant: Participant, station: Station, task: Task | None, **columns: Any
) -> Play:
    """A finished play of 30 s, claimed as a success, under a consent to everything."""
    values: dict[str, Any] = {
        "station_id": station.id,
        "participant_id": participant.id,
        "task_id": None if task is None else task.id,
        "kind": "free" if task is None else "task",
        "fence": station.fence,
        "state": "finished",
        "ended_at": utc_now(),
        "ended_by": "button",
        "seconds": 30.0,
        "claimed": True,
    }
    if "consent_id" not in columns:
        values["consent_id"] = make_consent(tx, participant).id
    play = Play(**{**values, **columns})
    tx.add(play)
    tx.flush()
    return play
