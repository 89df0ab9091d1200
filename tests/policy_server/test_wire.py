"""Hostile bytes, keys and addresses: each gets a named answer, and the server lives."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_stack.errors import PolicyError
from robot_stack.messages import Message, encode
from robot_stack.policy_client import ClientKeys, PolicyClient
from server.policy.endpoints import require_keys
from server.policy.keys import ServerKeys, make_keys
from tests.policy_server.conftest import serving
from tests.policy_server.served import DT_NS, HANG_S, Wire, observed, until

MAX_BYTES = 1 << 20
CODES = {
    "bad_message",
    "bad_request",
    "bad_observation",
    "contract_mismatch",
    "decoder_refused",
    "expired",
    "overloaded",
    "stale_epoch",
    "superseded",
    "unknown_policy",
    "unknown_request",
    "unknown_session",
}
ANSWERS = {"contract", "opened", "closed", "chunk", "health", "metrics"}


def crafted(**changes) -> bytes:
    header = {"kind": "health", "id": 0, "body": {}, "arrays": []} | changes
    return b"RTS\x01" + json.dumps(header).encode()


def array(**changes) -> dict:
    return {"name": "state", "dtype": "<f4", "shape": [2, 6]} | changes


STATE = np.zeros((2, 6), np.float32).tobytes()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b""], "first bytes"),
        ([b"\x80\x04\x95pickle"], "first bytes"),
        ([b"RTS\x07{}"], "version 7"),
        ([b"RTS\x01" + b"{" * 100_000], "header of 100004 bytes"),
        ([b"RTS\x01" + b"[" * 9000], "JSON"),
        ([b"RTS\x01{}"], "kind"),
        ([crafted(id="x")], "id"),
        ([crafted(arrays=[array()])], "1 arrays described, 0 sent"),
        ([crafted(), b"more"], "0 arrays described, 1 sent"),
        ([crafted(arrays=[array(dtype="|O")]), STATE], "'|O'"),
        ([crafted(arrays=[array(dtype="|V4")]), STATE], "'|V4'"),
        ([crafted(arrays=[array(shape=[2, 7])]), STATE], "needs 56 bytes, 48"),
        ([crafted(arrays=[array(shape=[2, -6])]), STATE], "no valid shape"),
        ([crafted(arrays=[array()]), STATE[:-1]], "47 were sent"),
        ([crafted(arrays=[array()]), b"x" * (MAX_BYTES + 1)], f"more than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_message_is_named(hosting, frames, words):
    hosting.socket.send_multipart(frames)
    reply = hosting.receive()
    assert (reply.kind, reply.body["code"]) == ("error", "bad_message")
    assert words in reply.body["text"]
    assert hosting.ask("health").body["ready"]


@pytest.mark.parametrize(
    ("kind", "body", "code", "words"),
    [
        ("kill", {}, "unknown_request", "'kill'"),
        ("hello", {"policy": 7}, "bad_request", "'policy'"),
        ("open", {"decoder": "bid"}, "bad_request", "'decoder'"),
        ("open", {"decoder": {"name": ["bid"]}}, "bad_request", "'name'"),
        ("open", {"decoder": {"name": "ema", "options": 3}}, "bad_request", "'options'"),
        ("open", {"contract": {"name": "x"}}, "contract_mismatch", "offered contract"),
        ("infer", {"session": {}}, "unknown_session", "open another"),
        ("infer", {"epoch": "1"}, "stale_epoch", "'1'"),
        ("infer", {"t_ns": [1]}, "bad_observation", "'t_ns'"),
        ("infer", {"t_ns": [2, 1]}, "bad_observation", "oldest first"),
        ("infer", {"t_ns": [1, 2.5]}, "bad_observation", "'t_ns'"),
        ("infer", {"dt_ns": 1}, "bad_observation", "'dt_ns'"),
        ("infer", {"deadline_ms": "soon"}, "bad_request", "'deadline_ms'"),
        ("infer", {"deadline_ms": -1}, "bad_request", "'deadline_ms'"),
        ("infer", {"previous_chunk": 2**70}, "bad_request", "'previous_chunk'"),
        ("infer", {"consumed": -1}, "bad_request", "'consumed'"),
        ("infer", {"delay": 1.5}, "bad_request", "'delay'"),
        ("reload", {"checkpoint": "/etc"}, "forbidden", "no checkpoints"),
    ],
)
def test_what_makes_no_sense_is_named(hosting, opened, kind, body, code, words):
    if kind == "infer":
        hosting.infer(opened, **body)
        reply = hosting.receive()
    else:
        reply = hosting.ask(kind, body)
    assert (reply.kind, reply.body["code"]) == ("error", code)
    assert words in reply.body["text"]
    hosting.infer(opened)
    assert hosting.receive().kind == "chunk"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_comes_is_answered_once_and_the_server_lives(hosting, opened, data):
    frames = data.draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4) | damaged(opened))
    hosting.socket.send_multipart(frames)
    reply = hosting.receive()
    assert reply.kind in ANSWERS or reply.body["code"] in CODES, reply
    assert hosting.ask("health").body["ready"]


@st.composite
def damaged(draw, opened) -> list[bytes]:
    """A request with one value of another kind, a flipped byte, or a frame cut, lost or doubled."""
    kind = draw(st.sampled_from(["hello", "open", "infer", "reset", "close", "metrics"]))
    body = {
        "session": opened.body["session"],
        "epoch": 0,
        "t_ns": [1, 2],
        "dt_ns": DT_NS,
        "policy": "",
        "decoder": {"name": "ema", "options": {}},
        "deadline_ms": None,
    }
    if kind in ("reset", "close"):
        body["session"] = "x"  # the session is to live
    strange = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3)
    body[draw(st.sampled_from(sorted(body)))] = draw(strange)
    arrays = {"state": observed(1).state} if kind == "infer" else {}
    frames = [bytes(frame) for frame in encode(Message(kind, body, arrays, 1))]
    which = draw(st.integers(0, len(frames) - 1))
    match draw(st.sampled_from(["whole", "flip", "cut", "lose", "double"])):
        case "flip":
            frame = bytearray(frames[which])
            frame[draw(st.integers(0, len(frame) - 1))] ^= draw(st.integers(1, 255))
            frames[which] = bytes(frame)
        case "cut":
            frames[which] = frames[which][: draw(st.integers(0, len(frames[which])))]
        case "lose" if len(frames) > 1:
            del frames[which]
        case "double":
            frames.insert(which, frames[which])
    return frames


@pytest.fixture(scope="module")
def hosting(forks, tmp_path_factory) -> Iterator[Wire]:
    """A connection to one server that all these tests are unkind to."""
    directory = tmp_path_factory.mktemp("hosting")
    with serving(forks, directory) as serve:
        serve("--max-bytes", MAX_BYTES, "--sessions", 100_000)
        line = Wire(f"ipc://{directory}/s.ipc")
        yield line
        line.close()


@pytest.fixture
def opened(hosting):
    return hosting.open()


# -- keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://0.0.0.0:5555",
        "tcp://*:5555",
        "tcp://10.1.2.3:5555",
        "tcp://[::]:5555",
        "tcp://eth0:1",
    ],
)
def test_an_address_of_others_needs_keys(endpoint):
    with pytest.raises(PolicyError, match="policy keygen --to DIR") as error:
        require_keys(endpoint, keys=False)
    assert error.value.code == "keys"
    require_keys(endpoint, keys=True)


@pytest.mark.parametrize(
    "endpoint",
    ["ipc:///tmp/x.ipc", "tcp://127.0.0.1:5555", "tcp://127.1.2.3:*", "tcp://[::1]:5555"],
)
def test_an_address_of_this_computer_needs_none(endpoint):
    require_keys(endpoint, keys=False)


@pytest.mark.parametrize("endpoint", ["ws://127.0.0.1:1", "tcp://127.0.0.1", "5555", "inproc://x"])
def test_other_addresses_are_refused(endpoint):
    with pytest.raises(PolicyError, match="cannot listen"):
        require_keys(endpoint, keys=True)


def test_a_server_open_to_others_without_keys_does_not_start(serve):
    server = serve("--bind", "tcp://0.0.0.0:*", ready=False)
    assert server.ended() != 0
    assert not server.bound.exists()


def test_keys_are_private_and_never_overwritten(tmp_path):
    written = make_keys(tmp_path / "keys", ["lab"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o600}
    server = ServerKeys.read(tmp_path / "keys")
    with pytest.raises(PolicyError, match="has keys"):
        make_keys(tmp_path / "keys", ["lab"])
    make_keys(tmp_path / "keys", ["other"])
    assert ServerKeys.read(tmp_path / "keys") == server
    (tmp_path / "keys" / "server.json").chmod(0o644)
    with pytest.raises(PolicyError, match="chmod 600"):
        ServerKeys.read(tmp_path / "keys")
    client = tmp_path / "keys" / "clients" / "lab.json"
    client.chmod(0o640)
    with pytest.raises(PolicyError, match="chmod 600"):
        ClientKeys.read(client)


def test_only_keys_of_the_list_connect(serve, wire, tmp_path):
    keys = tmp_path / "keys"
    make_keys(keys, ["lab", "gone"])
    (keys / "allowed" / "gone.pub").unlink()
    server = serve("--keys", keys, "--bind", "tcp://127.0.0.1:*")
    tcp = server.listening()[1]
    for refused in (None, keys / "clients" / "gone.json"):
        with pytest.raises(PolicyError) as error:
            PolicyClient(tcp, keys=refused, timeout_s=1.0).open()
        assert error.value.code == "unreachable"
    with PolicyClient(tcp, keys=keys / "clients" / "lab.json", timeout_s=HANG_S) as client:
        assert client.infer(observed(3)).actions[0, 2] == 3
        with pytest.raises(PolicyError, match="ipc://") as error:
            client.ask("reload", {})
        assert error.value.code == "forbidden"
    make_keys(keys, ["late"])
    with PolicyClient(tcp, keys=keys / "clients" / "late.json", timeout_s=HANG_S) as client:
        assert client.infer(observed(4)).actions[0, 2] == 4
    line = wire()
    text = line.ask("metrics").body["text"]
    turned_away = [row for row in text.splitlines() if row.startswith("policy_refused_keys_total ")]
    assert int(turned_away[0].split()[1]) >= 1


def test_a_session_belongs_to_its_key_as_well_as_its_connection(serve, wire, tmp_path):
    keys = tmp_path / "keys"
    make_keys(keys, ["one", "two"])
    server = serve("--keys", keys, "--bind", "tcp://127.0.0.1:*")
    tcp = server.listening()[1]
    one, two = (ClientKeys.read(keys / "clients" / f"{name}.json") for name in ("one", "two"))
    owner = wire(tcp, identity=b"the same name", keys=one)
    opened = owner.open()
    thief = wire(tcp, identity=b"the same name", keys=two)
    reply = thief.ask("reset", {"session": opened.body["session"]})
    assert reply.body["code"] == "unknown_session"


def test_two_servers_do_not_share_a_socket_file(serve, endpoint):
    first = serve()
    assert stat.S_IMODE(Path(endpoint.removeprefix("ipc://")).stat().st_mode) == 0o600
    first.bound.unlink()
    second = serve(ready=False)
    assert second.ended() != 0
    client = PolicyClient(endpoint, timeout_s=HANG_S)
    assert client.ask("health")["ready"]
    client.close()
    first.kill()
    until(lambda: not first.process.is_alive(), "killed")
    serve()  # over the file that the killed one left
