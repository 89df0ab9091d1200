"""Who gets to the page: hosts, origins, the one-time link and its session, over real HTTP."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.teleop.browser_rig import HANG_S, write_station

SECRET = r"\?token=([A-Za-z0-9_-]{43})"


class Served:
    """A page's process without a Teleoperator: its address, and what it prints for people."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "hardware.teleop.browser_page"),
                *(str(write_station(directory)), "--group", "arms", "--attached"),
                *("--options", json.dumps({"port": 0, **options})),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.answer = json.loads(self.process.stdout.readline())
        self.url = self.answer.get("url", "").rstrip("/")
        self.port = self.answer.get("port")
        self.base = f"http://127.0.0.1:{self.port}"
        self._lines: Queue[str] = Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)

    def link(self) -> str:
        """The next token that it printed."""
        found = re.search(SECRET, self._lines.get(timeout=HANG_S))
        assert found is not None
        return found[1]

    def close(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            return self.process.wait(HANG_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._thread.join()
            self.process.stdout.close()
            assert self.process.stderr is not None
            self.process.stderr.close()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))
    running: list[Served] = []

    def start(**options: object) -> Served:
        running.append(Served(tmp_path, **options))
        return running[-1]

    yield start
    for served in running:
        assert served.close() in (0, 1), "it ends when its standard input does"


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, timeout=HANG_S, verify=False)


def refused_socket(url: str, path: str = "/control", **options: object) -> int:
    with (
        pytest.raises(InvalidStatus) as refused,
        connect(f"ws{url.removeprefix('http')}{path}", open_timeout=HANG_S, **options),  # type: ignore[arg-type]
    ):
        pass
    return refused.value.response.status_code


def test_the_loopback_page_and_who_may_see_it(serve: Serve) -> None:
    page = serve()
    assert page.url == page.base
    answer = get(page.url)
    assert answer.status_code == 200 and "text/html" in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for asset in [*re.findall(r'(?:src|href)="([^":]+)"', answer.text), "hands.js", "video.js"]:
        file = get(f"{page.url}/{asset}")
        assert file.status_code == 200
        assert not re.search(r"https?://(?!\$)|\beval\b|innerHTML", file.text), asset
    assert not re.search(r"<script>|\bstyle=|\bon[a-z]+=|//", answer.text), "nothing inline"
    for path in ("/docs", "/openapi.json", "/browser_page.py", "/../browser.py", "/stop"):
        assert get(page.url + path).status_code in (404, 405)

    for host in ("evil.example", f"evil.example:{page.port}", "192.168.1.7", "", "a:b:c", "[::1"):
        for path in ("/", "/page.js"):
            assert get(page.url + path, Host=host).status_code in (400, 403), host
        assert httpx.post(f"{page.url}/stop", headers={"Host": host}).status_code in (400, 403)
    for host in (f"localhost:{page.port}", "localhost:9000", f"[::1]:{page.port}", "LOCALHOST"):
        assert get(page.url, Host=host).status_code == 200, host
    assert get(page.url, Origin="http://evil.example").status_code == 403

    for path in ("/control", "/video"):
        foreign = ["http://evil.example", "null", f"http://127.0.0.1:{page.port + 1}", None]
        for origin in foreign:
            assert refused_socket(page.url, path, origin=origin) == 403
        assert refused_socket(
            page.url, path, origin=page.url, additional_headers={"Host": "evil.example"}
        ) in (400, 403)
        with connect(f"ws{page.url[4:]}{path}", origin=page.url) as own:
            own.recv(timeout=HANG_S)


def test_the_network_gets_in_by_a_link_that_works_once(serve: Serve) -> None:
    page = serve(host="0.0.0.0", authenticate=True, names=["robot.lab"])
    token = page.link()
    assert f"//{socket.gethostname()}:" in page.url
    for path in ("/", "/page.js", "/?token=", f"/?token={token[:-1]}", "/?token=%ff", "/?token=é"):
        assert get(page.base + path).status_code == 401, path
    assert httpx.post(f"{page.base}/stop").status_code == 401
    assert refused_socket(page.base, origin=page.base) == 403

    with httpx.Client(base_url=page.base, timeout=HANG_S) as browser:
        answer = browser.get(f"/?token={token}")
        assert answer.status_code == 200 and "url=/" in answer.text
        cookie = answer.headers["set-cookie"]
        for word in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age="):
            assert word in cookie
        assert token not in cookie and answer.headers["referrer-policy"] == "no-referrer"
        assert browser.get("/").status_code == 200
    assert get(f"{page.base}/?token={token}").status_code == 401, "it is spent"
    second = page.link()
    assert second != token

    session = {"Cookie": cookie.partition(";")[0]}
    with connect(f"ws{page.base[4:]}/control", origin=page.base, additional_headers=session) as own:
        assert json.loads(own.recv(timeout=HANG_S))["kind"] == "status"
    assert refused_socket(page.base, origin="http://evil.example", additional_headers=session)
    for bad in (session["Cookie"][:-1], "=", "x" * 300, session["Cookie"] + "x"):
        assert get(page.base, Cookie=bad).status_code == 401
    for host, code in (
        ("evil.example", 403),
        (f"robot.lab:{page.port}", 200),
        (f"{socket.gethostname()}:{page.port}", 200),
        ("192.168.1.7", 200),
    ):
        assert get(page.base, Host=host, **session).status_code == code, host
    assert get(f"{page.base}/?token={second}").status_code == 200, "for the next device"


def test_without_authentication_the_network_is_refused(serve: Serve) -> None:
    page = serve(host="0.0.0.0")
    assert not page.answer["ok"]
    assert "authenticate: true" in page.answer["error"]
    assert page.process.wait(HANG_S) == 1


def test_with_a_certificate_the_page_is_https_and_its_cookie_secure(
    serve: Serve, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "page.pem", tmp_path / "page.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-out", str(certificate), "-keyout", str(key)),
        ],
        check=True,
        capture_output=True,
        timeout=HANG_S,
    )
    page = serve(authenticate=True, certificate=str(certificate), key=str(key))
    assert page.url.startswith("https://127.0.0.1:")
    answer = get(f"{page.url}/?token={page.link()}")
    assert answer.status_code == 200 and "; Secure" in answer.headers["set-cookie"]
    session = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    with connect(
        f"wss{page.url[5:]}/control", origin=page.url, additional_headers=session, ssl=context
    ) as own:
        assert json.loads(own.recv(timeout=HANG_S))["kind"] == "status"


def test_a_certificate_that_is_none_is_said_so(serve: Serve, tmp_path: Path) -> None:
    page = serve(certificate=f"{tmp_path}/a.pem", key=f"{tmp_path}/b.pem")
    assert not page.answer["ok"]
    assert "certificate and key" in page.answer["error"]
