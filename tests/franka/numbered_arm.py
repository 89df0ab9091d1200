"""A virtual arm whose states count their numbers: `python -m tests.franka.numbered_arm VERSION`.

What a library reads then says where it read it.
"""

from __future__ import annotations

import sys

import numpy as np

from hardware.franka.virtual.address import ANY
from hardware.franka.virtual.process import serve, stand_alone


def main() -> None:
    arm = stand_alone(10 if sys.argv[1] == "10" else 5, ANY, lock_step=True)
    measured = arm.motion.measured

    def count() -> None:
        measured()
        arm.motion.state.numbers[:] = np.arange(len(arm.motion.state.numbers))

    arm.motion.measured = count  # type: ignore[method-assign]
    serve(arm, attached=True, ready=lambda: print(arm.address, flush=True))


if __name__ == "__main__":
    main()
