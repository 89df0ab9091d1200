"""Rate keeps its grid of deadlines; setup gets what is permitted and says what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from robot_stack.errors import ConfigError
from robot_stack.realtime import Rate, sleep_until

MS = 1_000_000


def test_wait_never_returns_early_and_stays_on_its_grid() -> None:
    rate = Rate(200)
    first = rate.deadline_ns
    for turn in range(20):
        deadline = rate.deadline_ns
        late = rate.wait()
        assert late >= 0
        assert time.monotonic_ns() >= deadline + late
        assert (rate.deadline_ns - first) % rate.period_ns == 0
        assert rate.deadline_ns == first + (turn + 1 + rate.skipped) * rate.period_ns


def test_a_stall_is_one_overrun_and_no_burst() -> None:
    rate = Rate(100)
    rate.wait()
    deadline, overruns, skipped = rate.deadline_ns, rate.overruns, rate.skipped
    sleep_until(deadline + 10 * rate.period_ns + 5 * MS)
    late = rate.wait()
    assert late >= 10 * rate.period_ns + 5 * MS
    assert rate.overruns == overruns + 1
    assert rate.skipped - skipped == late // rate.period_ns >= 10
    woke = deadline + late
    assert woke < rate.deadline_ns <= woke + rate.period_ns, "the next deadline lies ahead"
    assert (rate.deadline_ns - deadline) % rate.period_ns == 0, "and on the old grid"


def test_a_turn_that_ends_late_starts_the_next_at_once() -> None:
    rate = Rate(100)
    deadline = rate.deadline_ns
    sleep_until(deadline + 1 * MS)
    late = rate.wait()
    assert late >= 1 * MS
    assert rate.overruns == 1
    assert rate.skipped == late // rate.period_ns


def test_shift_moves_the_phase() -> None:
    rate = Rate(50)
    deadline = rate.deadline_ns
    rate.shift(3 * MS)
    assert rate.deadline_ns == deadline + 3 * MS
    rate.wait()
    assert (rate.deadline_ns - deadline) % rate.period_ns == 3 * MS


def test_restart_is_no_overrun() -> None:
    rate = Rate(1000)
    sleep_until(rate.deadline_ns + 20 * MS)
    rate.restart()
    assert rate.deadline_ns > time.monotonic_ns() - 20 * MS
    assert (rate.overruns, rate.skipped) == (0, 0)


@pytest.mark.parametrize(
    ("hz", "spin_ns", "words"),
    [
        (6000, 150_000, "real-time throttle"),
        (10_000, 90_000, "real-time throttle"),
        (100, 150_001, "spin_ns is 150001"),
        (100, -1, "spin_ns is -1"),
        (0, 0, "impossible"),
        (-5, 0, "impossible"),
        (float("nan"), 0, "impossible"),
        (2e6, 0, "impossible"),
    ],
)
def test_impossible_rates_are_refused(hz: float, spin_ns: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rate(hz, spin_ns=spin_ns)


def test_the_largest_permitted_spin() -> None:
    assert Rate(1e9 / 187_500, spin_ns=150_000).period_ns == 187_500


def test_sleep_until_is_not_cut_short_by_signals() -> None:
    """In a process of its own: pytest's time limit is the same timer and the same signal."""
    script = """
import signal, time
from robot_stack.realtime import sleep_until
seen = []
signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
until = time.monotonic_ns() + 50_000_000
sleep_until(until)
woke = time.monotonic_ns()
signal.setitimer(signal.ITIMER_REAL, 0)
assert woke >= until and seen
sleep_until(0)  # long past
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


PROBE = """
import ctypes, gc, json, os, resource, subprocess, sys
from robot_stack.realtime import setup
if sys.argv[1] == "poor":
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)
report = setup(int(sys.argv[2]), int(sys.argv[3]))
pid = os.fork()
if not pid:
    os._exit(os.sched_getscheduler(0))
inherited = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({
    "scheduler": report.scheduler, "priority": report.priority, "cpu": report.cpu,
    "locked": report.memory_locked, "missing": [[m.what, m.mend] for m in report.missing],
    "text": str(report), "fifo": os.sched_getscheduler(0) & os.SCHED_FIFO == os.SCHED_FIFO,
    "got_priority": os.sched_getparam(0).sched_priority, "inherited": inherited,
    "affinity": sorted(os.sched_getaffinity(0)),
    "gc": gc.isenabled(), "frozen": gc.get_freeze_count(),
    "slack": ctypes.CDLL(None).prctl(30, 0, 0, 0, 0),
}))
"""


def probe(kind: str, priority: int, cpu: int) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, kind, str(priority), str(cpu)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def may_use_fifo() -> bool:
    script = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(7))"
    return (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode
        == 0
    )


def test_setup_takes_what_is_permitted() -> None:
    cpu = max(os.sched_getaffinity(0))
    got = probe("rich", 7, cpu)
    assert got["fifo"] == may_use_fifo()
    assert got["scheduler"] == ("FIFO" if got["fifo"] else "OTHER")
    assert got["priority"] == got["got_priority"] == (7 if got["fifo"] else 0)
    assert got["inherited"] == os.SCHED_OTHER
    assert (got["cpu"], got["affinity"]) == (cpu, [cpu])
    assert got["gc"] is False
    assert int(str(got["frozen"])) > 1000
    assert got["slack"] in (0, 1), "1 ns, or 0 under FIFO"


def test_setup_without_rights_says_what_to_do() -> None:
    got = probe("poor", 42, 1023)
    assert (got["scheduler"], got["priority"], got["fifo"]) == ("OTHER", 0, False)
    assert (got["cpu"], got["locked"]) == (None, False)
    missing = dict(got["missing"])  # type: ignore[call-overload]
    assert len(missing) == 3
    mends = " ".join(missing.values())
    assert "rtprio 42" in mends
    assert "memlock unlimited" in mends
    allowed = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    assert f"one of {allowed}" in mends
    for what, mend in missing.items():
        assert f"no {what}: {mend}" in str(got["text"])


def test_a_priority_beyond_the_kernels_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "rich", "100", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "use 1 to 99" in done.stderr
