"""Tries are counted: by account, by station, by address; ASVS 2.4.1 and 6.3.1.

What is limited, by whom, and that the next one over the limit is 429 with Retry-After, through
the routes themselves. An agent's or kiosk's ordinary work is not among it.
"""

from __future__ import annotations

import dataclasses

import pytest
from starlette.testclient import TestClient

from collect.crowd import accounts, keys
from collect.crowd.config import CrowdConfig
from collect.crowd.keys import write_key
from robot_stack.errors import ConfigError
from tests.crowd import factories
from tests.crowd.security.conftest import Actor, World

DATABASES = ["sqlite"]


def _until_refused(actor: Actor, path: str, most: int, **options: object) -> int:
    """How many tries there are; the answer after them says when to come back."""
    for number in range(most):
        answer = actor.post(path, **options)
        if answer.status_code == 429:
            assert 0 < int(answer.headers["retry-after"]) <= 3600
            return number
        assert answer.status_code < 500
    return most


def _from(world: World, role: str, address: str) -> Actor:
    """The role at another address."""
    actor = world.as_(role)
    other = TestClient(
        world.app, base_url="https://crowd.test", follow_redirects=False, client=(address, 1)
    )
    other.portal = world.client.portal
    other.app_state.update(world.client.app_state)
    other.cookies = actor.client.cookies
    other.headers.update({k: v for k, v in actor.client.headers.items() if k == "authorization"})
    actor.client = other
    return actor


def test_a_staff_account_is_guessed_at_five_times_from_an_address(world: World) -> None:
    name = world.staff["operator"].name
    form = {"name": name, "password": "wrong", "code": "000000"}

    def guess(address: str, **changes: str) -> int:
        guesser = _from(world, "nobody", address)
        return guesser.post("/staff/signin", data=form | changes).status_code

    assert [guess("198.51.100.7") for _ in range(7)] == [401] * 5 + [429] * 2
    for written in (name.upper(), f" {name} "):  # the same account
        assert guess("198.51.100.7", name=written) == 429
    assert guess("198.51.100.7", name=world.staff["reviewer"].name) == 401
    assert guess("198.51.100.8") == 401  # its owner, elsewhere, is kept out of nothing


def test_an_address_tries_thirty_accounts(world: World) -> None:
    for _ in range(28):  # each costs a slow hash through the route
        world.app.state.site.limiter.hit(
            "staff sign-in", accounts.BY_ADDRESS, "address:198.51.100.7"
        )
    tries = [
        _from(world, "nobody", "198.51.100.7")
        .post("/staff/signin", data={"name": f"staff-{n}", "password": "w", "code": "0"})
        .status_code
        for n in range(4)
    ]
    assert tries == [401] * 2 + [429] * 2


@pytest.mark.parametrize("path", ["/pair", "/api/station/pair"])
def test_pairing_codes_are_guessed_ten_times_by_an_address(path: str, world: World) -> None:
    guess = {"code": "AAAA-AAAA"}
    body = {"json": guess, "csrf": None} if path.startswith("/api") else {"data": guess}
    assert _until_refused(_from(world, "nobody", "198.51.100.7"), path, 20, **body) == 10
    # One count for both: a guesser gains nothing by asking as an agent and as a kiosk.
    other = "/pair" if path.startswith("/api") else "/api/station/pair"
    body = {"json": guess, "csrf": None} if other.startswith("/api") else {"data": guess}
    answer = _from(world, "nobody", "198.51.100.7").post(other, **body)
    assert answer.status_code == 429
    assert _from(world, "nobody", "198.51.100.8").post(other, **body).status_code == 403


