"""Faults found by reading: each was a way to move, wedge or deceive that is closed now."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from benchmarks.virtual_station import virtual_station, wait_until
from robot_stack.client import StationClient
from robot_stack.errors import ControlPlaneError
from robot_stack.records import mailbox_path, ring_path
from robot_stack.shared_memory import Flag
from robot_stack.types import Difference, Lifecycle, Source
from tests.faults.conftest import command_rate
from tests.faults.judge import assert_continuous, last_motion_ns, nothing_moves_for

pytestmark = pytest.mark.slow

ROBOTS = ("follower_left", "follower_right")


def test_a_reset_that_half_fails_moves_nothing_and_stays_a_fault(streaming):
    """The master of a pair is not rebooted while its shadow holds: reset refuses, by name."""
    streaming.buses.control.call("overload", "follower_left", servo_id=9)
    streaming.buses.control.call("overload", "follower_left", servo_id=2)
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.FAULT, "the fault")
    nothing_moves_for(streaming, 0.3)
    since_ns = time.monotonic_ns()
    with pytest.raises(ControlPlaneError, match="support the arm"):
        streaming.client.request("reset", timeout_s=30)
    assert "support the arm" in streaming.fault("follower_left")
    assert "support the arm" in streaming.client.status()["groups"]["followers"]["stop"]
    nothing_moves_for(streaming, 0.3, counts=1)
    t_ns, servos, ticks = streaming.goals("follower_left")
    for servo in (1, 4, 6, 7, 8):
        after = ticks[(servos == servo) & (t_ns > since_ns)]
        assert len(after) == 0 or after.max() - after.min() <= 1


class GivenUpError(Exception):
    """Whoever asked for a move has something else to do."""


def test_a_move_ends_with_its_asker_and_with_its_supervisor(station):
    """The supervisor makes it, for somebody who waits for it, or no more."""
    client = station.client

    def shoulder() -> float:
        return float(client.tick("follower_left")["sent"][1])

    def goes(since: float) -> bool:
        return (
            client.tick("follower_left")["source"] == Source.SUPERVISOR
            and abs(shoulder() - since) > 0.04
        )

    def stands(since_ns: int, within_s: float, goal: float = -0.96) -> None:
        nothing_moves_for(station, 0.2)
        t_ns, servos, ticks = station.goals("follower_left")
        assert (last_motion_ns(t_ns, servos, ticks) - since_ns) / 1e9 < within_s
        assert_continuous(t_ns, servos, ticks)
        assert abs(shoulder() - goal) > 0.02, "it went on to the end"

    start, hung_ns = shoulder(), 0

    def hang_when_it_moves() -> None:
        nonlocal hung_ns
        if goes(start):
            hung_ns = time.monotonic_ns()
            station.supervisor.send_signal(signal.SIGSTOP)
            raise GivenUpError

    try:
        with pytest.raises(GivenUpError):
            client.to_pose("home", "followers", keep=hang_when_it_moves)
        stands(hung_ns, 2.0)
        assert all(station.lifecycle(robot) is Lifecycle.STOPPED for robot in ROBOTS)
    finally:
        station.supervisor.send_signal(signal.SIGCONT)
    client.request("reset", timeout_s=30)

    start = shoulder()
    asker = station.start("home", "v")
    wait_until(lambda: goes(start), "motion")
    ended_ns = time.monotonic_ns()
    asker.send_signal(signal.SIGINT)
    assert asker.wait(20) == 130
    stands(ended_ns, 1.0)
    assert all(station.lifecycle(robot) is Lifecycle.DISARMED for robot in ROBOTS)
    groups = client.status()["groups"]["followers"]
    assert (groups["holder"], groups["stop"]) == (None, None)

    start = shoulder()
    client.post("sleep")
    wait_until(lambda: goes(start), "motion")
    station.supervisor.send_signal(signal.SIGKILL)
    station.supervisor.wait()
    killed_ns = time.monotonic_ns()
    wait_until(
        lambda: all(int(client.tick(r)["difference"]) & Difference.OUT_OF_LEASE for r in ROBOTS),
        "the lease's end",
    )
    stands(killed_ns, 2.0, goal=-1.85)


def test_malformed_requests_are_answered_and_harm_nobody(station):
    client = station.client
    bodies = [
        ("lease.renew", {"group": "followers", "token": "x"}),
        ("lease.renew", {}),
        ("lease.acquire", {"group": "followers", "holder": "\ud800", "ttl_s": 1.0, "source": 99}),
        ("lease.acquire", {"group": ["followers"], "holder": "x", "ttl_s": 1.0}),
        ("lease.acquire", {"group": "followers", "holder": "x", "ttl_s": int("9" * 400)}),
        ("torque", {"robot": "follower_left", "joints": 7, "on": True}),
        ("arm", {"group": {"a": 1}}),
        ("no.such.request", {}),
    ]
    for kind, body in bodies:
        with pytest.raises(ControlPlaneError):
            client.request(kind, body)
    assert station.supervisor.poll() is None
    assert client.status()["groups"]["followers"]["holder"] is None
    with client.lease("followers", "\ud800 odd name") as lease:
        assert client.status()["groups"]["followers"]["token"] == lease.token


def test_a_stop_of_a_category_that_is_none_stops_and_does_not_hide_a_button(station):
    """Category 0 is the power switch's; its value would count as stronger than a button's 1."""
    flag = Flag(ring_path("v", "stop", "followers"))
    for category in (0, 7, "off", None):
        with pytest.raises(ControlPlaneError, match=r"stopped, with category 2.*power switch"):
            station.client.request("stop", {"category": category})
        assert flag.value == 3 and flag.asked, category
        station.client.request("reset", timeout_s=30)
    station.client.request("stop", {"category": 1})
    assert flag.value == 2
    flag.close()


def test_a_mailbox_that_is_none_is_refused_and_the_arm_lives(station):
    client = station.client
    client.arm("followers")
    grant = client.request(
        "lease.acquire",
        {"group": "followers", "holder": "odd", "source": int(Source.DEMO), "ttl_s": 5.0},
    )
    mailbox_path("v", "followers", grant["token"]).write_bytes(b"no ring" * 100)
    wait_until(
        lambda: int(client.tick("follower_left")["token"]) == grant["token"], "the lease seen"
    )
    seen = int(client.tick("follower_left")["tick"])
    wait_until(lambda: int(client.tick("follower_left")["tick"]) > seen + 20, "further turns")
    assert all(station.lifecycle(robot) is Lifecycle.ARMED for robot in ROBOTS)


def test_leases_of_one_client_do_not_eat_each_others_answers():
    with virtual_station(rate_hz=100.0) as station, StationClient("v") as client:
        with (
            client.lease("followers", "both", source=Source.POLICY) as followers,
            client.lease("leaders", "both", source=Source.POLICY) as leaders,
            StationClient("v") as human,
            human.lease("leaders", "human", source=Source.HUMAN),
        ):
            hold = np.zeros(14)

            def noticed() -> bool:
                followers.send(hold)
                leaders.renew()
                return leaders.lost is not None

            wait_until(noticed, "the loss of the leaders' lease", 20)
            assert "human" in leaders.lost
            assert followers.lost is None
        del station


def test_commands_while_stopped_are_forgotten(streaming):
    """Neither kept (the loop's memory would grow) nor done later."""
    streaming.client.stop("test")
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.STOPPED, "the stop")
    sent = streaming.streamer.sent
    wait_until(lambda: streaming.streamer.sent > sent + 50, "a second of commands")
    held = streaming.client.tick("follower_left")["sent"].copy()
    streaming.streamer._ended.set()
    wait_until(
        lambda: streaming.client.status()["groups"]["followers"]["holder"] is None, "its end"
    )
    streaming.client.request("reset")
    streaming.client.arm("followers")
    nothing_moves_for(streaming, 0.3)
    # It goes on from the goal registers, which are rounded to counts of 1.5 mrad.
    assert streaming.client.tick("follower_left")["sent"] == pytest.approx(held, abs=2e-3)


