"""What scripts add, in a real browser: cards typed by the reader, the idle countdown, the alarm,
parts of pages that keep themselves up to date; and that without scripts it works as well."""

from __future__ import annotations

import datetime as dt
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyotp
import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from collect.crowd import queue
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.pairing import new_code
from collect.crowd.tables import (
    HelpRequest,
    Participant,
    Play,
    Station,
    WebSession,
    new_id,
    utc_now,
)
from tests.crowd import factories
from tests.crowd.site_process import SiteProcess

pytestmark = pytest.mark.slow

CARD = "0412345678"
expect.set_options(timeout=20_000)


class Kiosk:
    """A site that runs; each tablet is that of a station of its own, whose robot is there."""

    def __init__(self, site: SiteProcess, database: Database) -> None:
        self.url = site.url
        self.config = site.config
        self.database = database
        self.key = load_key(site.config.key_file)

    def pair(self, context: BrowserContext) -> Page:
        """A page of a tablet that is the station's kiosk, at the start."""
        with self.database.begin() as tx:
            self._name = f"cafe-{new_id()[:8]}"
            code = new_code(tx, self.key, self._name, "kiosk")
            station = self.station(tx)
            station.seen_at = utc_now() + dt.timedelta(hours=1)
            station.state = {"phase": "idle"}
        page = context.new_page()
        page.goto(f"{self.url}/pair")
        page.fill("[name=code]", code)
        page.click("main form button")
        page.wait_for_url(f"{self.url}/")
        return page

    def staff(self, context: BrowserContext, role: str = "operator") -> Page:
        """A page of somebody of the staff, at the overview."""
        with self.database.begin() as tx:
            name = factories.make_staff(tx, self.key, role).name
        page = context.new_page()
        page.goto(f"{self.url}/staff/signin")
        for field, value in (
            ("name", name),
            ("password", factories.PASSWORD),
            ("code", pyotp.TOTP(factories.TOTP_SECRET).now()),
        ):
            page.fill(f"[name={field}]", value)
        page.click("main form button")
        page.wait_for_url(f"{self.url}/staff")
        return page

    def says(self, **state: object) -> None:
        """The robot says this of itself."""
        with self.database.begin() as tx:
            self.station(tx).state = dict(state)

    def station(self, tx: Session, name: str | None = None) -> Station:
        """That of the tablet paired last, or another by name."""
        return tx.scalars(select(Station).where(Station.name == (name or self._name))).one()


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


TONES = """() => {
    window.tones = 0;
    window.OscillatorNode = class extends OscillatorNode {
        constructor(...given) { super(...given); window.tones += 1; }
    };
}"""


def stays(page: Page) -> Callable[[], bool]:
    """Call the result: is it still the same page, never loaded again?"""
    page.evaluate("window.here = true")
    return lambda: bool(page.evaluate("window.here === true"))


def test_who_waits_sees_the_queue_move_and_is_taken_to_the_turn(kiosk: Kiosk, tablet) -> None:
    page = kiosk.pair(tablet())
    page.clock.install()
    join(page, kiosk.url)
    with kiosk.database.begin() as tx:
        me = tx.scalars(select(Participant).order_by(Participant.created_at.desc())).first()
        assert me is not None
        me.tutorial_at = utc_now()
        station, other = kiosk.station(tx), factories.make_participant(tx)
        lease = factories.make_lease(tx, station, other)
    page.goto(f"{kiosk.url}/queue")
    page.get_by_role("button", name="Join").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("You're next")
    page.goto(f"{kiosk.url}/queue?refused=busy")
    same = stays(page)
    page.evaluate(TONES)
    with page.expect_response(f"{kiosk.url}/queue"):
        page.clock.fast_forward(5_000)
    give_up = page.get_by_role("button", name="Give up").element_handle()
    with kiosk.database.begin() as tx:
        tx.delete(tx.merge(lease))
        queue.advance(tx, kiosk.station(tx))
    page.clock.fast_forward(5_000)
    expect(page.locator(".called")).to_contain_text("It's your turn!")
    assert same() and not give_up.evaluate("button => button.isConnected")
    expect(page.locator(".notice.warn[role=alert]")).to_be_visible()  # why it was refused before
    assert page.evaluate("window.tones") == 2  # it is heard, too
    # The phone of the same person takes the turn: this page goes where one drives.
    with kiosk.database.begin() as tx:
        factories.make_lease(tx, kiosk.station(tx), tx.get_one(Participant, me.id))
    page.clock.fast_forward(5_000)
    page.wait_for_url("**/tasks")


