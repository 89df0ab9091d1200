"""`robot-stack episode replay` on a real station: supervisor, arm processes, virtual buses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station, wait_until
from collect.dataset.replay import load_recording, matching_group
from collect.session import RecordingSession
from robot_stack.cli import main
from robot_stack.client import StationClient, stop_all
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError
from robot_stack.types import Source
from tests.collect.recorded import motion, write_episode
from tests.faults.judge import assert_continuous, last_motion_ns

ROBOTS = {"follower_left": "vx300s", "follower_right": "vx300s"}
STOPPED_S = 1.0  # after Ctrl-C or a stop; what is left after the lease is some deceleration


# -- what a recording must be ----------------------------------------------------------------


def test_a_recording_starts_and_ends_with_its_commands(tmp_path: Path) -> None:
    commands = motion(np.arange(60) * 0.02)
    commands[:5] = np.nan
    commands[-3:] = np.nan
    path = write_episode(tmp_path / "episode_0.hdf5", rows=60, commands=commands.copy())
    with Episode.open(path) as episode:
        recording = load_recording(episode)
    assert recording.commands.shape == (52, 14)
    np.testing.assert_allclose(recording.commands, commands[5:-3], atol=1e-6)
    assert recording.units["left"] == ("rad",) * 6 + ("fraction",)
    assert recording.names[7] == "right/waist"


def test_holes_and_unknown_robots_are_refused(tmp_path: Path) -> None:
    commands = motion(np.arange(60) * 0.02)
    commands[31] = np.nan
    path = write_episode(tmp_path / "episode_0.hdf5", rows=60, commands=commands)
    with Episode.open(path) as episode, pytest.raises(EpisodeError, match="unknown in row 31"):
        load_recording(episode)
    path = write_episode(tmp_path / "episode_1.hdf5", rows=20, robots={"left": {}, "right": {}})
    with Episode.open(path) as episode, pytest.raises(EpisodeError, match="left, right has"):
        load_recording(episode)
    path = write_episode(tmp_path / "episode_2.hdf5", rows=20, action={"kind": "joint velocity"})
    with Episode.open(path) as episode, pytest.raises(EpisodeError, match="joint velocity"):
        load_recording(episode)


def test_only_the_same_robots_are_moved(tmp_path: Path) -> None:
    with Episode.open(write_episode(tmp_path / "episode_0.hdf5", rows=20)) as episode:
        recording = load_recording(episode)
    robot = {
        "embodiment": "vx300s",
        "joints": list(recording.joints["left"]),
        "units": list(recording.units["left"]),
    }
    station: dict[str, Any] = {
        "station": "bench",
        "groups": {"arms": {"robots": ["left", "right"]}, "odd": {"robots": ["right", "left"]}},
        "robots": {"left": robot, "right": deepcopy(robot)},
    }
    assert matching_group(recording, station) == "arms"
    for key, value in (
        ("embodiment", "wx250s"),
        ("joints", list(reversed(robot["joints"]))),
        ("units", ["rad"] * 7),
    ):
        other = deepcopy(station)
        other["robots"]["right"][key] = value
        with pytest.raises(EpisodeError, match=rf"right: .*{key}"):
            matching_group(recording, other)
    del station["groups"]["arms"]
    with pytest.raises(EpisodeError, match=r"in this order.*odd: right, left"):
        matching_group(recording, station)


# -- on a station ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[VirtualStation]:
    changes = {"recording": {"group": "followers", "free_space_floor_gb": 0.0}}
    with virtual_station(robots=ROBOTS, rate_hz=100.0, changes=changes) as running:
        yield running


@pytest.fixture
def station(served: VirtualStation) -> VirtualStation:
    served.client.request("reset", timeout_s=30)
    return served


@pytest.fixture(scope="module")
def recorded(served: VirtualStation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of both arms waving, recorded from the station itself."""
    with (
        RecordingSession(served.station, directory=tmp_path_factory.mktemp("e")) as session,
        StationClient("v") as client,
        client.lease("followers", "waver", source=Source.SCRIPTED) as lease,
    ):
        client.arm("followers")
        middle = np.concatenate([client.tick(robot)["sent"] for robot in ROBOTS])
        lease.send(middle)
        session.start()
        began = time.monotonic()
        while (t := time.monotonic() - began) < 3.0:
            target = middle.copy()
            target[[0, 7]] += 0.3 * (1 - np.cos(2.0 * t))
            target[[5, 12]] -= 0.2 * (1 - np.cos(3.0 * t))
            lease.send(target)
            session.poll()
            time.sleep(0.02)
        return session.stop(success=True).path


