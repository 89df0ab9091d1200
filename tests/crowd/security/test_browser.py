"""A real chromium meets names and texts that would be scripts: on pages, and in what our scripts
draw from JSON and streams. It says what its content security policy has stopped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, sync_playwright
from starlette.testclient import TestClient

from collect.crowd import scoring
from collect.crowd.app import create_app
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.tables import NicknameCase, Participant, Review, TaskText
from tests.crowd import factories
from tests.crowd.browser import Browser
from tests.crowd.recordings import make_recorded
from tests.crowd.site_process import SiteProcess

pytestmark = pytest.mark.slow

TYPED = "<img src=x onerror=xq()>"
LONGER = f'"><script>xq()</script>{TYPED}<a href="javascript:xq()">x</a>'
WATCH = """
window.problems = [];
window.xq = () => problems.push("somebody's script ran");
addEventListener("securitypolicyviolation", (event) =>
  problems.push(`CSP: ${event.violatedDirective} ${event.blockedURI}`));
"""
DRAWN = "(text) => document.body.innerText.includes(text)"


@pytest.fixture
def served(tmp_path: Path, sqlite_template: Path) -> Iterator[SiteProcess]:
    shutil.copyfile(sqlite_template, tmp_path / "crowd.db")
    site = SiteProcess(tmp_path / "site", f"sqlite:///{tmp_path / 'crowd.db'}")
    site.config.media.mkdir(exist_ok=True)
    site.config.episodes.mkdir(exist_ok=True)
    with site.running():
        site.start()
        yield site


@pytest.fixture
def chromium() -> Iterator[Chromium]:
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


def test_nothing_that_was_typed_runs(served: SiteProcess, chromium: Chromium) -> None:
    config, key = served.config, load_key(served.config.key_file)
    database = Database(config.database)
    with database.begin() as tx:
        people = [factories.make_participant(tx, TYPED, skeleton=f"s{n}") for n in range(2)]
        for who in people:
            factories.make_consent(tx, who)
        station = factories.make_station(tx, key, state={"phase": "fault", "fault": LONGER})
        task = factories.make_task(tx)
        text = tx.get_one(TaskText, (task.id, "en"))
        text.title, text.body = LONGER[:80], LONGER
        admin = factories.make_staff(tx, key, "admin")
        tx.add(NicknameCase(participant_id=people[0].id, nickname=TYPED, reason="new"))
        scoring.claim(tx, factories.make_play(tx, people[0], station, task))
    play = make_recorded(database, config, key, people[0], station, task)
    with database.begin() as tx:
        tx.add(Review(play_id=play.id, staff_id=admin.id, note=LONGER))
    app = create_app(config)
    browser = Browser(app, TestClient(app, base_url=served.url))
    browser.sign_in(kiosk=station, participant=people[1], staff=admin)
    context = chromium.new_context(locale="en")
    context.add_init_script(WATCH)
    context.add_cookies(
        [
            {"name": cookie.name, "value": str(cookie.value), "url": served.url}
            for cookie in browser.client.cookies.jar
        ]
    )
    tab = context.new_page()
    tab.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
    wrong = []
    for path, shown in (
        ("/", TYPED),
        ("/board", TYPED),
        ("/me", TYPED),
        ("/tasks", LONGER[:20]),
        (f"/tasks/{task.id}", LONGER[:20]),
        ("/staff/names", TYPED),
        ("/staff/participants", TYPED),
        ("/staff/stations", LONGER[:20]),
        (f"/staff/review/{play.id}", LONGER[:20]),
    ):
        tab.goto(served.url + path, wait_until="load")
        wrong += [f"{path}: {text}" for text in _problems(tab)]
        if not tab.evaluate(DRAWN, shown):
            wrong.append(f"{path} does not show what was typed: nothing is tested")
    # What the board's script draws of a stream.
    tab.goto(f"{served.url}/board")
    before = tab.locator("[data-top] tr").count()
    with database.begin() as tx:
        row = tx.get_one(Participant, people[1].id)
        scoring.claim(tx, factories.make_play(tx, row, tx.merge(station), tx.merge(task)))
    tab.wait_for_function(
        "(n) => document.querySelectorAll('[data-top] tr').length > n", arg=before, timeout=20_000
    )
    wrong += [f"a live board: {text}" for text in _problems(tab)]
    assert not wrong, "\n".join(wrong)
    # That something would have been seen: what gets past the templates is stopped by the policy.
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=/x onerror=xq()>')")
    tab.wait_for_function("problems.some((text) => text.startsWith('CSP: script-src'))")
    assert "somebody's script ran" not in tab.evaluate("problems")
    context.close()
    app.state.site.database.close()
    database.close()


def _problems(tab: Page) -> list[str]:
    found: list[str] = tab.evaluate("problems")
    foreign = "document.querySelectorAll('img[onerror], script:not([src]), a[href^=javascript]')"
    return found + ["somebody's element"] * int(tab.evaluate(f"{foreign}.length"))
