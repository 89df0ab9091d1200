"""Workspace box and collision guard in the real arm process: slowed, stopped, free to go back."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.virtual_station import virtual_station, wait_until
from hardware.worlds.collision import end_effector
from robot_stack.types import Difference, Lifecycle
from tests.faults.conftest import command_rate
from tests.faults.judge import assert_continuous

pytestmark = pytest.mark.slow

SHOULDER, ELBOW, WAIST = 1, 2, 0


def stream(station, lease, target, seconds):
    """Ask for ``target`` from where the robots are, in steps that a leader could make."""
    start = np.concatenate([station.client.tick(r)["sent"] for r in station.station.robots])
    steps = int(seconds * 50)
    rate = command_rate()
    for i in range(1, steps + 1):
        lease.send(start + (np.asarray(target) - start) * min(1.0, 1.5 * i / steps))
        rate.wait()


def sent(station, robot="follower_left"):
    return station.client.tick(robot)["sent"]


def test_the_fingertips_stay_in_their_box():
    box = {"lower": [None, None, None], "upper": [0.45, None, None], "slow_m": 0.05}
    tip = end_effector("left")
    with virtual_station(
        robots={"follower_left": "vx300s"}, rate_hz=100.0, each={"workspace": box}
    ) as station:
        station.client.request("home", timeout_s=60)
        home = sent(station).copy()
        assert tip(home)[0] < 0.40
        reach = home.copy()
        reach[[SHOULDER, ELBOW]] += (0.9, -0.9)  # would take the fingertips far too far
        assert tip(reach)[0] > 0.52
        with station.client.lease("followers", "reacher") as lease:
            stream(station, lease, reach, 3.0)
            tick = station.client.tick("follower_left")
            assert Difference.WORKSPACE & int(tick["difference"])
            farthest = tip(tick["sent"])[0]
            assert 0.40 < farthest <= 0.45 + 1e-6
            stream(station, lease, sent(station), 0.3)
            stream(station, lease, home, 2.0)
        assert np.abs(sent(station) - home).max() < 0.02
        assert_continuous(*station.goals("follower_left"))


def test_two_arms_that_rush_at_each_other_stop_apart():
    robots = {"follower_left": "vx300s", "follower_right": "vx300s"}
    with virtual_station(robots=robots, rate_hz=100.0, guard=True) as station:
        station.client.request("home", timeout_s=60)
        home = np.concatenate([sent(station, robot) for robot in robots])
        reach = home.copy()
        for arm in (0, 7):
            reach[arm + SHOULDER] += 1.1
            reach[arm + ELBOW] -= 0.6
        with station.client.lease("followers", "rusher") as lease:
            stream(station, lease, reach, 3.0)
            ticks = [station.client.tick(robot) for robot in robots]
            assert any(Difference.COLLISION & int(tick["difference"]) for tick in ticks)
            assert min(float(tick["distance"]) for tick in ticks) > 0.0
            far = max(
                np.abs(t["sent"] - reach[i * 7 : i * 7 + 7]).max() for i, t in enumerate(ticks)
            )
            assert far > 0.1  # neither arrived
            here = np.concatenate([tick["sent"] for tick in ticks])
            stream(station, lease, here, 0.3)
            stream(station, lease, home, 3.0)
        wait_until(
            lambda: all(station.lifecycle(r) is Lifecycle.ARMED for r in robots), "armed arms"
        )
        for i, robot in enumerate(robots):
            assert np.abs(sent(station, robot) - home[i * 7 : i * 7 + 7]).max() < 0.02
            assert_continuous(*station.goals(robot))
