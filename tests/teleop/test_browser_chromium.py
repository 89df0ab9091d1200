"""The page in a real browser: two thumbs on a phone, keys on a laptop, a gamepad, STOP."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from robot_stack.records import frame_record, ring_path
from robot_stack.shared_memory import RingWriter
from tests.teleop.browser_rig import HANG_S, HOME, STATION, Bench

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.slow

# A standard gamepad at rest that the test holds: Chromium has none without hardware.
GAMEPAD = """
window.pad = { id: "Test pad (Vendor: 0)", mapping: "standard", axes: [0, 0, 0, 0],
  buttons: Array.from({ length: 17 }, () => ({ pressed: false, value: 0 })) };
window.trigger = (value) => { pad.buttons[6] = { pressed: value > 0, value }; };
navigator.getGamepads = () => [pad];
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))
    with Bench(tmp_path, stale_s=0.6, max_round_trip_s=1.5) as bench:
        yield bench


@pytest.fixture
def browser() -> Iterator[Any]:
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


class Watched:
    """A page of the bench in control, and whatever it complained of or asked others for."""

    def __init__(self, bench: Bench, browser: Any, script: str = "", **context: Any) -> None:
        self.bench = bench
        self.page = browser.new_context(**context).new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script:
            self.page.add_init_script(script)
        self.page.goto(bench.url)
        self.says("Take control to move the robot")
        self.page.click("#take")
        self.says("Hold the dead-man switch")

    def reason(self) -> str:
        return str(self.page.text_content("#reason"))

    def says(self, text: str) -> None:
        self.bench.until(lambda: text in self.reason(), f"the page says {text!r}")

    def moves(self, again: Callable[[], None]) -> None:
        """Until the arm has gone 3 cm; ``again`` presses anew when the page asks for it."""
        start = self.bench.pose.copy()
        deadline = time.monotonic() + HANG_S
        while np.abs(self.bench.pose[:3] - start[:3]).max() < 0.03:
            assert time.monotonic() < deadline, self.reason()
            self.bench.run(0.1)
            if "let go" in (self.bench.teleop.waiting() or ""):
                again()

    def stands(self) -> None:
        """Nothing comes any more."""
        self.bench.until(lambda: self.bench.teleop.waiting() is not None, "the motion ends")
        self.bench.run(0.1)
        assert self.bench.run(0.3) == []

    def good(self) -> None:
        assert self.problems == []
        own = (self.bench.url, self.bench.url.replace("http", "ws"), "data:", "blob:")
        assert all(url.startswith(own) for url in self.requests), self.requests
        self.page.context.close()


