"""`robot-stack run` drives a virtual FR3: real policy server and runner, a person takes over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_stack.client import StationClient
from robot_stack.episode import Episode, check
from robot_stack.types import Lifecycle, Source
from tests.franka.station import NAME, ROOT, FrankaStation, franka_station, until
from tests.rollout.conftest import HANG_S, ReachServer, forks
from tests.rollout.reach import WAIST

pytestmark = pytest.mark.slow

__all__ = ["forks"]

START = np.array([0.0, -0.7854, 0.0, -2.3562, 0.0, 1.5708, 0.7854])  # an FR3's home, rad


@pytest.fixture(scope="module")
def station() -> Iterator[FrankaStation]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        patch.setenv("ROBOT_STACK_RUNTIME", f"{name}/runtime")
        with franka_station(Path(name)) as running:
            yield running


@pytest.fixture
def reach(station: FrankaStation, forks) -> Iterator[ReachServer]:
    """A policy server for this test; the arm is at home."""
    station.client.request("reset", {"group": "arm"}, timeout_s=30.0)
    station.client.request("home", {"group": "arm"}, timeout_s=60.0)
    server = ReachServer(station, forks)
    yield server
    server.kill()


class Run:
    """The command as a process of its own."""

    def __init__(self, station: FrankaStation, reach: ReachServer, *options: str) -> None:
        self._log = station.directory / "run.log"
        command = [sys.executable, "-m", "robot_stack.cli", "run", "--policy", reach.endpoint]
        command += ["--station", str(station.file), "--start", "here", "--json", *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def result(self) -> dict:
        self.process.wait(HANG_S)
        return json.loads(self.said.strip().splitlines()[-1])


def joint1(station: FrankaStation) -> float:
    return float(station.tick()["q"][0])


def test_a_policy_moves_the_arm_and_the_recording_tells_how(
    station: FrankaStation, reach: ReachServer, tmp_path: Path
) -> None:
    reach.start("--embodiment", "fr3")
    run = Run(station, reach, "--seconds", "4", "--record", str(tmp_path))
    said = run.result()
    assert run.process.returncode == 0, run.said
    assert said["chunks"] >= 8
    assert said["unanswered"] == 0
    assert abs(joint1(station) - WAIST) < 0.05
    assert [p.message for p in check(Path(said["file"])) if p.severity == "error"] == []
    with Episode.open(said["file"]) as episode:
        assert episode.metadata.policy["name"] == "reach"
        moved = episode.source == Source.POLICY
        assert moved.sum() > 100
        assert len(set(episode.chunk_id[moved & (episode.chunk_id >= 0)])) >= 8
        # What an FR3 tells beside what any arm tells.
        assert episode.applied is not None and episode.success_rate is not None
        assert np.nanmedian(episode.success_rate[moved]) > 0.5
        assert np.nanmax(np.abs(episode.applied[moved] - episode.action_sent[moved])) < 0.05


def test_a_person_takes_over_and_hands_back(station: FrankaStation, reach: ReachServer) -> None:
    reach.start("--embodiment", "fr3")
    run = Run(station, reach, "--resume", "always")
    until(lambda: joint1(station) > 0.1, "the policy moving the arm")
    with StationClient(NAME) as client:
        with client.lease("arm", "person", source=Source.HUMAN) as lease:
            hold = client.tick("arm")["sent"].copy()

            def theirs() -> bool:
                lease.send(hold)
                return "taken over" in run.said and client.tick("arm")["source"] == Source.HUMAN

            until(theirs, "the takeover")
            before = joint1(station)
            assert before < WAIST - 0.1
        until(lambda: joint1(station) > before + 0.05, "the policy going on")
    run.process.terminate()
    assert run.result()["takeovers"] == 1
    assert station.lifecycle() is Lifecycle.ARMED


def test_a_reflex_under_a_policy_ends_its_plan_and_not_the_station(
    station: FrankaStation, reach: ReachServer
) -> None:
    reach.start("--embodiment", "fr3")
    run = Run(station, reach)
    until(lambda: joint1(station) > 0.1, "the policy moving the arm")
    station.virtual.fault("reflex", name="cartesian_reflex")
    until(lambda: "cartesian_reflex" in str(station.tick()["notice"]), "the reflex")
    hit = joint1(station)
    until(lambda: not station.tick()["notice"] and joint1(station) > hit + 0.05, "going on")
    run.process.terminate()
    assert run.result()["ended"] == "done"


def test_an_alohas_policy_is_refused_before_anything_moves(
    station: FrankaStation, reach: ReachServer
) -> None:
    reach.start("--embodiment", "aloha_vx300s")
    run = Run(station, reach)
    run.process.wait(HANG_S)
    assert run.process.returncode == 1
    assert "follower_left/waist" in run.said and "arm/joint1" in run.said
    assert abs(joint1(station) - START[0]) < 0.02
