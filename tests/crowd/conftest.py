"""Fixtures of the crowd site's tests. Everything is private to a test and real: no mocks.

- `database`: a `Database` with all tables, **once on SQLite and once on PostgreSQL**. So is all
  that depends on it. A module whose tests say nothing of the database asks for SQLite alone with
  ``DATABASES = ["sqlite"]`` at its top, a single test with
  ``@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)``.
- `config`: settings of a site (https://crowd.test) on that database; `config_file` is their YAML.
  Change some with ``dataclasses.replace(config, ...)`` and ``create_app``.
- `app`: the FastAPI application; ``app.state.site`` has config, database, key and limiter.
- `client`: starlette's TestClient of it, lifespan running, following no redirect.
- `browser`: a `tests.crowd.browser.Browser` on `client`: ``browser.sign_in(participant=ada)``,
  ``browser.post("/path", data={...})`` with the right CSRF token. `make_browser()` gives another
  one with its own cookies.
- factories, each in a transaction of its own: ``make_participant(nickname="Ada", hidden=True)``,
  ``make_consent(participant)``, ``make_staff("reviewer")``, ``make_station(token="...")``,
  ``make_lease(station, participant)``, ``make_task("hard")``,
  ``make_play(participant, station, task)``. To make rows inside a transaction of yours use the
  functions of `tests.crowd.factories`.

Example::

    def test_me_shows_the_nickname(browser, make_participant):
        browser.sign_in(participant=make_participant(nickname="Ada"))
        assert "Ada" in browser.get("/me").text
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from sqlalchemy import create_engine, make_url, text
from starlette.testclient import TestClient

from benchmarks.private_postgresql import postgresql_server
from collect.crowd.app import create_app
from collect.crowd.config import CrowdConfig, load_config
from collect.crowd.consent import install_default
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey, load_key, write_key
from collect.crowd.migrate import head
from collect.crowd.tables import (
    Base,
    Consent,
    Participant,
    Play,
    Staff,
    Station,
    StationLease,
    Task,
    new_id,
)
from tests.crowd import factories
from tests.crowd.browser import Browser

ORIGIN = "https://crowd.test"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A private server with the template database `crowd_template`; its maintenance URL."""
    with postgresql_server() as url:
        _administer(url, "CREATE DATABASE crowd_template")
        _create_tables(make_url(url).set(database="crowd_template").render_as_string(False))
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables."""
    path = tmp_path_factory.mktemp("crowd") / "template.db"
    _create_tables(f"sqlite:///{path}")
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`database_kind` of each test: what it says itself, else its module, else both."""
    if "database_kind" not in metafunc.fixturenames:
        return
    marks = metafunc.definition.iter_markers("parametrize")
    if not any("database_kind" in mark.args[0] for mark in marks):
        kinds = getattr(metafunc.module, "DATABASES", ["sqlite", "postgresql"])
        metafunc.parametrize("database_kind", kinds, indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """Which database the test runs on."""
    return str(request.param)


@pytest.fixture
def database_url(
    database_kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """The URL of a database of the test's own, with all tables and nothing in them."""
    if database_kind == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "crowd.db")
        yield f"sqlite:///{tmp_path / 'crowd.db'}"
        return
    server = request.getfixturevalue("postgresql")
    name = f"crowd_{new_id().replace('-', '')}"
    _administer(server, f"CREATE DATABASE {name} TEMPLATE crowd_template")
    yield make_url(server).set(database=name).render_as_string(False)
    _administer(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The test's own database (the application opens it too, by itself)."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def config_file(database_url: str, tmp_path: Path) -> Path:
    """A settings file as `robot-stack crowd` takes it, with its key file and directories."""
    for folder in ("media", "episodes"):
        (tmp_path / folder).mkdir()
    write_key(tmp_path / "crowd.key")
    path = tmp_path / "crowd.yaml"
    settings = {
        "database": database_url,
        "key_file": "crowd.key",
        "origin": ORIGIN,
        "media": "media",
        "episodes": "episodes",
        # The tests' client speaks https itself; this address is nobody's.
        "trusted_proxies": ["192.0.2.1"],
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def config(config_file: Path) -> CrowdConfig:
    return load_config(config_file, {})


@pytest.fixture
def key(config: CrowdConfig) -> SiteKey:
    return load_key(config.key_file)


@pytest.fixture
def app(config: CrowdConfig) -> Iterator[FastAPI]:
    app = create_app(config)
    yield app
    app.state.site.database.close()


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=ORIGIN, follow_redirects=False) as client:
        yield client


@pytest.fixture
def browser(app: FastAPI, client: TestClient) -> Browser:
    return Browser(app, client)


@pytest.fixture
def make_browser(app: FastAPI, client: TestClient) -> Callable[[], Browser]:
    """Another browser each call, with no cookies, of the same running application."""
    assert client.app is not None  # its lifespan is the application's

    def make() -> Browser:
        return Browser(app, TestClient(app, base_url=ORIGIN, follow_redirects=False))

    return make


@pytest.fixture
def make_participant(database: Database) -> Callable[..., Participant]:
    def make(nickname: str | None = "auto", **columns: Any) -> Participant:
        with database.begin() as tx:
            return factories.make_participant(tx, nickname, **columns)

    return make


@pytest.fixture
def make_consent(database: Database) -> Callable[..., Consent]:
    def make(participant: Participant, **columns: Any) -> Consent:
        with database.begin() as tx:
            return factories.make_consent(tx, participant, **columns)

    return make


@pytest.fixture
def make_staff(database: Database, key: SiteKey) -> Callable[..., Staff]:
    def make(role: str = "admin", **columns: Any) -> Staff:
        with database.begin() as tx:
            return factories.make_staff(tx, key, role, **columns)

    return make


@pytest.fixture
def make_station(database: Database, key: SiteKey) -> Callable[..., Station]:
    def make(token: str | None = None, **columns: Any) -> Station:
        with database.begin() as tx:
            return factories.make_station(tx, key, token, **columns)

    return make


@pytest.fixture
def make_lease(database: Database) -> Callable[..., StationLease]:
    def make(station: Station, participant: Participant, **columns: Any) -> StationLease:
        with database.begin() as tx:
            return factories.make_lease(tx, tx.merge(station), participant, **columns)

    return make


@pytest.fixture
def make_task(database: Database) -> Callable[..., Task]:
    def make(difficulty: str = "easy", **columns: Any) -> Task:
        with database.begin() as tx:
            return factories.make_task(tx, difficulty, **columns)

    return make


@pytest.fixture
def make_play(database: Database) -> Callable[..., Play]:
    def make(
        participant: Participant, station: Station, task: Task | None = None, **columns: Any
    ) -> Play:
        with database.begin() as tx:
            return factories.make_play(tx, participant, station, task, **columns)

    return make


def _create_tables(url: str) -> None:
    """All tables as the models have them, the revision which says that nothing is missing, and the
    default consent text (version "1"), which a migrated database has too."""
    database = Database(url)
    Base.metadata.create_all(database.engine)
    with database.begin() as tx:
        tx.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        tx.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": head()})
        install_default(tx)
    database.close()


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()
