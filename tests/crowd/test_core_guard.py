"""What every request meets: Host, https, Origin, CSRF, caps, headers, limits."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from fastapi import APIRouter, Request, WebSocket
from sqlalchemy import select
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from collect.crowd.app import create_app
from collect.crowd.deps import CurrentWho, Limiter, address_of
from collect.crowd.tables import RateCount
from collect.crowd.templating import render
from tests.crowd.browser import Browser

DATABASES = ["sqlite"]

router = APIRouter()


@router.get("/test/form")
def form(request: Request) -> Response:
    return render(request, "error.html", message=request.query_params.get("say", ""))


@router.post("/test/form")
async def submit(request: Request) -> Response:
    return PlainTextResponse(repr(sorted((await request.form()).items())))


@router.post("/api/test/json")
async def write(request: Request, body: dict[str, str]) -> Response:
    return PlainTextResponse(json.dumps(body))


@router.get("/test/address")
def address(request: Request, who: CurrentWho) -> Response:
    return PlainTextResponse(f"{address_of(request)} {request.url.scheme}")


@router.post("/test/login/{name}")
def login(request: Request, limiter: Limiter, name: str) -> Response:
    limiter.hit("login", "3 per hour", f"account:{name}")
    return PlainTextResponse("tried")


@router.get("/test/video")
def video(request: Request) -> Response:
    return FileResponse(request.app.state.site.config.media / "video.mp4")


@router.get("/test/broken")
def broken() -> Response:
    raise ValueError("card 4711 of Ada")


@router.websocket("/test/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


@pytest.fixture
def app(app):
    app.include_router(router)
    return app


def test_headers_are_on_every_answer(client):
    answers = [
        client.get("/test/form"),
        client.get("/nope"),
        client.get("/static/crowd.css"),
        client.get("/health"),
        client.post("/test/form"),
        client.get("/", headers={"host": "evil.test"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 200, 403, 421]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "*" not in policy and "http:" not in policy
        directives = dict(item.split(" ", 1) for item in policy.split("; "))
        assert directives["default-src"] == "'none'"
        assert directives["script-src"] == directives["style-src"] == "'self'"
        assert directives["frame-ancestors"] == directives["base-uri"] == "'none'"
        assert directives["form-action"] == "'self'"
        assert answer.headers["strict-transport-security"].startswith("max-age=31536000")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert "server" not in answer.headers
    caching = [answer.headers["cache-control"] for answer in answers]
    assert caching == ["no-store", "no-store", "no-cache", "no-store", "no-store", "no-store"]


def test_pages_are_escaped_and_say_their_language(client):
    page = client.get("/test/form", params={"say": "<script>alert(1)</script>"}).text
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert '<html lang="en">' in page
    german = client.get("/test/form", headers={"accept-language": "fr, de-CH;q=0.8, en"}).text
    assert '<html lang="de">' in german


def test_only_the_sites_own_name_is_answered(client):
    for host in ("evil.test", "crowd.test.evil.test", "crowd.test:8443", "127.0.0.1", ""):
        assert client.get("/test/form", headers={"host": host}).status_code == 421, host
    two = [("host", "crowd.test"), ("host", "evil.test")]
    assert client.get("/test/form", headers=two).status_code == 421
    # A monitor on this computer asks by address.
    assert client.get("/health", headers={"host": "127.0.0.1:8430"}).status_code == 200


def test_plain_http_is_refused_and_only_trusted_proxies_are_believed(app):
    direct = TestClient(app, base_url="http://crowd.test")
    forged = {"x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.7"}
    assert direct.get("/test/form").status_code == 403
    assert direct.get("/test/form", headers=forged).status_code == 403
    proxy = TestClient(app, base_url="http://crowd.test", client=("192.0.2.1", 1234))
    assert proxy.get("/test/form").status_code == 403  # it must say that it spoke https
    assert proxy.get("/test/address", headers=forged).text == "198.51.100.7 https"
    spoofed = {**forged, "x-forwarded-for": "203.0.113.9, 198.51.100.7"}
    assert proxy.get("/test/address", headers=spoofed).text == "198.51.100.7 https"
    secure = TestClient(app, base_url="https://crowd.test")
    assert secure.get("/test/address", headers=forged).text == "testclient https"


def test_metrics_are_for_this_computer_only(app, client):
    assert client.get("/metrics").status_code == 404
    local = TestClient(app, base_url="http://127.0.0.1:8430", client=("127.0.0.1", 1))
    text = local.get("/metrics").text
    assert 'crowd_requests_total{method="GET",route="/metrics",status="404"}' in text


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.test"},
        {"origin": "https://crowd.test.evil.test"},
        {"origin": "http://crowd.test"},
        {"origin": "https://crowd.test:8443"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_foreign_pages_may_not_write(browser, headers):
    assert browser.post("/test/form", data={"a": "1"}, headers=headers).status_code == 403
    own = {"origin": "https://crowd.test", "sec-fetch-site": "same-origin"}
    assert browser.post("/test/form", data={"a": "1"}, headers=own).status_code == 200


def test_a_form_needs_its_browsers_token(browser, make_browser, make_participant):
    assert browser.post("/test/form", data={"a": "1"}).status_code == 200
    for wrong in (None, "", "x" * 64, make_browser().csrf()):
        assert browser.post("/test/form", csrf=wrong, data={"a": "1"}).status_code == 403
    fields = {"a": "1", "csrf": browser.csrf()}
    assert browser.post("/test/form", csrf=None, data=fields).status_code == 200
    multipart = browser.post("/test/form", csrf=None, data=fields, files={"f": b"x"})
    assert multipart.status_code == 200
    assert browser.post("/test/form", csrf=None, params=fields).status_code == 403


def test_json_needs_the_token_too_whatever_it_calls_itself(browser):
    body = {"a": "1"}
    assert browser.post("/api/test/json", json=body).json() == body
    assert browser.post("/api/test/json", json=body, csrf=None).status_code == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
        response = browser.post(
            "/api/test/json", csrf=None, content='{"a": "1"}', headers={"content-type": kind}
        )
        assert response.status_code == 403, kind
    assert browser.request("DELETE", "/test/form", csrf=None).status_code in (403, 405)


def test_a_stale_page_of_the_last_visitor_does_nothing_for_the_next(
    browser, make_participant, make_station
):
    browser.sign_in(kiosk=make_station(), participant=make_participant())
    stale = browser.csrf()
    browser.sign_in(participant=make_participant())
    assert browser.post("/test/form", csrf=stale, data={"a": "1"}).status_code == 403
    assert browser.post("/test/form", data={"a": "1"}).status_code == 200


def test_a_page_begins_a_visit_and_its_form_goes_through(client):
    page = client.get("/test/form")
    assert page.headers["set-cookie"].startswith("__Host-visit=")
    for attribute in ("HttpOnly", "SameSite=Strict", "Secure", "Path=/"):
        assert attribute in page.headers["set-cookie"]
    token = page.text.split('data-csrf="')[1].split('"')[0]
    assert client.post("/test/form", data={"csrf": token}).status_code == 200
    assert "set-cookie" not in client.get("/test/form").headers  # it goes on


def test_bodies_are_capped_by_their_length_and_as_they_come(browser, config):
    cap = config.caps.body_kb << 10
    assert browser.post("/test/form", data={"a": "x" * (cap - 100)}).status_code == 200
    assert browser.post("/test/form", data={"a": "x" * cap}).status_code == 413
    kind = {"content-type": "application/x-www-form-urlencoded"}

    def drip():
        for _ in range(cap // 1000 + 2):
            yield b"x" * 1000

    assert browser.post("/test/form", content=drip(), headers=kind).status_code == 413
    for length in ("-1", "1e3", "9" * 30):
        headers = {**kind, "content-length": length}
        assert browser.post("/test/form", content=b"a=1", headers=headers).status_code == 413


def test_agents_may_upload_more_and_only_there(browser, config):
    big = b"x" * ((config.caps.body_kb << 10) * 3)
    path = "/api/station/play/3f2b8c1e-0000-4000-8000-000000000000/file"
    # Past the guard, which takes so much for an upload: then it is asked who sends it.
    assert browser.request("PUT", path, content=big, csrf=None).status_code == 401
    for wrong in (path + "/../../x", path.replace("file", "filed"), "/test/form"):
        assert browser.request("PUT", wrong, content=big).status_code == 413, wrong


def test_hostile_ranges_get_the_whole_file_once(client, config):
    content = bytes(range(256)) * 40
    (config.media / "video.mp4").write_bytes(content)
    good = client.get("/test/video", headers={"range": "bytes=10-19"})
    assert (good.status_code, good.content) == (206, content[10:20])
    assert client.get("/test/video", headers={"range": "bytes=-5"}).content == content[-5:]
    many = "bytes=" + ",".join(f"{i}-{i}" for i in range(5000))
    for hostile in (
        "bytes=0-1,2-3",
        many[:16_000],
        "bytes=" + "0" * 10_000 + "-",
        "bytes=" + "\t" * 500,
        "items=0-5",
        "bytes=1-2-3",
    ):
        response = client.get("/test/video", headers={"range": hostile})
        assert (response.status_code, len(response.content)) == (200, len(content)), hostile[:40]
    twice = [("range", "bytes=0-1"), ("range", "bytes=2-3")]
    assert client.get("/test/video", headers=twice).status_code == 200
    assert client.get("/test/video", headers={"range": "bytes=99999999-"}).status_code == 416


def test_web_sockets_need_the_sites_origin(client):
    def hello(headers):
        with client.websocket_connect("wss://crowd.test/test/socket", headers=headers) as it:
            return it.receive_text()

    assert hello({"origin": "https://crowd.test"}) == "hello"
    for headers in ({}, {"origin": "https://evil.test"}, {"origin": "null"}):
        with pytest.raises(WebSocketDisconnect):
            hello(headers)


def test_limits_are_by_account_and_shared_by_all_workers(browser, app, config, database):
    assert [browser.post("/test/login/ada").status_code for _ in range(4)] == [200] * 3 + [429]
    refused = browser.post("/test/login/ada")
    assert 3000 < int(refused.headers["retry-after"]) <= 3600
    assert browser.post("/test/login/bob").status_code == 200
    other = create_app(config)  # another worker process has its own application
    other.include_router(router)
    with TestClient(other, base_url="https://crowd.test") as client:
        assert Browser(other, client).post("/test/login/ada").status_code == 429
    limiter = app.state.site.limiter
    limiter.forgive("login", "3 per hour", "account:ada")
    assert browser.post("/test/login/ada").status_code == 200
    with database.read() as tx:
        keys = [row.key for row in tx.scalars(select(RateCount))]
    assert keys and all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)  # nobody's name


def test_writes_from_one_address_are_limited(config):
    caps = dataclasses.replace(config.caps, writes_per_minute=10)
    app = create_app(dataclasses.replace(config, caps=caps))
    app.include_router(router)
    with TestClient(app, base_url="https://crowd.test") as client:
        browser = Browser(app, client)
        statuses = [browser.post("/test/form", data={"a": "1"}).status_code for _ in range(12)]
        assert statuses.count(200) >= 10 and statuses[-1] == 429
        assert browser.get("/test/form").status_code == 200
    app.state.site.database.close()


def test_errors_are_pages_or_json_and_repeat_nothing(app):
    quiet = TestClient(app, base_url="https://crowd.test", raise_server_exceptions=False)
    page = quiet.get("/test/broken")
    assert page.status_code == 500 and "4711" not in page.text and "Traceback" not in page.text
    assert page.headers["content-type"].startswith("text/html")
    browser = Browser(app, quiet)
    answer = browser.post("/api/test/json", json={"a": {"secret": "4711"}})
    assert answer.status_code == 422 and answer.json()["error"] == 422
    assert "4711" not in answer.text


def test_logs_hold_nothing_personal(app, capsys):
    from collect.crowd.log import configure

    configure()
    quiet = TestClient(app, base_url="https://crowd.test", raise_server_exceptions=False)
    quiet.get("/test/form", params={"say": "ada-secret"})
    quiet.get("/nope/ada-secret", headers={"user-agent": "ada-secret"})
    quiet.get("/test/broken")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["route"] for line in requests] == ["/test/form", "none", "/test/broken"]
    mistake = next(line for line in lines if line["event"] == "unexpected")
    assert mistake["error"] == "ValueError" and "test_core_guard.py" in mistake["where"]
    everything = json.dumps(lines)
    for secret in ("ada-secret", "4711", "testclient"):
        assert secret not in everything
