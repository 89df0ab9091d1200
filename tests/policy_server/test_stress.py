"""Eight clients at once, resetting, superseding, dying: nothing crosses, nothing leaks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from robot_stack.messages import Message
from tests.policy_server.served import HANG_S, Wire, observed, until

CLIENTS = 8
REQUESTS = 150  # a client, 1,200 in all
KILLED = 3
PIXELS = 96  # 55 KB a request: a leak of requests would be 66 MB
LEAK_BYTES = 24 << 20
SILENT = ("superseded", "stale_epoch", "unknown_session")  # the last: after its close


class Client:
    """One robot on the raw wire, which checks everything that comes."""

    def __init__(self, endpoint: str, number: int, seed: int) -> None:
        self.line = Wire(endpoint)
        self.number = number
        self.random = random.Random(seed)
        self.asked: dict[int, tuple[float, str, int]] = {}  # id -> tag, session, epoch
        self.sent = self.chunks = self.dropped = 0
        self.tag = 0
        self.opened = self.line.open()
        self.last_chunk: dict[str, int] = {}
        # Rows of R, G, B that no other client sends: their sum is answered too.
        self.frames = np.full((2, PIXELS, PIXELS, 3), number + 1, np.uint8)

    def infer(self) -> None:
        self.tag += 1
        tag = self.number * 1000.0 + self.tag
        state = observed(tag, takes_s=self.random.choice((0.0, 0.0, 0.002))).state
        session = self.opened.body["session"]
        number = self.line.infer(
            self.opened,
            state,
            images={"image.cam": self.frames},
            previous_chunk=self.last_chunk.get(session, -1),
            consumed=self.random.randrange(8),
        )
        self.asked[number] = (tag, session, self.opened.body["epoch"])
        self.sent += 1

    def take(self) -> Message:
        reply = self.line.receive()
        if reply.id not in self.asked:
            return reply
        tag, session, epoch = self.asked.pop(reply.id)
        if reply.kind == "error":
            assert reply.body["code"] in SILENT, reply.body
            self.dropped += 1
            return reply
        assert reply.kind == "chunk", reply.body
        assert (reply.body["session"], reply.body["epoch"]) == (session, epoch)
        assert epoch == self.opened.body["epoch"], "a chunk of an epoch that is over"
        assert session == self.opened.body["session"], "a chunk of a session that is closed"
        actions = reply.arrays["actions"]
        assert actions[:, 2].tolist() == [tag + row for row in range(len(actions))]
        assert actions[0, 5] == self.frames.sum(dtype=np.int64)
        assert reply.body["chunk_id"] > self.last_chunk.get(session, -1)
        self.last_chunk[session] = reply.body["chunk_id"]
        self.chunks += 1
        return reply

    def control(self, kind: str, body: dict) -> Message:
        """Ask while requests are in flight; chunks may come before the answer, not after it."""
        number = self.line.send(kind, body)
        while (reply := self.take()).id != number:
            pass
        return reply

    def run(self, requests: int, progress: Path) -> None:
        naming = {"decoder": {"name": "receding_horizon"}}
        while self.sent < requests:
            session = {"session": self.opened.body["session"]}
            match self.random.choices(("one", "burst", "reset", "reopen"), (10, 4, 2, 1))[0]:
                case "one":
                    self.infer()
                    while self.asked:
                        self.take()
                case "burst":
                    for _ in range(self.random.randrange(2, 5)):
                        self.infer()
                case "reset":
                    self.infer()
                    self.opened = self.control("reset", session)
                case "reopen":
                    self.infer()
                    assert self.control("close", session).kind == "closed"
                    self.opened = self.control("open", naming)
            progress.write_text(str(self.sent))
        while self.asked:
            self.take()


def drive(endpoint: str, number: int, seed: int, requests: int, directory: str) -> None:
    client = Client(endpoint, number, seed)
    client.run(requests, Path(directory) / f"progress.{number}")
    counts = {"sent": client.sent, "chunks": client.chunks, "dropped": client.dropped}
    part = Path(directory) / f"part.{number}"
    part.write_text(json.dumps(counts))
    part.replace(Path(directory) / f"done.{number}")


@pytest.mark.slow
def test_nothing_crosses_and_nothing_leaks(serve, wire, endpoint, forks, tmp_path):
    serve("--pixels", PIXELS, "--idle-s", 2.0, "--batch", 4)
    line = wire()

    def started(number: int):
        process = forks.Process(
            target=drive, args=(endpoint, number, number, REQUESTS, str(tmp_path))
        )
        process.start()
        return process

    def sent(number: int) -> int:
        path = tmp_path / f"progress.{number}"
        return int(path.read_text() or 0) if path.exists() else 0

    drive(endpoint, 99, 99, REQUESTS, str(tmp_path))  # everything has been used once
    before = line.ask("health").body["resident_bytes"]
    clients = {number: started(number) for number in range(CLIENTS)}
    for number in range(KILLED):
        until(lambda number=number: sent(number) > 20 * (number + 1), "a client has got going")
        clients[number].kill()
        clients[CLIENTS + number] = started(CLIENTS + number)
    for number, process in clients.items():
        process.join(HANG_S)
        assert process.exitcode == (-9 if number < KILLED else 0), f"client {number}"
    done = [json.loads((tmp_path / f"done.{n}").read_text()) for n in range(KILLED, len(clients))]
    assert sum(one["sent"] for one in done) >= 1000
    assert all(one["chunks"] and one["dropped"] for one in done)
    assert all(one["chunks"] + one["dropped"] == one["sent"] for one in done)
    until(lambda: not line.ask("health").body["sessions"], "the sessions of the killed expire")
    after = line.ask("health").body
    assert after["ready"]
    assert after["policies"]["analytic"]["waiting"] == 0
    assert after["resident_bytes"] - before < LEAK_BYTES


def test_the_check_of_the_stress_sees_a_crossing(serve, endpoint):
    """The stress test can fail: a chunk for another request is noticed."""
    serve("--pixels", PIXELS)
    client = Client(endpoint, 1, 1)
    client.infer()
    number, (tag, session, epoch) = client.asked.popitem()
    client.asked[number] = (tag + 1, session, epoch)
    with pytest.raises(AssertionError):
        client.take()
