"""`robot-stack eval --station`: two served policies, judged by keys on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from benchmarks.virtual_station import VirtualStation, wait_until
from tests.rollout.conftest import HANG_S, ReachServer

pytestmark = pytest.mark.slow


def test_two_policies_are_judged_blind_by_keys(station: VirtualStation, forks, tmp_path) -> None:
    servers = [ReachServer(station, forks, name) for name in ("a", "b")]
    for server in servers:
        server.start()
    person, terminal = pty.openpty()
    log = station.directory / "eval.log"
    command = [
        *(sys.executable, "-m", "robot_stack.cli", "eval", "--station", str(station.file)),
        *("--policies", ",".join(server.endpoint for server in servers)),
        *("--pairs", "1", "--seconds", "1.5", "--out", str(tmp_path / "blind")),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=terminal, stdout=out, stderr=out, env=station.environment
        )
    station.others.append(process)

    def said(text: str, times: int) -> bool:
        assert process.poll() is None, log.read_text()
        return log.read_text().count(text) >= times

    try:
        for trial, verdict in enumerate((b"s", b"f"), 1):
            wait_until(lambda n=trial: said("reset the scene", n), "being asked", HANG_S)
            os.write(person, b"\n")
            wait_until(lambda n=trial: said("s success, f failure", n), "the verdict", HANG_S)
            text = log.read_text()
            assert not any(server.endpoint in text for server in servers), "no longer blind"
            os.write(person, verdict)
        process.wait(HANG_S)
    finally:
        os.close(person)
        os.close(terminal)
        for server in servers:
            server.kill()
    assert process.returncode == 0, log.read_text()
    result = json.loads(log.read_text().strip().splitlines()[-1])
    assert set(result["policies"]) == {server.endpoint for server in servers}
    rates = sorted(row["success_rate"] for row in result["policies"].values())
    assert rates == [0.0, 1.0]
