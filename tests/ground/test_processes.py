"""Processes that must not outlive who started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from robot_stack.processes import started_at

CHILD = """
import os, signal, sys
from robot_stack.processes import end_with
assert end_with(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
print(os.getpid(), flush=True)
signal.pause()
"""
PARENT = f"""
import os, subprocess, sys, signal
subprocess.Popen([sys.executable, "-c", {CHILD!r}, str(os.getpid()), sys.argv[1]])
signal.pause()
"""


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent_however_that_ends(by: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(int(by))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert started_at(child) is not None
        parent.kill()
        deadline = time.monotonic() + 20.0
        while started_at(child) is not None:
            assert time.monotonic() < deadline, "the child lives on"
            time.sleep(0.01)


def test_a_parent_that_has_gone_is_told_of() -> None:
    code = "import signal, sys; from robot_stack.processes import end_with; "
    code += "sys.exit(not end_with(int(sys.argv[1]), signal.SIGTERM))"
    for pid, known in ((os.getpid(), True), (2**22 + 1, False)):
        done = subprocess.run([sys.executable, "-c", code, str(pid)], timeout=60, check=False)
        assert (done.returncode == 0) is known
