"""The lane of shared memory beside an ipc endpoint: the same answers, and nobody harmed."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_stack.errors import PolicyError
from robot_stack.messages import Message, decode, encode
from robot_stack.policy_client import PolicyClient, PolicyObservation
from robot_stack.policy_lane import SEALS, VERSION, Lane, unpack_request
from server.policy.lanes import Lanes
from tests.policy_server.served import HANG_S, OBSERVATIONS, observed, until


@pytest.fixture
def client(endpoint) -> Iterator[Any]:
    """``client()``: a PolicyClient with a session."""
    opened: list[PolicyClient] = []

    def start() -> PolicyClient:
        opened.append(PolicyClient(endpoint, timeout_s=HANG_S))
        opened[-1].open()
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def path(endpoint) -> str:
    return endpoint.removeprefix("ipc://") + ".lane"


def seen(tag: float, pixel: int, pixels: int) -> PolicyObservation:
    plain = observed(tag)
    frames = np.full((OBSERVATIONS, pixels, pixels, 3), pixel, np.uint8)
    return PolicyObservation(plain.t_ns, plain.state, {"cam": frames})


def received_by_zmq(client: PolicyClient) -> PolicyClient:
    """The client, from now on without its lane."""
    assert client._lane is not None
    client._lane.close()
    client._lane = None
    return client


def test_chunks_by_the_lane_are_those_by_zeromq(serve, client):
    serve("--pixels", 32)
    lane, zmq = client(), received_by_zmq(client())
    for tag in range(12):  # each slot three times
        by_lane, by_zmq = (c.infer(seen(tag, tag, 32)) for c in (lane, zmq))
        np.testing.assert_array_equal(by_lane.actions, by_zmq.actions)
        assert by_lane.actions[0, -1] == OBSERVATIONS * 32 * 32 * 3 * tag
        assert by_lane.timing.sent < by_lane.timing.received < by_lane.timing.arrived
    assert lane._lane is not None
    assert not lane._by_zmq


def test_what_is_in_flight_is_not_written_over_and_the_newest_wins(serve, client):
    serve("--pixels", 32)
    policy = client()
    slow = observed(1, takes_s=0.5)
    frames = np.full((OBSERVATIONS, 32, 32, 3), 1, np.uint8)
    first = policy.request(PolicyObservation(slow.t_ns, slow.state, {"cam": frames}))
    newest = -1
    for tag in range(2, 8):  # more than there are slots: some go by ZeroMQ
        newest = policy.request(seen(tag, tag, 32))
    assert policy._by_zmq
    replies = {}
    while newest not in replies:
        reply = policy.poll(HANG_S)
        assert reply is not None
        replies[reply.id] = reply.actions
    assert replies[first][0, -1] == OBSERVATIONS * 32 * 32 * 3
    assert replies[newest][0, -1] == OBSERVATIONS * 32 * 32 * 3 * 7
    assert policy.infer(seen(3, 3, 32)).actions[0, 2] == 3
    assert not policy._by_zmq  # back in the lane


def test_a_lane_that_breaks_is_done_without(serve, client):
    serve()
    policy = client()
    assert policy._lane is not None
    policy._lane._socket.shutdown(socket.SHUT_RDWR)
    for tag in (1, 2):
        with_timeout = policy.infer(observed(tag))
        assert with_timeout.actions[0, 2] == tag
    assert policy._lane is None
    policy.reset()
    assert policy._lane is not None  # the next episode has one again
    assert policy.infer(observed(3)).actions[0, 2] == 3


def test_a_server_started_again_gives_a_new_lane(serve, client):
    first = serve()
    policy = client()
    policy.infer(observed(1))
    first.kill()
    serve()
    codes: list[str] = []

    def lost() -> bool:
        with pytest.raises(PolicyError) as failed:
            policy.infer(observed(2))
        codes.append(failed.value.code)
        return codes[-1] == "unknown_session"

    until(lost, "connected again")
    assert set(codes) <= {"unreachable", "unknown_session"}
    policy.open()
    assert policy.infer(observed(3)).actions[0, 2] == 3
    assert policy._lane is not None


def test_the_lane_is_this_users_and_its_memory_ends_with_the_client(serve, client, path):
    server = serve("--pixels", 8)
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    maps = Path(f"/proc/{server.process.pid}/maps")
    policy = client()
    policy.infer(seen(1, 1, 8))
    assert "robot-stack-lane" in maps.read_text()
    policy.close()
    until(lambda: "robot-stack-lane" not in maps.read_text(), "the memory is unmapped")


# -- strangers -----------------------------------------------------------------------------------


def memory(size: int = 4096, seals: int = SEALS) -> int:
    file = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    return file


class Raw:
    """A lane's client that may send anything."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(HANG_S)
        self.socket.connect(path)

    def begin(self, about: bytes | None = None, files: list[int] | None = None) -> None:
        plain = json.dumps({"version": VERSION, "identity": "c1" * 8}).encode()
        given = [memory()] if files is None else files
        socket.send_fds(self.socket, [plain if about is None else about], given)
        for file in given:
            os.close(file)

    def refused(self) -> bool:
        try:
            return self.socket.recv(10) == b""
        except ConnectionResetError:
            return True

    def ask(self, packet: bytes) -> Message:
        self.socket.send(packet)
        reply = self.socket.recv(1 << 17)
        (count,) = struct.unpack_from("<I", reply)
        assert count == 0
        return decode([reply[4:]])


