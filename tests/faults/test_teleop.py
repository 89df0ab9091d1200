"""`robot-stack teleop` on four virtual arms, moved by hands from the far side of the buses."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from benchmarks.virtual_station import virtual_station, wait_until
from robot_stack.client import stop_all
from robot_stack.errors import ControlPlaneError
from robot_stack.types import Lifecycle
from tests.faults.judge import assert_continuous, nothing_moves_for
from tests.faults.teleoperation import FOLLOWERS, Teleop, asked, follows, let_go, move

pytestmark = pytest.mark.slow


@pytest.fixture
def station():
    with virtual_station(rate_hz=100.0) as running:
        yield running


@pytest.fixture(autouse=True)
def tell(station):
    yield
    print(station.log("teleop"), station.client.status() if station.supervisor else "")


def start(station, *options):
    """Start teleop and take it through the ritual by hand."""
    teleop = Teleop(station, *options)
    teleop.perform_ritual()
    return teleop


def test_ritual_following_a_killed_teleop_and_a_second_one(station):
    process = start(station).process
    move(station, 0.2)
    wait_until(lambda: follows(station, 0.2), "the followers following")
    process.send_signal(signal.SIGKILL)
    process.wait()
    move(station, 0.3)
    wait_until(lambda: not any(asked(station, [r]) for r in FOLLOWERS), "stale commands")
    for robot in FOLLOWERS:
        assert abs(station.client.tick(robot)["sent"][0] - 0.2) < 0.05
    let_go(station)
    wait_until(
        lambda: station.client.status()["groups"]["followers"]["holder"] is None, "the lease's end"
    )
    second = start(station).process
    second.send_signal(signal.SIGINT)
    assert second.wait(20) == 0
    for robot in FOLLOWERS:
        assert_continuous(*station.goals(robot))


def test_after_a_fault_the_leaders_come_to_the_followers(station):
    teleop = start(station, "--auto-recover")
    move(station, 0.2)
    wait_until(lambda: follows(station, 0.2), "the followers following")
    stopped_ns = time.monotonic_ns()
    station.buses.control.call("overload", "follower_right", servo_id=9)
    wait_until(lambda: "let go of them" in teleop.said(), "the drive, without being asked")
    teleop.be_driven()
    wait_until(lambda: follows(station, 0.2), "following again", 30)
    for robot in FOLLOWERS:
        t_ns, servos, ticks = station.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        # The followers stayed: no arm servo went farther than a stop needs.
        for servo, span in ((1, 0.2), (2, 0.05), (4, 0.05)):
            mine = (servos == servo) & (t_ns > stopped_ns)
            moved = ticks[mine]
            assert (moved.max() - moved.min()) * 2 * np.pi / 4096 < span


def test_a_stop_that_somebody_asked_for_outlasts_a_fault_and_its_recovery(station):
    teleop = start(station, "--auto-recover")
    move(station, 0.2)
    wait_until(lambda: follows(station, 0.2), "the followers following")
    assert stop_all("v", "a finger is in it") == ["followers", "leaders"]
    station.buses.control.call("overload", "follower_right", servo_id=9)
    wait_until(lambda: station.lifecycle("follower_right") is Lifecycle.FAULT, "the fault")
    wait_until(lambda: "not following: a finger is in it" in teleop.said(), "the word of it")
    nothing_moves_for(station, 0.5)
    assert "let go of them" not in teleop.said()
    for group in ("followers", "leaders"):
        with pytest.raises(ControlPlaneError, match=f"somebody has stopped {group}"):
            station.client.request("reset", {"group": group, "automatic": True})
    assert station.client.status()["groups"]["followers"]["stop"] == "a finger is in it"
    station.client.request("reset", timeout_s=30)  # as asked
    # Whoever arms it now does not know where the leaders are: near enough to be followed at once.
    move(station, 0.5)
    station.client.arm("followers")
    nothing_moves_for(station, 0.5)
    for robot in FOLLOWERS:
        assert station.lifecycle(robot) is Lifecycle.ARMED
        assert abs(station.client.tick(robot)["sent"][0] - 0.2) < 0.05
    wait_until(lambda: "not following: they were stopped meanwhile" in teleop.said(), "its word")


def test_a_leader_that_jumps_is_not_chased(station):
    start(station)
    before = station.client.tick("follower_left")["sent"][0]
    os.kill(station.pid("arm.leader_left"), signal.SIGSTOP)  # the computer looks away
    wait_until(lambda: not asked(station), "stale commands")
    station.hand("leader_left", {0: 1.2})
    os.kill(station.pid("arm.leader_left"), signal.SIGCONT)
    wait_until(
        lambda: abs(station.client.tick("leader_left")["q"][0] - 1.2) < 0.05, "the leader's return"
    )
    nothing_moves_for(station, 0.5)
    assert abs(station.client.tick("follower_left")["sent"][0] - before) < 0.05
    assert_continuous(*station.goals("follower_left"))
