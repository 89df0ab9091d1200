"""``python -m robot_stack``: the same as the ``robot-stack`` command."""

import sys

from robot_stack.cli import main

__all__: list[str] = []

sys.exit(main())
