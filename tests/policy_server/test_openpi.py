"""openpi's client against our front, and our OpenpiClient against a server as openpi serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from robot_stack.errors import MessageError, PolicyError
from robot_stack.openpi_client import OpenpiClient
from robot_stack.openpi_wire import observation_keys, pack, unpack
from robot_stack.policy_client import PolicyObservation
from server.policy.fronts.openpi import FrontOptions, _Episode
from server.policy.fronts.process import FrontProcess
from tests.policy_server.analytic import RAISE, contract
from tests.policy_server.fronted import AsOpenpi, Fronted
from tests.policy_server.served import HANG_S, observed, until

EXECUTE, ROWS, VALUES = 4, 7, 6
WRONG = Path(__file__).parent / "front.pem"


@pytest.fixture
def front(endpoint) -> Iterator[Any]:
    """``front(**options)``: a front before the server at ``endpoint``."""
    started: list[Fronted] = []

    def start(**options: Any) -> Fronted:
        started.append(Fronted(endpoint=endpoint, **options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def client() -> Iterator[Any]:
    """``client(port)``: the unmodified client of openpi."""
    opened: list[WebsocketClientPolicy] = []

    def start(port: int, **options: Any) -> WebsocketClientPolicy:
        opened.append(WebsocketClientPolicy("127.0.0.1", port, **options))
        return opened[-1]

    yield start
    for one in opened:
        one._ws.close()


def state(tag: float, *, takes_s: float = 0.0, fails: float = 0.0) -> np.ndarray:
    return observed(tag, takes_s=takes_s, fails=fails).state[-1]


def answer(tag: float) -> np.ndarray:
    """What the analytic policy answers to ``state(tag)``: each row one more."""
    return state(tag)[None] + np.arange(ROWS)[:, None]


def healthz(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=HANG_S) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        return error.code


# -- the unmodified client -----------------------------------------------------------------------


def test_the_unmodified_client_gets_chunks(serve, front, client):
    serve()
    policy = client(front().port)
    metadata = policy.get_server_metadata()
    assert metadata["action_horizon"] == ROWS
    assert metadata["observation_keys"] == ["observation/state"]
    assert metadata["control_hz"] == 50
    for tag in (3.0, -7.5):
        reply = policy.infer({"observation/state": state(tag), "prompt": "count"})
        np.testing.assert_array_equal(reply["actions"], answer(tag))
        assert 0 < reply["server_timing"]["infer_ms"] < reply["server_timing"]["total_ms"]


@pytest.mark.parametrize("layout", ["openpi", "aloha", "droid"])
def test_images_are_read_from_each_layout(serve, front, client, layout):
    serve("--pixels", 8)
    policy = (
        client(front(layout=layout, renamed={"cam": "observation/wrist"}).port)
        if (layout == "droid")
        else client(front(layout=layout).port)
    )
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    image[0, 0] = (255, 1, 0)
    messages: dict[str, dict[str, Any]] = {
        "openpi": {"observation/state": state(1), "observation/images/cam": image},
        "aloha": {"state": state(1), "images": {"cam": np.moveaxis(image, -1, 0)}},
        "droid": {
            "observation/joint_position": state(1)[:5],
            "observation/gripper_position": state(1)[5:],
            "observation/wrist": image,
        },
    }
    actions = policy.infer(messages[layout])["actions"]
    assert actions[0, -1] == 2 * int(image.sum())  # of both moments
    np.testing.assert_array_equal(actions[:, 2:5], answer(1)[:, 2:5])


def test_several_moments_may_be_sent(serve, front, client):
    serve("--pixels", 2)
    policy = client(front().port)
    images = np.stack([np.full((2, 2, 3), 1, np.uint8), np.full((2, 2, 3), 10, np.uint8)])
    states = np.stack([state(9), state(4)])
    actions = policy.infer({"observation/state": states, "observation/images/cam": images})
    assert actions["actions"][0, 2] == 4
    assert actions["actions"][0, -1] == 12 * 11


def test_moments_that_follow_each_other_are_remembered(serve, endpoint):
    serve("--pixels", 1)
    episode = _Episode(FrontOptions(endpoint=endpoint))
    episode.open()
    dt = episode.contract.control_dt_ns

    def sums(value: int, arrived_ns: int) -> int:
        image = np.zeros((1, 1, 3), np.uint8)
        image[0, 0, 0] = value
        message = {"observation/state": state(0), "observation/images/cam": image}
        return int(episode.infer(message, arrived_ns)[0][0, -1])

    at = 10**9
    assert sums(1, at) == 1 + 1  # the only moment known stands for the one before it
    assert sums(2, at + dt) == 1 + 2
    assert sums(4, at + 2 * dt) == 2 + 4
    assert sums(8, at + 9 * dt) == 8 + 8  # a client that executes rows between its questions
    episode.reset()
    assert sums(16, at + 10 * dt) == 16 + 16
    episode.close()


def test_a_wrong_observation_is_refused_in_words_and_the_next_one_is_answered(serve, front, client):
    serve("--pixels", 4)
    policy = client(front().port)
    image = np.zeros((4, 4, 3), np.uint8)
    good = {"observation/state": state(1), "observation/images/cam": image}
    for change, words in (
        ({"observation/state": state(1)[:4]}, "6 values"),
        ({"observation/images/cam": image[:2]}, "resize"),
        ({"observation/images/cam": image.astype(np.float32)}, "uint8"),
        ({"observation/images/cam": np.stack([image] * 3)}, "one moment or 2"),
        ({"observation/state": np.full(6, np.nan, np.float32)}, "NaN"),
        ({"observation/state": "none"}, "numbers"),
        ({"observation/state": state(1, fails=RAISE)}, "fell off the bus"),
        ({"consumed": "all"}, "consumed"),
        ({"endpoint": "train"}, "neither infer nor reset"),
    ):
        with pytest.raises(RuntimeError, match=words):
            policy.infer({**good, **change})
    with pytest.raises(RuntimeError, match="no 'observation/images/cam'"):
        policy.infer({"observation/state": state(1)})
    assert policy.infer(good)["actions"][0, 2] == 1


def test_inference_does_not_hold_the_event_loop(serve, front, client):
    serve()
    port = front().port
    policy = client(port)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(policy.infer, {"observation/state": state(1, takes_s=2.0)})
        assert healthz(port) == 200
        with connect(f"ws://127.0.0.1:{port}") as other:
            other.ping().wait(HANG_S)
        assert not slow.done()
        assert slow.result(HANG_S)["actions"][0, 2] == 1


def test_health_follows_the_policy_server(serve, front):
    port = front().port
    assert healthz(port) == 503  # no server yet
    served = serve()
    assert healthz(port) == 200
    served.kill()
    assert healthz(port) == 503


def test_a_server_started_again_is_used_again(serve, front, client):
    first = serve()
    policy = client(front().port)
    policy.infer({"observation/state": state(1)})
    first.kill()
    serve()
    np.testing.assert_array_equal(
        policy.infer({"observation/state": state(2)})["actions"], answer(2)
    )


# -- RoboArena -----------------------------------------------------------------------------------


def test_roboarena_is_answered_bare_actions(serve, front):
    serve()
    with connect(f"ws://127.0.0.1:{front(layout='droid').port}", max_size=None) as wire:
        assert msgpack_numpy.unpackb(wire.recv()) == {
            "image_resolution": None,
            "needs_wrist_camera": False,
            "n_external_cameras": 0,
            "needs_stereo_camera": False,
            "needs_session_id": False,
            "action_space": "joint_position",
        }
        observation = {
            "endpoint": "infer",
            "session_id": "a",
            "observation/joint_position": state(5)[:5],
            "observation/gripper_position": state(5)[5:],
            "prompt": "count",
        }
        wire.send(msgpack_numpy.packb(observation))
        actions = msgpack_numpy.unpackb(wire.recv())
        np.testing.assert_array_equal(actions, answer(5)[:EXECUTE])
        wire.send(msgpack_numpy.packb({"endpoint": "reset", "session_id": "a"}))
        assert wire.recv() == "reset successful"


def test_sessions_of_a_connection_are_apart(serve, front, client, wire):
    serve("--pixels", 1)
    policy = client(front().port)

    def sums(session: Any, value: int) -> int:
        image = np.full((1, 1, 3), value, np.uint8)
        message = {"observation/state": state(0), "observation/images/cam": image}
        reply = policy.infer({**message, "session_id": session})
        return int(reply["actions"][0, -1])

    sums("a", 1)
    assert sums("b", 10) == 60  # never seen before: no moment of the other's
    assert sums(np.array(["c"]), 20) == 120
    for number in range(20):
        sums(f"more {number}", 1)
    assert wire().ask("health").body["sessions"] <= 8


# -- what strangers send -------------------------------------------------------------------------


def array(**changes: Any) -> bytes:
    given = {"dtype": "<f4", "shape": [2], "data": bytes(8), "__ndarray__": True, **changes}
    return msgpack.packb({"observation/state": {k.encode(): v for k, v in given.items()}})


BAD = {
    "nothing": b"",
    "noise": b"\xc1\xff\x00",
    "truncated": pack({"observation/state": state(1)})[:-3],
    "trailing": pack({}) + b"\x01",
    "pickled": array(dtype="|O", data=b"cos\nsystem\n(S'touch /tmp/x'\ntR."),
    "void": array(dtype="|V8"),
    "record": array(dtype=[["a", "<f4"]]),
    "long text": array(dtype="<U100000"),
    "short of bytes": array(data=bytes(7)),
    "huge shape": array(shape=[2**62, 2**62]),
    "negative": array(shape=[-1, 2]),
    "many axes": array(shape=[1] * 40),
    "extension": msgpack.packb({"observation/state": msgpack.ExtType(5, b"x")}),
    "deep": b"\x91" * 3000 + b"\x90",
    "a list": msgpack.packb([1, 2]),
    "a long list": msgpack.packb({"observation/state": [0] * 5000}),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_messages_are_named_and_the_front_lives(serve_once, name):
    with connect(f"ws://127.0.0.1:{serve_once.port}", max_size=None) as wire:
        wire.recv()
        wire.send(BAD[name])
        refusal = wire.recv()
        assert isinstance(refusal, str)
        assert refusal.startswith("bad_")
        wire.send(pack({"observation/state": state(2)}))
        np.testing.assert_array_equal(unpack(wire.recv())["actions"], answer(2))


@pytest.fixture(scope="module")
def serve_once(forks, tmp_path_factory) -> Iterator[Fronted]:
    from tests.policy_server.conftest import serving

    directory = tmp_path_factory.mktemp("openpi")
    with serving(forks, directory) as start:
        start()
        front = Fronted(endpoint=f"ipc://{directory}/s.ipc", max_bytes=1 << 16)
        yield front
        front.close()


def test_oversized_messages_end_only_their_own_connection(serve_once):
    with connect(f"ws://127.0.0.1:{serve_once.port}", max_size=None) as wire:
        wire.recv()
        wire.send(bytes(1 << 17))
        with pytest.raises(ConnectionClosed) as closed:
            wire.recv()
        assert closed.value.rcvd.code == 1009
    with connect(f"ws://127.0.0.1:{serve_once.port}") as wire:
        wire.recv()
        wire.send("text")
        assert "msgpack" in str(wire.recv())


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused_by_name(data):
    try:
        unpack(data)
    except MessageError:
        return


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(c) for c in ("u1", "<i2", "<f4", "<f8", "?", "<U5")]),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_both_wires_read_each_other(values):
    theirs = msgpack_numpy.unpackb(pack({"a": values, "b": [values]}))
    ours = unpack(msgpack_numpy.packb({"a": values, "b": [values]}))
    for found in (theirs["a"], theirs["b"][0], ours["a"], ours["b"][0]):
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
    scalar = np.float32(0.5)
    assert unpack(msgpack_numpy.packb(scalar)) == msgpack_numpy.unpackb(pack(scalar)) == scalar


# -- who may use it ------------------------------------------------------------------------------


def test_other_computers_need_a_token_and_a_certificate(endpoint):
    for options in ({}, {"token": "x"}, {"certificate": WRONG}):
        with pytest.raises(PolicyError, match="open to other computers"):
            FrontOptions(endpoint=endpoint, host="0.0.0.0", **options)
    FrontOptions(endpoint=endpoint, host="0.0.0.0", token="x", certificate=WRONG)
    with pytest.raises(PolicyError, match="no certificate"):
        Fronted(endpoint=endpoint, token="x", certificate=Path(__file__))


def test_the_token_is_openpis_api_key(serve, front, client):
    serve()
    port = front(token="right").port
    for options in ({}, {"api_key": "wrong"}):
        with pytest.raises(InvalidStatus) as refused:
            client(port, **options)
        assert refused.value.response.status_code == 401
    assert client(port, api_key="right").infer({"observation/state": state(1)})
    with OpenpiClient(f"openpi://127.0.0.1:{port}", token="right") as policy:
        assert policy.infer(observed(1)).actions[0, 2] == 1
    assert healthz(port) == 200


# -- our client ----------------------------------------------------------------------------------


def test_our_client_speaks_to_our_front_with_all_moments(serve, front):
    serve("--pixels", 1)
    offered = contract(pixels=1)
    with OpenpiClient(f"openpi://127.0.0.1:{front().port}", offered=offered) as policy:
        assert policy.contract == offered
        images = {"cam": np.array([1, 10], np.uint8).reshape(2, 1, 1, 1).repeat(3, -1)}
        reply = policy.infer(PolicyObservation(np.array([5, 9]), observed(4).state, images))
        assert reply.actions[0, 2] == 4
        assert reply.actions[0, -1] == 33
        assert reply.actions.dtype == np.float64
        assert reply.observation_t_ns == 9
        assert reply.timing.sent <= reply.timing.started <= reply.timing.arrived
        policy.reset()
        assert policy.infer(PolicyObservation(np.array([5, 9]), observed(6).state, images))
    other = contract(values=5, pixels=1)
    with pytest.raises(PolicyError, match="arm/5") as refused:
        OpenpiClient(f"openpi://127.0.0.1:{front().port}", offered=other).open()
    assert refused.value.code == "contract_mismatch"


@pytest.fixture
def openpi() -> Iterator[Any]:
    """``openpi(infer, metadata)``: a server as openpi serves."""
    started: list[AsOpenpi] = []

    def start(infer, metadata=None) -> AsOpenpi:
        started.append(AsOpenpi(infer, metadata or {}))
        return started[-1]

    yield start
    for one in started:
        one.close()


def newest(message: dict[str, Any]) -> dict[str, Any]:
    given = message["observation/state"]
    assert given.shape == (VALUES,)
    return {"actions": (given[None] + np.arange(10)[:, None]).astype(np.float32)}


def test_an_openpi_server_is_asked_as_a_policy_server(openpi):
    seen: list[dict[str, Any]] = []

    def infer(message: dict[str, Any]) -> dict[str, Any]:
        seen.append(message)
        return newest(message)

    place = f"openpi://127.0.0.1:{openpi(infer).port}"
    with OpenpiClient(place, contract=contract(), prompt="stack two cups") as policy:
        number = policy.request(observed(3))
        reply = policy.poll(HANG_S)
        assert reply is not None
        assert reply.id == number
        assert reply.observation_t_ns == 200
        np.testing.assert_array_equal(reply.actions[:, 2], 3 + np.arange(10))
        again = policy.infer(observed(4))
        assert again.chunk_id == reply.chunk_id + 1
        assert policy.poll() is None
    assert seen[0]["prompt"] == "stack two cups"


def test_without_a_contract_an_openpi_server_is_refused(openpi):
    with pytest.raises(PolicyError, match="give a contract"):
        OpenpiClient(f"openpi://127.0.0.1:{openpi(newest).port}").open()


def test_chunks_of_before_a_reset_never_arrive_and_the_newest_request_wins(openpi):
    begun, go = threading.Event(), threading.Event()
    asked: list[float] = []

    def infer(message: dict[str, Any]) -> dict[str, Any]:
        asked.append(float(message["observation/state"][2]))
        begun.set()
        assert go.wait(HANG_S)
        return newest(message)

    place = f"openpi://127.0.0.1:{openpi(infer).port}"
    with OpenpiClient(place, contract=contract(), timeout_s=HANG_S) as policy:
        policy.request(observed(1))
        assert begun.wait(HANG_S)
        policy.reset()
        for tag in (2, 3, 4):
            policy.request(observed(tag))
        go.set()
        reply = policy.poll(HANG_S)
        assert reply is not None
        assert reply.actions[0, 2] == 4
        assert asked == [1, 4]
        assert policy.poll() is None


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ({"actions": np.full((3, VALUES), np.nan)}, "internal", "NaN"),
        ({"actions": np.zeros((3, VALUES + 1))}, "contract_mismatch", r"\(3, 7\)"),
        ({"actions": "none"}, "internal", "no actions"),
        ({}, "internal", "no actions"),
        (KeyError("camera"), "internal", "KeyError: 'camera'"),
    ],
)
def test_what_an_openpi_server_fails_at_is_named(openpi, answers, code, words):
    def infer(message: dict[str, Any]) -> dict[str, Any]:
        if isinstance(answers, Exception):
            raise answers
        return dict(answers)

    place = f"openpi://127.0.0.1:{openpi(infer).port}"
    with (
        OpenpiClient(place, contract=contract()) as policy,
        pytest.raises(PolicyError, match=words) as failed,
    ):
        policy.infer(observed(1))
    assert failed.value.code == code


def test_a_lost_server_is_named_and_opened_again(openpi):
    first = openpi(newest)
    policy = OpenpiClient(f"openpi://127.0.0.1:{first.port}", contract=contract())
    policy.open()
    assert policy.infer(observed(1))
    first.close()
    with pytest.raises(PolicyError) as lost:
        policy.infer(observed(2))
    assert lost.value.code == "unknown_session"
    with pytest.raises(PolicyError) as gone:
        policy.open()
    assert gone.value.code == "unreachable"
    policy.endpoint = policy._uri = f"ws://127.0.0.1:{openpi(newest).port}"
    policy.open()
    assert policy.infer(observed(3)).actions[0, 2] == 3
    policy.close()


def test_a_silent_server_is_given_up(openpi):
    go = threading.Event()

    def infer(message: dict[str, Any]) -> dict[str, Any]:
        go.wait(HANG_S)
        return newest(message)

    place = f"openpi://127.0.0.1:{openpi(infer).port}"
    policy = OpenpiClient(place, contract=contract(), timeout_s=0.3)
    policy.open()
    with pytest.raises(PolicyError) as late:
        policy.infer(observed(1))
    assert late.value.code == "timeout"
    policy.close()
    go.set()


def test_keys_are_written_as_they_are_read():
    policy = contract(pixels=4)
    images = {"cam": np.arange(48, dtype=np.uint8).reshape(4, 4, 3)}
    for layout in ("openpi", "aloha", "droid"):
        keys = observation_keys(layout)
        message = keys.write(state(3), images)
        found, frames = keys.read(message, policy)
        np.testing.assert_array_equal(found, state(3)[None])
        np.testing.assert_array_equal(frames["cam"], images["cam"][None])
    with pytest.raises(PolicyError, match="known: openpi, aloha, droid"):
        observation_keys("other")


# -- the process ---------------------------------------------------------------------------------


def test_the_front_runs_in_a_process_that_ends_with_its_parent(serve, endpoint, client, tmp_path):
    serve()
    with FrontProcess(FrontOptions(endpoint=endpoint, port=0)) as front:
        assert client(front.port).infer({"observation/state": state(1)})["actions"][0, 2] == 1
        with (
            pytest.raises(PolicyError, match="cannot listen"),
            FrontProcess(FrontOptions(endpoint=endpoint, port=front.port)),
        ):
            pass
    until(lambda: not listens(front.port), "the port is free again")
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from server.policy.fronts.openpi import FrontOptions\n"
        "from server.policy.fronts.process import FrontProcess\n"
        "if __name__ == '__main__':\n"
        "    with FrontProcess(FrontOptions(endpoint=sys.argv[1], port=0)) as front:\n"
        "        print(front.port, flush=True)\n"
        "        sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, str(script), endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        assert listens(port)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not listens(port), "the front of a killed server ends")


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), HANG_S).close()
    except ConnectionRefusedError:
        return False
    return True
