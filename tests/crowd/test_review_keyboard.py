"""The review desk in a real browser, by keyboard alone: from the sign-in to the verdict."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pyotp
import pytest
from playwright.sync_api import Page, sync_playwright

from collect.crowd import review
from collect.crowd.config import load_config
from collect.crowd.database import Database
from collect.crowd.demo_site import serving
from collect.crowd.init import write_site
from collect.crowd.keys import load_key
from collect.crowd.migrate import migrate
from collect.crowd.tables import Play, ReviewVerdict
from tests.collect.recorded import write_episode
from tests.crowd import factories

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HANG_S = 60.0
ROWS = 120
FAULT = ROWS // 2  # where `write_episode` writes one
LOOKED_AT_ONCE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Database]]:
    """A served site with one play to review and the reviewer `ada`."""
    tmp_path = tmp_path_factory.mktemp("desk")
    file = tmp_path / "crowd.yaml"
    config = write_site(file, origin=None, bind="127.0.0.1:0")
    file.write_text(file.read_text() + "\nreview: {double_share: 0.0}\n")
    config.episodes.mkdir(exist_ok=True)
    write_episode(config.episodes / "a.hdf5", rows=ROWS)
    with contextlib.closing(Database(load_config(file).database)) as database:
        migrate(database)
        with database.begin() as tx:
            key = load_key(config.key_file)
            factories.make_staff(tx, key, "reviewer", name="ada")
            station = factories.make_station(tx, key)
            task = factories.make_task(tx, subtasks=["pick"])
            player = factories.make_participant(tx)
            factories.make_play(
                tx, player, station, task, id=LOOKED_AT_ONCE, state="synced", file="a.hdf5"
            )
        with serving(file, tmp_path / "site.log") as url:
            yield url, database


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1366, "height": 900})
        page.set_default_timeout(HANG_S * 1000)
        yield page
        browser.close()


def tab_to(page: Page, selector: str) -> None:
    for _ in range(80):
        if page.evaluate("(what) => document.activeElement.matches(what)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never comes to {selector}")


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {HANG_S} s"
        time.sleep(0.05)


def row(page: Page) -> int:
    return int(page.evaluate("Number(document.querySelector('[data-slider]').value)"))


def lines(page: Page) -> list[str]:
    text = page.evaluate("document.querySelector('[data-lines]').value")
    return str(text).splitlines()


def shown_rows(page: Page) -> list[float]:
    """Which row each camera's video stands at."""
    times = page.evaluate(
        "[...document.querySelectorAll('video')].map((v) => v.seeking ? -1 : v.currentTime)"
    )
    return [round(seconds * 25 - 0.5, 2) * 2 for seconds in times]


def test_a_play_is_reviewed_without_a_mouse(site: tuple[str, Database], page: Page) -> None:
    url, database = site
    problems: list[str] = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    keys = page.keyboard

    page.goto(f"{url}/staff/signin")
    for name, value in (
        ("name", "ada"),
        ("password", factories.PASSWORD),
        ("code", pyotp.TOTP(factories.TOTP_SECRET).now()),
    ):
        tab_to(page, f"[name={name}]")
        keys.type(value)
    keys.press("Enter")
    page.wait_for_url(f"{url}/staff")
    tab_to(page, ".card[href='/staff/review']")
    keys.press("Enter")
    page.wait_for_url(f"{url}/staff/review")
    tab_to(page, "form[action='/staff/review/next'] button")
    keys.press("Enter")
    page.wait_for_url(f"{url}/staff/review/{LOOKED_AT_ONCE}")
    page.wait_for_selector("[data-ready=yes]")
    until(lambda: len(shown_rows(page)) == 2, "the videos")
    until(lambda: shown_rows(page) == [0, 0], "the first frame of both cameras")
    assert page.locator("[data-keys] kbd").first.is_visible()

    # All cameras go in step, by frames, seconds and flags.
    for _ in range(3):
        keys.press("ArrowRight")
    assert row(page) == 6, "a frame is two rows of 50 Hz"
    until(lambda: shown_rows(page) == [6, 6], "both cameras at row 6")
    keys.press("Shift+ArrowRight")
    assert row(page) == 56
    keys.press("n")
    assert row(page) == FAULT
    until(lambda: shown_rows(page) == [FAULT, FAULT], "both cameras at the fault")
    keys.press("b")
    assert row(page) == 0, "the flag before is the one of the short episode"
    keys.press("End")
    assert row(page) == ROWS - 1
    keys.press("Home")
    keys.press("-")
    keys.press("-")  # a quarter of the speed: nearly ten seconds to the end
    keys.press(" ")
    until(lambda: row(page) > 10, "playing")
    keys.press(" ")
    stopped = row(page)
    paused = "[...document.querySelectorAll('video')].every((video) => video.paused)"
    until(lambda: page.evaluate(paused), "a pause of both cameras")
    assert row(page) == stopped

    # A segment of play, one of the task's part with a quality that it can't have first.
    keys.press("Home")
    keys.press("i")
    keys.press("n")
    keys.press("ArrowLeft")
    keys.press("o")
    keys.press("p")
    keys.press("Enter")
    assert lines(page) == [f"0 {FAULT - 2} play 0"]
    keys.press("s")
    keys.press("0")
    assert "can't" in page.locator("[data-status]").inner_text()
    keys.press("2")
    keys.press("Enter")
    assert lines(page) == [f"0 {FAULT - 2} play 0", f"{FAULT - 1} {ROWS - 1} task:pick 2"]
    keys.press("Delete")
    assert lines(page) == [f"{FAULT - 1} {ROWS - 1} task:pick 2"], "the one at the cursor is there"
    keys.press("Home")
    keys.press("i")
    keys.press("n")
    keys.press("o")
    keys.press("a")
    keys.press("3")
    keys.press("Enter")
    cut = [f"0 {FAULT} task 3", f"{FAULT + 1} {ROWS - 1} task:pick 2"]
    assert lines(page) == cut, "what lay below is not covered"

    # Keys are letters again where one writes, and nothing when they are switched off.
    tab_to(page, "#note")
    keys.type("curb 13")
    assert page.evaluate("document.querySelector('input[name=decision]:checked')") is None
    tab_to(page, "[data-shortcuts]")
    keys.press(" ")
    keys.press("c")
    assert page.evaluate("document.querySelector('input[name=decision]:checked')") is None
    keys.press(" ")
    keys.press("c")
    keys.press("Shift+Digit3")
    keys.press("Control+Enter")
    page.wait_for_url(f"{url}/staff/review")

    with database.read() as tx:
        play = tx.get_one(Play, LOOKED_AT_ONCE)
        verdict = tx.get_one(ReviewVerdict, play.id)
        labels = review.labels(tx, play)
    assert (verdict.decision, verdict.quality) == ("confirm", 3)
    assert labels is not None
    assert labels.label.tolist() == ["task"] * (FAULT + 1) + ["task:pick"] * (ROWS - FAULT - 1)
    assert not problems, problems


def test_a_scanned_pairing_code_is_in_the_field_and_nowhere_else(
    site: tuple[str, Database], page: Page
) -> None:
    url, _ = site
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/pair#AB12-CD34")
    until(lambda: page.locator("#code").input_value() == "AB12-CD34", "the code in the field")
    assert page.url == f"{url}/pair"
    assert not any("AB12" in address.partition("#")[0] for address in asked)
    page.goto("about:blank")
    page.goto(f"{url}/pair#<b>AB12</b>")
    page.wait_for_load_state("networkidle")
    assert page.locator("#code").input_value() == ""
