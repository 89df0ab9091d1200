"""What is forgotten by itself: by the settings' days, at an injected time, again and again."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import time

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from collect.crowd import retention
from collect.crowd.config import RetentionConfig
from collect.crowd.routes import account
from collect.crowd.tables import (
    AuditEntry,
    PairingCode,
    Participant,
    PhoneLink,
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
    database, ruled, make_participant, make_play, make_station
):
    old = {"created_at": days(11)}
    make_participant("Named", **old)
    make_participant(None, created_at=days(9))
    make_participant(None, kind="card", card_hash="a" * 64, **old)
    played = make_participant(None, **old)
    make_play(played, make_station(), started_at=days(11), consent_id=None)
    void = make_participant(None, **old)
    make_play(void, make_station(), started_at=days(11), state="void", consent_id=None)
    alone = make_participant(None, kind="phone", **old)
    assert forget(database, ruled) == {"guests": 2}
    with database.read() as tx:
        erased = {p.id for p in tx.scalars(select(Participant)) if p.erased_at is not None}
        reasons = {grave.reason for grave in tx.scalars(select(Tombstone))}
    assert erased == {void.id, alone.id}
    assert reasons == {"retention"}
    assert forget(database, ruled) == {}


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
