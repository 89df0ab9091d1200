"""The whole site once, as a cafe has it: pair, take part, drive the virtual robot, review, export.

`robot-stack crowd demo` brings up the site, the virtual station and its agent as programs; a real
browser is the kiosk and, later, the review desk; hands beside it move the virtual leaders.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pyotp
import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page as Tab
from playwright.sync_api import TimeoutError as TimedOut
from playwright.sync_api import expect

from robot_stack.config import load_station
from tests.crowd.e2e.hands import Hands, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STAY_S = 900
SLOW_MS = 120_000
LOOK_MS = 1000
COMMAND = [sys.executable, "-m", "robot_stack.cli", "crowd"]
NICKNAME = "Grace Hopper"
SEED = 1


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The demonstration, up; what it says of itself."""
    folder = tmp_path / "site"
    command = [*COMMAND, "demo", "--json", "--seconds", str(STAY_S), "--directory", str(folder)]
    with (tmp_path / "demo.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, (tmp_path / "demo.log").read_text()
        yield json.loads(line)
    finally:
        process.terminate()
        assert process.wait(120.0) in (0, 143)
        process.stdout.close()


@pytest.fixture
def hands(demo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hands]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", demo["runtime"])
    hands = Hands(load_station(Path(demo["directory"]) / "aloha_virtual.yaml"))
    yield hands
    hands.close()


def test_from_the_street_to_the_dataset(
    demo: dict[str, Any], hands: Hands, chromium: Chromium, tmp_path: Path
) -> None:
    kiosk = _tab(chromium, 1180, 820)
    _pair(kiosk, demo)
    _sign_in(kiosk)
    _learn(kiosk, demo, hands)
    _drive(kiosk, demo, hands)
    _report(kiosk)

    staff = _tab(chromium, 1366, 900)
    _staff_sign_in(staff, demo)
    _approve_nickname(staff, demo)
    for kind in ("tutorial", "task"):
        _await_synced(staff, demo, kind)
    labels = _review(staff, demo)
    assert {"tutorial", "task"} <= set(labels)

    for board in ("all", "quality"):
        kiosk.goto(f"{demo['url']}/board/{board}")
        expect(kiosk.get_by_role("row").filter(has_text=NICKNAME)).to_be_visible()
    _export(demo, tmp_path / "dataset", labels)


def _tab(chromium: Chromium, width: int, height: int) -> Tab:
    tab = chromium.new_context(
        viewport={"width": width, "height": height}, locale="en", reduced_motion="reduce"
    ).new_page()
    tab.set_default_timeout(SLOW_MS)
    tab.set_default_navigation_timeout(SLOW_MS)
    return tab


def _pair(kiosk: Tab, demo: dict[str, Any]) -> None:
    kiosk.goto(demo["kiosk"]["url"])
    kiosk.get_by_label("Code").fill(demo["kiosk"]["code"])
    kiosk.get_by_role("button", name="Pair").click()
    kiosk.wait_for_url(demo["url"] + "/")


def _sign_in(kiosk: Tab) -> None:
    kiosk.get_by_role("link", name="Start").click()
    kiosk.get_by_label("Card number").fill("0412345678")
    kiosk.get_by_label("Card number").press("Enter")
    kiosk.get_by_role("button", name="I'm 18 or older").click()
    for scope in kiosk.get_by_role("checkbox").all():
        scope.check()
    kiosk.locator("form[action='/consent'] button").click()
    kiosk.get_by_label("Nickname").fill(NICKNAME)
    kiosk.get_by_role("button", name="That's me").click()
    kiosk.wait_for_url("**/tutorial")


def _learn(kiosk: Tab, demo: dict[str, Any], hands: Hands) -> None:
    """The four steps, each as the page says it; again if the robot has had a fault."""
    doing = ""

    def learnt() -> bool:
        nonlocal doing
        if kiosk.locator(".passed").count():
            return True
        if _offered(kiosk, demo, "form[action='/tutorial'] button"):
            hands.let_go()
            doing = ""
            kiosk.locator("form[action='/tutorial'] button").click()
        step = doing
        with contextlib.suppress(TimedOut):  # the page may have gone on between two looks
            now = kiosk.locator("li.now")
            step = now.first.get_attribute("data-step", timeout=LOOK_MS) or ""
        if step != doing:
            doing = step
            if step == "squeeze":
                hands.squeeze()
            elif step == "touch":
                hands.touch("leader_left")
                hands.touch("leader_right")
            elif step == "rest":
                hands.rest()
        return False

    wait_until(learnt, "the tutorial is passed")
    hands.let_go()


def _drive(kiosk: Tab, demo: dict[str, Any], hands: Hands) -> None:
    """Choose the task, hand the cube over, lay the leaders on their rests."""
    seen_driving = resting = False

    def driven() -> bool:
        nonlocal seen_driving, resting
        if "/report" in kiosk.url:
            return True
        if kiosk.url.endswith("/tasks"):  # at first, and after a fault of the robot
            resting = False
            kiosk.get_by_role("link", name="Hand the cube over").click()
        if _offered(kiosk, demo, "form[action$='/start'] button"):
            hands.let_go()
            hands.transfer(SEED)
            kiosk.locator("form[action$='/start'] button").click()
        elif "/play" in kiosk.url:
            seen_driving = seen_driving or kiosk.locator("p.countdown[data-left]").is_visible()
            if not resting and hands.transferred():
                hands.let_go()
                hands.rest()
                resting = True
        return False

    kiosk.goto(demo["url"] + "/tasks")
    wait_until(driven, "the cube is handed over and the leaders rest")
    assert seen_driving


def _report(kiosk: Tab) -> None:
    kiosk.get_by_label("Yes, it worked").check()
    for item in ("intuitive", "fun", "did"):
        kiosk.locator(f"input[name={item}][value='5']").check()
    kiosk.get_by_role("button", name="Done").click()
    kiosk.wait_for_url("**/report?done=*")
    expect(kiosk.locator(".won-points")).to_contain_text("2")


def _staff_sign_in(staff: Tab, demo: dict[str, Any]) -> None:
    staff.goto(demo["staff"]["url"])
    staff.locator("input[name=name]").fill(demo["staff"]["name"])
    staff.locator("input[name=password]").fill(demo["staff"]["password"])
    staff.locator("input[name=code]").fill(pyotp.TOTP(demo["staff"]["totp_secret"]).now())
    staff.locator("form[action='/staff/signin'] button").click()
    staff.wait_for_url(demo["url"] + "/staff")


def _approve_nickname(staff: Tab, demo: dict[str, Any]) -> None:
    staff.goto(demo["url"] + "/staff/names")
    expect(staff.get_by_text(NICKNAME).first).to_be_visible()
    staff.get_by_role("button", name="Approve").first.click()
    expect(staff.get_by_role("button", name="Approve")).to_have_count(0)


def _review(staff: Tab, demo: dict[str, Any]) -> list[str]:
    """Label every play with nothing but keys, all of each, confirmed; the labels in order."""
    given = []
    while True:
        staff.goto(demo["url"] + "/staff/review")
        following = staff.locator("form[action='/staff/review/next'] button")
        if not following.count() or not following.is_enabled():
            return given
        following.click()
        if not staff.locator("[data-review]").count():
            return given
        expect(staff.locator("[data-review][data-ready=yes]")).to_be_visible()
        shown = "document.querySelector('video')?.readyState >= 2"
        wait_until(lambda shown=shown: staff.evaluate(shown), "the video of the play")
        given.append(staff.locator("[data-label]").input_value())
        address, quality = staff.url, {"tutorial": "2", "task": "3"}[given[-1]]
        for key in (quality, "Enter"):
            staff.keyboard.press(key)
        expect(staff.locator("[data-segments] li")).to_have_count(1)
        for key in ("c", f"Shift+{quality}", "Control+Enter"):
            staff.keyboard.press(key)
        staff.wait_for_url(lambda url, before=address: url != before)


def _await_synced(staff: Tab, demo: dict[str, Any], kind: str) -> None:
    def synced() -> bool:
        staff.goto(f"{demo['url']}/staff/plays?state=synced&kind={kind}")
        return staff.locator("tbody tr").count() > 0

    wait_until(synced, f"the {kind}'s episode has come to the site")


def _offered(kiosk: Tab, demo: dict[str, Any], button: str) -> bool:
    """Whether the page offers to begin and the robot is ready for it."""
    if not kiosk.locator(button).count() or kiosk.locator("dialog[open]").count():
        return False
    robot = _robot(kiosk, demo)
    return bool(robot["phase"] == "idle" and not robot["running"])


def _robot(kiosk: Tab, demo: dict[str, Any]) -> dict[str, Any]:
    """What the site tells the kiosk of its robot."""
    answer: dict[str, Any] = kiosk.request.get(demo["url"] + "/api/kiosk/state").json()
    return answer


def _export(demo: dict[str, Any], folder: Path, labels: list[str]) -> None:
    """The dataset has the recordings with a label for each row, and nobody's name."""
    config = str(Path(demo["directory"]) / "crowd.yaml")
    command = [*COMMAND, "export", str(folder), "--config", config, "--json"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["episodes"], summary["contributors"]) == (len(labels), 1), summary
    labelled = [
        set(pyarrow.parquet.read_table(path).column("label").to_pylist())
        for path in sorted(folder.glob("labels/*.parquet"))
    ]
    assert sorted(labelled, key=str) == sorted(({label} for label in labels), key=str)
    for path in folder.rglob("*"):
        if path.is_file():
            assert NICKNAME.encode() not in path.read_bytes(), path
