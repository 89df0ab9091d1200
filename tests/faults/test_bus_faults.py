"""Faults of the servo bus while commands stream: bounded motion, both arms stop, a named fault."""

from __future__ import annotations

import os
import signal
import time

import pytest

from benchmarks.virtual_station import wait_until
from robot_stack.types import Lifecycle
from tests.faults.conftest import commands_arrive
from tests.faults.judge import ARM_STOP_S, assert_continuous, last_motion_ns, nothing_moves_for

pytestmark = pytest.mark.slow

ROBOTS = ("follower_left", "follower_right")
NOTICED_S = 0.5  # from the fault to the stop flag: 0.1 s of silence, and a busy machine
STALL_S = 0.15  # longer than a bus may be silent, shorter than the other arm may
TORQUE = [("follower_right", servo) for servo in (1, 2, 4, 6, 7, 8, 9)]


def both_stopped(station):
    return all(station.lifecycle(robot) in (Lifecycle.STOPPED, Lifecycle.FAULT) for robot in ROBOTS)


def assert_stopped_in_time(station, robot, fault_ns):
    """The last goal that changed came within the deadline after the fault."""
    t_ns, servos, ticks = station.goals(robot)
    assert assert_continuous(t_ns, servos, ticks) > 100
    late_s = (last_motion_ns(t_ns, servos, ticks) - fault_ns) / 1e9
    assert late_s < NOTICED_S + ARM_STOP_S + 1.0, f"{robot} still moved {late_s:.2f} s later"


def assert_holds(station, pairs):
    for robot, servo in pairs:
        get = station.buses.control.call("get", robot, servo_id=servo, name="torque_enable")
        assert get == 1, f"servo {servo} of {robot} lost its torque"


def recover(station):
    station.client.request("reset", timeout_s=30)
    station.client.arm("followers")
    assert all(station.lifecycle(robot) is Lifecycle.ARMED for robot in ROBOTS)


@pytest.mark.parametrize(
    ("op", "undo", "words"),
    [
        (("missing", {"servo_id": 4}), ("missing", {"servo_id": 4, "gone": False}), "servo 4"),
        (("unplug", {}), ("plug", {}), "hung up"),
        (("overload", {"servo_id": 9}), None, "servo 9 (gripper): overload"),
        (("reboot", {"servo_id": 8}), None, "servo 8"),
    ],
    ids=["missing", "unplug", "overload", "reboot"],
)
def test_a_fault_stops_both_arms_and_is_named(streaming, op, undo, words):
    name, arguments = op
    fault_ns = time.monotonic_ns()
    streaming.buses.control.call(name, "follower_left", **arguments)
    wait_until(lambda: both_stopped(streaming), "both arms stopping")
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.FAULT, "the fault")
    stop = streaming.client.status()["groups"]["followers"]["stop"]
    assert "follower_left" in stop
    # The fault's text in the tick goes on to what stands in the way of a new connection.
    assert words in streaming.log("arm.follower_left")
    nothing_moves_for(streaming, 0.3)
    for robot in ROBOTS:
        assert_stopped_in_time(streaming, robot, fault_ns)
    assert_holds(streaming, TORQUE)
    if undo is not None:
        streaming.buses.control.call(undo[0], "follower_left", **undo[1])
        wait_until(
            lambda: streaming.client.tick("follower_left")["age_s"].max() < 0.1, "the bus's return"
        )
    recover(streaming)
    commands_arrive(streaming)
    for robot in ROBOTS:
        assert_continuous(*streaming.goals(robot))


@pytest.mark.parametrize(
    ("op", "arguments"),
    [("drop", {"rate": 0.05}), ("corrupt", {"rate": 0.05}), ("delay", {"ms": 2.0})],
)
def test_a_bad_line_is_ridden_out(streaming, op, arguments):
    """Lost, damaged and late packets are retried: nobody stops, nothing jumps."""
    streaming.buses.control.call(op, "follower_left", **arguments)
    sent = streaming.streamer.sent
    wait_until(lambda: streaming.streamer.sent > sent + 100, "two seconds of streaming")
    streaming.buses.control.call("calm", "follower_left")
    assert streaming.lifecycle("follower_left") is Lifecycle.ARMED, streaming.fault("follower_left")
    for robot in ROBOTS:
        assert assert_continuous(*streaming.goals(robot)) > 100


def test_one_overloaded_servo_is_recovered_while_the_others_hold(streaming):
    streaming.buses.control.call("overload", "follower_left", servo_id=9)
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.FAULT, "the fault")
    others = [("follower_left", servo) for servo in (1, 2, 3, 4, 5, 6, 7, 8)]
    assert_holds(streaming, others + TORQUE)
    recover(streaming)
    assert_holds(streaming, [("follower_left", 9), *others, *TORQUE])
    limit = streaming.buses.control.call("get", "follower_left", servo_id=9, name="goal_current")
    assert limit == 200  # lost at the reboot, applied again


def test_a_host_that_stood_still_does_not_blame_the_bus(streaming):
    arms = [streaming.pid(f"arm.{robot}") for robot in ROBOTS]
    os.kill(streaming.buses.pid, signal.SIGSTOP)
    time.sleep(0.005)  # half a period: both arms have asked
    for process in arms:
        os.kill(process, signal.SIGSTOP)
    time.sleep(STALL_S)
    for process in arms:
        os.kill(process, signal.SIGCONT)
    time.sleep(STALL_S / 5)  # the answers of the first turns are missing
    os.kill(streaming.buses.pid, signal.SIGCONT)
    commands_arrive(streaming)
    stop = streaming.client.status()["groups"]["followers"]["stop"]
    assert not stop
    for robot in ROBOTS:
        assert_continuous(*streaming.goals(robot))
