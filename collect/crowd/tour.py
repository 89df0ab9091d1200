"""A tour of the whole site: every page, for everybody who sees it, at every step.

The demonstration checks by it that each page has something on it; `make screenshots` and the
accessibility test walk it with a browser. It works on a filled site, to which it adds a cast: one
participant for each step of the way, so that all steps can be seen at once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fastapi import FastAPI
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.requests import Request

from collect.crowd import consent, people, phone, plays, queue, stations
from collect.crowd.security.sessions import cookie_name, sign_in
from collect.crowd.site import Site
from collect.crowd.tables import (
    Participant,
    Play,
    Review,
    ReviewVerdict,
    Staff,
    Station,
    Task,
    utc_now,
)
from robot_stack.errors import ConfigError

__all__ = ["Page", "Role", "Tour", "make_tour"]

Role = Literal[
    "stranger",
    "kiosk",
    "newcomer",
    "minor",
    "reader",
    "learner",
    "trainee",
    "chooser",
    "waiting",
    "player",
    "reporter",
    "regular",
    "staff",
]
STAFF_PAGES = (
    "names",
    "help",
    "participants",
    "plays",
    "stations",
    "rewards",
    "accounts",
    "audit",
    "agreement",
    "disputes",
    "review",
    "password",
)


@dataclass(frozen=True, slots=True)
class Page:
    """``path`` as ``role`` sees it; ``name`` is for files: letters, digits and dashes."""

    name: str
    path: str
    role: Role
    status: int = 200


@dataclass(frozen=True)
class Tour:
    """``pages`` in the order of a visit; ``cookies``: by role, what makes a browser that one."""

    pages: tuple[Page, ...]
    cookies: dict[Role, dict[str, str]]
    site: Site

    def speak(self, language: str) -> None:
        """Let everybody of the cast read this language."""
        with self.site.database.begin() as tx:
            tx.execute(update(Participant).values(language=language))


def make_tour(app: FastAPI, regular_id: str) -> Tour:
    """Add the cast to a filled site; ``app`` need not be served. ``regular_id``: a participant
    with a history."""
    site: Site = app.state.site
    with site.database.begin() as tx:
        cast = _Cast(app, tx, site, regular_id)
        cast.fill()
        return Tour(tuple(cast.pages(tx)), cast.cookies, site)


class _Cast:
    """Who sees the pages; all in one write."""

    def __init__(self, app: FastAPI, tx: Session, site: Site, regular_id: str) -> None:
        self.app = app
        self.regular_id = regular_id
        self.tx = tx
        self.site = site
        self.now = utc_now()
        self.cookies: dict[Role, dict[str, str]] = {"stranger": {}}
        # Heard of for an hour to come: nobody is lost while the tour lasts.
        heard = self.now + dt.timedelta(hours=1)
        self.here = Station(name="window", paired_at=self.now, seen_at=heard, state={})
        self.there = Station(name="counter", paired_at=self.now, seen_at=heard, state={})
        self.training = Station(name="corner", paired_at=self.now, seen_at=heard, state={})
        tx.add_all([self.here, self.there, self.training])
        tx.flush()
        admin = tx.scalar(select(Staff).where(Staff.role == "admin", ~Staff.disabled).limit(1))
        if admin is None:
            raise ConfigError("the tour shows the pages of staff: add an admin first")
        self.admin_id = admin.id

    def fill(self) -> None:
        """Everybody of the cast, where they are."""
        self._enter("kiosk", None, self.here)
        self._enter("newcomer", self._new())
        minor = self._new()
        minor.adult = False
        self._enter("minor", minor)
        reader = self._new()
        reader.adult = True
        self._enter("reader", reader)
        self._enter("learner", self._agreed())
        self._enter("regular", self.tx.get_one(Participant, self.regular_id))
        self._drive()
        chooser = self._passed()
        stations.grant(self.tx, self.here, chooser, self.now)
        self._enter("chooser", chooser)
        self.cookies["staff"] = self._cookie("staff", staff_id=self.admin_id)

    def _drive(self) -> None:
        """Somebody who has to report, somebody who learns, somebody who waits, one after another
        where the robot is driven; and at last somebody who drives."""
        reporter = self._passed()
        earlier = self.now - dt.timedelta(minutes=5)
        stations.grant(self.tx, self.there, reporter, earlier)
        play = self._start(reporter, "task", earlier)
        plays.finish(self.tx, play, by="rest", now=earlier + dt.timedelta(seconds=38))
        stations.release(self.tx, self.there, reporter, earlier + dt.timedelta(seconds=40))
        self._enter("reporter", reporter, self.there)
        player = self._passed()
        stations.grant(self.tx, self.there, player, self.now)
        play = self._start(player, "task", self.now)
        self.there.state = {
            "boot": "tour",
            "n": 1,
            "phase": "playing",
            "play": play.id,
            "elapsed_s": 31.0,
            "seconds": 90,
            "warning": {"level": 1, "distance_m": 0.03, "between": "follower_left"},
            "leaders_resting": False,
        }
        self._enter("player", player, self.there)
        waiting = self._passed()
        queue.join(self.tx, self.there, self._passed(), self.now)
        queue.join(self.tx, self.there, waiting, self.now)
        self._enter("waiting", waiting, self.there)
        trainee = self._agreed()
        stations.grant(self.tx, self.training, trainee, self.now)
        play = self._start(trainee, "tutorial", self.now, self.training)
        self.training.state = {
            "boot": "tour",
            "n": 1,
            "phase": "tutorial",
            "play": play.id,
            "tutorial": {"play": play.id, "step": "touch", "done": ["home", "squeeze"]},
        }
        self._enter("trainee", trainee, self.training)

    def pages(self, tx: Session) -> Iterator[Page]:
        """All pages that answer to GET."""
        task = tx.scalars(select(Task).where(Task.active).order_by(Task.position.desc())).first()
        assert task is not None
        yield Page("start", "/", "stranger")
        yield Page("start-kiosk", "/", "kiosk")
        yield Page("signin", "/signin", "stranger")
        yield Page("signin-kiosk", "/signin", "kiosk")
        token = phone.new_link(tx, self.site.key, self.here, None, "en")
        yield Page("signin-phone", f"/signin/phone?link={token}", "stranger")
        yield Page("back", "/back", "stranger")
        yield Page("pair", "/pair", "stranger")
        yield Page("age", "/age", "newcomer")
        yield Page("age-minor", "/age", "minor")
        yield Page("consent", "/consent", "reader")
        yield Page("nickname", "/nickname", "learner")
        yield Page("tutorial", "/tutorial", "learner")
        yield Page("tutorial-running", "/tutorial", "trainee")
        yield Page("tasks", "/tasks", "chooser")
        yield Page("task", f"/tasks/{task.id}", "chooser")
        yield Page("free", "/free", "chooser")
        yield Page("queue", "/queue", "waiting")
        yield Page("play", "/play", "player")
        yield Page("report", "/report", "reporter")
        yield Page("result", f"/report?done={self._told(tx)}", "regular")
        yield Page("me", "/me", "regular")
        yield Page("me-data", "/me/data", "regular")
        yield Page("board", "/board", "regular")
        for scope in ("all", "quality", "newcomers", f"task:{task.id}"):
            yield Page(f"board-{scope.replace(':', '-')}", f"/board/{scope}", "regular")
        yield Page("board-week", "/board/all?period=week", "kiosk")
        yield Page("board-day", "/board/all?period=day", "stranger")
        yield Page("rewards", "/rewards", "regular")
        yield Page("help", "/help", "chooser")
        yield Page("help-elsewhere", "/help", "stranger")
        yield Page("missing", "/there-is-nothing", "stranger", status=404)
        yield Page("staff-signin", "/staff/signin", "stranger")
        yield Page("staff-home", "/staff", "staff")
        for name in STAFF_PAGES:
            yield Page(f"staff-{name}", f"/staff/{name}", "staff")
        yield Page("staff-review-play", f"/staff/review/{self._assigned(tx)}", "staff")

    # -- people --------------------------------------------------------------------------------

    def _new(self) -> Participant:
        return people.newcomer(self.tx, "guest", "en")

    def _agreed(self) -> Participant:
        who = self._new()
        who.adult = True
        text = consent.current(self.tx, "en", self.now)
        consent.give(self.tx, who, text.version, text.language, consent.SCOPES, self.now)
        return who

    def _passed(self) -> Participant:
        who = self._agreed()
        who.tutorial_at = self.now
        return who

    def _start(
        self, who: Participant, kind: plays.Kind, now: dt.datetime, at: Station | None = None
    ) -> Play:
        tasks = select(Task).where(Task.active).order_by(Task.position)
        task = self.tx.scalars(tasks).first() if kind == "task" else None
        given = consent.valid(self.tx, who, self.now)
        assert given is not None
        return plays.start(
            self.tx, at or self.there, who, task=task, kind=kind, consent=given, now=now
        )

    def _told(self, tx: Session) -> str:
        """A play of the regular that was reported."""
        told = tx.scalar(
            select(Play.id)
            .where(
                Play.participant_id == self.regular_id, Play.claimed.is_(True), Play.kind == "task"
            )
            .order_by(Play.started_at.desc())
        )
        if told is None:
            raise ConfigError("the tour's regular has never reported a success")
        return told

    def _assigned(self, tx: Session) -> str:
        """A play that waits for the admin's review."""
        play = tx.scalar(
            select(Play)
            .outerjoin(ReviewVerdict, ReviewVerdict.play_id == Play.id)
            .where(Play.state == "synced", Play.kind == "task", ReviewVerdict.play_id.is_(None))
            .order_by(Play.started_at.desc())
        )
        assert play is not None
        tx.add(Review(play_id=play.id, staff_id=self.admin_id, assigned_at=self.now))
        return play.id

    # -- browsers ------------------------------------------------------------------------------

    def _enter(self, role: Role, who: Participant | None, station: Station | None = None) -> None:
        """Let ``role`` be at the kiosk of a station, signed in as ``who``."""
        at = station or self.here
        cookies = self._cookie("kiosk", station_id=at.id)
        if who is not None:
            cookies |= self._cookie("participant", participant_id=who.id, station_id=at.id)
        self.cookies[role] = cookies

    def _cookie(self, kind: Literal["participant", "staff", "kiosk"], **of: str) -> dict[str, str]:
        scope = {"type": "http", "app": self.app, "headers": [], "path": "/", "method": "GET"}
        session = sign_in(self.tx, Request(scope), kind, **of)
        return {cookie_name(self.site.config, kind): session.token}
