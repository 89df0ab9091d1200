"""Virtual arms in processes of their own, each at a free loopback address."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hardware.franka.fci import Version
from hardware.franka.virtual.process import FrankaProcess

StartArm = Callable[..., FrankaProcess]


@pytest.fixture(scope="session")
def arms() -> Iterator[StartArm]:
    """`arms(version, lock_step=...)`: a running virtual arm, the same one for the same arguments,
    as switched off and on again; a test that ruins it takes `own_arm`.
    """
    running: dict[tuple[int, bool], FrankaProcess] = {}

    def start(version: Version = 10, *, lock_step: bool = True) -> FrankaProcess:
        key = (version, lock_step)
        with pytest.MonkeyPatch.context() as patch:  # they outlive the directory of one test
            patch.delenv("ROBOT_STACK_RUNTIME", raising=False)
            if key not in running:
                running[key] = FrankaProcess(version, lock_step=lock_step)
            running[key].call("reset")
        return running[key]

    yield start
    for process in running.values():
        process.close()


@pytest.fixture
def own_arm() -> Iterator[StartArm]:
    """Like `arms`, but of this test alone, which may ruin it."""
    running: list[FrankaProcess] = []

    def start(version: Version = 10, *, lock_step: bool = True) -> FrankaProcess:
        running.append(FrankaProcess(version, lock_step=lock_step))
        return running[-1]

    yield start
    for process in running:
        process.close()