@pytest.mark.parametrize(
    ("path", "form", "most"),
    [
        ("/signin/card", {"card": "04A1B2C3"}, 60),
        ("/signin/guest", {}, 60),
        ("/signin/phone/link", {}, 60),
        ("/help", {}, 6),
    ],
)
def test_a_station_has_limits_of_its_own(
    path: str, form: dict[str, str], most: int, world: World
) -> None:
    """Whoever is at it, from whatever address; another station's go on."""
    for number in range(most):
        kiosk = _from(world, "kiosk", f"198.51.100.{number % 5}")
        if path == "/signin/card":
            form = {"card": f"04A1B2C3{number}"}
        assert kiosk.post(path, data=form).status_code in (200, 303)
    assert world.as_("kiosk").post(path, data=form).status_code == 429
    other = world.as_("nobody").sign_in(kiosk=world.there)
    assert other.post(path, data=form).status_code in (200, 303)


def test_a_participant_has_limits_of_their_own(world: World) -> None:
    ada, bob = world.as_("participant"), world.as_("other participant")
    assert _until_refused(ada, "/nickname", 30, data={"nickname": "x"}) == 20
    assert bob.post("/nickname", data={"nickname": "x"}).status_code == 422
    copies = [ada.get("/me/data/copy.zip").status_code for _ in range(13)]
    assert copies == [200] * 12 + [429]
    assert bob.get("/me/data/copy.zip").status_code == 200


def test_a_participants_plays_of_a_day_are_counted(world: World) -> None:
    caps = world.config.caps.plays_per_day
    with world.database.begin() as tx:
        for _ in range(caps):
            factories.make_play(tx, world.ada, tx.merge(world.there), world.task)
    kiosk = world.as_("kiosk").sign_in(participant=world.ada)
    answer = kiosk.post("/tasks/sort/start")
    assert answer.headers["location"].endswith("refused=cap")


def test_an_agents_heartbeats_are_not_limited(world: World) -> None:
    agent = world.as_("agent")
    for n in range(40):
        body = {"state": {"phase": "idle", "boot": "b", "n": n}}
        answer = agent.post("/api/station/heartbeat", csrf=None, json=body)
        assert answer.status_code == 200


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret",
    [b"", b"changeme", b"0" * 64, b"secret" * 12, bytes(32), b"ab" * 32, b"\n", b"password"],
)
def test_the_site_does_not_start_on_a_weak_key(secret: bytes, config: CrowdConfig) -> None:
    path = config.key_file
    path.unlink()
    path.touch(mode=0o600)
    path.write_bytes(secret)
    with pytest.raises(ConfigError):
        keys.load_key(path)


def test_the_site_does_not_start_on_a_key_that_others_may_read(config: CrowdConfig) -> None:
    config.key_file.chmod(0o640)
    with pytest.raises(ConfigError):
        keys.load_key(config.key_file)
    config.key_file.unlink()
    with pytest.raises(ConfigError):
        keys.load_key(config.key_file)
    write_key(config.key_file)
    assert config.key_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "password",
    [
        "",
        "password1234",
        "changeme-please",
        "operator-1234",
        "aaaaaaaaaaaaaaaa",
        "short-1",
        "x" * 200,
    ],
)
def test_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(ConfigError):
        accounts.check_password(password, "operator")


def test_there_is_no_default_account(world: World) -> None:
    for name in ("admin", "staff"):
        for password in ("admin", "password", "robot-stack"):
            form = {"name": name, "password": password, "code": "000000"}
            answer = _from(world, "nobody", f"192.0.2.{len(name)}").post("/staff/signin", data=form)
            assert answer.status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"origin": "http://crowd.test"},
        {"development": True},
        {"trusted_proxies": ("0.0.0.0/0",)},
        {"trusted_proxies": ("::/0",)},
        {"trusted_proxies": ()},
        {"database": "postgresql://crowd:crowd@db/crowd"},
        {"database": "postgresql://crowd:changeme123456@db/crowd"},
        {"origin": "https://crowd.test/path"},
        {"origin": "https://user@crowd.test"},
    ],
)
def test_unsafe_settings_are_refused(changes: dict[str, object], config: CrowdConfig) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(config, **changes)
