"""What is forgotten by itself: by the settings' days, at an injected time, again and again."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import time
from pathlib import Path

import pytest
from sqlalchemy import event, func, select
from starlette.testclient import TestClient

from collect.crowd import retention
from collect.crowd.config import RetentionConfig
from collect.crowd.routes import account
from collect.crowd.tables import (
    AuditEntry,
    PairingCode,
    Participant,
    PhoneLink,
    Play,
    RateCount,
    Tombstone,
    WebSession,
)
from robot_stack.cli import main

NOW = dt.datetime(2027, 3, 1, 12, tzinfo=dt.UTC)
RULES = RetentionConfig(card_days=100, guest_days=10, session_days=5, audit_days=300)


def days(count: float) -> dt.datetime:
    """So many days before ``NOW``."""
    return NOW - dt.timedelta(days=count)


@pytest.fixture
def ruled(config):
    return dataclasses.replace(config, retention=RULES)


def forget(database, config):
    with database.read() as tx:
        said = retention.due(tx, config.retention, NOW)
    done = retention.apply(database, config, NOW)
    assert dataclasses.replace(done, files=0) == said  # what was said is what was done
    return {name: count for name, count in done.as_dict().items() if count}


def test_a_card_is_forgotten_after_its_last_visit(
    database, ruled, make_participant, make_consent, make_play, make_station
):
    def person(n, **columns):
        return make_participant(f"P {n}", kind="card", card_hash=str(n) * 64, **columns)

    gone = person(1, created_at=days(101))
    new = person(2, created_at=days(99))
    played, agreed, here = (person(n, created_at=days(500)) for n in (3, 4, 5))
    make_play(played, make_station(), started_at=days(50), consent_id=None)
    make_consent(agreed, given_at=days(99))
    with database.begin() as tx:
        tx.add(
            WebSession(
                token_hash="t", kind="participant", participant_id=here.id, csrf="c",
                created_at=days(1), seen_at=days(1), expires_at=days(-1),
            )
        )  # fmt: skip
    assert forget(database, ruled) == {"cards": 1}
    with database.read() as tx:
        kept = {p.nickname for p in tx.scalars(select(Participant)) if p.card_hash is not None}
        nobody = tx.get_one(Participant, gone.id)
    assert kept == {"P 2", "P 3", "P 4", "P 5"}
    assert new.nickname in kept
    assert (nobody.nickname, nobody.erased_at) == ("P 1", None)  # only the card is forgotten
    assert forget(database, ruled) == {}


def test_guests_who_left_nothing_are_forgotten(
    database, ruled, make_participant, make_consent, make_play, make_station
):
    old = {"created_at": days(11)}
    station = make_station()

    def played(who, count=11, scopes=("record", "research"), **columns):
        given = make_consent(who, scopes=list(scopes), given_at=days(count))
        return make_play(who, station, started_at=days(count), consent_id=given.id, **columns)

    make_participant("Named", **old)
    make_participant(None, created_at=days(9))
    make_participant(None, kind="card", card_hash="a" * 64, **old)
    researched, here = make_participant(None, **old), make_participant(None, **old)
    played(researched)
    played(here, 9, ["record"])
    void = make_participant(None, **old)
    played(void, state="void")
    recorded = make_participant(None, **old)
    played(recorded, scopes=["record", "clips"])
    alone = make_participant(None, kind="phone", **old)
    assert forget(database, ruled) == {"guests": 3}
    with database.read() as tx:
        erased = {p.id for p in tx.scalars(select(Participant)) if p.erased_at is not None}
        reasons = {grave.reason for grave in tx.scalars(select(Tombstone))}
    assert erased == {void.id, alone.id, recorded.id}
    assert reasons == {"retention"}
    assert forget(database, ruled) == {}


def test_recordings_that_were_not_given_for_research_go_with_the_way_back(
    database, ruled, make_participant, make_consent, make_play, make_station
):
    """A nickname keeps a guest on the board, and a card its points; not what was recorded."""
    station = make_station()

    def play_of(who, scopes, when, **columns):
        given = make_consent(who, scopes=scopes, given_at=when, **columns)
        play = make_play(who, station, started_at=when, consent_id=given.id, state="synced",
                         file=f"{station.id}/{given.id}.hdf5")  # fmt: skip
        path = ruled.episodes / play.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"recorded")
        return play

    named = make_participant("Named", created_at=days(20))
    card = make_participant("Card", kind="card", card_hash="a" * 64, created_at=days(200))
    young = make_participant("Young", kind="card", card_hash="b" * 64, created_at=days(200))
    taken = {"research": days(12).isoformat()}
    gone = [
        play_of(named, ["record"], days(11)),
        play_of(named, ["record", "research"], days(12), withdrawn=taken),
        play_of(card, ["record", "clips"], days(101)),
    ]
    kept = [
        play_of(named, ["record", "research"], days(11)),
        play_of(card, ["record", "research"], days(150)),
        play_of(young, ["record"], days(99)),
    ]
    assert forget(database, ruled) == {"cards": 1, "recordings": 3, "files": 3}
    with database.read() as tx:
        states = {play.id: play.state for play in tx.scalars(select(Play))}
        names = {row.nickname for row in tx.scalars(select(Participant))}
    assert states == dict.fromkeys((play.id for play in gone), "void") | dict.fromkeys(
        (play.id for play in kept), "synced"
    )
    assert {path.name for path in (ruled.episodes / station.id).iterdir()} == {
        Path(play.file).name for play in kept
    }
    assert names == {"Named", "Card", "Young"}
    assert forget(database, ruled) == {}


def test_each_guest_is_forgotten_by_itself(database, ruled, make_participant):
    """So that whoever wants to write waits for one of them, and not for a fortnight's."""
    for _ in range(4):
        make_participant(None, created_at=days(11))
    graves = []

    @event.listens_for(database.engine, "commit")
    def commit(connection):
        graves.append(connection.execute(select(func.count(Tombstone.id))).scalar())

    assert forget(database, ruled) == {"guests": 4}
    assert [count for count in graves if count in (1, 2, 3)] == [1, 2, 3]