@pytest.fixture(scope="module")
def shared(forks, tmp_path_factory) -> Iterator[str]:
    from tests.policy_server.conftest import serving

    directory = tmp_path_factory.mktemp("lane")
    with serving(forks, directory) as start:
        start()
        yield f"{directory}/s.ipc"


ABOUT = {"version": VERSION, "identity": "c1" * 8}


@pytest.mark.parametrize(
    ("about", "files"),
    [
        (b"noise", 1),
        (b"[]", 1),
        (json.dumps({**ABOUT, "version": 99}).encode(), 1),
        (json.dumps({**ABOUT, "identity": ""}).encode(), 1),
        (json.dumps({**ABOUT, "identity": 5}).encode(), 1),
        (json.dumps(ABOUT).encode(), 0),
        (json.dumps(ABOUT).encode(), 2),
    ],
)
def test_a_wrong_beginning_ends_the_lane(shared, about, files):
    raw = Raw(f"{shared}.lane")
    raw.begin(about, [memory() for _ in range(files)])
    assert raw.refused()


def test_memory_that_could_shrink_is_refused(shared, tmp_path):
    ordinary = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(ordinary, 4096)
    for file in (memory(seals=fcntl.F_SEAL_GROW), memory(size=1 << 40), ordinary):
        raw = Raw(f"{shared}.lane")
        raw.begin(files=[file])
        assert raw.refused()


def test_malformed_packets_are_named_and_the_lane_lives(shared):
    raw = Raw(f"{shared}.lane")
    raw.begin()
    (header,) = encode(Message("infer", {"session": "x"}))
    for packet, words in (
        (b"\1", "cut off"),
        (struct.pack("<I", 2**32 - 1) + b"x" * 100, "cut off"),
        (struct.pack("<IQQ", 1, 4000, 200) + header, "not in the memory"),
        (struct.pack("<IQQ", 1, 2**63, 2**63) + header, "not in the memory"),
        (struct.pack("<I", 0), "wrong first bytes"),
        (struct.pack("<IQQ", 1, 0, 64) + header, "0 arrays described, 1 sent"),
    ):
        reply = raw.ask(packet)
        assert (reply.kind, reply.body["code"]) == ("error", "bad_message")
        assert words in reply.body["text"]
    assert raw.ask(struct.pack("<I", 0) + header).body["code"] == "unknown_session"
    with PolicyClient(f"ipc://{shared}", timeout_s=HANG_S) as policy:
        assert policy.infer(observed(1)).actions[0, 2] == 1


def test_a_session_is_not_to_be_had_by_another_lane(shared):
    with PolicyClient(f"ipc://{shared}", timeout_s=HANG_S) as policy:
        raw = Raw(f"{shared}.lane")
        raw.begin()
        body = {"session": policy.session, "epoch": 0, "t_ns": [1, 2], "dt_ns": 20_000_000}
        (header,) = encode(Message("infer", body))
        assert raw.ask(struct.pack("<I", 0) + header).body["code"] == "unknown_session"
        assert policy.infer(observed(1)).actions[0, 2] == 1


def test_a_lane_that_begins_is_read_at_once(tmp_path):
    """What its client sends by ZeroMQ afterwards is read next, and must not be overtaken."""
    lanes = Lanes(tmp_path / "lane", 4096)
    clients = [Lane(str(lanes.path), b"me", [12]) for _ in range(2)]
    for client in clients:
        for number in range(3):
            assert client.send(number, [b"header %d" % number, bytes(12)], range(4))
    found = [bytes(frames[0]) for _, frames in lanes.receive()]
    assert found == [b"header 0", b"header 1", b"header 2"] * 2
    for client in clients:
        client.close()
    assert list(lanes.receive()) == []
    lanes.close()
    assert not lanes.path.exists()


def test_a_packet_is_read_as_it_was_written(tmp_path):
    place = str(tmp_path / "lane")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place)
        server.listen()
        lane = Lane(place, b"me", [12, 100])
        connection, _ = server.accept()
        _, files, _, _ = socket.recv_fds(connection, 4096, 1)
        frames = [b"header", bytes(range(12)), bytes(range(100))]
        with os.fdopen(files[0], "rb") as file:
            for number in range(4):
                assert lane.send(number, frames, {0, 1, 2, 3})
                packet = connection.recv(4096)
                file.seek(0)
                found = unpack_request(packet, memoryview(file.read()))
                assert [bytes(frame) for frame in found] == frames
            assert not lane.send(4, frames, {0, 1, 2, 3})  # every slot is waited for
            assert lane.send(4, frames, {0, 2, 3})
            assert not lane.send(5, [b"header", bytes(1 << 20)], set())
        lane.close()
        connection.close()
