"""What holds for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _ordinary_priority() -> Iterator[None]:
    """libfranka makes the thread that calls it real-time at 99: whatever ran after it in this
    process would take the cores from the virtual devices of its own tests."""
    yield
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
