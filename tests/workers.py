"""Which tests the two workers of a run take, and what becomes of a worker that dies."""

from __future__ import annotations

from collections import OrderedDict

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

    def remove_node(self, node: WorkerController) -> str | None:
        """The test that ``node`` died of, None where it had nothing left to do. The others that it
        left are the first that a worker takes now; what it had finished is not handed out again: a
        worker that is given nothing to do asks for nothing more, and the run would never end."""
        crashed = None
        left: dict[str, dict[str, bool]] = {}
        for scope, tests in self.assigned_work.pop(node).items():
            unfinished = [test for test, finished in tests.items() if not finished]
            if unfinished and crashed is None:
                crashed = unfinished.pop(0)
            if unfinished:
                left[scope] = dict.fromkeys(unfinished, False)
        self.workqueue = OrderedDict({**left, **self.workqueue})
        return crashed

    def mark_test_pending(self, item: str) -> None:
        """A test that a worker died of is to be tried again (``--reruns``), before its kin."""
        scope = self._split_scope(item)
        self.workqueue[scope] = {item: False, **self.workqueue.get(scope, {})}
        self.workqueue.move_to_end(scope, last=False)

    def _reschedule(self, node: WorkerController) -> None:
        """A worker that replaces a dead one can be given tests when it has collected them."""
        if node in self.registered_collections:
            super()._reschedule(node)
