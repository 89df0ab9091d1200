"""The application as a whole: guards that every request meets."""

from __future__ import annotations

import contextlib
import dataclasses

from fastapi import APIRouter
from sqlalchemy import select
from starlette.testclient import TestClient

from collect.crowd.app import create_app
from collect.crowd.tables import Participant


def test_health(client):
    assert client.get("/health").json() == {"ok": True, "database": "ok"}


def test_what_a_factory_makes_is_in_the_applications_database(app, make_participant):
    ada = make_participant(nickname="Ada")
    with app.state.site.database.read() as tx:
        assert tx.scalar(select(Participant.id)) == ada.id


def test_what_a_router_runs_beside_the_requests_begins_and_ends_with_the_site(app):
    """The followers of boards and the video workers depend on it."""
    said = []

    @contextlib.asynccontextmanager
    async def lifespan(_):
        said.append("begins")
        yield
        said.append("ends")

    app.include_router(APIRouter(lifespan=lifespan))
    with TestClient(app, base_url="https://crowd.test") as client:
        assert client.get("/health").status_code == 200
        assert said == ["begins"]
    assert said == ["begins", "ends"]


def test_health_says_when_the_database_is_away(app, client, config, tmp_path):
    away = dataclasses.replace(config, database=f"sqlite:///{tmp_path}/none/crowd.db")
    with TestClient(create_app(away), base_url="https://crowd.test") as other:
        answer = other.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"ok": False, "database": "away"})
    assert client.get("/health").status_code == 200


def test_pages_say_when_the_database_is_away(config, tmp_path):
    away = dataclasses.replace(config, database=f"sqlite:///{tmp_path}/none/crowd.db")
    with TestClient(create_app(away), base_url="https://crowd.test") as client:
        client.cookies.set("__Host-participant", "x" * 43)
        answer = client.get("/board", headers={"accept": "text/html"})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
    assert "busy" in answer.text
