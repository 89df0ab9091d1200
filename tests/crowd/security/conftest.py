"""A small site with somebody of every kind on it, and what belongs to each of them.

`world` has the people, stations and things; `world.as_("reviewer")` is a browser of that role with
a session of its own. Roles: see `ROLES`. `operations` are all routes that the application's
OpenAPI tells of, with the security schemes that each declares; `paths` fills their parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.tables import (
    Clip,
    HelpRequest,
    NicknameCase,
    Participant,
    Play,
    Review,
    RewardItem,
    Staff,
    Station,
    Task,
    new_id,
)
from tests.crowd import factories
from tests.crowd.browser import Browser
from tests.crowd.recordings import make_recorded

ORIGIN = "https://crowd.test"
# What each role is, by the schemes of the OpenAPI. A play, a station, a review is always that of
# the first of two: "other participant" and "other agent" are strangers to it.
ROLES: dict[str, frozenset[str]] = {
    "nobody": frozenset(),
    "participant": frozenset({"participant"}),
    "other participant": frozenset({"participant"}),
    "kiosk": frozenset({"kiosk"}),
    "agent": frozenset({"agent"}),
    "other agent": frozenset({"agent"}),
    "reviewer": frozenset({"reviewer"}),
    "other reviewer": frozenset({"reviewer"}),
    "operator": frozenset({"operator"}),
    "admin": frozenset({"admin"}),
}
STAFF = frozenset({"reviewer", "operator", "admin"})
TOKENS = {"agent": "token of the agent", "other agent": "token of another agent"}
VISIT = "__Host-visit"
UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Operation:
    """A route: ``schemes`` are alternatives; empty when it declares nothing."""

    method: str
    path: str
    schemes: frozenset[str]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class World:
    """Who and what there is; see the fixtures of tests/crowd/conftest.py for how."""

    app: FastAPI
    client: TestClient
    database: Database
    key: SiteKey
    config: CrowdConfig
    ada: Participant
    bob: Participant
    here: Station
    there: Station
    task: Task
    ada_play: Play
    bob_play: Play
    staff: dict[str, Staff]
    ids: dict[str, str] = field(default_factory=dict)

    def as_(self, role: str) -> Actor:
        """A browser (or an agent) of this role, with a new session."""
        assert role in ROLES, role
        return Actor(self, role)

    def path(self, operation: Operation) -> str:
        """The operation's path with ids of what is there."""

        def fill(match: re.Match[str]) -> str:
            return self.ids[match[1]]  # KeyError: a new parameter; say above what belongs there

        return re.sub(r"\{(\w+)\}", fill, operation.path)


class Actor(Browser):
    """A browser in one of the roles, on the running application."""

    def __init__(self, world: World, role: str) -> None:
        client = TestClient(
            world.app,
            base_url=ORIGIN,
            follow_redirects=False,
            raise_server_exceptions=False,
        )
        # The lifespan that runs is the fixture's: its loop, and what it has given to requests.
        client.portal = world.client.portal
        client.app_state.update(world.client.app_state)
        super().__init__(world.app, client)
        self.role = role
        if role in TOKENS:
            client.headers["authorization"] = f"Bearer {TOKENS[role]}"
        elif role == "kiosk":
            self.sign_in(kiosk=world.here)
        elif "participant" in role:
            self.sign_in(participant=world.bob if "other" in role else world.ada)
        elif role in world.staff:
            self.sign_in(staff=world.staff[role])

    def csrf(self, path: str = "/") -> str:
        """As its page has it; of two visits (one by us, one by the site) the later one counts."""
        visits = [c.value for c in self.client.cookies.jar if c.name == VISIT]
        if len(visits) > 1:
            self.set_cookie(VISIT, str(visits[-1]))
        return super().csrf(path)

    def send(self, operation: Operation, path: str, **options: Any) -> httpx.Response:
        """The operation as this role's page or program would send it."""
        csrf = None if path.startswith("/api/station/") else "right"
        return self.request(operation.method, path, csrf=csrf, **options)


def operations_of(app: FastAPI) -> list[Operation]:
    """Every operation of the OpenAPI."""
    found = []
    for path, item in app.openapi()["paths"].items():
        for method, operation in item.items():
            schemes = frozenset(name for one in operation.get("security", ()) for name in one)
            found.append(Operation(method.upper(), path, schemes))
    assert len(found) > 80
    return found


@pytest.fixture
def operations(app: FastAPI) -> list[Operation]:
    return operations_of(app)


@pytest.fixture
def world(
    app: FastAPI, client: TestClient, database: Database, key: SiteKey, config: CrowdConfig
) -> Iterator[World]:
    with database.begin() as tx:
        ada = factories.make_participant(tx, "Ada")
        bob = factories.make_participant(tx, "Bob")
        here = factories.make_station(tx, key, TOKENS["agent"], name="here")
        there = factories.make_station(tx, key, TOKENS["other agent"], name="there")
        task = factories.make_task(tx, "easy", id="sort")
        staff = {role: factories.make_staff(tx, key, role) for role in sorted(STAFF)}
        staff["other reviewer"] = factories.make_staff(tx, key, "reviewer")
        spare = factories.make_staff(tx, key, "operator")
        for who in (ada, bob):
            factories.make_consent(tx, who)
        case = NicknameCase(participant_id=bob.id, nickname="Bob", reason="new")
        call = HelpRequest(station_id=here.id)
        clip = Clip(id=new_id(), task_id=task.id, file="clips/shown.mp4", caption="How it goes")
        candy = RewardItem(id="candy", name="Candy", points=10, daily_cap=5)
        tx.add_all([case, call, clip, candy])
    (config.media / "clips").mkdir()
    (config.media / "clips" / "shown.mp4").write_bytes(bytes(4000))
    (config.media / "clips" / f"{clip.id}.en.vtt").write_text("WEBVTT\n")
    ada_play = make_recorded(database, config, key, ada, here, task)
    bob_play = make_recorded(database, config, key, bob, there, task)
    with database.begin() as tx:
        tx.add(Review(play_id=ada_play.id, staff_id=staff["reviewer"].id))
        tx.add(Review(play_id=bob_play.id, staff_id=staff["other reviewer"].id))
    yield World(
        app,
        client,
        database,
        key,
        config,
        ada,
        bob,
        here,
        there,
        task,
        ada_play,
        bob_play,
        staff,
        {
            "play_id": ada_play.id,
            "station_id": here.id,
            "participant_id": ada.id,
            "staff_id": spare.id,
            "case_id": case.id,
            "help_id": call.id,
            "clip_id": clip.id,
            "task_id": task.id,
            "scope": "all",
            "camera": "cam_high",
            "language": "en",
        },
    )


@pytest.fixture
def rows(database: Database) -> Callable[[type[Any]], list[dict[str, Any]]]:
    """``rows(Play)``: the table's rows as they are, to see that nothing has changed."""

    def read(table: type[Any]) -> list[dict[str, Any]]:
        with database.read() as tx:
            return [
                {column.key: getattr(row, column.key) for column in table.__table__.columns}
                for row in tx.query(table).order_by(*table.__table__.primary_key).all()
            ]

    return read
