"""Every test of a teleoperator has an arm and shared memory of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.teleop.rig import Arm


@pytest.fixture
def arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arm]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))
    arm = Arm()
    yield arm
    arm.close()
