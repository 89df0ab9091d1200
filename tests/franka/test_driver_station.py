"""Faults of a Franka through arm process, supervisor and recorder: named, bounded, never a hang."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.recorder import RecordedRobot, Recorder, RecorderConfig
from hardware.franka.arm import FrankaArm
from robot_stack.episode import Episode, check
from robot_stack.errors import ControlPlaneError
from robot_stack.types import Difference, Lifecycle, Source
from server.control.children import HANG_S
from tests.franka.station import FrankaStation, Streamer, franka_station, until

pytestmark = pytest.mark.slow

FASTEST = 2.62  # rad/s: an FR3's first four joints
LATE_S = 0.03


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FrankaStation]]:
    """``served(**options)``: a station whose arm is armed, disarmed if ``armed=False``."""
    with ExitStack() as stack:
        # A socket's path has 107 characters at most: below pytest's own directories it is longer.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(directory / "runtime"))

        def start(*, armed: bool = True, **options: Any) -> FrankaStation:
            station = stack.enter_context(franka_station(directory, **options))
            if armed:
                station.client.arm("arm")
            return station

        yield start


def bounded(ticks: Any) -> None:
    """No measured step is one that the robot could not make, and no velocity is."""
    known = ticks[np.isfinite(ticks["dq"][:, 0])]
    assert np.abs(known["dq"][:, :7]).max() < FASTEST
    gaps = np.diff(known["t_ns"]) / 1e9
    steps = np.abs(np.diff(known["q"][:, :7], axis=0)).max(axis=1)
    # On a busy machine states come late and then together: no step is of more than that.
    assert (steps <= FASTEST * (gaps + LATE_S)).all()


def test_a_reflex_in_a_recorded_episode_is_named_recovered_and_kept(
    served: Callable[..., FrankaStation], tmp_path: Path
) -> None:
    station = served(recovery={"count": 2, "backoff_s": 2.0})
    spec = FrankaArm.from_config(station.station.robots["arm"], station.station).spec
    config = RecorderConfig(
        station="f",
        directory=tmp_path / "episodes",
        robots=(RecordedRobot("arm", spec),),
        cameras={},
        free_space_floor_bytes=0,
    )
    with Recorder(config) as recorder, Streamer(station):

        def recorded(condition: Callable[[], bool]) -> Callable[[], bool]:
            def poll() -> bool:
                recorder.poll()
                return condition()

            return poll

        recorder.start(task="survive a reflex")
        until(recorded(station.moves), "motion")
        station.virtual.fault("reflex", name="joint_velocity_violation")
        until(recorded(lambda: bool(station.tick()["notice"])), "the reflex")
        assert station.lifecycle() is Lifecycle.ARMED
        status = station.client.request("status")["robots"]["arm"]
        assert "joint_velocity_violation" in status["notice"]
        until(recorded(station.moves), "motion again")
        until(recorded(lambda: not station.tick()["notice"]), "the end of the notice")
        over = station.tick()["tick"] + 40  # ten rows
        until(recorded(lambda: station.tick()["tick"] > over), "rows without it")
        saved = recorder.stop(success=True)
    assert saved is not None
    assert [p.message for p in check(saved.path) if p.severity == "error"] == []
    with Episode.open(saved.path) as episode:
        assert episode.schema.tracks and episode.fault is not None
        named = [i for i, text in enumerate(episode.fault) if "joint_velocity_violation" in text]
        assert named, "the reflex must stand in the rows"
        assert "recovering (1 of 2)" in episode.fault[named[0]]
        assert "" in episode.fault, "rows without trouble say nothing"
        assert named[-1] < len(episode) - 1, "the last row's trouble is over"
        events = [event.text for event in episode.events if event.kind == "notice"]
        assert any("joint_velocity_violation" in text for text in events)
        assert (episode.difference[named] & Difference.TORQUE_OFF).any()
        assert episode.applied is not None and episode.success_rate is not None
        assert episode.target_age_s is not None
        before = slice(0, named[0])
        assert np.abs(episode.applied[before] - episode.action_sent[before]).max() < 0.05
        assert np.nanmax(episode.success_rate) > 0.5
        assert np.nanmin(episode.target_age_s) < 0.05
    bounded(station.ticks())


def test_too_many_reflexes_are_a_fault_that_a_reset_clears(
    served: Callable[..., FrankaStation],
) -> None:
    station = served(recovery={"count": 0})
    with Streamer(station):
        station.virtual.fault("reflex", name="cartesian_reflex")
        until(lambda: station.lifecycle() is Lifecycle.FAULT, "the fault")
        assert "reflex: cartesian_reflex" in station.fault()
    station.client.request("reset", timeout_s=30)
    station.client.arm("arm")
    with Streamer(station):
        assert station.lifecycle() is Lifecycle.ARMED
    bounded(station.ticks())


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_lost_packets_slow_nothing_down(served: Callable[..., FrankaStation], rate: float) -> None:
    station = served()
    with Streamer(station):
        for kind in ("lost_commands", "lost_states"):
            station.virtual.fault(kind, rate=rate)
        lost = station.virtual.call("status")["lost"]
        until(lambda: station.virtual.call("status")["lost"] > lost + 50, "losses")
        until(lambda: station.tick()["success_rate"] < 1.0 - 0.5 * rate, "a lower success rate")
        until(station.moves, "motion")
        assert station.lifecycle() in (Lifecycle.ARMED, Lifecycle.FAULT)
        assert station.lifecycle() is Lifecycle.ARMED, station.fault()
    bounded(station.ticks())


def test_a_network_that_stalls_for_100_ms_is_recovered_from(
    served: Callable[..., FrankaStation],
) -> None:
    station = served(recovery={"count": 2, "backoff_s": 2.0})
    with Streamer(station):
        station.virtual.fault("stall", ms=100)
        until(
            lambda: b"communication_constraints_violation" in station.tick()["notice"], "the reflex"
        )
        until(station.moves, "motion again")
        assert station.lifecycle() is Lifecycle.ARMED
    bounded(station.ticks())


@pytest.mark.exhaustive
def test_a_hand_that_hangs_is_named_and_the_arm_goes_on(
    served: Callable[..., FrankaStation],
) -> None:
    station = served(gripper={"deadline_s": 0.5})
    station.virtual.fault("gripper_hang")
    with station.client.lease("arm", "test", source=Source.DEMO) as lease:
        target = station.tick()["sent"].copy()
        start = target[0]
        target[7] = 0.2

        def pushed(condition: Callable[[], bool]) -> Callable[[], bool]:
            def send() -> bool:
                target[0] = min(target[0] + 0.002, start + 0.4)
                lease.send(target)
                return condition()

            return send

        until(pushed(lambda: b"gripper: hangs" in station.tick()["notice"]), "the notice")
        until(pushed(lambda: b"started again" in station.tick()["notice"]), "another worker")
        until(pushed(lambda: station.tick()["q"][0] > start + 0.38), "the arm going on")
        assert station.lifecycle() is Lifecycle.ARMED, station.fault()
        station.virtual.fault("gripper_hang", active=False)
        until(pushed(lambda: abs(station.tick()["q"][7] - 0.2) < 0.03), "the hand")
    bounded(station.ticks())


def test_a_stop_stops_the_hand_and_what_it_was_asked_is_not_done_later(
    served: Callable[..., FrankaStation],
) -> None:
    station = served(gripper={"speed": 0.02})  # 4 s for its stroke
    fingers_m: list[float] = []

    def stands() -> bool:
        """For half a second: a grasp that waited for the move would have begun."""
        fingers_m.append(station.virtual.call("status")["finger_width"])
        return len(fingers_m) > 50 and np.ptp(fingers_m[-50:]) < 2e-4

    for end in ("stop", "disarm", "silence", "lease"):
        opening = float(station.tick()["sent"][7])
        with station.client.lease("arm", "test", source=Source.DEMO) as lease:
            target = station.tick()["sent"].copy()

            def asked(
                gripper: float, condition: Callable[[], bool], lease: Any = lease, at: Any = target
            ) -> Callable[[], bool]:
                def send() -> bool:
                    at[7] = gripper
                    lease.send(at)
                    return condition()

                return send

            until(asked(opening / 2, lambda o=opening: station.tick()["q"][7] < o - 0.03), "a move")
            until(asked(0.0, lambda: station.tick()["sent"][7] < 0.001), "the squeeze")
            if end == "stop":
                station.client.stop("a finger is in it")
            elif end == "disarm":
                station.client.disarm("arm")
            elif end == "silence":
                fingers_m.clear()
                until(stands, "the hand standing")
        fingers_m.clear()
        until(stands, f"the hand standing after the {end}")
        assert fingers_m[-1] > 0.08 * opening / 2, f"{end}: the hand went on"
        if end == "stop":
            assert station.lifecycle() is Lifecycle.STOPPED
            station.client.request("reset", timeout_s=30)
        station.client.arm("arm")
        tick = station.tick()
        assert tick["notice"] == b"" and tick["applied"][7] == tick["sent"][7]
        assert tick["sent"][7] == pytest.approx(fingers_m[-1] / 0.08, abs=0.01)
        with station.client.lease("arm", "test", source=Source.DEMO) as lease:
            start = station.tick()["sent"].copy()

            def pushed(lease: Any = lease, at: Any = start, joint: float = start[0]) -> bool:
                at[0] = min(at[0] + 0.002, joint + 0.02)
                lease.send(at)
                return bool(station.tick()["q"][0] > joint + 0.015)

            until(pushed, "the arm going on")
        assert station.virtual.call("status")["finger_width"] == pytest.approx(
            fingers_m[-1], abs=5e-4
        ), f"{end}: armed again, the hand closes"


def test_a_user_stop_is_a_fault_until_it_is_released_and_reset(
    served: Callable[..., FrankaStation],
) -> None:
    station = served()
    with Streamer(station):
        station.virtual.fault("user_stop")
        until(lambda: station.lifecycle() is Lifecycle.FAULT, "the fault")
        assert "user stop" in station.fault()
    with pytest.raises(ControlPlaneError, match="still pressed"):
        station.client.request("reset", timeout_s=30)
    assert station.lifecycle() is Lifecycle.FAULT
    station.virtual.fault("user_stop", active=False)
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")
    station.client.arm("arm")
    with Streamer(station):
        pass


def test_a_robot_that_dies_in_motion_is_a_fault_and_may_come_back(
    served: Callable[..., FrankaStation],
) -> None:
    station = served()
    with Streamer(station):
        os.kill(station.virtual.pid, signal.SIGKILL)
        until(lambda: station.lifecycle() is Lifecycle.FAULT, "the fault")
        # The fault's own text goes on to what stands in the way of a new connection.
        assert "no state from the robot" in station.client.status()["groups"]["arm"]["stop"]
    station.virtual.close()
    station.plug_in()
    until(lambda: station.tick()["age_s"].max() < 0.1, "states again")
    until(lambda: station.virtual.call("status")["connected"], "a connection")
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")
    station.client.arm("arm")
    with Streamer(station):
        pass


def test_a_robot_that_half_closes_in_motion_never_hangs_the_station(
    served: Callable[..., FrankaStation],
) -> None:
    station = served()
    with Streamer(station):
        station.virtual.fault("half_close")
        until(lambda: station.lifecycle() is Lifecycle.FAULT, "the fault")
        # The fault's own text goes on to what stands in the way of a new connection.
        assert "no state from the robot" in station.client.status()["groups"]["arm"]["stop"]
    until(lambda: station.tick()["age_s"].max() < 0.1, "states again", 3 * HANG_S)
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")
    station.client.arm("arm")
    with Streamer(station):
        pass


def test_an_arm_process_that_is_killed_leaves_a_named_reflex_and_a_robot_that_holds(
    served: Callable[..., FrankaStation],
) -> None:
    station = served()
    with Streamer(station):
        os.kill(station.pid(), signal.SIGKILL)
        until(lambda: "died" in station.fault(), "its return in fault")
    until(lambda: np.abs(station.virtual.call("status")["dq"]).max() < 0.01, "rest")
    before = np.array(station.virtual.call("status")["q"])
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")
    after = np.array(station.virtual.call("status")["q"])
    assert np.abs(after - before).max() < 0.01, "a restart moves nothing"
    station.client.arm("arm")
    with Streamer(station):
        pass


@pytest.mark.exhaustive
def test_an_arm_process_that_hangs_in_motion_lets_the_arm_come_to_rest_and_is_replaced(
    served: Callable[..., FrankaStation],
) -> None:
    station = served()
    with Streamer(station):
        before = station.pid()
        os.kill(before, signal.SIGSTOP)
        until(lambda: np.abs(station.virtual.call("status")["dq"]).max() < 0.01, "rest")
        until(lambda: station.pid() != before, "another process", 3 * HANG_S)
        until(lambda: "died" in station.fault(), "its return in fault")
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")


@pytest.mark.exhaustive
def test_a_recovery_that_the_robot_never_answers_is_ended_from_outside(
    served: Callable[..., FrankaStation],
) -> None:
    """libfranka waits for ever for a reply from a server that has closed its half."""
    station = served(recovery={"count": 2, "backoff_s": 3.0})
    with Streamer(station):
        before = station.pid()
        station.virtual.fault("reflex", name="joint_velocity_violation")
        until(lambda: bool(station.tick()["notice"]), "the reflex")
        station.virtual.fault("half_close")
        until(lambda: station.pid() != before, "another process", 3 * HANG_S)
        until(lambda: "died" in station.fault(), "its return in fault")
    assert "hung" in (station.directory / "supervisor.log").read_text()
    station.client.request("reset", timeout_s=30)
    until(lambda: station.lifecycle() is Lifecycle.DISARMED, "the reset")
    station.client.arm("arm")
    with Streamer(station):
        pass


def test_a_version_mismatch_is_told_by_status(served: Callable[..., FrankaStation]) -> None:
    station = served(armed=False)
    station.virtual.fault("version", number=5)
    station.virtual.fault("half_close")
    os.kill(station.pid(), signal.SIGKILL)
    until(lambda: "pip install panda-python==1.1.1" in station.fault(), "the fault")
    assert station.lifecycle() is Lifecycle.FAULT