def test_two_thumbs_on_a_phone(bench: Bench, browser: Any) -> None:
    watched = Watched(
        bench, browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = watched.page
    height, width = page.evaluate(
        "[document.documentElement.scrollHeight, document.documentElement.scrollWidth]"
    )
    assert (height, width) <= (844, 390), "all of it within reach of two thumbs"
    touch = page.context.new_cdp_session(page)

    def centre(selector: str) -> dict[str, float]:
        box = page.locator(selector).bounding_box()
        return {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

    switch, pad = {**centre("#deadman"), "id": 1}, {**centre("#plane"), "id": 2}

    def fingers(kind: str, *points: dict[str, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": list(points)})

    pushed = {**pad, "x": pad["x"] - 60, "y": pad["y"] - 60}  # away and left

    def press() -> None:
        fingers("touchStart", switch)
        fingers("touchStart", switch, pad)
        fingers("touchMove", switch, pushed)

    def again() -> None:
        fingers("touchEnd")
        press()

    press()
    watched.moves(again)
    assert page.get_attribute("#deadman", "aria-pressed") == "true"
    gone = bench.pose[:3] - HOME[:3]
    assert gone[0] > 0.01 and gone[1] > 0.01 and abs(gone[2]) < 1e-9, "away and to the left"
    np.testing.assert_allclose(bench.readings[0][1], HOME)
    fingers("touchEnd", switch)  # this thumb is lifted, the other one stays
    watched.stands()
    assert page.get_attribute("#deadman", "aria-pressed") == "false"
    fingers("touchEnd")
    page.click("[data-tab=turn]")
    assert page.is_visible("#tilt") and not page.is_visible("#plane")
    watched.good()


def test_keys_focus_stop_and_pictures_on_a_laptop(bench: Bench, browser: Any) -> None:
    ring = RingWriter(ring_path(STATION, "camera", "cam"), frame_record(160, 120), 8, {"fps": 30.0})
    watched = Watched(bench, browser, viewport={"width": 1280, "height": 800})
    page, keys = watched.page, watched.page.keyboard

    def press() -> None:
        keys.up("Space")
        bench.run(0.1)
        keys.down("Space")

    keys.down("w")
    assert bench.run(0.3) == [], "a key without the switch moves nothing"
    press()
    watched.moves(press)
    assert bench.pose[0] - HOME[0] > 0.02 and abs(bench.pose[1]) < 1e-9
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    watched.stands()
    keys.up("Space")
    keys.up("w")

    page.locator("#gripper").focus()  # a slider takes its arrow keys only while the switch is held
    assert page.is_disabled("#gripper")
    opening = bench.pose[7]
    keys.down("v")
    press()
    bench.until(lambda: bench.pose[7] > opening + 0.1 or press(), "the gripper opens")
    keys.up("v")
    keys.up("Space")

    image = np.full((120, 160, 3), (200, 30, 40), np.uint8)
    deadline = time.monotonic() + HANG_S
    while page.evaluate("document.querySelector('#main').width") != 160:
        ring.publish((time.monotonic_ns(), 1, image))
        bench.run(0.05)
        assert time.monotonic() < deadline
    red, green, _, _ = page.evaluate(
        "Array.from(document.querySelector('#main').getContext('2d')"
        ".getImageData(80, 60, 1, 1).data)"
    )
    assert red > 150 and green < 80
    bench.until(lambda: page.is_visible("#old"), "an old picture is marked")
    ring.close()

    keys.press("Escape")
    bench.until(lambda: bench.flag.value == 3, "Escape stops")
    watched.says("Stopped (STOP pressed on a page at 127.0.0.1)")
    bench.flag.clear()
    page.click("#stop")
    bench.until(lambda: bench.flag.value == 3, "the button stops")
    bench.flag.clear()
    watched.good()


def test_a_gamepad_s_trigger_and_sticks(bench: Bench, browser: Any) -> None:
    watched = Watched(bench, browser, GAMEPAD + "trigger(1);")
    page = watched.page
    page.evaluate("pad.axes = [0, -1, 0, 0]")
    assert bench.run(0.4) == [], "a trigger that was held before is no press"

    def press() -> None:
        page.evaluate("trigger(0)")
        bench.run(0.15)
        page.evaluate("trigger(1)")

    press()
    watched.moves(press)
    assert bench.pose[0] - HOME[0] > 0.02, "the left stick forward is away"
    page.evaluate("navigator.getGamepads = () => []")  # its battery
    watched.stands()
    page.evaluate("navigator.getGamepads = () => [pad]")
    assert bench.run(0.4) == [], "back with the trigger held is no press either"
    page.evaluate("pad.buttons[8] = { pressed: true, value: 1 }")
    bench.until(lambda: bench.flag.value == 3, "Back stops")
    watched.good()


def test_a_page_that_hangs_or_is_closed_stops_the_arm(bench: Bench, browser: Any) -> None:
    watched = Watched(bench, browser)

    def press() -> None:
        watched.page.keyboard.up("Space")
        bench.run(0.1)
        watched.page.keyboard.down("Space")

    watched.page.keyboard.down("r")
    press()
    watched.moves(press)
    assert bench.pose[2] - HOME[2] > 0.02
    # A browser that hangs sends nothing and closes nothing; then it goes on as if it had not.
    watched.page.evaluate(
        "setTimeout(() => { const end = Date.now() + 1200; while (Date.now() < end); })"
    )
    watched.stands()
    watched.says("let go of its dead-man switch")
    assert bench.run(0.3) == []
    press()
    watched.moves(press)
    watched.page.close()
    bench.until(lambda: "nobody controls" in (bench.teleop.waiting() or ""), "closed")
    assert bench.run(0.2) == []