def holder(station: VirtualStation) -> str | None:
    found: str | None = station.client.status()["groups"]["followers"]["holder"]
    return found


def replay(station: VirtualStation, path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robot_stack", "episode", "replay", str(path)]
    return subprocess.Popen(
        [*command, str(station.file), "--json", *arguments],
        env=station.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_motion_is_played_again(
    station: VirtualStation, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Episode.open(recorded) as episode:
        sent = load_recording(episode).commands
    for pose in ("home", "sleep"):
        station.client.request(pose, {"group": "followers"}, timeout_s=60)
        here = np.concatenate([station.client.tick(robot)["sent"] for robot in ROBOTS])
        if np.abs(here - sent[0]).max() > 0.5:  # it has some way to go to the first row
            break
    else:
        raise AssertionError("no pose is far from the recording's start")
    began_ns = time.monotonic_ns()
    assert main(["episode", "replay", str(recorded), str(station.file), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert (report["ended"], report["rows"]) == ("played", len(sent))
    # It moved by as much as was recorded, and where it was told to.
    assert np.ptp(sent[:, 0]) > 0.5
    for joint in report["joints"]:
        assert joint["command_rms"] < 0.1, joint
        assert joint["recorded_rms"] < 0.1, joint
    moved = {joint["joint"]: joint["command_max"] for joint in report["joints"]}
    assert set(moved) == {f"{r}/{j}" for r in ROBOTS for j in episode.schema.robots[0].joints}
    for robot in ROBOTS:
        t_ns, servos, ticks = station.goals(robot)
        assert assert_continuous(t_ns, servos, ticks, since_ns=began_ns) > 100
        waist = ticks[(servos == 1) & (t_ns >= began_ns)]
        assert np.ptp(waist) > 0.5 * 4096 / (2 * np.pi)
    end = np.concatenate([station.client.tick(robot)["sent"] for robot in ROBOTS])
    np.testing.assert_allclose(end, sent[-1], atol=0.01)
    assert holder(station) is None


@pytest.mark.slow
def test_ctrl_c_lets_the_arms_hold(station: VirtualStation, recorded: Path) -> None:
    process = replay(station, recorded, "--speed", "0.2")
    assert process.stderr is not None
    said = iter(process.stderr.readline, "")
    assert any("playing" in line for line in said)
    tick = station.client.tick("follower_left")
    wait_until(
        lambda: abs(float(station.client.tick("follower_left")["dq"][0])) > 0.05, "the waist moving"
    )
    ended_ns = time.monotonic_ns()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    report = json.loads(out)
    assert report["ended"] == "interrupted" and 0 < report["rows"] < report["total"]
    assert holder(station) is None
    wait_until(
        lambda: time.monotonic_ns() - ended_ns > 2 * STOPPED_S * 1e9, "some time without motion"
    )
    for robot in ROBOTS:
        log = station.goals(robot)
        assert_continuous(*log)
        assert (last_motion_ns(*log) - ended_ns) / 1e9 < STOPPED_S
    assert tick["source"] == Source.REPLAY


@pytest.mark.slow
def test_a_killed_replay_lets_the_arms_hold(station: VirtualStation, recorded: Path) -> None:
    process = replay(station, recorded, "--speed", "0.2")
    assert process.stderr is not None
    assert any("playing" in line for line in iter(process.stderr.readline, ""))
    wait_until(
        lambda: abs(float(station.client.tick("follower_left")["dq"][0])) > 0.05, "the waist moving"
    )
    os.kill(process.pid, signal.SIGKILL)
    killed_ns = time.monotonic_ns()
    process.communicate()
    wait_until(lambda: holder(station) is None, "the lease running out")
    for robot in ROBOTS:
        log = station.goals(robot)
        assert_continuous(*log)
        assert (last_motion_ns(*log) - killed_ns) / 1e9 < STOPPED_S


@pytest.mark.slow
def test_a_stop_ends_the_replay(station: VirtualStation, recorded: Path) -> None:
    process = replay(station, recorded, "--speed", "0.2")
    assert process.stderr is not None
    assert any("playing" in line for line in iter(process.stderr.readline, ""))
    stop_all("v", "somebody in the way")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "is stopped" in err
    assert holder(station) is None


@pytest.mark.slow
def test_a_person_is_not_pushed_aside(
    station: VirtualStation, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StationClient("v") as client, client.lease("followers", "teleop", source=Source.DEMO):
        assert main(["episode", "replay", str(recorded), str(station.file)]) == 1
        assert "teleop" in capsys.readouterr().err
    assert main(["episode", "replay", str(recorded), str(station.file), "--speed", "2"]) == 1
    assert "allowed 0.1..1.0" in capsys.readouterr().err
