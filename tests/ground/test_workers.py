"""Our own scheduler of tests: who takes what, and what becomes of the tests of a dead worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.workers import STATIONS

ROOT = Path(__file__).parents[2]
DEADLINE_S = 100.0  # a hang; a run takes three seconds

HEAD = """
import os, signal, time
from pathlib import Path
import pytest

HERE = Path(__file__).parents[2]

WORKER = os.environ.get("PYTEST_XDIST_WORKER")

def wait_for(name):
    deadline = time.monotonic() + 20
    while not (HERE / name).exists() and time.monotonic() < deadline:
        time.sleep(0.01)

if WORKER == "gw3":  # the later successor: it collects while the other is given tests
    wait_for("gw2")

@pytest.fixture(autouse=True)
def _noted(request):
    (HERE / WORKER).touch()
    with (HERE / "log").open("a") as log:
        log.write(f"{WORKER} {request.node.nodeid}\\n")

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_together(me, other):
    (HERE / me).touch()
    wait_for(other)
    if not (HERE / f"{me} died").exists():
        (HERE / f"{me} died").touch()
        die()
"""
# Longer files are taken first: one worker begins with the stations, the other with `first`, and
# whoever comes to `last` has finished others.
FILES = {
    "tests/faults/test_station.py": (0, "die_together('station', 'first')", 4),
    "tests/worlds/test_station.py": (3, None, 0),
    "tests/core/test_first.py": (0, "die_together('first', 'station')", 5),
    "tests/core/test_whole.py": (2, None, 2),
    "tests/core/test_last.py": (1, "die()", 1),
}
DEADLY = [f"{file}::test_dies" for file, (_, how, _) in FILES.items() if how is not None]
ALWAYS = DEADLY[2]


class Run:
    """A run of this project with two workers, and which of them began which test."""

    def __init__(self, directory: Path, *options: str) -> None:
        for name, (before, how, after) in FILES.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            tests = [f"test_before_{number}(): pass" for number in range(before)]
            tests += [] if how is None else [f"test_dies(): {how}"]
            tests += [f"test_after_{number}(): pass" for number in range(after)]
            file.write_text(HEAD + "".join(f"\ndef {test}\n" for test in tests))
        (directory / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
        # Only what is tried is loaded (the others' plugins take seconds, in each of six workers),
        # and the options of the run that this test is a part of are not this one's.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
        plugins = ("xdist", "pytest_rerunfailures", "tests.conftest", "no:cacheprovider")
        command = [sys.executable, "-m", "pytest", *(f"-p{plugin}" for plugin in plugins)]
        self.done = subprocess.run(
            [*command, "-n2", "--dist=loadscope", "-rfER", "--color=no", *options],
            cwd=directory,
            env=environment,
            timeout=DEADLINE_S,
            capture_output=True,
            text=True,
            check=False,
        )
        self.began: Counter[str] = Counter()
        self.workers: defaultdict[str, set[str]] = defaultdict(set)
        for line in (directory / "log").read_text().splitlines():
            worker, test = line.split()
            self.began[test] += 1
            self.workers[test].add(worker)

    def takers(self, *files: str) -> set[str]:
        """The workers that took the harmless tests of these files."""
        tests = [t for t in self.began if t.startswith(files) and t not in DEADLY]
        assert tests
        return set().union(*(self.workers[t] for t in tests))


@pytest.mark.parametrize("reruns", [0, 1])
def test_a_worker_dies_and_all_others_of_its_tests_are_run_once(
    tmp_path: Path, reruns: int
) -> None:
    """Three die: two at once, so that one of their successors is ready before the other, and one
    that has finished files."""
    run = Run(tmp_path, *(["--reruns", str(reruns)] if reruns else []))
    output = run.done.stdout + run.done.stderr
    harmless = {test: times for test, times in run.began.items() if test not in DEADLY}
    assert len(harmless) == sum(before + after for before, _, after in FILES.values()), output
    assert set(harmless.values()) == {1}, output
    # With reruns one who dies is tried again, in another worker, so often and no more.
    assert {test: run.began[test] for test in DEADLY} == dict.fromkeys(DEADLY, 1 + reruns), output
    assert {len(run.workers[test]) for test in DEADLY} == {1 + reruns}
    failed = [ALWAYS] if reruns else DEADLY
    assert run.done.returncode == 1, output
    for test in DEADLY:
        assert (f"crashed while running '{test}'" in output) is (test in failed), output
    for test in DEADLY if reruns else ():
        assert f"RERUN {test}" in output
    assert f"{len(failed)} failed, {len(harmless) + len(DEADLY) - len(failed)} passed" in output
    # What the dead left stays together, and so do the stations, of which two never run at once.
    assert all(file.startswith(STATIONS) == ("station" in file) for file in FILES)
    stations = [file for file in FILES if file.startswith(STATIONS)]
    for together in (stations, ["tests/core/test_first.py"], ["tests/core/test_whole.py"]):
        assert len(run.takers(*together)) == 1, output
