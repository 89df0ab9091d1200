"""Which tests the two workers of a run take, and what becomes of a worker that dies."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

__all__ = ["STATIONS", "Groups"]

# Whole stations: their virtual devices and arm processes are real-time and take a core and more.
# Two at once would starve each other, so they follow one another in one worker; and so does what a
# browser draws by software, which gives way to them.
STATIONS = (
    "tests/collect/test_demo.py",
    "tests/collect/test_episode_tools_replay.py",
    "tests/crowd/e2e/",
    "tests/crowd/test_faults_station.py",
    "tests/faults/",
    "tests/franka/test_driver_arm.py",
    "tests/franka/test_driver_grasp.py",
    "tests/franka/test_driver_station.py",
    "tests/franka/test_policy.py",
    "tests/rollout/",
    "tests/teleop/test_session.py",
    "tests/worlds/",
)


class Groups(LoadScopeScheduling):
    """One worker runs all tests of a file, which makes its fixtures once, and all of STATIONS."""

    def _split_scope(self, nodeid: str) -> str:
        return "stations" if nodeid.startswith(STATIONS) else nodeid.partition("::")[0]

    def remove_node(self, node: WorkerController) -> Any:
        """What a dead worker had finished is not handed out again: a worker that is given nothing
        to do asks for nothing more, and the run would never end."""
        assigned = self.assigned_work[node]
        for scope in [scope for scope, tests in assigned.items() if all(tests.values())]:
            del assigned[scope]
        return super().remove_node(node)