def test_what_has_not_changed_is_left_alone_and_a_site_that_is_away_is_told_of(
    kiosk: Kiosk, tablet
) -> None:
    with kiosk.database.begin() as tx:
        tx.execute(delete(HelpRequest))  # of another try
    context = tablet()
    page = kiosk.staff(context)
    page.clock.install()
    page.goto(f"{kiosk.url}/staff/help")
    same = stays(page)
    listed = page.locator("#live").element_handle()
    with page.expect_response(f"{kiosk.url}/staff/help"):
        page.clock.fast_forward(5_000)
    assert listed.evaluate("element => element.isConnected")
    context.set_offline(True)
    page.clock.fast_forward(5_000)
    expect(page.locator("[data-offline]")).to_be_visible()
    expect(page.locator("[data-help]")).to_have_text("?")
    expect(page).to_have_title(re.compile(r"^\(\?\)"))
    context.set_offline(False)
    with kiosk.database.begin() as tx:
        station = factories.make_station(tx, kiosk.key)
        tx.add(HelpRequest(station_id=station.id))
    page.clock.fast_forward(5_000)
    expect(page.locator("[data-offline]")).to_be_hidden()
    expect(page.locator("[data-help]")).to_have_text("1")
    expect(page).to_have_title(re.compile(r"^\(1\)"))
    go = page.get_by_role("button", name=station.name)
    go.focus()
    # A second call moves the list; whoever is about to press a button still is.
    with kiosk.database.begin() as tx:
        other = factories.make_station(tx, kiosk.key).name
        tx.add(HelpRequest(station_id=kiosk.station(tx, other).id))
    page.clock.fast_forward(5_000)
    expect(page.get_by_role("button", name=other)).to_be_visible()
    expect(go).to_be_focused()
    page.keyboard.press("Enter")
    expect(go).to_be_hidden()
    expect(page.locator("#live")).to_contain_text("answered")
    page.clock.fast_forward(5_000)
    expect(page.locator("[data-help]")).to_have_text("1")
    assert same()
    # To be signed out is not to be cut off; and what is being filled in is not taken away.
    page.goto(f"{kiosk.url}/staff/plays")
    context.route("**/api/staff/help", lambda asked: asked.fulfill(status=401))
    page.clock.fast_forward(5_000)
    expect(page.locator("[data-help]")).to_have_text("?")
    expect(page.locator("[data-offline]")).to_be_hidden()
    page.goto(f"{kiosk.url}/staff/help")
    # Somebody ends the session: the page does not stand there as if it were live.
    with kiosk.database.begin() as tx:
        tx.execute(delete(WebSession).where(WebSession.kind == "staff"))
    page.clock.fast_forward(5_000)
    page.wait_for_url("**/staff/signin")


def test_a_list_is_searched_as_one_types_and_stays_so(kiosk: Kiosk, tablet) -> None:
    with kiosk.database.begin() as tx:
        for name in ("Marzipan", "Nougat"):
            factories.make_participant(tx, name)
    page = kiosk.staff(tablet())
    page.goto(f"{kiosk.url}/staff/participants")
    same = stays(page)
    page.get_by_role("searchbox").type("zip")
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("rowheader")).to_contain_text("Marzipan")
    assert page.url.endswith("?q=zip&show=all")
    page.get_by_role("button", name="Hide").click()
    expect(page.locator("#found")).to_contain_text("hidden")
    expect(page.get_by_role("row")).to_have_count(2)
    assert same() and page.url.endswith("?q=zip&show=all")
    page.get_by_label("Show").select_option("hidden")
    expect(page.get_by_role("row")).to_have_count(2)
    page.reload()
    expect(page.get_by_role("row")).to_have_count(2)


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
