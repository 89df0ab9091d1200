"""Who is hidden, opted out or erased is nowhere: no page, JSON, stream, count or export.

CTFd 3.6.1 and 3.7.3 told of hidden users in places that nobody had thought of; so every GET of
the OpenAPI is asked, as everybody who may.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from collect.crowd import data_rights, export, scoring
from collect.crowd.export_select import Terms
from collect.crowd.live import Frames
from collect.crowd.routes import kiosk as kiosk_routes
from collect.crowd.tables import (
    Clip,
    Exposure,
    NicknameCase,
    Participant,
    Play,
    Queued,
    new_id,
    utc_now,
)
from tests.crowd import factories
from tests.crowd.recordings import make_recorded
from tests.crowd.security.conftest import Operation, World

DATABASES = ["sqlite"]
GONE = "Zaphod the Gone"
STATES = ["hidden", "opted out", "erased"]


@pytest.fixture
def absent(world: World, request: pytest.FixtureRequest) -> Participant:
    """Somebody with the most points of all, a clip, a place in the queue; then gone."""
    state = request.param
    with world.database.begin() as tx:
        who = factories.make_participant(tx, GONE, pseudonym="Amber Otter 4242")
        factories.make_consent(tx, who)
    play = make_recorded(world.database, world.config, world.key, who, world.here, world.task)
    with world.database.begin() as tx:
        row = tx.get_one(Play, play.id)
        for _ in range(3):
            again = factories.make_play(tx, who, tx.merge(world.here), world.task)
            scoring.claim(tx, again)
        scoring.claim(tx, row)
        for person in (world.ada, world.bob):
            other = factories.make_play(tx, person, tx.merge(world.here), world.task)
            scoring.claim(tx, other)
        clip = Clip(
            id=new_id(),
            task_id=world.task.id,
            file="clips/gone.mp4",
            # Who is not on the boards may still be seen in a clip; its caption is the staff's.
            caption="A clip" if state == "opted out" else f"By {GONE}",
            participant_id=who.id,
        )
        tx.add(clip)
        tx.add(NicknameCase(participant_id=who.id, nickname=GONE, reason="reported"))
        tx.add(Queued(station_id=world.there.id, participant_id=who.id, joined_at=utc_now()))
        tx.add(Exposure(participant_id=who.id, arm="social", page="board"))
    (world.config.media / "clips" / "gone.mp4").write_bytes(bytes(100))
    world.ids["gone_clip"] = clip.id
    world.ids["gone_play"] = play.id
    with world.database.begin() as tx:
        row_ = tx.get_one(Participant, who.id)
        if state == "hidden":
            row_.hidden = True
        elif state == "opted out":
            row_.on_board = False
        else:
            data_rights.erase(tx, row_)
    if state == "erased":
        data_rights.sweep(world.database, world.config)
    with world.database.read() as tx:
        return tx.get_one(Participant, who.id)


@pytest.mark.parametrize("absent", STATES, indirect=True)
def test_nobody_reads_of_who_is_absent(
    absent: Participant,
    request: pytest.FixtureRequest,
    world: World,
    operations: list[Operation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kiosk_routes, "STREAMS", 0)
    state = request.node.callspec.params["absent"]
    secrets = [GONE, GONE.upper(), "Amber Otter 4242", absent.id]
    wrong = []
    actors = {role: world.as_(role) for role in ("nobody", "participant", "kiosk", "reviewer")}
    if state == "erased":  # staff look after who is hidden, and see nothing of who was erased
        actors |= {role: world.as_(role) for role in ("operator", "admin")}
    for role, actor in actors.items():
        for operation in operations:
            if operation.method != "GET":
                continue
            answer = actor.get(world.path(operation))
            wrong += [
                f"{operation} as {role} tells of {text!r}"
                for text in secrets
                if text.encode() in answer.content
            ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("absent", STATES, indirect=True)
def test_boards_counts_ranks_and_frames_are_without_them(absent: Participant, world: World) -> None:
    ada = world.as_("participant")
    frames = Frames(world.database)
    for scope in ("all", "newcomers", "task:sort"):
        for period in ("all", "day", "week"):
            told = ada.get(f"/api/board/{scope}?period={period}").json()
            assert told["count"] == 2, (scope, period)
            assert [place["rank"] for place in told["places"]] == [1, 1]
            assert {place["name"] for place in told["places"]} == {"Ada", "Bob"}
            mine = ada.get(f"/api/board/{scope}/me?period={period}").json()
            assert mine["place"]["rank"] == 1 and len(mine["around"]) == 2
            event = frames.get(scope, period).event.decode()
            assert GONE not in event and absent.id not in event
            assert json.loads(event.split("data: ")[1])["count"] == 2


@pytest.mark.parametrize("absent", STATES, indirect=True)
def test_a_clip_and_an_export_are_without_them(
    absent: Participant, request: pytest.FixtureRequest, world: World, tmp_path: Path
) -> None:
    """Who is not on the boards still agrees to research: only the other two are left out."""
    state = request.node.callspec.params["absent"]
    shown = world.as_("nobody").get(f"/clips/{world.ids['gone_clip']}").status_code
    assert shown == (200 if state == "opted out" else 404)
    with world.database.begin() as tx:
        for play in tx.query(Play).all():
            play.started_at = utc_now() + dt.timedelta(seconds=1)  # after the consent
    out = tmp_path / "export"
    found = export.export(world.database, world.config, world.key, out, Terms())
    assert found.episodes == (3 if state == "opted out" else 2)
    assert found.contributors == (3 if state == "opted out" else 2)
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    secrets: list[Any] = [GONE, absent.id, world.ids["gone_play"], "Amber Otter 4242"]
    for secret in secrets:
        assert secret.encode() not in everything, secret


@pytest.mark.parametrize("absent", ["hidden"], indirect=True)
def test_who_is_hidden_is_told_the_truth_of_themselves(absent: Participant, world: World) -> None:
    """Their own page works; no board, and no rank that would tell how many are before them."""
    me = world.as_("nobody").sign_in(participant=absent)
    assert GONE in me.get("/me").text
    assert me.get("/api/board/all/me").json() == {"place": None, "around": []}
    assert GONE not in me.get("/board").text.replace(me.get("/me").text, "")
