"""Each process is killed in turn: the arms hold, nothing is dropped, work can go on."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import numpy as np
import pytest

from benchmarks.virtual_station import virtual_station, wait_until
from robot_stack.cli import main
from robot_stack.client import StationClient
from robot_stack.errors import ControlPlaneError, LeaseError
from robot_stack.processes import started_at
from robot_stack.records import ring_path
from robot_stack.shared_memory import Flag
from robot_stack.types import Difference, Lifecycle, Source
from server.control.children import HANG_S
from tests.faults.conftest import FOLLOWERS, Streamer, command_rate, commands_arrive
from tests.faults.judge import ARM_STOP_S, assert_continuous, last_motion_ns, nothing_moves_for

pytestmark = pytest.mark.slow

ROBOTS = tuple(FOLLOWERS)
STALE_S = 0.1


def torque(station, robot):
    call = station.buses.control.call
    return [call("get", robot, servo_id=s, name="torque_enable") for s in range(1, 10)]


def send(lease, target, times):
    """The same command again and again, at a client's pace."""
    rate = command_rate()
    for _ in range(times):
        lease.send(target)
        rate.wait()


def test_a_killed_arm_process_drops_nothing_and_stops_the_other_arm(streaming):
    killed_ns = time.monotonic_ns()
    os.kill(streaming.pid("arm.follower_left"), signal.SIGKILL)
    wait_until(lambda: streaming.lifecycle("follower_right") is Lifecycle.STOPPED, "the other arm")
    wait_until(
        lambda: streaming.lifecycle("follower_left") is Lifecycle.FAULT, "its return in fault"
    )
    assert "died and was started again" in streaming.fault("follower_left")
    assert torque(streaming, "follower_left") == [1] * 9
    assert torque(streaming, "follower_right") == [1] * 9
    nothing_moves_for(streaming, 0.3)
    for robot in ROBOTS:
        t_ns, servos, ticks = streaming.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        assert (last_motion_ns(t_ns, servos, ticks) - killed_ns) / 1e9 < 2.0
    streaming.client.request("reset", timeout_s=30)
    streaming.client.arm("followers")
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.ARMED, "arming again")
    commands_arrive(streaming)
    assert_continuous(*streaming.goals("follower_left"))


def test_an_arm_process_that_hangs_is_killed_and_comes_back_in_fault(station):
    station.client.arm("followers")
    before = station.pid("arm.follower_left")
    log = station.directory / "v" / "arm.follower_right.log"
    with log.open("a") as file:
        file.write("a line that comes in every turn\n" * 100_000)
    os.kill(before, signal.SIGSTOP)  # as one that a library keeps for ever: it lives, and is silent
    wait_until(lambda: station.pid("arm.follower_left") != before, "a new arm process", 3 * HANG_S)
    assert started_at(before) is None
    wait_until(lambda: station.lifecycle("follower_left") is Lifecycle.FAULT, "its return in fault")
    assert log.stat().st_size < 100_000, "logs lie in memory"
    assert "arm.follower_left hung" in station.log("supervisor")
    assert station.lifecycle("follower_right") is Lifecycle.STOPPED
    assert torque(station, "follower_left") == [1] * 9
    station.client.request("reset", timeout_s=30)
    station.client.arm("followers")
    wait_until(lambda: station.lifecycle("follower_left") is Lifecycle.ARMED, "arming again")


def test_a_killed_supervisor_leaves_the_arms_holding_and_is_succeeded(streaming):
    pids = {robot: streaming.pid(f"arm.{robot}") for robot in ROBOTS}
    streaming.supervisor.kill()
    streaming.supervisor.wait()
    # The lease runs out, since nobody renews it; until then the client goes on.
    wait_until(
        lambda: all(
            int(streaming.client.tick(robot)["difference"]) & Difference.OUT_OF_LEASE
            for robot in ROBOTS
        ),
        "the lease expiring",
    )
    for robot in ROBOTS:
        assert torque(streaming, robot) == [1] * 9
        assert_continuous(*streaming.goals(robot))
    streaming.serve()
    assert {robot: streaming.pid(f"arm.{robot}") for robot in ROBOTS} == pids
    with Streamer(streaming):
        assert streaming.lifecycle("follower_left") is Lifecycle.ARMED


def test_a_killed_commander_is_noticed_and_the_arms_decelerate(station):
    station.client.arm("followers")
    with Streamer(station) as streamer:
        streamer._ended.set()  # it stops sending; its lease goes back at the end of the thread
        ended_ns = time.monotonic_ns()
    wait_until(
        lambda: not np.isfinite(station.client.tick("follower_left")["asked"]).any(), "staleness"
    )
    nothing_moves_for(station, 0.3)
    for robot in ROBOTS:
        t_ns, servos, ticks = station.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        moved_s = (last_motion_ns(t_ns, servos, ticks) - ended_ns) / 1e9
        assert moved_s < STALE_S + ARM_STOP_S + 0.5
    assert station.lifecycle("follower_left") is Lifecycle.ARMED


def test_all_of_the_hardware_going_away_is_a_named_fault(streaming):
    """Like pulling the plug of the whole robot: the world process dies."""
    os.kill(streaming.buses.pid, signal.SIGKILL)
    for robot in ROBOTS:
        wait_until(lambda robot=robot: streaming.lifecycle(robot) is Lifecycle.FAULT, robot)
        assert streaming.fault(robot)
    with pytest.raises(ControlPlaneError, match="stopped"):
        streaming.client.arm("followers")


