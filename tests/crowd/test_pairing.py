"""Codes that pair agents and kiosks: once, within ten minutes, for their own kind."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from sqlalchemy import select, update

from collect.crowd.pairing import PairingError, new_code, pair_agent, redeem, unpair
from collect.crowd.tables import PairingCode, Station, WebSession
from robot_stack.cli import main
from robot_stack.errors import ConfigError


def test_a_code_pairs_once(database, key):
    with database.begin() as tx:
        code = new_code(tx, key, "cafe", "agent")
        plain = code.replace("-", "")
        assert len(plain) == 8
        assert plain not in {row.code_hash for row in tx.scalars(select(PairingCode))}
        token, station = pair_agent(tx, key, code)
        assert (station.name, station.token_hash) == ("cafe", key.mac("agent token", token))
        with pytest.raises(PairingError):
            pair_agent(tx, key, code)


def test_codes_are_read_as_people_type_them(database, key):
    with database.begin() as tx:
        code = new_code(tx, key, "cafe", "kiosk")
        typed = code.lower().replace("-", " ").replace("0", "o").replace("1", "l")
        assert redeem(tx, key, f" {typed} ", "kiosk").name == "cafe"


def test_what_is_old_wrong_or_of_the_other_kind_pairs_nothing(database, key):
    with database.begin() as tx:
        code = new_code(tx, key, "cafe", "kiosk")
        for wrong in ("", "0000-0000", "x" * 10_000, code[:-1]):
            with pytest.raises(PairingError):
                redeem(tx, key, wrong, "kiosk")
        with pytest.raises(PairingError):
            pair_agent(tx, key, code)
        created = tx.scalars(select(PairingCode)).one()
        assert created.expires_at - created.created_at <= dt.timedelta(minutes=10, seconds=1)
        tx.execute(update(PairingCode).values(expires_at=dt.datetime.now(dt.UTC)))
        tx.expire_all()
        with pytest.raises(PairingError):
            redeem(tx, key, code, "kiosk")


def test_a_new_code_voids_the_one_before(database, key):
    with database.begin() as tx:
        first = new_code(tx, key, "cafe", "agent")
        other_kind = new_code(tx, key, "cafe", "kiosk")
        second = new_code(tx, key, "cafe", "agent")
        with pytest.raises(PairingError):
            pair_agent(tx, key, first)
        one, _ = pair_agent(tx, key, second)
        redeem(tx, key, other_kind, "kiosk")
        two, station = pair_agent(tx, key, new_code(tx, key, "cafe", "agent"))
        assert one != two and station.token_hash == key.mac("agent token", two)
        assert len(tx.scalars(select(Station)).all()) == 1


def test_unpairing_makes_strangers_of_all(browser, database, key):
    with database.begin() as tx:
        _, station = pair_agent(tx, key, new_code(tx, key, "cafe", "agent"))
        code = new_code(tx, key, "cafe", "kiosk")
    browser.sign_in(kiosk=station)
    with database.begin() as tx:
        unpair(tx, tx.get(Station, station.id))
        assert tx.get(Station, station.id).token_hash is None
        assert tx.scalars(select(WebSession)).all() == []
        with pytest.raises(PairingError):
            redeem(tx, key, code, "kiosk")


@pytest.mark.parametrize(("name", "kind"), [("cafe", "robot"), ("", "agent"), ("a b", "agent")])
def test_names_and_kinds(database, key, name, kind):
    with database.begin() as tx, pytest.raises(ConfigError):
        new_code(tx, key, name, kind)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_the_command(config_file, database, key, capsys):
    command = ["crowd", "pair", "cafe", "agent", "--config", str(config_file), "--json"]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    with database.begin() as tx:
        assert pair_agent(tx, key, answer["code"])[1].name == "cafe"
