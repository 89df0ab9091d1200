"""The site of a demonstration: made in a directory, filled if wanted, served, looked at.

A look at every page is taken on a copy of the database, so that the cast of the tour is not among
the participants of the demonstration.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from sqlalchemy import make_url

from collect.crowd.accounts import add_staff, enrolment_uri
from collect.crowd.app import create_app
from collect.crowd.config import CrowdConfig, load_config
from collect.crowd.database import Database
from collect.crowd.fill import Filled, fill
from collect.crowd.init import write_site
from collect.crowd.keys import load_key
from collect.crowd.migrate import migrate
from collect.crowd.tables import utc_now
from collect.crowd.tour import Page, Tour, make_tour
from robot_stack.errors import ConfigError

__all__ = ["ADMIN", "DemoSite", "Empty", "empty_pages", "make_site", "serving", "toured"]

ADMIN = "admin"
START_S = 60.0
END_S = 10.0
TIMEOUT_S = 20.0
LEAST_TEXT = 40  # characters between a page's tags, without its frame


@dataclass(frozen=True, slots=True)
class DemoSite:
    """A site in ``folder`` with an admin, whose password and second factor are told this once."""

    folder: Path
    file: Path
    config: CrowdConfig
    password: str
    totp_secret: str
    totp_uri: str
    filled: Filled | None


@dataclass(frozen=True, slots=True)
class Empty:
    """A page that did not show what it should."""

    page: Page
    language: str
    why: str


def make_site(
    folder: Path, *, filled: bool, say: Callable[[str], None] = lambda _: None
) -> DemoSite:
    """A new site for this computer in ``folder``; ConfigError when there is one already."""
    say("making a site")
    file = folder / "crowd.yaml"
    config = write_site(file, origin=None, bind="127.0.0.1:0")
    if not filled:  # one member of staff is all there is: nobody could look a second time
        with file.open("a") as settings:
            settings.write("review: {double_share: 0.0}\n")
        config = load_config(file)
    key = load_key(config.key_file)
    password = secrets.token_urlsafe(15)
    with contextlib.closing(Database(config.database)) as database:
        migrate(database)
        with database.begin() as tx:
            _, secret = add_staff(tx, key, ADMIN, ADMIN, password)
        done = fill(database, key, config, ends=utc_now(), say=say) if filled else None
    uri = enrolment_uri("http://crowd-demo", ADMIN, secret)
    return DemoSite(folder, file, config, password, secret, uri, done)


@contextlib.contextmanager
def serving(file: Path, log: Path, bind: str = "127.0.0.1:0") -> Iterator[str]:
    """`robot-stack crowd serve` of the settings ``file`` until the block ends; its URL."""
    command = [sys.executable, "-m", "robot_stack.cli", "crowd", "serve"]
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*command, "--config", str(file), "--bind", bind, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(os.environ),
            start_new_session=True,  # Ctrl-C is the demonstration's: it ends the site in its turn
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            words = log.read_text(errors="replace").splitlines()
            raise ConfigError(
                f"the site did not start: {words[-1] if words else 'it said nothing'}"
            )
        url = str(json.loads(line)["url"])
        _await_answer(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextlib.contextmanager
def toured(site: DemoSite) -> Iterator[tuple[str, Tour]]:
    """A served copy of a filled site with the tour's cast: its URL and the tour."""
    if site.filled is None:
        raise ConfigError("a tour needs a filled site: add --fill")
    with tempfile.TemporaryDirectory(prefix="crowd-tour-") as folder:
        file = _copy(site, Path(folder))
        with serving(file, Path(folder) / "site.log") as url:
            app = create_app(load_config(file))
            try:
                yield url, make_tour(app, site.filled.regular_id)
            finally:
                app.state.site.database.close()


def empty_pages(url: str, tour: Tour) -> list[Empty]:
    """Pages that did not answer as they should, or had nothing on them, in any language."""
    found = []
    for language in tour.site.config.languages:
        tour.speak(language)
        headers = {"accept-language": language}
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
            for page in tour.pages:
                client.cookies.clear()
                for name, value in tour.cookies[page.role].items():
                    client.cookies.set(name, value)
                answer = client.get(page.path)
                if why := _wrong(page, language, answer):
                    found.append(Empty(page, language, why))
    return found


def _wrong(page: Page, language: str, answer: httpx.Response) -> str | None:
    if answer.status_code != page.status:
        where = answer.headers.get("location", "")
        return f"answered {answer.status_code} {where}, not {page.status}".replace("  ", " ")
    if f'<html lang="{language}"' not in answer.text:
        return f"is not in the language {language}"
    body = re.search(r"<main.*?</main>", answer.text, re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body[0])).strip() if body else ""
    return None if len(words) >= LEAST_TEXT else f"has nothing on it but {words!r}"


def _copy(site: DemoSite, folder: Path) -> Path:
    """The same site with a database of its own."""
    original = make_url(site.config.database).database
    assert original is not None
    with (
        contextlib.closing(sqlite3.connect(original)) as source,
        contextlib.closing(sqlite3.connect(folder / "crowd.db")) as target,
    ):
        source.backup(target)
    settings = yaml.safe_load(site.file.read_text())
    settings |= {
        "database": f"sqlite:///{folder / 'crowd.db'}",
        "key_file": str(site.config.key_file),
        "media": str(site.config.media),
        "episodes": str(site.config.episodes),
        # Who is looked at must not be signed out meanwhile.
        "sessions": {"kiosk_idle_s": 3600},
    }
    file = folder / "crowd.yaml"
    file.write_text(yaml.safe_dump(settings))
    file.chmod(0o600)
    return file


def _await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/staff/signin", timeout=TIMEOUT_S).is_success:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise ConfigError(f"the site at {url} does not answer")
        time.sleep(0.05)
