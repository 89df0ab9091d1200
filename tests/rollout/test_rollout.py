"""`robot-stack run` against a real policy server and a real station on virtual buses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from multiprocessing.context import ForkServerContext

import numpy as np
import pytest
import yaml

from benchmarks.virtual_station import VirtualStation, wait_until
from robot_stack.client import StationClient
from robot_stack.episode import Episode
from robot_stack.types import Difference, Lifecycle, Source
from tests.faults.judge import assert_continuous, last_motion_ns
from tests.rollout.conftest import HANG_S, ReachServer
from tests.rollout.reach import EXECUTE, SPEED, WAIST

pytestmark = pytest.mark.slow

ROBOTS = ("follower_left", "follower_right")
WAIST_LIMIT = 3.0  # rad/s: the arm's own is 3.14


def start(station: VirtualStation, reach: ReachServer, *options: str) -> subprocess.Popen[bytes]:
    """The command; its output is in ``station.log("run")``."""
    log = station.directory / "run.log"
    log.unlink(missing_ok=True)
    return station.start(
        "run",
        *("--policy", reach.endpoint, "--station", str(station.file)),
        *("--group", "followers", "--json", *options),
    )


def result(station: VirtualStation, run: subprocess.Popen[bytes]) -> dict:
    run.wait(HANG_S)
    return json.loads(station.log("run").strip().splitlines()[-1])


def waist(station: VirtualStation) -> float:
    return float(station.client.tick("follower_left")["q"][0])


def go_to(station: VirtualStation, angle: float) -> None:
    """Bring the left waist somewhere, at once and within the limits."""
    with StationClient("v") as client, client.lease("followers", "test") as lease:
        client.request("reset", {"group": "followers"})
        client.arm("followers")
        target = np.concatenate([client.tick(r)["sent"] for r in ROBOTS])

        def there() -> bool:
            step = np.clip(angle - target[0], -0.02, 0.02)
            target[0] += step
            lease.send(target)
            return abs(waist(station) - angle) < 0.02

        wait_until(there, f"the waist at {angle}")


def test_a_policy_moves_the_arm_and_the_recording_tells_how(
    station: VirtualStation, reach: ReachServer, tmp_path
) -> None:
    go_to(station, 0.0)
    run = start(station, reach, "--seconds", "4", "--start", "here", "--record", str(tmp_path))
    said = result(station, run)
    assert run.returncode == 0, station.log("run")
    assert said["chunks"] >= 8
    assert said["unanswered"] == 0
    assert abs(waist(station) - WAIST) < 0.05
    assert {"capture", "send", "queue", "infer", "reply", "actuate", "total"} <= set(
        said["latency_ms"]
    )
    with Episode.open(said["file"]) as episode:
        moved = episode.source == Source.POLICY
        assert moved.sum() > 100
        chunk, index = episode.chunk_id[moved], episode.chunk_index[moved]
        assert len(set(chunk[chunk >= 0])) >= 8
        assert (np.diff(chunk[chunk >= 0]) >= 0).all()
        # A chunk is left once its rows are executed, not before half of them are.
        lengths = [index[chunk == one].max() for one in sorted(set(chunk[chunk >= 0]))[1:-1]]
        assert EXECUTE // 2 <= np.median(lengths) <= EXECUTE + 5
        age = episode.t_ns[moved] - episode.observation_t_ns[moved]
        assert (age[index >= 0] > 0).all()
        assert np.median(age[index >= 0]) < 0.5e9
        assert episode.metadata.policy["name"] == "reach"
        events = [json.loads(e.text) for e in episode.events if e.kind == "chunk"]
        assert {e["id"] for e in events} <= set(chunk)
        asked = episode.action[moved][:, 0]
        speed = np.abs(np.diff(asked)) * 50.0
        moving = speed[np.isfinite(speed)][: 2 * EXECUTE]  # a busy machine may starve the arm
        assert len(moving) == 2 * EXECUTE
        assert np.median(moving) == pytest.approx(SPEED, rel=0.3)


def test_a_person_takes_over_and_hands_back(station: VirtualStation, reach: ReachServer) -> None:
    go_to(station, 0.0)
    run = start(station, reach, "--start", "here", "--resume", "always")
    wait_until(lambda: waist(station) > 0.1, "the policy moves")
    with StationClient("v") as client:
        with client.lease("followers", "person", source=Source.HUMAN) as lease:
            hold = np.concatenate([client.tick(r)["sent"] for r in ROBOTS])
            token = lease.token

            def mine() -> bool:
                lease.send(hold)
                tick = client.tick("follower_left")
                return int(tick["token"]) == token and int(tick["source"]) == Source.HUMAN

            wait_until(mine, "the person's commands being followed")

            def unmoved() -> bool:
                lease.send(hold)
                assert int(client.tick("follower_left")["token"]) == token
                return "taken over" in station.log("run")

            wait_until(unmoved, "the runner noticing")
            before = waist(station)
        wait_until(lambda: waist(station) > before + 0.05, "the policy going on")
    run.terminate()
    said = result(station, run)
    assert said["takeovers"] == 1
    assert said["ended"] == "done"


def test_a_late_policy_starves_the_arm_and_it_holds(
    station: VirtualStation, reach: ReachServer
) -> None:
    go_to(station, 0.0)
    run = start(station, reach, "--start", "here")
    wait_until(lambda: waist(station) > 0.05, "the policy moves")
    reach.take(30.0)
    tick = lambda: station.client.tick("follower_left")  # noqa: E731
    wait_until(lambda: int(tick()["difference"]) & Difference.STALE != 0, "the arm holding")
    held = float(tick()["sent"][0])
    wait_until(lambda: "no chunk" in station.log("run"), "the runner saying so")
    assert float(tick()["sent"][0]) == pytest.approx(held, abs=1e-6)
    assert tick()["lifecycle"] == Lifecycle.ARMED
    reach.kill()
    reach.take(0.0)
    reach.start()  # another process, which knows no session
    wait_until(lambda: waist(station) > held + 0.05, "the policy going on")
    run.terminate()
    said = result(station, run)
    assert said["starved_ticks"] > 0
    assert said["unanswered"] > 0
    assert run.returncode == 0


def test_chunks_that_come_after_their_last_row_are_told_and_asked_again(
    station: VirtualStation, reach: ReachServer
) -> None:
    go_to(station, 0.0)
    reach.take(0.7)  # a chunk has 24 rows of 20 ms
    run = start(station, reach, "--start", "here")
    wait_until(lambda: "after its last row" in station.log("run"), "the runner saying so")
    assert abs(waist(station)) < 0.02
    reach.take(0.0)
    wait_until(lambda: waist(station) > 0.1, "the policy going on")
    run.terminate()
    assert result(station, run)["unanswered"] > 0


def test_a_person_who_moves_the_robot_is_not_driven_home(
    station: VirtualStation, reach: ReachServer
) -> None:
    go_to(station, 0.3)
    with StationClient("v") as client, client.lease("followers", "person") as lease:
        run = start(station, reach, "--start", "home")

        def over() -> bool:
            lease.renew()
            return run.poll() is not None

        wait_until(over, "the runner ending", HANG_S)
        assert lease.lost is None
    assert run.returncode == 1
    assert "person" in station.log("run")
    assert abs(waist(station) - 0.3) < 0.05


def test_ctrl_c_ends_the_way_home(station: VirtualStation, reach: ReachServer) -> None:
    go_to(station, 1.2)
    run = start(station, reach, "--start", "home")
    wait_until(lambda: waist(station) < 1.1, "the way home")
    run.send_signal(signal.SIGINT)
    said = result(station, run)
    assert said["ended"] == "cancelled before it began"
    assert waist(station) > 0.3
    assert station.lifecycle("follower_left") is Lifecycle.DISARMED
    assert station.client.status()["groups"]["followers"]["stop"] is None


def test_a_runner_killed_on_the_way_to_the_start_leaves_no_motion(
    station: VirtualStation, forks: ForkServerContext
) -> None:
    go_to(station, 0.0)
    begin = [0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.0]  # home, but for one waist: a way of 6 s
    server = ReachServer(station, forks)
    server.start("--begin", json.dumps([2.4, *begin[1:], *begin]))
    try:
        run = start(station, server, "--start", "policy")
        wait_until(lambda: waist(station) > 0.4, "the way to the start")
        run.kill()
        killed_ns = time.monotonic_ns()
        run.wait()
        wait_until(
            lambda: station.client.status()["groups"]["followers"]["holder"] is None,
            "the lease running out",
        )
    finally:
        server.kill()
    for robot in ROBOTS:
        log = station.goals(robot)
        assert_continuous(*log)
        # 0.5 s ahead, 0.1 s until it is stale, and what a busy machine adds.
        assert (last_motion_ns(*log) - killed_ns) / 1e9 < 1.0
    assert waist(station) < 1.8
    assert station.lifecycle("follower_left") is Lifecycle.ARMED


def test_synchronous_execution_stands_still_while_the_policy_thinks(
    station: VirtualStation, reach: ReachServer
) -> None:
    go_to(station, 0.0)
    reach.take(0.2)
    run = start(station, reach, "--start", "here", "--mode", "sync", "--seconds", "4")
    said = result(station, run)
    assert run.returncode == 0, station.log("run")
    # Each chunk takes 10 rows of 20 ms and 200 ms of thought.
    assert 4 <= said["chunks"] <= 10
    assert said["latency_ms"]["infer"]["p50"] > 190


def test_a_stop_ends_the_rollout_by_name(station: VirtualStation, reach: ReachServer) -> None:
    go_to(station, 0.0)
    run = start(station, reach, "--start", "here")
    wait_until(lambda: waist(station) > 0.05, "the policy moves")
    station.client.stop("test of the button")
    said = result(station, run)
    assert run.returncode == 1
    assert "stopped" in said["ended"]
    assert station.client.tick("follower_left")["torque"].all()


def test_targets_too_far_to_be_followed_end_the_rollout(
    station: VirtualStation, forks: ForkServerContext
) -> None:
    go_to(station, 0.0)
    server = ReachServer(station, forks)
    server.start("--leap", "1.5")  # a joint follows steps of 0.5 rad at most
    try:
        said = result(station, run := start(station, server, "--start", "here"))
    finally:
        server.kill()
    assert run.returncode == 1
    assert "too far from follower_left" in said["ended"]
    assert abs(waist(station)) < 0.02
    assert station.lifecycle("follower_left") is Lifecycle.ARMED


def test_a_recording_that_ends_by_itself_ends_the_rollout(
    station: VirtualStation, reach: ReachServer, tmp_path
) -> None:
    go_to(station, 0.0)
    short = tmp_path / "short.yaml"
    text = yaml.safe_load(station.file.read_text())
    text["recording"] = {**text.get("recording", {}), "max_seconds": 1.0}
    short.write_text(yaml.safe_dump(text))
    options = ("--station", str(short), "--start", "here", "--record", str(tmp_path))
    said = result(station, run := start(station, reach, *options))
    assert run.returncode == 0, station.log("run")
    assert 0.5 < said["seconds"] < HANG_S / 2
    assert "ended by itself" in station.log("run")
    with Episode.open(said["file"]) as episode:
        assert 45 <= len(episode.t_ns) <= 60
    assert station.lifecycle("follower_left") is Lifecycle.ARMED


def test_arms_that_fall_silent_end_the_rollout(station: VirtualStation, reach: ReachServer) -> None:
    go_to(station, 0.0)
    run = start(station, reach, "--start", "here")
    wait_until(lambda: waist(station) > 0.05, "the policy moves")
    arms = [station.pid(f"arm.{robot}") for robot in station.station.robots]
    try:
        for arm in arms:  # both, or the other would stop and say so
            os.kill(arm, signal.SIGSTOP)
        said = result(station, run)
    finally:
        for arm in arms:
            with contextlib.suppress(ProcessLookupError):  # put down as hung, and started again
                os.kill(arm, signal.SIGCONT)
    assert run.returncode == 1
    assert "silent" in said["ended"] or "started again" in said["ended"]
    robots = station.station.robots
    wait_until(lambda: all(station.lifecycle(r) is not Lifecycle.STARTING for r in robots), "arms")


def test_another_contract_is_refused_before_anything_moves(
    station: VirtualStation, forks: ForkServerContext
) -> None:
    go_to(station, 0.0)
    server = ReachServer(station, forks)
    server.start("--unit", "m")
    try:
        run = start(station, server, "--start", "home")
        run.wait(HANG_S)
    finally:
        server.kill()
    assert run.returncode == 1
    assert "follower_left/waist" in station.log("run")
    assert "rad" in station.log("run")
    assert abs(waist(station)) < 0.05
