"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.workers import Groups

# A busy machine is slow, which says nothing of the code; and a change is judged by its own faults,
# not by an example that chance finds now. `make test-all` looks for new ones.
settings.register_profile(
    "shared",
    deadline=None,
    derandomize="ROBOT_STACK_NEW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


@pytest.fixture(autouse=True)
def _ordinary_priority() -> Iterator[None]:
    """libfranka makes the thread that calls it real-time at 99: whatever ran after it in this
    process would take the cores from the virtual devices of its own tests."""
    yield
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
