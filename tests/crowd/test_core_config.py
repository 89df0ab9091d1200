"""Settings and secrets: what is refused, and that the message says what to do."""

from __future__ import annotations

import json
import os
import stat
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collect.crowd.config import load_config
from collect.crowd.init import write_site
from collect.crowd.keys import SiteKey, load_key, write_key
from robot_stack.cli import main
from robot_stack.errors import ConfigError

GOOD = {
    "database": "sqlite:///crowd.db",
    "key_file": "crowd.key",
    "origin": "https://robots.example.org",
    "media": "media",
    "episodes": "episodes",
    "tls": {"certificate": "site.pem", "key": "site.tls"},
}
RANDOM = bytes(range(7, 39))


def load(tmp_path, environment=None, **changes):
    path = tmp_path / "crowd.yaml"
    settings = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
    path.write_text(yaml.safe_dump(settings))
    path.chmod(0o600)
    return load_config(path, environment or {})


def test_paths_are_relative_to_the_file(tmp_path):
    config = load(tmp_path)
    assert config.database == f"sqlite:///{tmp_path}/crowd.db"
    assert config.key_file == tmp_path / "crowd.key"
    assert config.tls.key == tmp_path / "site.tls"
    assert config.host == "robots.example.org"


def test_the_environment_goes_first(tmp_path):
    environment = {
        "ROBOT_STACK_CROWD_DATABASE": "postgresql://crowd:9fKx27LmQw81zTpV@db/crowd",
        "ROBOT_STACK_CROWD_BIND": "0.0.0.0:443",
    }
    config = load(tmp_path, environment)
    assert config.database == environment["ROBOT_STACK_CROWD_DATABASE"]
    assert config.bind == "0.0.0.0:443"
    assert "9fKx27LmQw81zTpV" not in repr(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origin": "http://robots.example.org"}, "development: true"),
        ({"origin": "http://127.0.0.1:8430", "tls": None}, "development: true"),
        ({"origin": "https://robots.example.org/"}, "scheme, host and port only"),
        ({"origin": "https://a@robots.example.org"}, "no user"),
        ({"origin": "robots.example.org"}, "scheme, host and port only"),
        ({"tls": None}, "nothing here speaks it"),
        ({"development": True}, "bind and origin must be loopback"),
        (
            {"development": True, "origin": "http://localhost:1", "bind": "0.0.0.0:1"},
            "must be loopback",
        ),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "let anybody choose its address"),
        ({"trusted_proxies": ["proxy"]}, "proxy"),
        ({"bind": "127.0.0.1"}, "HOST:PORT"),
        ({"languages": []}, "at least one"),
        ({"database": "sqlite://"}, "must be a file"),
        ({"database": "sqlite:///:memory:"}, "must be a file"),
        ({"database": "mysql://crowd@db/crowd"}, "not supported"),
        ({"database": "postgresql://postgres:postgres@db/crowd"}, "openssl rand"),
        ({"database": "postgresql://crowd:short7x@db/crowd"}, "openssl rand"),
        ({"database": "postgresql://crowd:ChangeMe-please-1234@db/crowd"}, "openssl rand"),
        ({"database": "postgresql://crowd:aaaaaaaaaaaaaaaaaaaa@db/crowd"}, "openssl rand"),
        ({"orgin": "https://x"}, "did you mean 'origin'"),
        ({"caps": {"body_kb": 0}}, "out of range"),
    ],
)
def test_what_is_unsafe_is_refused_with_what_to_do(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)


def test_a_database_password_in_a_file_that_others_read_is_refused(tmp_path):
    settings = {**GOOD, "database": "postgresql://crowd:9fKx27LmQw81zTpV@db/crowd"}
    path = tmp_path / "crowd.yaml"
    path.write_text(yaml.safe_dump(settings))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_config(path, {})
    path.chmod(0o600)
    load_config(path, {})


@pytest.mark.parametrize(
    "secret", [b"", b"short", b"\0" * 32, b"a" * 32, b"secret" * 6, b"0123456789" * 4, RANDOM[:31]]
)
def test_a_default_or_short_key_is_refused(secret):
    with pytest.raises(ConfigError, match="robot-stack crowd init --key-only"):
        SiteKey(secret)


def test_a_key_file_is_its_owners_only_and_never_overwritten(tmp_path):
    path = tmp_path / "crowd.key"
    with pytest.raises(ConfigError, match=f"init --key-only {path}"):
        load_key(path)
    old = os.umask(0)
    try:
        write_key(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_text()
    with pytest.raises(ConfigError, match="exists"):
        write_key(path)
    assert path.read_text() == before
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
            load_key(path)
    path.chmod(0o600)
    path.write_text(before[:-2])
    with pytest.raises(ConfigError, match="not a key file"):
        load_key(path)


def test_hashes_differ_by_key_and_purpose():
    key, other = SiteKey(RANDOM), SiteKey(RANDOM[::-1])
    mac = key.mac("card", "12345")
    assert mac == key.mac("card", b"12345") and len(mac) == 64
    assert len({mac, key.mac("session", "12345"), other.mac("card", "12345")}) == 3
    assert key.same("card", "12345", mac) and not key.same("card", "12346", mac)
    assert RANDOM.hex() not in repr(key) and "12345" not in mac


@given(st.text(max_size=50))
def test_what_is_sealed_opens_with_its_key_and_purpose_only(text):
    key = SiteKey(RANDOM)
    sealed = key.encrypt("totp", text)
    assert key.decrypt("totp", sealed) == text
    assert sealed != key.encrypt("totp", text)  # no two alike
    assert len(key.encrypt("totp", string.ascii_uppercase + "234567")) <= 200  # the column's width
    for wrong, purpose in ((key, "other"), (SiteKey(RANDOM[::-1]), "totp")):
        with pytest.raises(ConfigError, match="another key"):
            wrong.decrypt(purpose, sealed)
    with pytest.raises(ConfigError):
        key.decrypt("totp", sealed[:-8] + "AAAAAAA=")


def test_init_writes_what_serve_accepts(tmp_path, capsys):
    path = tmp_path / "new" / "crowd.yaml"
    assert main(["crowd", "init", str(path), "--origin", "https://r.example.org", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] and answer["config"] == str(path)
    for file in (path, path.with_suffix(".key")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert load_config(path, {}).https
    load_key(path.with_suffix(".key"))
    assert main(["crowd", "init", str(path), "--development"]) == 1
    assert "move this one away" in capsys.readouterr().err


def test_init_asks_where_the_site_will_be(tmp_path, capsys):
    assert main(["crowd", "init", str(tmp_path / "c.yaml")]) == 1
    assert "--development" in capsys.readouterr().err
    assert not (tmp_path / "c.yaml").exists()


def test_init_keeps_a_key_that_is_there(tmp_path):
    write_key(tmp_path / "crowd.key")
    before = (tmp_path / "crowd.key").read_text()
    with pytest.raises(ConfigError, match="exists"):
        write_site(tmp_path / "crowd.yaml", origin=None)
    assert (tmp_path / "crowd.key").read_text() == before
    assert not (tmp_path / "crowd.yaml").exists()
