"""The lane of shared memory beside an ipc endpoint: the same answers, and nobody harmed."""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot_stack.errors import PolicyError
from robot_stack.messages import Message, decode, encode
from robot_stack.policy_client import PolicyClient, PolicyObservation
from robot_stack.policy_lane import (
    OTHER,
    REQUEST,
    SEALS,
    VERSION,
    Lane,
    pack_reply,
    unpack_places,
    unpack_request,
)
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
        assert reply[:1] == OTHER
        return decode([reply[1:]])


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


NUMBERS = REQUEST.pack(7, 0, b"x" * 32, 0, 20_000_000, -1, 0, 0, math.nan, 2) + struct.pack(
    "<2q", 1, 2
)


def header(arrays: dict[str, Any] | None = None) -> bytes:
    return bytes(encode(Message("arrays", {}, arrays or {}))[0])


def test_malformed_packets_are_named_and_the_lane_lives(shared):
    raw = Raw(f"{shared}.lane")
    raw.begin()
    plain = struct.pack("<I", 0) + header()
    for packet, words in (
        (b"\1", "cut off"),
        (NUMBERS[:-1], "cut off"),
        (NUMBERS, "cut off"),
        (NUMBERS + struct.pack("<I", 2**32 - 1) + b"x" * 100, "cut off"),
        (NUMBERS + struct.pack("<IQQ", 1, 4000, 200) + header(), "not in the memory"),
        (NUMBERS + struct.pack("<IQQ", 1, 2**63, 2**63) + header(), "not in the memory"),
        (NUMBERS + struct.pack("<I", 0), "wrong first bytes"),
        (NUMBERS + struct.pack("<IQQ", 1, 0, 64) + header(), "0 arrays described, 1 sent"),
    ):
        reply = raw.ask(packet)
        assert (reply.kind, reply.body["code"]) == ("error", "bad_message")
        assert words in reply.body["text"]
    reply = raw.ask(NUMBERS + plain)
    assert (reply.id, reply.body["code"]) == (7, "unknown_session")
    with PolicyClient(f"ipc://{shared}", timeout_s=HANG_S) as policy:
        assert policy.infer(observed(1)).actions[0, 2] == 1


def test_a_session_is_not_to_be_had_by_another_lane(shared):
    with PolicyClient(f"ipc://{shared}", timeout_s=HANG_S) as policy:
        raw = Raw(f"{shared}.lane")
        raw.begin()
        session = policy.session.encode()
        numbers = REQUEST.pack(7, 0, session, 0, 20_000_000, -1, 0, 0, math.nan, 0)
        reply = raw.ask(numbers + struct.pack("<I", 0) + header())
        assert reply.body["code"] == "unknown_session"
        assert policy.infer(observed(1)).actions[0, 2] == 1


@pytest.mark.parametrize("value", [2**70, -(2**70)])
def test_numbers_too_large_for_a_packet_are_refused_like_others(shared, value):
    with PolicyClient(f"ipc://{shared}", timeout_s=HANG_S) as policy:
        with pytest.raises(PolicyError) as failed:
            policy.infer(observed(1), previous_chunk=value)
        assert failed.value.code == "bad_request"
        assert policy.infer(observed(1)).actions[0, 2] == 1


BODY = {
    "session": "5" * 32,
    "epoch": 3,
    "t_ns": [10, 20],
    "dt_ns": 20_000_000,
    "deadline_ms": None,
    "previous_chunk": -1,
    "consumed": 4,
    "delay": 5,
    "sent_ns": 30,
}


def observation_arrays(tag: int, pixels: int = 5) -> dict[str, Any]:
    image = np.full((2, pixels, pixels, 3), tag, np.uint8)
    return {"state": np.full((2, 6), tag, np.float32), "image.cam": image}


SIZES = [48, 150]


def test_a_lane_that_begins_is_read_at_once(tmp_path):
    """What its client sends by ZeroMQ afterwards is read next, and must not be overtaken."""
    lanes = Lanes(tmp_path / "lane", 4096)
    clients = [Lane(str(lanes.path), b"me%d" % i, SIZES) for i in range(2)]
    for client in clients:
        for number in range(3):
            assert client.send(number, BODY, observation_arrays(number), range(4))
    found = [message.id for _, message in lanes.receive()]
    assert found == [0, 1, 2] * 2
    assert clients[1].send(3, BODY, observation_arrays(3), range(4))
    assert [message.id for _, message in lanes.read_of(b"me1")] == [3]
    for client in clients:
        client.close()
    assert list(lanes.receive()) == []
    assert list(lanes.read_of(b"me1")) == []
    lanes.close()
    assert not lanes.path.exists()


