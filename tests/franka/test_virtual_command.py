"""`robot-stack virtual franka` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.franka.wire import Client

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "robot_stack.cli", "virtual", "franka"]


def tell(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words, "--address", address, "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_arm_runs_takes_words_and_ends() -> None:
    # Not one of those that `any` tries: nobody else comes there.
    address = f"127.0.1.{2 + os.getpid() % 250}"
    arm = subprocess.Popen(
        [*COMMAND, "--server-version", "5", "--address", address],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert arm.stdout is not None
        assert "End it with Ctrl-C" in arm.stdout.readline()
        ready = json.loads(arm.stdout.readline())
        assert (ready["server_version"], ready["model"]) == (5, "fer")
        assert ready["address"] == address
        with Client(address, 5) as client:
            assert client.read()["robot_mode"] == 1
            assert tell(address, "fault", "kind=reflex", "name=joint_reflex").returncode == 0
            assert client.newest()["robot_mode"] == 4
            assert json.loads(tell(address, "status").stdout)["errors"] == ["joint_reflex"]
            assert tell(address, "reset").returncode == 0
            assert client.newest()["robot_mode"] == 1
        refused = tell(address, "fault", "kind=reflx")
        assert refused.returncode == 1
        assert "lost_commands" in refused.stderr
        taken = subprocess.run(
            [*COMMAND, "--address", address],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert taken.returncode == 1
        assert "use a free loopback address" in taken.stderr
        arm.send_signal(signal.SIGINT)
        assert arm.wait(30) == 0
    finally:
        arm.kill()
        arm.wait()
        assert arm.stdout is not None
        arm.stdout.close()
    silent = tell(address, "status")
    assert silent.returncode == 1
    assert "robot-stack virtual" in silent.stderr
