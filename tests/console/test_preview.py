"""`robot-stack preview` as a program: over real HTTP, a real WebSocket and a real browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from hardware.cameras.test_pattern import TestPatternCamera, camera_id, decode
from robot_stack.cli import main
from robot_stack.records import frame_record, ring_path
from robot_stack.shared_memory import RingWriter
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

HANG_S = 30.0
TOKEN = "0123456789abcdef-token"

Start = Callable[..., str]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))


class Published:
    """A camera whose frames appear in its ring when the test says so."""

    def __init__(self, name: str) -> None:
        spec = CameraSpec(name, 160, 120, 30.0)
        self.camera = TestPatternCamera(spec, start_t_ns=time.monotonic_ns() - 10**12)
        self.camera.connect()
        self.ring = RingWriter(
            ring_path("lab", "camera", name), frame_record(160, 120), 16, {"fps": 30.0}
        )

    def publish(self) -> Frame:
        frame = self.camera.read(1.0)
        assert frame is not None
        self.ring.publish((frame.t_ns, frame.seq, frame.image))
        return frame


@pytest.fixture
def cam() -> Iterator[Published]:
    published = Published("cam_high")
    yield published
    published.ring.close()


@pytest.fixture
def station(tmp_path: Path) -> Path:
    path = tmp_path / "lab.yaml"
    path.write_text(
        "schema: 1\nstation: lab\nrobots: {}\ngroups: {}\ncameras:\n"
        "  cam_high: {driver: test_pattern, width: 160, height: 120}\n"
        "  cam_low: {driver: test_pattern, width: 160, height: 120}\n"
    )
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "robot_stack", "preview", *arguments]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a preview server on a free port; returns its address."""
    running: list[subprocess.Popen[str]] = []

    def launch(*arguments: str) -> str:
        process = subprocess.Popen(
            command(*arguments, "--port", "0", "--json"), stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ok"]
        url = re.sub(r"0\.0\.0\.0", "127.0.0.1", ready["url"]).partition("?")[0]
        return url.rstrip("/")

    yield launch
    for process in running:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(HANG_S)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def get(url: str, **headers: str) -> httpx.Response:
    # Loading certificates for each request takes longer than all the rest.
    return httpx.get(url, headers=headers, timeout=HANG_S, verify=False)


def socket_of(url: str, **options: Any) -> ClientConnection:
    return connect(f"{url.replace('http', 'ws')}/frames", open_timeout=HANG_S, **options)


def next_frame(page: ClientConnection, publish: Callable[[], Frame] | None = None) -> Frame | None:
    """The next picture, as (t_ns, seq) of its stamp; publishes until one comes."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        if publish is not None:
            publish()
        message = page.recv(timeout=HANG_S)
        if isinstance(message, bytes):
            length = message[0]
            assert message[1 : 1 + length] == b"cam_high"
            data = np.frombuffer(message[1 + length :], np.uint8)
            image = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
            found = decode(image)
            assert found is not None and found.camera == camera_id("cam_high")
            return Frame(found.t_ns, found.seq, image)
    raise AssertionError("no frame came")


def test_pages_frames_and_status_of_a_station(start: Start, cam: Published, station: Path) -> None:
    url = start(str(station))
    page = get(url)
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for asset in re.findall(r'(?:src|href)="([^":]+)"', page.text):
        assert get(f"{url}/{asset}").status_code == 200
    assert "//" not in re.sub(r"<!doctype html>", "", page.text), "nothing from another host"
    published = {frame.seq: frame.t_ns for frame in (cam.publish() for _ in range(3))}
    with socket_of(url) as page_socket:
        first = next_frame(page_socket, cam.publish)
        second = next_frame(page_socket, cam.publish)
    assert first is not None and second is not None
    assert second.seq > first.seq >= len(published) - 1
    cam.publish()
    deadline = time.monotonic() + HANG_S
    while True:
        status = get(f"{url}/api/cameras").json()
        states = {camera["name"]: camera["state"] for camera in status["cameras"]}
        if states == {"cam_high": "stale", "cam_low": "waiting"}:
            break
        assert time.monotonic() < deadline, states
        time.sleep(0.05)
    assert status["station"] == "lab"


def test_a_station_s_name_shows_whatever_publishes_also_later(start: Start, cam: Published) -> None:
    url = start("lab")
    cam.publish()
    late = Published("late")
    late.publish()
    deadline = time.monotonic() + HANG_S
    while len(names := get(f"{url}/api/cameras").json()["cameras"]) < 2:
        assert time.monotonic() < deadline, names
        time.sleep(0.05)
    late.ring.close()


def test_foreign_hosts_and_foreign_pages_are_refused(start: Start) -> None:
    """A page of evil.example whose name was made to resolve to 127.0.0.1 sends its own Host."""
    url = start("lab")
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "192.168.1.7", ""):
        for path in ("/", "/api/cameras", "/preview.js"):
            assert get(url + path, Host=host).status_code == 403, host
    port = httpx.URL(url).port
    for good in (f"localhost:{port}", "localhost:9999", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert get(url, Host=good).status_code == 200, good

    # And a page from anywhere may try to open a WebSocket to us: that is what Origin tells.
    with pytest.raises(InvalidStatus) as refused:
        socket_of(url, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus):
        socket_of(url, origin=f"http://127.0.0.1:{port + 1}")  # another program's page
    with socket_of(url, origin=url):
        pass
    assert get(f"{url}/api/cameras", Origin="http://evil.example").status_code == 403


def test_with_a_token_nothing_is_shown_without_it(start: Start) -> None:
    url = start("lab", "--host", "0.0.0.0", "--token", TOKEN)
    for path in ("/", "/api/cameras", "/?token=wrong", f"/?token={TOKEN[:-1]}"):
        assert get(url + path).status_code == 401
    assert get(url, Authorization="Bearer wrong").status_code == 401
    with pytest.raises(InvalidStatus) as refused:
        socket_of(url, origin=url)
    assert refused.value.response.status_code == 403
    assert get(f"{url}/api/cameras", Authorization=f"Bearer {TOKEN}").status_code == 200

    with httpx.Client(timeout=HANG_S, verify=False) as browser:
        answer = browser.get(f"{url}/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert browser.get(url).status_code == 200
    header = {"Cookie": cookie.partition(";")[0]}
    with socket_of(url, origin=url, additional_headers=header):
        pass
    with pytest.raises(InvalidStatus):
        socket_of(url, origin="http://evil.example", additional_headers=header)
    redirected = get(f"{url}//evil.example/?token={TOKEN}")
    assert redirected.headers["location"] == "/"


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=HANG_S, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "give a --token"),
        (["--host", "::"], "give a --token"),
        (["--host", "192.168.0.1"], "give a --token"),
        (["--host", "0.0.0.0", "--token", "short"], "16 or more"),
        (["--token", "sixteen-letters;or-so"], "letters, digits"),
    ],
    ids=["any", "any IPv6", "one address", "short token", "token with a semicolon"],
)
def test_an_open_door_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "lab", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_port_in_use_is_said_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = finished("lab", "--port", str(port))
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in result.stderr


def test_a_snapshot_shows_every_camera(cam: Published, tmp_path: Path) -> None:
    """Its tiles are 640x480 with the pictures enlarged four times, so their stamps decode."""
    other = Published("cam_wrist")
    sheet = tmp_path / "sheet.png"
    newest: dict[str, int] = {}
    process = subprocess.Popen(
        command("lab", "--snapshot", str(sheet), "--wait", str(HANG_S), "--json"),
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + HANG_S
    while process.poll() is None:
        assert time.monotonic() < deadline
        newest = {c.camera.spec.name: c.publish().seq for c in (cam, other)}
        time.sleep(0.02)
    assert process.stdout is not None
    result = json.loads(process.stdout.read())
    process.stdout.close()
    other.ring.close()
    assert process.returncode == 0 and result["ok"]
    assert [camera["name"] for camera in result["cameras"]] == ["cam_high", "cam_wrist"]
    image = cv2.imread(str(sheet))
    assert image is not None
    for i, name in enumerate(("cam_high", "cam_wrist")):
        tile = image[8:488, 8 + 648 * i : 648 + 648 * i][::4, ::4]
        found = decode(tile.astype(np.uint8))
        assert found is not None and found.camera == camera_id(name)
        assert 0 <= found.seq <= newest[name]


def test_a_snapshot_without_live_cameras_fails_but_is_written(
    cam: Published, station: Path, tmp_path: Path
) -> None:
    cam.publish()
    sheet = tmp_path / "sheet.png"
    result = finished(str(station), "--snapshot", str(sheet), "--wait", "0.7")
    assert result.returncode == 1 and sheet.exists()
    assert re.search(r"cam_high +stale", result.stdout)
    assert re.search(r"cam_low +waiting", result.stdout)
    nowhere = finished("empty_station", "--snapshot", str(sheet), "--wait", "0")
    assert nowhere.returncode == 1 and "no camera of station 'empty_station'" in nowhere.stderr


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

PICTURE = "() => document.querySelector('canvas').toDataURL('image/png')"


@pytest.mark.slow
def test_in_a_browser_frames_are_drawn_marked_stale_and_enlarged(
    start: Start, cam: Published, station: Path
) -> None:
    url = start(str(station))
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        page.wait_for_selector("canvas")

        def drawn() -> int | None:
            cam.publish()
            png = base64.b64decode(page.evaluate(PICTURE).partition(",")[2])
            image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
            found = decode(np.asarray(image))
            return None if found is None else found.seq

        seen: set[int] = set()
        deadline = time.monotonic() + HANG_S
        while len(seen) < 3:
            assert time.monotonic() < deadline, f"drawn: {seen}"
            number = drawn()
            if number is not None:
                seen.add(number)
        page.wait_for_selector(".card.stale .notice:has-text('stale')")
        page.wait_for_selector(".card.waiting .notice:has-text('waiting')")
        page.click(".card >> nth=0")
        large = page.locator(".card.large").bounding_box()
        assert large is not None and large["width"] == page.viewport_size["width"]
        page.keyboard.press("Escape")
        assert page.locator(".card.large").count() == 0
        assert problems == []
        assert all(u.startswith((url, "data:", "blob:")) for u in requests), requests
        browser.close()
