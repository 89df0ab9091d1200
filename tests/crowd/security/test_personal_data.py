"""Nothing of anybody is in the log, the metrics or the database that need not be (ASVS 16.2, 14.2).

A whole visit with things in it that can be searched for: the number of a card, a nickname, an
address, a browser's name; through the log as it is written, at its most talkative.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import select
from sqlalchemy.engine import make_url
from starlette.testclient import TestClient

from collect.crowd import names, plays
from collect.crowd.log import configure
from collect.crowd.tables import NicknameCase, Participant, Play, Station, utc_now
from tests.crowd.security.conftest import TOKENS, World

DATABASES = ["sqlite"]
CARD = "04A7F3E1C95B80"
NICKNAME = "Wilhelmina Zq"
ADDRESS = "198.51.100.217"
BROWSER = "UnusualBrowser/47.11"
NOTE = "wears a yellow hat"
LOST = "dropped somewhere 8812"


@pytest.fixture
def logged() -> Iterator[None]:
    level = logging.getLogger().level
    configure()
    logging.getLogger().setLevel(logging.DEBUG)
    yield
    logging.getLogger().setLevel(level)
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()


def _visit(world: World) -> tuple[list[str], list[str]]:
    """In by card, through age, consent and name, a play, its report, help, data, out; with
    mistakes on the way. The tokens of browsers and agent; and what else is somebody's own."""
    kiosk = world.as_("kiosk")
    tokens = [kiosk.client.cookies["__Host-kiosk"], *TOKENS.values()]
    other = TestClient(
        world.app,
        base_url="https://crowd.test",
        follow_redirects=False,
        raise_server_exceptions=False,
        client=(ADDRESS, 4711),
        headers={"user-agent": BROWSER, "referer": f"https://crowd.test/?{LOST}"},
    )
    other.portal = world.client.portal
    other.app_state.update(world.client.app_state)
    other.cookies = kiosk.client.cookies
    kiosk.client = other
    came = kiosk.post("/signin/card", data={"card": CARD})
    assert came.headers["location"] == "/age"
    cookie = came.cookies["__Host-participant"]
    with world.database.read() as tx:
        person = tx.scalars(select(Participant).where(Participant.kind == "card")).one()
    page = kiosk.get("/age").text
    token = page.split('name="csrf" value="')[1].split('"')[0]
    tokens.append(cookie)

    def post(path: str, **data: object) -> int:
        return kiosk.post(path, csrf=token, data=data).status_code

    assert post("/age", adult="maybe " + LOST) == 422
    assert post("/age", adult="true") == 303
    assert post("/consent", version="1", language="en", scope=["record", "research"]) == 303
    assert post("/nickname", nickname=NICKNAME) == 303
    assert post("/nickname", nickname=NICKNAME + "<" + LOST) == 422
    with world.database.begin() as tx:
        tx.get_one(Participant, person.id).tutorial_at = utc_now()
        case = tx.scalars(select(NicknameCase).where(NicknameCase.nickname == NICKNAME)).one()
        names.decide(tx, case, approved=True, staff_id=world.staff["operator"].id)
    assert post("/tasks/sort/start") == 303
    with world.database.begin() as tx:
        play = tx.scalars(select(Play).where(Play.state == "running")).one()
        plays.finish(tx, play, by="rest")
    report = {"success": "true", "intuitive": 4, "fun": 5, "did": 3}
    assert post("/report", play=play.id, **report) == 303
    for path in ("/me", "/board", f"/nothing/{LOST}", f"/tasks/{LOST}", f"/?left={NICKNAME}"):
        kiosk.get(path)
    assert post("/help") == 303
    agent = world.as_("agent")
    state = {"phase": "fault", "boot": "b", "n": 1, "fault": NOTE}
    agent.post("/api/station/heartbeat", csrf=None, json={"state": state})
    agent.post(f"/api/station/play/{LOST}/result", csrf=None, json={"ended_by": NOTE})
    rita = world.as_("reviewer")
    typed = {"decision": "confirm", "quality": "3", "note": NOTE, "segment_lines": LOST}
    rita.post(f"/staff/review/{world.ada_play.id}", data=typed)
    staff = {"name": NICKNAME, "password": CARD, "code": "123456"}
    world.as_("nobody").post("/staff/signin", data=staff)
    world.as_("admin").get("/staff/participants", params={"q": NICKNAME})
    with world.database.begin() as tx:
        tx.get_one(Station, world.here.id).state = {"phase": 7, "warning": NOTE}  # as no agent says
    kiosk.get("/play")
    assert kiosk.get("/me/data/copy.zip").status_code == 403
    assert post("/logout") == 303
    return tokens, [token, person.id, person.pseudonym]


def test_a_whole_visit_leaves_nothing_of_anybody_in_the_log(
    world: World, logged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, own = _visit(world)

    @world.app.get("/test/broken")
    def broken() -> None:
        raise ValueError(f"{NICKNAME} with {CARD}")

    world.as_("nobody").get("/test/broken")
    logging.getLogger("some.library").error("card %s of %s", CARD, NICKNAME)
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines() if line.startswith("{")]
    assert len([line for line in lines if line["event"] == "request"]) > 20
    assert any(line.get("error") == "ValueError" for line in lines)
    for secret in (CARD, NICKNAME, ADDRESS, BROWSER, NOTE, LOST, "Wilhelmina", *tokens, *own):
        assert secret not in captured.err + captured.out, secret
        assert secret.lower() not in (captured.err + captured.out).lower(), secret


def test_metrics_count_and_name_nobody(world: World) -> None:
    tokens, own = _visit(world)
    monitor = TestClient(world.app, base_url="http://127.0.0.1:8430", client=("127.0.0.1", 1))
    text = monitor.get("/metrics").text
    assert "crowd_requests_total" in text
    for secret in (CARD, NICKNAME, ADDRESS, BROWSER, LOST, *tokens, *own):
        assert secret not in text, secret
    for line in text.splitlines():
        if line.startswith("crowd_requests_total{"):
            route = line.split('route="')[1].split('"')[0]
            assert route in ("none", "static") or route.startswith("/")


def test_a_cards_number_is_nowhere_on_the_disk(world: World) -> None:
    """Nor a session's token, an agent's token or an address: keyed hashes at most."""
    tokens, _ = _visit(world)
    path = Path(str(make_url(world.config.database).database))
    with sqlite3.connect(path) as connection:
        dump = "\n".join(connection.iterdump())
    assert NICKNAME in dump  # what is searched is there to be searched
    files = [p for p in path.parent.rglob("*") if p.is_file() and p.suffix not in (".hdf5", ".key")]
    raw = b"".join(p.read_bytes() for p in files)
    for secret in (CARD, CARD.lower(), ADDRESS, BROWSER, LOST, *tokens):
        assert secret not in dump and secret.encode() not in raw, secret