def test_torque_asked_for_at_rest_is_not_taken_from_an_arm_that_has_left_it_meanwhile(station):
    """The order waits for a moving arm to stand, and then the arm would fall."""
    for _ in range(3):
        reply = _torque_off_while_moving(station)
        if reply.kind == "error":  # else a busy machine let it stand on the way, while at rest
            break
    assert reply.kind == "error"
    assert "follower_left would fall" in reply.body["message"]
    for servo in range(1, 10):
        assert station.buses.control.call(
            "get", "follower_left", servo_id=servo, name="torque_enable"
        )


def _torque_off_while_moving(station):
    """The answer to torque-off, asked for when the arm moves near its sleep pose, on its way up."""
    client = station.client
    client.arm("followers")
    body = {"robot": "follower_left", "joints": [True] * 7, "on": False}
    number = -1
    with client.lease("followers", "mover") as lease:
        start = np.concatenate([client.tick(robot)["sent"] for robot in ROBOTS])
        rate = command_rate()
        for i in range(120):
            target = start.copy()
            target[0] += 0.1 * np.sin(0.2 * i)
            target[1] += 0.01 * max(0, i - 60)
            lease.send(target)
            if i == 30:
                number = client.post("torque", body)
            rate.wait()
        replies = []  # nothing is sent: the arm brakes and stands
        wait_until(lambda: replies.append(client.poll_reply(number)) or replies[-1], "an answer")
    return replies[-1]
