"""Staff's accounts: passwords, one-time codes that work once, slow guessing, the last admin."""

from __future__ import annotations

import json
import time

import pyotp
import pytest
from sqlalchemy import select

from collect.crowd import accounts
from collect.crowd.accounts import (
    SignInRefusedError,
    add_staff,
    check_password,
    disable,
    renew,
    verify,
)
from collect.crowd.security.rate_limit import TooManyError
from collect.crowd.tables import AuditEntry, Staff
from robot_stack.cli import main
from robot_stack.errors import ConfigError
from tests.crowd.factories import PASSWORD, TOTP_SECRET

DATABASES = ["sqlite"]
ANOTHER = "seven yellow bicycles"


def code(secret=TOTP_SECRET, steps=0):
    """The code of now, or of some steps of 30 s later."""
    return pyotp.TOTP(secret).at(int(time.time()) + 30 * steps)


@pytest.fixture
def site(app):
    return app.state.site


def test_who_has_all_three_is_let_in(site, make_staff):
    ada = make_staff("reviewer", name="ada")
    assert verify(site, "ada", PASSWORD, code(), "a").id == ada.id
    assert verify(site, " Ada ", PASSWORD, code(steps=1), "a").id == ada.id


def test_a_code_works_once_and_none_before_it_any_more(site, make_staff):
    make_staff(name="ada")
    verify(site, "ada", PASSWORD, code(), "a")
    for used in (code(), code(steps=-1)):
        with pytest.raises(SignInRefusedError):
            verify(site, "ada", PASSWORD, used, "a")


def test_whatever_is_wrong_is_answered_alike(site, make_staff):
    make_staff(name="ada")
    make_staff(name="gone", disabled=True)
    said = set()
    tries = (
        ("ada", PASSWORD + "x", code()),
        ("ada", "x" * 100_000, code()),
        ("bob", PASSWORD, code()),
        ("gone", PASSWORD, code()),
        ("ada", PASSWORD, code(steps=-10)),
        ("ada", PASSWORD, ""),
        ("ada", PASSWORD, "１２３４５６"),
    )
    for number, (name, password, given) in enumerate(tries):
        with pytest.raises(SignInRefusedError) as caught:
            verify(site, name, password, given, f"address-{number}")
        said.add(str(caught.value))
    assert len(said) == 1


def test_guessing_at_an_account_is_slow_and_keeps_its_owner_out_of_nothing(site, make_staff):
    make_staff(name="ada")
    make_staff(name="bob")
    for _ in range(5):
        with pytest.raises(SignInRefusedError):
            verify(site, "ada", "wrong password", code(), "guesser")
    with pytest.raises(TooManyError):
        verify(site, "ADA", PASSWORD, code(), "guesser")
    verify(site, "bob", PASSWORD, code(), "guesser")
    verify(site, "ada", PASSWORD, code(), "home")


def test_guessing_from_many_places_has_an_end_too(site, make_staff, monkeypatch):
    assert accounts.BY_ACCOUNT == "100 per 15 minutes"
    monkeypatch.setattr(accounts, "BY_ACCOUNT", "3 per 15 minutes")
    make_staff(name="ada")
    for i in range(3):
        with pytest.raises(SignInRefusedError):
            verify(site, "ada", "wrong password", code(), f"address-{i}")
    with pytest.raises(TooManyError):
        verify(site, "ada", PASSWORD, code(), "address-4")


def test_who_has_the_password_does_not_try_all_codes_from_many_places(site, make_staff):
    make_staff(name="ada")
    said = set()
    for i, given in enumerate([code(steps=-10)] * 5 + [code()]):
        with pytest.raises(SignInRefusedError) as caught:  # and is not told that it is right
            verify(site, "ada", PASSWORD, given, f"address-{i}")
        said.add(str(caught.value))
    assert len(said) == 1


def test_guessing_is_slow_by_address_whomever_it_tries(site):
    for _ in range(29):  # each by another name; hashing thirty passwords takes long
        site.limiter.hit("staff sign-in", "30 per 15 minutes", "address:address")
    with pytest.raises(SignInRefusedError):
        verify(site, "name-30", "wrong password", "000000", "address")
    with pytest.raises(TooManyError):
        verify(site, "name-31", "wrong password", "000000", "address")


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "aaaaaaaaaaaaaaaa",
        "passwordpassword",
        "qwertyuiop1234",
        "xx carol-ada xx",
        "robot-stack-2026",
        "x" * 200,
    ],
)
def test_weak_passwords_are_refused(password):
    with pytest.raises(ConfigError, match="password"):
        check_password(password, "carol-ada")
    check_password(ANOTHER, "carol-ada")


def test_accounts_are_added_renewed_and_disabled(site, database, key, browser):
    with database.begin() as tx:
        ada, secret = add_staff(tx, key, "ada", "admin", ANOTHER)
        assert ANOTHER not in ada.password_hash and secret not in ada.totp_secret
        for name, role, password in (
            ("ada", "admin", ANOTHER),
            ("Ada", "admin", ANOTHER),
            ("ada ", "admin", ANOTHER),
            ("аda", "admin", ANOTHER),
            ("bob", "emperor", ANOTHER),
            ("bob", "admin", "short"),
        ):
            with pytest.raises(ConfigError):
                add_staff(tx, key, name, role, password)
        with pytest.raises(ConfigError, match="last admin"):
            disable(tx, ada)
        bob, _ = add_staff(tx, key, "bob", "admin", ANOTHER)
    browser.sign_in(staff=ada)
    assert site.database
    verify(site, "ada", ANOTHER, code(secret), "a")
    with database.begin() as tx:
        newer = renew(tx, key, tx.get(Staff, ada.id), PASSWORD)
        disable(tx, tx.get(Staff, bob.id))
    verify(site, "ada", PASSWORD, code(newer), "a")
    with pytest.raises(SignInRefusedError):
        verify(site, "ada", ANOTHER, code(secret, 1), "a")
    with database.read() as tx:
        actions = tx.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions == [
        "staff added",
        "staff added",
        "signed in",
        "staff renewed",
        "staff disabled",
        "signed in",
    ]


def test_the_command(config_file, capsys, monkeypatch):
    monkeypatch.setenv("ROBOT_STACK_CROWD_STAFF_PASSWORD", ANOTHER)
    options = ["--config", str(config_file), "--json"]
    assert main(["crowd", "staff", "add", "ada", "--role", "operator", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["totp_uri"].startswith("otpauth://totp/crowd.test:ada?secret=")
    assert main(["crowd", "staff", "list", *options]) == 0
    assert json.loads(capsys.readouterr().out)["staff"] == [
        {"name": "ada", "role": "operator", "disabled": False}
    ]
    assert main(["crowd", "staff", "disable", "ada", *options]) == 0
    assert main(["crowd", "staff", "disable", "bob", *options]) == 1
    assert main(["crowd", "staff", "add", "bob", *options]) == 1
    monkeypatch.setenv("ROBOT_STACK_CROWD_STAFF_PASSWORD", "changeme")
    assert main(["crowd", "staff", "add", "bob", "--role", "admin", *options]) == 1
    assert "12 to 128 characters" in capsys.readouterr().err