def test_what_has_ended_is_swept(database, ruled, make_station, make_staff):
    station, staff = make_station(), make_staff()

    def session(token, expires):
        return WebSession(
            token_hash=token, kind="staff", staff_id=staff.id, csrf="c", expires_at=expires
        )

    def code(name, expires):
        return PairingCode(
            code_hash=name, station_id=station.id, kind="agent", expires_at=expires, used_at=NOW
        )

    def link(name, expires):
        return PhoneLink(token_hash=name, station_id=station.id, language="en", expires_at=expires)

    with database.begin() as tx:
        tx.add_all([session("old", days(6)), session("ended", days(4)), session("on", days(-1))])
        tx.add_all([code("old", days(6)), code("used", days(4))])
        tx.add_all([link("old", days(0.1)), link("good", days(-0.1))])
        tx.add_all([RateCount(key="old", count=1, expires_at=days(0.1)),
                    RateCount(key="good", count=1, expires_at=days(-0.1))])  # fmt: skip
        tx.add_all([AuditEntry(action="a", subject="s", created_at=days(d)) for d in (301, 299)])
    assert forget(database, ruled) == {
        "sessions": 1, "pairing_codes": 1, "phone_links": 1, "rate_counts": 1, "audit": 1,
    }  # fmt: skip
    with database.read() as tx:
        assert set(tx.scalars(select(WebSession.token_hash))) == {"ended", "on"}
        assert set(tx.scalars(select(PairingCode.code_hash))) == {"used"}
        assert set(tx.scalars(select(PhoneLink.token_hash))) == {"good"}
        assert set(tx.scalars(select(RateCount.key))) == {"good"}
        assert [entry.created_at for entry in tx.scalars(select(AuditEntry))] == [days(299)]
    assert forget(database, ruled) == {}


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command_says_first_and_does_then(config_file, database, make_participant, capsys):
    make_participant(None, created_at=days(3000))

    def command(*words):
        code = main(["crowd", "retention", *words, "--json", "--config", str(config_file)])
        assert code == 0
        return json.loads(capsys.readouterr().out)["forgotten"]["guests"]

    assert command("--dry-run") == 1
    assert command("--dry-run") == 1
    assert command() == 1
    assert command() == 0


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_site_does_it_by_itself(app, database, make_participant, monkeypatch):
    monkeypatch.setattr(account, "FIRST_S", 0.0)
    gone = make_participant(None, created_at=days(3000))
    deadline = time.monotonic() + 30.0
    with TestClient(app):
        while time.monotonic() < deadline:
            with database.read() as tx:
                if tx.get_one(Participant, gone.id).erased_at is not None:
                    return
            time.sleep(0.02)
    pytest.fail("nobody was forgotten within half a minute")
