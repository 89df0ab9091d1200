"""The world's page: who may talk to it, and what its input does to the leaders."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from hardware.worlds.page import create_app
from hardware.worlds.page_jog import LeaderJog
from robot_stack.errors import ConfigError
from tests.worlds.conftest import RunningWorld

PORT = 8720
HOST = f"127.0.0.1:{PORT}"
ORIGIN = f"http://{HOST}"


@pytest.fixture(scope="module")
def page(shared_world: RunningWorld) -> Iterator[TestClient]:
    with TestClient(create_app("cell", PORT), base_url=ORIGIN) as client:
        yield client


def test_the_page_and_its_files_are_served(page: TestClient) -> None:
    for path, kind in (("/", "text/html"), ("/page.js", "javascript"), ("/page.css", "text/css")):
        answer = page.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert page.get("/page.py").status_code == 404
    assert page.get("/docs").status_code == 404
    for path in ("/", "/page.js", "/page.css"):
        assert "https://" not in page.get(path).text  # works offline


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8720", "127.0.0.1:81", "", "0.0.0.0"]
)
def test_a_foreign_host_is_refused(page: TestClient, host: str) -> None:
    answer = page.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "Fingertips" not in answer.text


@pytest.mark.parametrize("host", [HOST, f"localhost:{PORT}", f"[::1]:{PORT}"])
def test_the_loopback_is_served(page: TestClient, host: str) -> None:
    assert page.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:81"},
        {"origin": f"https://{HOST}"},
        {},
        {"origin": ORIGIN, "host": "evil.example:8720"},
    ],
)
def test_a_foreign_origin_gets_no_session(page: TestClient, headers: dict[str, str]) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        page.websocket_connect("/session", headers={"host": HOST, **headers}) as socket,
    ):
        socket.receive()


def test_input_moves_the_leaders(page: TestClient, shared_world: RunningWorld) -> None:
    shared_world.client.call("release")
    before = shared_world.status("leader_left")
    with page.websocket_connect("/session", headers={"host": HOST, "origin": ORIGIN}) as socket:
        kinds = set()
        errors = []
        socket.send_json({"kind": "juggle"})
        socket.send_text("{")
        socket.send_json({"kind": "joint", "arm": "left", "joint": 9, "value": 0.0})
        deadline = time.monotonic() + 60
        status = None
        while time.monotonic() < deadline:
            message = socket.receive()
            if message.get("bytes"):
                assert message["bytes"][:2] == b"\xff\xd8"  # JPEG
                kinds.add("picture")
                continue
            said = json.loads(message["text"])
            kinds.add(said["kind"])
            if said["kind"] == "error":
                errors.append(said["message"])
            if said["kind"] == "status":
                status = said["world"]["robots"]["leader_left"]
                socket.send_json({"kind": "joint", "arm": "left", "joint": 0, "value": 0.4})
                socket.send_json({"kind": "gripper", "arm": "left", "value": 0.1})
                moved = (
                    abs(status["joints"][0] - 0.4) < 0.02 and abs(status["gripper"] - 0.1) < 0.02
                )
                if moved and "picture" in kinds and len(errors) == 3:
                    break
    assert status is not None
    assert status["joints"][0] == pytest.approx(0.4, abs=0.02)
    assert status["gripper"] == pytest.approx(0.1, abs=0.02)
    assert before["gripper"] > 0.2
    assert len(errors) == 3
    assert kinds == {"picture", "status", "error"}


def leader(joints: list[float], *, torque: bool = False) -> dict[str, object]:
    return {"role": "leader", "joints": [*joints, 0.0], "gripper": 0.5, "torque": [torque] * 7}


REST = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0]


def observing(*, torque: bool = False) -> LeaderJog:
    jog = LeaderJog()
    jog.observe(
        {
            "leader_left": {**leader(REST, torque=torque), "side": "left"},
            "leader_right": {**leader(REST, torque=torque), "side": "right"},
            "follower_left": {"role": "follower", "side": "left"},
        }
    )
    return jog


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_jog_moves_the_fingertips_along_one_axis(axis: int) -> None:
    jog = observing()
    kinematics = jog._kinematics[1]
    start, frame = kinematics.forward(np.array(REST))
    twist = [0.0] * 5
    twist[axis] = 1.0
    joints = None
    for _ in range(15):
        jog.message("jog", {"arm": "right", "twist": twist, "gripper": 0.0})
        requests = jog.step(1 / 30)
        assert [request.robot for request in requests] == ["leader_right"]
        joints = requests[0].joints
    assert joints is not None
    end, after = kinematics.forward(np.array(joints))
    expected = np.zeros(3)
    expected[axis] = 15 / 30 * 0.16
    np.testing.assert_allclose(end - start, expected, atol=2e-3)
    np.testing.assert_allclose(after, frame, atol=2e-2)


def test_jog_stops_when_the_browser_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    jog = observing()
    jog.message("jog", {"arm": "left", "twist": [0, 0, 1, 0, 0], "gripper": 1.0})
    assert jog.step(0.03)
    later = time.monotonic() + 0.4
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert jog.step(0.03) == []


def test_jog_leaves_joints_under_torque_alone() -> None:
    jog = observing(torque=True)
    jog.message("jog", {"arm": "left", "twist": [0, 0, 1, 0, 0], "gripper": 1.0})
    jog.message("joint", {"arm": "right", "joint": 0, "value": 1.0})
    jog.message("squeeze", {})
    assert jog.step(0.03) == []


def test_squeeze_closes_both() -> None:
    jog = observing()
    jog.message("squeeze", {})
    requests = jog.step(0.03)
    assert [(r.robot, r.joints, r.gripper) for r in requests] == [
        ("leader_left", None, 0.0),
        ("leader_right", None, 0.0),
    ]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("jog", {"arm": "left", "twist": [0, 0, 0, 0]}),
        ("jog", {"arm": "left", "twist": [0, 0, 0, 0, 2.0]}),
        ("jog", {"arm": "middle", "twist": [0, 0, 0, 0, 0]}),
        ("jog", {"arm": "left", "twist": [0, 0, 0, 0, float("nan")]}),
        ("joint", {"arm": "left", "joint": 6, "value": 0.0}),
        ("gripper", {"arm": "left", "value": 1.5}),
        ("gripper", {"arm": "left"}),
        ("reset", {}),
    ],
)
def test_nonsense_is_refused(kind: str, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        observing().message(kind, values)