def test_a_stop_needs_no_supervisor_and_latches(streaming):
    streaming.supervisor.send_signal(signal.SIGSTOP)
    try:
        streaming.file.write_text(streaming.file.read_text() + "tsk: being edited\n")
        stopped_ns = time.monotonic_ns()
        assert main(["stop", str(streaming.file), "--group", "followers"]) == 0
        wait_until(
            lambda: all(streaming.lifecycle(robot) is Lifecycle.STOPPED for robot in ROBOTS), "stop"
        )
    finally:
        streaming.supervisor.send_signal(signal.SIGCONT)
    nothing_moves_for(streaming, 0.3)
    for robot in ROBOTS:
        t_ns, servos, ticks = streaming.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        assert (last_motion_ns(t_ns, servos, ticks) - stopped_ns) / 1e9 < ARM_STOP_S + 0.5
    with pytest.raises(ControlPlaneError, match="stopped"):
        streaming.client.arm("followers")
    streaming.client.request("reset")
    assert streaming.lifecycle("follower_left") is Lifecycle.DISARMED
    streaming.client.arm("followers")


def test_a_stop_flag_that_vanishes_stops_both_arms_and_is_named(streaming):
    """Nobody could stop them any more: a cleaner of shared memory has been at work."""
    vanished_ns = time.monotonic_ns()
    ring_path("v", "stop", "followers").unlink()
    for robot in ROBOTS:
        wait_until(lambda robot=robot: streaming.lifecycle(robot) is Lifecycle.FAULT, robot)
    assert any("stop flag has vanished" in streaming.fault(robot) for robot in ROBOTS)
    nothing_moves_for(streaming, 0.3)
    for robot in ROBOTS:
        t_ns, servos, ticks = streaming.goals(robot)
        assert_continuous(t_ns, servos, ticks)
        # It is looked for every 128 turns, 1.28 s here.
        assert (last_motion_ns(t_ns, servos, ticks) - vanished_ns) / 1e9 < 1.28 + ARM_STOP_S + 0.5
        assert torque(streaming, robot) == [1] * 9
    # One that is made anew is not the one that the arms look at: a reset does not help.
    Flag(ring_path("v", "stop", "followers")).close()
    with contextlib.suppress(ControlPlaneError):
        streaming.client.request("reset", timeout_s=30)
        streaming.client.arm("followers")
    wait_until(lambda: streaming.lifecycle("follower_left") is Lifecycle.FAULT, "the fault again")


def test_two_clients_fight_for_the_lease(streaming):
    with StationClient("v") as second:
        with pytest.raises(LeaseError, match="held by 'streamer'"):
            second.lease("followers", "other", source=Source.HUMAN)
        with pytest.raises(LeaseError):
            second.lease("followers", "net", source=Source.POLICY)
    assert streaming.streamer.error is None


def test_a_human_takes_over_from_a_policy_mid_motion(station):
    station.client.arm("followers")
    with Streamer(station, Source.POLICY) as policy, StationClient("v") as human:
        with human.lease("followers", "human", source=Source.HUMAN) as lease:
            hold = np.concatenate([human.tick(robot)["sent"] for robot in ROBOTS])
            send(lease, hold, 25)
            assert station.client.tick("follower_left")["source"] == Source.HUMAN
        wait_until(lambda: policy.error is not None, "the policy's notice")
        assert "lost" in str(policy.error)
    for robot in ROBOTS:
        assert_continuous(*station.goals(robot))


def test_bad_commands_move_nothing(station):
    client = station.client
    client.arm("followers")
    with client.lease("followers", "tester") as lease:
        hold = np.concatenate([client.tick(robot)["sent"] for robot in ROBOTS])
        lease.send(hold)
        before = client.tick("follower_left")["sent"]
        bad = [np.full(14, np.nan), np.full(14, np.inf), hold + 2.0]
        for target in bad:
            send(lease, target, 10)
        lease.token -= 1
        send(lease, hold + 0.3, 5)
        lease.token += 1
        lease.send(hold + 0.3, t_ns=time.monotonic_ns() - 2_000_000_000)
        nothing_moves_for(station, 0.2)
        assert client.tick("follower_left")["sent"] == pytest.approx(before, abs=1e-6)


def test_shutdown_lowers_the_arms_and_takes_torque_only_at_rest():
    with virtual_station(robots=FOLLOWERS, rate_hz=100.0) as station:
        station.client.request("home", timeout_s=60)
        assert torque(station, "follower_left") == [1] * 9
        reply = station.client.request("shutdown", timeout_s=60)
        assert reply["kept_torque"] == []
        assert station.supervisor.wait(20) == 0
        for robot in ROBOTS:
            t_ns, servos, ticks = station.goals(robot)
            assert_continuous(t_ns, servos, ticks)
            # Shoulder -1.85 rad, elbow 1.55, wrist angle 0.8: servos 2, 4, 7 around 2048.
            for servo, angle in ((2, -1.85), (4, 1.55), (7, 0.8)):
                last = ticks[servos == servo][-1]
                assert abs((last - 2048) * 2 * np.pi / 4096 - angle) < 0.02
            assert torque(station, robot) == [0] * 9
