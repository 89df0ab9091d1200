"""What scripts add at a kiosk, in a real browser: cards typed by the reader, the idle countdown,
the alarm; and that without scripts it works as well."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from sqlalchemy import select
from sqlalchemy.orm import Session

from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.pairing import new_code
from collect.crowd.tables import Participant, Play, Station, WebSession, new_id, utc_now
from tests.crowd import factories
from tests.crowd.site_process import SiteProcess

pytestmark = pytest.mark.slow

CARD = "0412345678"


class Kiosk:
    """A site that runs; each tablet is that of a station of its own, whose robot is there."""

    def __init__(self, site: SiteProcess, database: Database) -> None:
        self.url = site.url
        self.config = site.config
        self.database = database
        self._key = load_key(site.config.key_file)

    def pair(self, context: BrowserContext) -> Page:
        """A page of a tablet that is the station's kiosk, at the start."""
        with self.database.begin() as tx:
            self._name = f"cafe-{new_id()[:8]}"
            code = new_code(tx, self._key, self._name, "kiosk")
            station = self._station(tx)
            station.seen_at = utc_now() + dt.timedelta(hours=1)
            station.state = {"phase": "idle"}
        page = context.new_page()
        page.goto(f"{self.url}/pair")
        page.fill("[name=code]", code)
        page.click("main form button")
        page.wait_for_url(f"{self.url}/")
        return page

    def says(self, **state: object) -> None:
        """The robot says this of itself."""
        with self.database.begin() as tx:
            self._station(tx).state = dict(state)

    def _station(self, tx: Session) -> Station:
        return tx.scalars(select(Station).where(Station.name == self._name)).one()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def kiosk(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[Kiosk]:
    folder = tmp_path_factory.mktemp("kiosk")
    shutil.copyfile(sqlite_template, folder / "crowd.db")
    site = SiteProcess(folder, f"sqlite:///{folder / 'crowd.db'}")
    site.start()
    database = Database(site.config.database)
    yield Kiosk(site, database)
    database.close()
    site.kill()


@pytest.fixture
def tablet(chromium: Chromium) -> Iterator[Callable[..., BrowserContext]]:
    opened = []

    def open_tablet(**options: object) -> BrowserContext:
        opened.append(chromium.new_context(locale="en", **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_tablet
    for context in opened:
        context.close()


# As fast as a reader types; through the browser's driver it is slower than a person, on a busy day.
BURST = """keys => {
    for (const key of keys)
        document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
}"""


def join(page: Page, url: str) -> None:
    page.goto(f"{url}/signin")
    page.get_by_role("button", name="guest").click()
    page.get_by_role("button", name="18 or older").click()
    page.check("[value=record]")
    page.get_by_role("button", name="Agree").click()
    page.wait_for_url("**/nickname")


def test_a_reader_types_wherever_the_page_is(kiosk: Kiosk, tablet) -> None:
    """On the start page nothing has the focus, and the card's number is never seen."""
    page = kiosk.pair(tablet())
    page.evaluate(BURST, [*CARD, "Enter"])
    page.wait_for_url("**/age")
    with kiosk.database.read() as tx:
        hashed = load_key(kiosk.config.key_file).mac("card", CARD)
        assert tx.scalar(select(Participant.kind).where(Participant.card_hash == hashed)) == "card"


def test_somebody_who_types_slowly_is_no_reader(kiosk: Kiosk, tablet) -> None:
    page = kiosk.pair(tablet())
    page.keyboard.type("12345678", delay=120)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Drive a real robot")
    assert page.url == f"{kiosk.url}/"


def test_the_idle_are_asked_then_signed_out_and_nothing_stays(kiosk: Kiosk, tablet) -> None:
    context = tablet()
    page = kiosk.pair(context)
    page.clock.install()
    join(page, kiosk.url)
    page.fill("#nickname", "Half a na")
    page.clock.fast_forward(75_000)
    question = page.get_by_role("dialog")
    expect(question).to_be_visible()
    expect(question.get_by_role("timer")).to_have_text("15")
    question.get_by_role("button", name="still here").click()
    expect(question).to_be_hidden()
    page.clock.fast_forward(60_000)
    expect(question).to_be_hidden()
    page.clock.fast_forward(31_000)
    page.wait_for_url("**/?left=idle")
    expect(page.get_by_role("status")).to_contain_text("signed you out")
    with kiosk.database.read() as tx:
        left = tx.scalars(select(WebSession).where(WebSession.kind == "participant")).all()
        assert not [row for row in left if row.station_id is not None and _open(row, context)]
    page.go_back()
    page.wait_for_url("**/signin")
    assert "Half a na" not in page.content()


def _open(row: WebSession, context: BrowserContext) -> bool:
    """Whether this browser still has the session's cookie."""
    return any(cookie["name"] == "dev-participant" for cookie in context.cookies())


def test_an_alarm_is_seen_and_read_out_and_goes_again(kiosk: Kiosk, tablet) -> None:
    page = kiosk.pair(tablet())
    join(page, kiosk.url)
    with kiosk.database.begin() as tx:
        task = factories.make_task(tx, "easy").id
        me = tx.scalars(select(Participant).order_by(Participant.created_at.desc())).first()
        assert me is not None
        me.tutorial_at = utc_now()
    page.goto(f"{kiosk.url}/tasks/{task}")
    page.get_by_role("button", name="ready").click()
    expect(page.get_by_role("dialog").get_by_role("timer")).to_be_visible()
    page.wait_for_url("**/play")
    with kiosk.database.read() as tx:
        play = tx.scalars(select(Play).where(Play.state == "running")).one()
    at_it = {"phase": "playing", "play": play.id, "elapsed_s": 20.0, "seconds": 120}
    alarm = page.get_by_role("alert")
    kiosk.says(**at_it, warning={"level": 0})
    expect(page.locator("[data-phase-said]")).to_have_text("You're driving")
    expect(alarm).to_be_hidden()
    expect(page.locator(".play [data-left]")).to_have_text(re.compile(r"^([5-9]\d|100)$"))
    kiosk.says(**at_it, warning={"level": 1, "between": "follower_left"})
    expect(alarm).to_have_text("Careful, that's close · left arm")
    kiosk.says(**at_it, warning={"level": 2, "between": "follower_right"})
    expect(alarm).to_contain_text("Too close")
    kiosk.says(**at_it, warning={"level": 0})
    expect(alarm).to_be_hidden()
    # Somebody lays the handles down: the page goes on by itself.
    with kiosk.database.begin() as tx:
        row = tx.get_one(Play, play.id)
        row.state, row.ended_at, row.ended_by = "finished", utc_now(), "rest"
    page.wait_for_url("**/report")


def test_all_of_it_works_without_scripts(kiosk: Kiosk, tablet) -> None:
    page = kiosk.pair(tablet(java_script_enabled=False))
    page.goto(f"{kiosk.url}/signin")
    page.fill("#card", "5555000011")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="18 or older").click()
    page.check("[value=record]")
    page.get_by_role("button", name="Agree").click()
    page.fill("#nickname", "No Script")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tutorial")
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    with kiosk.database.read() as tx:
        play = tx.scalars(select(Play).where(Play.kind == "tutorial")).one()
    tutorial = {"play": play.id, "step": "touch", "done": ["home", "squeeze"]}
    kiosk.says(phase="tutorial", play=play.id, tutorial=tutorial)
    page.reload()
    expect(page.locator("[aria-current=step]")).to_contain_text("Touch the table")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("status")).to_contain_text("signed out")
