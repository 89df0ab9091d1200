"""The inbox: only the lease holder's sane commands reach the chunk buffer."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from robot_stack.records import command_record, mailbox_path
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Difference, Source
from server.control.chunk_buffer import ChunkBuffer
from server.control.inbox import Inbox
from server.control.lease import LeaseTable

DOF = 14


class Desk:
    """A lease table, the holder's mailbox and the inbox of the group's second robot."""

    def __init__(self) -> None:
        self.table = LeaseTable("lab", ["arms"])
        self.inbox = Inbox("lab", "arms", slice(7, 14), ChunkBuffer(7, stale_s=0.1))
        self.seq = 0
        self.lease = self.table.acquire("arms", "anna", Source.DEMO, 5.0)
        self.mailbox = self.open()

    def open(self) -> RingWriter:
        path = mailbox_path("lab", "arms", self.lease.token)
        return RingWriter(path, command_record(DOF), 8)

    def send(self, target, *, token=None, t_ns=None, rows=1, source=Source.DEMO, start_t_ns=0):
        with self.mailbox.writing() as record:
            record["token"] = self.lease.token if token is None else token
            record["seq"] = self.seq
            record["t_ns"] = time.monotonic_ns() if t_ns is None else t_ns
            record["source"] = source
            record["rows"] = rows
            record["start_t_ns"] = start_t_ns
            record["dt_ns"] = 20_000_000
            record["observation_t_ns"] = -1
            record["chunk_id"] = 7
            record["target"][: max(1, min(rows, 128))] = target
        self.seq += 1

    def asked(self):
        now = time.monotonic_ns()
        self.inbox.poll(now)
        return self.inbox.buffer.target(now).target


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    desk = Desk()
    yield desk
    desk.mailbox.close()
    desk.table.close()


def test_a_robot_gets_its_own_columns(desk):
    desk.send(np.arange(14.0))
    assert desk.asked() == pytest.approx(np.arange(7.0, 14.0))
    assert desk.inbox.seq == 0
    assert desk.inbox.source is Source.DEMO


def test_nothing_without_a_lease(desk):
    desk.send(np.zeros(14))
    desk.table.release("arms", desk.lease.token)
    assert not desk.inbox.poll(time.monotonic_ns())
    assert desk.asked() is None


def test_an_expired_lease_counts_for_nothing_even_without_a_supervisor(desk):
    desk.send(np.zeros(14))
    assert desk.asked() is not None
    later = time.monotonic_ns() + 6_000_000_000  # nobody published the expiry
    assert not desk.inbox.poll(later)
    assert desk.inbox.buffer.target(later).target is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token": 1}, Difference.OUT_OF_LEASE),
        ({"t_ns": 2**62}, Difference.STALE),
        ({"source": 99}, Difference.INVALID),
        ({"rows": 0}, Difference.INVALID),
        ({"rows": 129}, Difference.INVALID),
        ({"rows": 65535}, Difference.INVALID),
    ],
)
def test_a_bad_command_is_refused_and_the_last_good_one_stands(desk, change, reason):
    desk.send(np.full(14, 0.5))
    good = desk.asked()
    desk.send(np.full(14, 0.6), **change)
    assert desk.asked() == pytest.approx(good)
    assert desk.inbox.refused == reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(desk, bad):
    desk.send(np.full(14, 0.5))
    desk.asked()
    target = np.full(14, 0.6)
    target[9] = bad
    desk.send(target)
    assert desk.asked() == pytest.approx(np.full(7, 0.5))
    assert desk.inbox.refused == Difference.INVALID


def test_the_past_does_not_overtake_the_present(desk):
    now = time.monotonic_ns()
    desk.send(np.full(14, 0.5), t_ns=now)
    desk.asked()
    desk.send(np.full(14, 0.6), t_ns=now - 1)
    assert desk.asked() == pytest.approx(np.full(7, 0.5))
    assert desk.inbox.refused == Difference.STALE


def test_a_takeover_flushes_what_the_loser_asked(desk):
    desk.send(np.full(14, 0.5), source=Source.POLICY)
    assert desk.asked() is not None
    loser, old_mailbox = desk.lease, desk.mailbox
    desk.lease = desk.table.acquire("arms", "supervisor", Source.SUPERVISOR, 5.0)
    assert desk.asked() is None  # no mailbox yet: hold
    with old_mailbox.writing() as record:  # the loser goes on writing into its own
        record["token"] = loser.token
        record["t_ns"] = time.monotonic_ns()
        record["rows"] = 1
        record["target"][0] = 0.9
    assert desk.asked() is None
    desk.mailbox = desk.open()
    desk.send(np.full(14, 0.7))
    assert desk.asked() == pytest.approx(np.full(7, 0.7))
    old_mailbox.close()


def test_a_restarted_supervisor_is_followed(desk):
    desk.send(np.full(14, 0.5))
    assert desk.asked() is not None
    desk.table.close()
    desk.table = LeaseTable("lab", ["arms"])
    assert not desk.inbox.poll(time.monotonic_ns())
    desk.mailbox.close()
    desk.lease = desk.table.acquire("arms", "anna", Source.DEMO, 5.0)
    desk.mailbox = desk.open()
    desk.send(np.full(14, 0.3))
    assert desk.asked() == pytest.approx(np.full(7, 0.3))


def test_a_chunk_is_taken_whole(desk):
    start = time.monotonic_ns() - 1_000_000
    rows = np.linspace(0, 1, 10)[:, None] * np.ones(14)
    desk.send(rows, rows=10, start_t_ns=start)
    now = time.monotonic_ns()
    desk.inbox.poll(now)
    sample = desk.inbox.buffer.target(start + 9 * 20_000_000)
    assert sample.target == pytest.approx(np.ones(7))
    assert sample.chunk_id == 7
