"""Leases: one holder a group, growing tokens, expiry, and stop > human > policy."""

from __future__ import annotations

import time

import pytest

from robot_stack.errors import LeaseError
from robot_stack.records import lease_path, mailbox_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Source
from server.control.lease import LeaseTable


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    table = LeaseTable("lab", ["arms"])
    yield table
    table.close()


def published():
    with Ring(lease_path("lab", "arms")) as ring:
        return ring.latest()[1]


def test_nobody_holds_a_new_group(table):
    assert table.holder("arms") is None
    assert published()["token"] == -1


def test_a_second_human_waits_for_the_first(table):
    first = table.acquire("arms", "anna", Source.DEMO, 2.0)
    with pytest.raises(LeaseError, match="held by 'anna'"):
        table.acquire("arms", "ben", Source.HUMAN, 2.0)
    table.release("arms", first.token)
    assert published()["token"] == -1
    assert table.acquire("arms", "ben", Source.HUMAN, 2.0).token > first.token


def test_humans_take_over_from_policies_and_not_the_other_way(table):
    policy = table.acquire("arms", "net", Source.POLICY, 2.0)
    human = table.acquire("arms", "anna", Source.HUMAN, 2.0)
    assert human.token > policy.token
    assert published()["token"] == human.token
    with pytest.raises(LeaseError, match="taken over by 'anna'"):
        table.renew("arms", policy.token)
    with pytest.raises(LeaseError, match="priority 2, yours 1"):
        table.acquire("arms", "net", Source.POLICY, 2.0)
    table.release("arms", policy.token)  # a loser's release frees nothing
    assert table.holder("arms").token == human.token


def test_the_supervisor_takes_over_from_humans(table):
    table.acquire("arms", "anna", Source.HUMAN, 2.0)
    assert table.acquire("arms", "home", Source.SUPERVISOR, 2.0).holder == "home"


def test_a_lease_that_is_not_renewed_expires(table):
    lease = table.acquire("arms", "anna", Source.HUMAN, 0.1)
    deadline = time.monotonic() + 10
    while table.holder("arms") is not None:
        assert time.monotonic() < deadline
    assert published()["token"] == -1
    with pytest.raises(LeaseError, match="expired"):
        table.renew("arms", lease.token)


def test_renewal_moves_the_expiry(table):
    lease = table.acquire("arms", "anna", Source.HUMAN, 2.0)
    before = int(published()["expires_t_ns"])
    table.renew("arms", lease.token)
    assert int(published()["expires_t_ns"]) > before


def test_a_new_grant_removes_the_old_mailbox(table):
    old = table.acquire("arms", "net", Source.POLICY, 2.0)
    path = mailbox_path("lab", "arms", old.token)
    path.write_bytes(b"x")
    table.acquire("arms", "anna", Source.HUMAN, 2.0)
    assert not path.exists()


def test_tokens_grow_across_supervisors(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    first = LeaseTable("lab2", ["arms"])
    token = first.acquire("arms", "anna", Source.HUMAN, 2.0).token
    first.close()
    second = LeaseTable("lab2", ["arms"])
    assert second.acquire("arms", "anna", Source.HUMAN, 2.0).token > token
    second.close()


@pytest.mark.parametrize("ttl", [0.0, 61.0, float("nan")])
def test_odd_lifetimes_are_refused(table, ttl):
    with pytest.raises(LeaseError, match=r"0\.1\.\.60"):
        table.acquire("arms", "anna", Source.HUMAN, ttl)


def test_sources_that_cannot_hold(table):
    with pytest.raises(LeaseError, match="NONE"):
        table.acquire("arms", "x", Source.NONE, 2.0)
