"""`robot-stack teleop` for an agent: the same program, which ends when its agent does.

Nobody must go on driving a robot whose agent was killed. On SIGINT teleoperation gives its leases
back, and the arms brake and hold.

    python -m collect.crowd.teleop_child AGENT_PID STATION [teleop's options]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from robot_stack.cli import main

PR_SET_PDEATHSIG = 1  # prctl(2)

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the agent that started this is gone")
    sys.exit(main(["teleop", *sys.argv[2:]]))
