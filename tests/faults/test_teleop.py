"""`robot-stack teleop` on four virtual arms, moved by hands from the far side of the buses."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from benchmarks.virtual_station import virtual_station, wait_until
from robot_stack.types import Lifecycle
from tests.faults.judge import assert_continuous

pytestmark = pytest.mark.slow

LEADERS = ("leader_left", "leader_right")
FOLLOWERS = ("follower_left", "follower_right")
CLOSED_RAD = -0.68  # a leader's gripper, tonyzhaozh/aloha
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)


@pytest.fixture
def station():
    with virtual_station(rate_hz=100.0) as running:
        yield running


@pytest.fixture(autouse=True)
def tell(station):
    yield
    print(station.log("teleop"), station.client.status() if station.supervisor else "")


def leader_torque(station, robot):
    return [bool(on) for on in station.client.tick(robot)["torque"]]


def start(station, *options):
    """Start teleop and take it through the ritual by hand; returns its process."""
    process = station.start("teleop", str(station.file), "--wait", "60", *options)
    wait_until(
        lambda: all(
            station.lifecycle(r) is Lifecycle.ARMED
            and leader_torque(station, r) == [True] * 6 + [False]
            for r in LEADERS
        ),
        "the leaders' grippers being freed",
        60,
    )
    for robot in LEADERS:  # held at home under torque, the gripper in the operator's hand
        assert np.abs(station.client.tick(robot)["q"][:6] - HOME).max() < 0.1
        station.hand(robot, {6: CLOSED_RAD})
    wait_until(
        lambda: all(not any(leader_torque(station, r)) for r in LEADERS), "the leaders' release", 30
    )
    for robot in LEADERS:  # a hand takes over from the torque
        station.hand(robot, dict(enumerate(HOME)))
    wait_until(lambda: follows(station, 0.0), "following")
    return process


def follows(station, waist):
    """Whether both followers are asked to have their waist at ``waist``, and have it there."""
    ticks = [station.client.tick(robot) for robot in FOLLOWERS]
    return all(abs(t["asked"][0] - waist) < 0.02 and abs(t["q"][0] - waist) < 0.05 for t in ticks)


def move(station, waist):
    for robot in LEADERS:
        station.hand(robot, {0: waist})


def let_go(station):
    for robot in LEADERS:
        station.hand(robot, dict.fromkeys(range(7)))


def test_ritual_following_a_killed_teleop_and_a_second_one(station):
    process = start(station)
    move(station, 0.2)
    wait_until(lambda: follows(station, 0.2), "the followers following")
    process.send_signal(signal.SIGKILL)
    process.wait()
    move(station, 0.3)
    wait_until(
        lambda: all(not np.isfinite(station.client.tick(r)["asked"]).any() for r in FOLLOWERS),
        "the commands going stale",
    )
    for robot in FOLLOWERS:
        assert abs(station.client.tick(robot)["sent"][0] - 0.2) < 0.05
    let_go(station)
    wait_until(
        lambda: station.client.status()["groups"]["followers"]["holder"] is None, "the lease's end"
    )
    second = start(station)
    second.send_signal(signal.SIGINT)
    assert second.wait(20) == 0
    for robot in FOLLOWERS:
        assert_continuous(*station.goals(robot))


def test_after_a_fault_the_leaders_come_to_the_followers(station):
    start(station, "--auto-recover")
    move(station, 0.2)
    wait_until(lambda: follows(station, 0.2), "the followers following")
    stopped_ns = time.monotonic_ns()
    station.buses.control.call("overload", "follower_right", servo_id=9)
    wait_until(
        lambda: (
            station.lifecycle("follower_right") is Lifecycle.FAULT
            or any(leader_torque(station, "leader_right"))
        ),
        "the fault",
    )
    let_go(station)
    grippers = [True] * 6 + [False]
    wait_until(lambda: all(leader_torque(station, r) == grippers for r in LEADERS), "driving", 60)
    assert not station.log("teleop").endswith("the leaders are free\n")
    for robot in LEADERS:  # hands are back, and show it
        station.hand(robot, {6: CLOSED_RAD + 0.3})
    wait_until(lambda: all(not any(leader_torque(station, r)) for r in LEADERS), "release", 60)
    wait_until(lambda: follows(station, 0.2), "following again", 30)
    for robot in FOLLOWERS:
        t_ns, servos, ticks = station.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        # The followers stayed: no arm servo went farther than a stop needs.
        for servo, span in ((1, 0.2), (2, 0.05), (4, 0.05)):
            mine = (servos == servo) & (t_ns > stopped_ns)
            moved = ticks[mine]
            assert (moved.max() - moved.min()) * 2 * np.pi / 4096 < span


def test_a_leader_that_jumps_is_not_chased(station):
    start(station)
    before = station.client.tick("follower_left")["sent"][0]
    os.kill(station.pid("arm.leader_left"), signal.SIGSTOP)  # the computer looks away
    station.hand("leader_left", {0: 1.2})
    time.sleep(0.2)
    os.kill(station.pid("arm.leader_left"), signal.SIGCONT)
    wait_until(
        lambda: abs(station.client.tick("leader_left")["q"][0] - 1.2) < 0.05, "the leader's return"
    )
    time.sleep(0.5)
    assert abs(station.client.tick("follower_left")["sent"][0] - before) < 0.05
    assert_continuous(*station.goals("follower_left"))
