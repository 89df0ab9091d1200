"""Unmodified client libraries of PyPI against the virtual arm; a failed step names itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("client", ["franky", "pylibfranka", "panda_python"])
def test_an_unmodified_client_passes_every_step(client: str) -> None:
    bench = [sys.executable, "-m", "robot_stack.cli", "bench", "franka_conformance"]
    done = subprocess.run(
        [*bench, "--client", client, "--json"],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    steps = json.loads(done.stdout)[client]
    assert [step for step, ok in steps.items() if not ok] == [], done.stderr
    assert len(steps) == 9
    assert done.returncode == 0
