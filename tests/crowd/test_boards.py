"""Leaderboards: ranks, ties, neighbours, periods; who is hidden is nowhere, not even in a count."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import random
from typing import Any

import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from collect.crowd import ledger, live
from collect.crowd.app import create_app
from collect.crowd.boards import Board, Place, open_board
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.tables import Participant, utc_now
from tests.crowd.browser import Browser
from tests.crowd.factories import make_participant, make_task

NOW = dt.datetime(2026, 11, 18, 12, tzinfo=dt.UTC)  # a Wednesday
ONE_DATABASE = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


def give(tx: Session, who: Participant, points: int, at: dt.datetime = NOW, **more: Any) -> None:
    values = {"play_id": None, "task_id": None, "kind": "staff", **more}
    key = f"{who.id}:{random.random()}"
    assert ledger.award(tx, key=key, participant_id=who.id, points=points, at=at, **values)


def people(tx: Session, scores: dict[str, int], **columns: Any) -> dict[str, Participant]:
    """Participants by nickname; each reached its score a minute after the one before."""
    made = {}
    for minute, (name, score) in enumerate(scores.items()):
        made[name] = make_participant(tx, name, **columns)
        give(tx, made[name], score, NOW + dt.timedelta(minutes=minute))
    return made


def shown(places: list[Place]) -> list[tuple[int, str, int]]:
    return [(place.rank, place.name, place.score) for place in places]


def board(tx: Session, scope: str = "all", period: str = "all") -> Board:
    return open_board(tx, scope, period, NOW)


def test_equals_share_a_rank_and_the_first_to_reach_it_is_shown_first(database: Database) -> None:
    with database.begin() as tx:
        made = people(tx, {"Late": 5, "Ada": 20, "Ben": 10, "Cleo": 10, "Dan": 30})
        give(tx, made["Late"], 5, NOW + dt.timedelta(hours=1))  # 10, but after Ben and Cleo
        assert shown(board(tx).top(tx)) == [
            (1, "Dan", 30),
            (2, "Ada", 20),
            (3, "Ben", 10),
            (3, "Cleo", 10),
            (3, "Late", 10),
        ]
        give(tx, make_participant(tx, "Eve"), 9)
        assert shown(board(tx).top(tx))[-1] == (6, "Eve", 9)


def test_who_takes_points_back_to_nothing_is_off_the_board(database: Database) -> None:
    with database.begin() as tx:
        made = people(tx, {"Ada": 10, "Ben": 5})
        give(tx, made["Ada"], -10)
        assert shown(board(tx).top(tx)) == [(1, "Ben", 5)]
        assert board(tx).count(tx) == 1
        assert board(tx).place_of(tx, made["Ada"].id) is None


@pytest.mark.parametrize(
    "column", [{"hidden": True}, {"on_board": False}, {"erased_at": NOW}], ids=str
)
def test_who_is_not_listed_is_absent_everywhere(
    database: Database, column: dict[str, object]
) -> None:
    with database.begin() as tx:
        made = people(tx, {"Ada": 40, "Ghost": 30, "Ben": 20, "Cleo": 10})
        for name, value in column.items():
            setattr(made["Ghost"], name, value)
        tx.flush()
        for scope, period in (("all", "all"), ("all", "week"), ("newcomers", "all")):
            kept = board(tx, scope, period)
            assert shown(kept.top(tx)) == [(1, "Ada", 40), (2, "Ben", 20), (3, "Cleo", 10)]
            assert kept.count(tx) == 3
            assert kept.place_of(tx, made["Ghost"].id) is None
            assert kept.around(tx, made["Ghost"].id) == []
            assert kept.place_of(tx, made["Cleo"].id) == kept.top(tx)[2]
            assert shown(kept.around(tx, made["Cleo"].id)) == shown(kept.top(tx))


def test_names_wait_for_staff(database: Database) -> None:
    with database.begin() as tx:
        for state in ("pending", "refused"):
            who = make_participant(tx, f"Rude {state}", nickname_state=state, pseudonym=state)
            give(tx, who, 10)
        assert {place.name for place in board(tx).top(tx)} == {"pending", "refused"}


def test_the_neighbourhood_is_three_before_and_three_after(database: Database) -> None:
    with database.begin() as tx:
        made = people(tx, {f"P{n:02}": 100 - 10 * (n // 2) for n in range(12)})  # pairs
        assert shown(board(tx).around(tx, made["P05"].id)) == [
            (3, "P02", 90),
            (3, "P03", 90),
            (5, "P04", 80),
            (5, "P05", 80),
            (7, "P06", 70),
            (7, "P07", 70),
            (9, "P08", 60),
        ]
        assert [place.name for place in board(tx).around(tx, made["P00"].id)] == [
            "P00",
            "P01",
            "P02",
            "P03",
        ]
        assert [place.name for place in board(tx).around(tx, made["P11"].id)] == [
            "P08",
            "P09",
            "P10",
            "P11",
        ]


def test_periods_and_tasks_are_boards_of_their_own(database: Database) -> None:
    with database.begin() as tx:
        ada, ben = make_participant(tx, "Ada"), make_participant(tx, "Ben")
        easy, closed = make_task(tx), make_task(tx, active=False)
        give(tx, ada, 50, NOW - dt.timedelta(days=14))
        give(tx, ada, 10, NOW - dt.timedelta(days=1))
        give(tx, ben, 20, NOW, task_id=easy.id, quality=3)
        assert shown(board(tx, period="all").top(tx)) == [(1, "Ada", 60), (2, "Ben", 20)]
        assert shown(board(tx, period="week").top(tx)) == [(1, "Ben", 20), (2, "Ada", 10)]
        assert shown(board(tx, period="day").top(tx)) == [(1, "Ben", 20)]
        assert shown(board(tx, f"task:{easy.id}").top(tx)) == [(1, "Ben", 20)]
        assert shown(board(tx, "quality").top(tx)) == [(1, "Ben", 3)]
        for scope, period in (
            ("nobody", "all"),
            ("task:", "all"),
            (f"task:{closed.id}", "all"),
            ("all", "2026-11-18"),
            ("all' OR 1=1", "all"),
        ):
            with pytest.raises(LookupError):
                board(tx, scope, period)


def test_newcomers_leave_their_board_after_seven_days(database: Database) -> None:
    with database.begin() as tx:
        new = make_participant(tx, "New", created_at=NOW - dt.timedelta(days=6))
        old = make_participant(tx, "Old", created_at=NOW - dt.timedelta(days=8))
        for who in (new, old):
            give(tx, who, 10, who.created_at + dt.timedelta(hours=1))
        assert shown(board(tx, "newcomers").top(tx)) == [(1, "New", 10)]
        assert board(tx, "newcomers").count(tx) == 1
        assert board(tx, "newcomers").place_of(tx, old.id) is None


def test_ranks_agree_with_a_plain_sort(database: Database) -> None:
    random.seed(5)
    with database.begin() as tx:
        made = people(tx, {f"P{n:02}": random.randint(1, 6) for n in range(40)})
        for who in random.sample(sorted(made), 6):
            made[who].hidden = True
        tx.flush()
        kept = board(tx)
        scores = [place.score for place in kept.top(tx)]
        assert len(scores) == kept.count(tx) == 34
        for place in kept.top(tx):
            assert place.rank == 1 + sum(score > place.score for score in scores)
            assert kept.place_of(tx, place.participant_id) == place
            around = kept.around(tx, place.participant_id)
            position = kept.top(tx).index(place)
            assert around == kept.top(tx)[max(0, position - 3) : position + 4]


# -- over HTTP ---------------------------------------------------------------------------------


def test_json_has_an_etag_that_stands_until_the_board_changes(
    browser: Browser, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "RECENT_S", 0.0)  # what follows is written beside the site's process
    with database.begin() as tx:
        made = people(tx, {"Ada": 20, "Ben": 10})
    first = browser.get("/api/board/all")
    assert first.status_code == 200
    assert [place["name"] for place in first.json()["places"]] == ["Ada", "Ben"]
    tag = {"if-none-match": first.headers["etag"]}
    assert browser.get("/api/board/all", headers=tag).status_code == 304
    with database.begin() as tx:
        give(tx, tx.merge(made["Ben"]), 15)
    second = browser.get("/api/board/all", headers=tag)
    assert second.status_code == 200
    assert [place["name"] for place in second.json()["places"]] == ["Ben", "Ada"]
    with database.begin() as tx:
        tx.get_one(Participant, made["Ben"].id).hidden = True
    third = browser.get("/api/board/all")
    assert "Ben" not in third.text
    assert third.json()["count"] == 1


@ONE_DATABASE
def test_no_identifier_of_a_participant_leaves_the_server(
    browser: Browser, database: Database
) -> None:
    with database.begin() as tx:
        made = people(tx, {"Ada": 20, "Ben": 10})
    browser.sign_in(participant=made["Ada"])
    for path in ("/board", "/board/newcomers?period=week", "/api/board/all", "/api/board/all/me"):
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert not any(who.id in answer.text for who in made.values()), path


@ONE_DATABASE
def test_pages_mark_the_reader_and_escape_names(browser: Browser, database: Database) -> None:
    with database.begin() as tx:
        people(tx, {f"P{n:02}": 200 - n for n in range(60)})
        evil = make_participant(tx, "<b>&\"'", skeleton="evil")
        give(tx, evil, 500)
        low = make_participant(tx, "Low")
        give(tx, low, 1)
    page = browser.get("/board").text
    assert "<b>&\"'" not in page
    assert "&lt;b&gt;" in page
    assert "Low" not in page
    browser.sign_in(participant=low)
    page = browser.get("/board").text
    assert 'class="board-me"' in page
    assert "Low" in page
    assert "P59" in page  # its neighbour
    mine = browser.get("/api/board/all/me").json()
    assert mine["place"] == {"rank": 62, "name": "Low", "score": 1}
    assert [place["me"] for place in mine["around"]] == [False, False, False, True]


@ONE_DATABASE
@pytest.mark.parametrize(
    "path",
    [
        "/board/nobody",
        "/board/all?period=year",
        "/api/board/nobody",
        "/api/board/task:none",
        "/api/board/all?period=2026",
        "/api/board/nobody/live",
        "/api/board/all/live?period=year",
    ],
)
def test_other_boards_are_not_found(browser: Browser, path: str) -> None:
    assert browser.get(path).status_code == 404


@ONE_DATABASE
def test_ones_own_place_needs_a_sign_in(browser: Browser) -> None:
    assert browser.get("/api/board/all/me").status_code == 401


@ONE_DATABASE
def test_a_frame_is_kept_for_its_version_only(browser: Browser, database: Database) -> None:
    with database.begin() as tx:
        who = make_participant(tx, "Ada")
        give(tx, who, 10, utc_now())
    for period in ("all", "week", "day"):
        frame = json.loads(browser.get(f"/api/board/all?period={period}").text)
        assert (frame["period"], frame["count"]) == (period, 1)


@ONE_DATABASE
def test_the_sites_zone_is_used_from_its_start(config: CrowdConfig, database: Database) -> None:
    sunday_night = dt.datetime(2026, 11, 22, 23, 30, tzinfo=dt.UTC)
    with database.begin() as tx:
        give(tx, make_participant(tx, "Ada"), 10, sunday_night)
    app = create_app(dataclasses.replace(config, zone="Europe/Berlin"))
    with TestClient(app, base_url=config.origin):
        pass
    app.state.site.database.close()
    with database.read() as tx:
        monday = open_board(tx, "all", "day", sunday_night)
        assert (monday.period, shown(monday.top(tx))) == ("2026-11-23", [(1, "Ada", 10)])
    with pytest.raises(ValueError, match="is not a time zone"):
        dataclasses.replace(config, zone="Mars/Olympus")