def test_an_idle_worker_hears_a_lane_and_the_loop_does_when_it_is_busy(tmp_path):
    """Linux tells the first of those that wait: one thread is woken, and never none."""

    class Listening:
        def __init__(self) -> None:
            self.waits = select.epoll()

        def listen(self, lane: int) -> None:
            self.waits.register(lane, select.EPOLLIN | select.EPOLLEXCLUSIVE)

    lanes, worker = Lanes(tmp_path / "lane", 4096), Listening()
    client = Lane(str(lanes.path), b"me", SIZES)
    assert client.send(0, BODY, observation_arrays(0), range(4))
    ((end, _),) = lanes.receive()
    lanes.share(end, worker)
    assert client.send(1, BODY, observation_arrays(1), range(4))  # nobody waits
    assert [message.id for _, message in lanes.receive()] == [1]
    assert list(lanes.receive()) == []  # as the loop does before it waits
    heard: list[int] = []
    thread = threading.Thread(target=lambda: heard.extend(n for n, _ in worker.waits.poll(HANG_S)))
    thread.start()
    until(lambda: asleep(thread), "the worker waits")
    assert client.send(2, BODY, observation_arrays(2), range(4))
    thread.join(HANG_S)
    assert list(lanes.receive()) == []  # the loop was not told
    assert [message.id for _, message in lanes.read(heard)] == [2]
    client.close()
    lanes.close()


def asleep(thread: threading.Thread) -> bool:
    """In epoll_wait (or epoll_pwait), on x86-64 or ARM."""
    system_call = Path(f"/proc/self/task/{thread.native_id}/syscall").read_text()
    return system_call.split()[0] in ("232", "281", "22")


@pytest.mark.parametrize("deadline_ms", [None, 0.0, 12.5])
def test_a_packet_is_read_as_it_was_written(tmp_path, deadline_ms):
    place, body = str(tmp_path / "lane"), {**BODY, "deadline_ms": deadline_ms}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place)
        server.listen()
        lane = Lane(place, b"me", SIZES)
        connection, _ = server.accept()
        _, files, _, _ = socket.recv_fds(connection, 4096, 1)
        with os.fdopen(files[0], "rb") as file:
            for number in range(8):
                pixels = 5 if number < 6 else 4  # other shapes are laid out anew
                arrays = observation_arrays(number, pixels)
                assert lane.send(number, body, arrays, set(range(max(0, number - 3), number)))
                packet = connection.recv(4096)
                file.seek(0)
                got, found, places = unpack_request(packet)
                assert (got, found) == (number, body)
                seen = unpack_places(places, memoryview(file.read()), max_bytes=4096)
                assert list(seen) == list(arrays)
                for name, array in arrays.items():
                    np.testing.assert_array_equal(seen[name], array)
            assert not lane.send(8, body, arrays, set(range(8)))  # every slot is waited for
            assert lane.send(8, body, arrays, {0, 1, 2})
            assert not lane.send(9, body, observation_arrays(9, 100), set())
        rows = np.arange(32.0).reshape(16, 2)
        timing = {"received_ns": 4, "started_ns": 5, "done_ns": 6, "replied_ns": 7}
        told = {"sent_ns": 1, "chunk_id": 2**40, "observation_t_ns": 3, "generation": 9}
        replies = [
            Message("chunk", {**told, "timing": timing}, {"actions": rows}, 5),
            Message("error", {"code": "expired", "text": "late"}, id=6),
        ]
        for reply in replies:
            packed = pack_reply(reply)
            assert packed is not None
            connection.send(packed)
            read = lane.receive()
            assert read is not None
            assert (read.kind, read.id, read.body) == (reply.kind, reply.id, reply.body)
            assert read.arrays.keys() == reply.arrays.keys()
            for name, array in reply.arrays.items():
                np.testing.assert_array_equal(read.arrays[name], array)
        lane.close()
        connection.close()


def test_a_reply_is_looked_for_only_soon_after_a_request(tmp_path):
    lanes = Lanes(tmp_path / "lane", 4096)
    client = Lane(str(lanes.path), b"me", SIZES)
    assert client.send(0, BODY, observation_arrays(0), range(4))
    ((end, _),) = lanes.receive()
    began = time.monotonic_ns()
    assert client.look_for(HANG_S) is None  # nobody answers: it gives up, and its caller sleeps
    assert time.monotonic_ns() - began < HANG_S * 1e9
    assert end.send(Message("error", {"code": "late", "text": ""}, id=0))
    assert client.look_for(HANG_S) is None  # too late to be looked for
    message = client.receive()
    assert message is not None and message.id == 0
    assert client.send(1, BODY, observation_arrays(1), range(4))
    assert [request.id for _, request in lanes.receive()] == [1]
    assert end.send(Message("error", {"code": "soon", "text": ""}, id=1))
    client._look_until = time.monotonic_ns() + int(HANG_S * 1e9)  # however slow this machine is
    assert client.look_for(0.0) is None  # who does not wait does not look either
    found = client.look_for(HANG_S)
    assert found is not None and found.id == 1
    lanes.close()
    client._look_until = time.monotonic_ns() + int(HANG_S * 1e9)
    assert client.look_for(HANG_S) is None and client.closed
