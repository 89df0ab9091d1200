"""The hand closes onto a cube: a move that ends short becomes a grasp, and the cube comes along."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.franka.configuration import FrankaConfig
from hardware.franka.fci import ROBOT_PORT
from hardware.worlds.control import WorldClient
from hardware.worlds.franka import CUBE_SIDE, sample_places
from robot_stack.records import world_path
from robot_stack.rotation import multiply
from robot_stack.shared_memory import Ring
from tests.franka.driving import PERIOD_S, Driven
from tests.franka.station import until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SEED = 3
DOWN = (0.0, 1.0, 0.0, 0.0)
STROKE_M = 0.08
ADDRESS = f"127.{os.getpid() % 100 + 60}.{os.getpid() // 100 % 250}.9"
STATION = f"""
station: grasp
world: {{scene: franka_pick_place, seed: {SEED}}}
robots: {{arm: {{driver: franka, falls: false, options: {{address: {ADDRESS}}}}}}}
groups: {{arm: {{robots: [arm]}}}}
teleop: {{driver: twists, group: arm}}
"""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table with a cube before a virtual FR3, as a process; the directory of its rings."""
    with tempfile.TemporaryDirectory(prefix="grasp-") as directory:
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", directory)
        file = Path(directory) / "station.yaml"
        file.write_text(STATION)
        process = subprocess.Popen(
            [sys.executable, "-m", "hardware.worlds.franka_process", str(file), "--attached"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        try:
            until(listens, "the robot")
            yield Path(directory)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)


def listens() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, ROBOT_PORT)) == 0


def grasped() -> bool:
    """What the hand itself says: that a grasp, not a move, has met something."""
    client = WorldClient("grasp", timeout_s=10.0)
    try:
        return bool(client.call("status")["robots"]["arm"]["grasped"])
    finally:
        client.close()


def cube() -> np.ndarray[Any, Any]:
    with Ring(world_path("grasp")) as ring:
        latest = ring.latest()
        assert latest is not None
        return np.array(latest[1]["env_state"][:3])


def reach(driven: Driven, pose: np.ndarray[Any, Any]) -> None:
    """Turn until the fingertips are at ``pose`` (7,)."""
    inverse = driven.arm.inverse_kinematics()
    deadline = time.monotonic() + 30.0
    while True:
        q = inverse.solve(pose, driven.target[:7], PERIOD_S)
        driven.turn(np.clip((q - driven.target[:7]) / PERIOD_S, -0.4, 0.4))
        assert driven.state.ee_pose is not None
        if np.abs(driven.state.ee_pose[:3] - pose[:3]).max() < 0.004:
            return
        assert time.monotonic() < deadline, (driven.notices, driven.arm.faults())


def test_a_cube_is_gripped_where_the_fingers_meet_it_and_is_lifted(world: Path) -> None:
    place, _ = sample_places(SEED)
    turn = (place[3], 0.0, 0.0, place[6])
    above = np.array([*place[:2], 0.15, *multiply(turn, DOWN)])
    at = np.array([*place[:2], CUBE_SIDE / 2, *multiply(turn, DOWN)])
    with Driven(FrankaConfig(ADDRESS)) as driven:
        reach(driven, above)
        reach(driven, at)
        driven.target[7] = 0.3  # 24 mm: half way through the cube
        gripped = CUBE_SIDE / STROKE_M
        driven.until(lambda: abs(driven.state.q[7] - gripped) < 0.05, "the fingers at the cube")
        driven.until(grasped, "the grasp after the move that ended short")
        reach(driven, above)
        driven.run(0.3)
        assert cube()[2] > 0.1, "the cube came along"
        assert driven.state.q[7] == pytest.approx(gripped, abs=0.05)
        assert driven.state.notice == ""
        driven.target[7] = 1.0
        driven.until(lambda: cube()[2] < 0.05, "the cube let go")
