"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

# A busy machine is slow, which says nothing of the code; and a change is judged by its own faults,
# not by an example that chance finds now. `make test-all` looks for new ones.
settings.register_profile(
    "shared",
    deadline=None,
    derandomize="ROBOT_STACK_NEW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared")

# Whole stations: their virtual devices and arm processes are real-time and take a core and more.
# Two at once would starve each other, so they follow one another in one worker.
STATIONS = (
    "collect/test_demo.py",
    "collect/test_episode_tools_replay.py",
    "crowd/e2e/test_flow.py",
    "crowd/test_faults_station.py",
    "faults",
    "franka/test_driver_arm.py",
    "franka/test_driver_grasp.py",
    "franka/test_driver_station.py",
    "franka/test_policy.py",
    "rollout",
    "teleop/test_session.py",
    "worlds",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file run in one worker, which makes its fixtures once; see STATIONS."""
    stations = [TESTS / name for name in STATIONS]
    for item in items:
        station = any(item.path.is_relative_to(path) for path in stations)
        group = "stations" if station else item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _ordinary_priority() -> Iterator[None]:
    """libfranka makes the thread that calls it real-time at 99: whatever ran after it in this
    process would take the cores from the virtual devices of its own tests."""
    yield
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
