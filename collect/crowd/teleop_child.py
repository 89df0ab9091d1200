"""`robot-stack teleop` for an agent: the same program, which ends when its agent does.

Nobody must go on driving a robot whose agent was killed. On SIGINT teleoperation gives its leases
back, and the arms brake and hold.

    python -m collect.crowd.teleop_child AGENT_PID STATION [teleop's options]
"""

from __future__ import annotations

import signal
import sys

from robot_stack.cli import main
from robot_stack.processes import end_with

if __name__ == "__main__":
    if not end_with(int(sys.argv[1]), signal.SIGINT):
        sys.exit("the agent that started this is gone")
    sys.exit(main(["teleop", *sys.argv[2:]]))
