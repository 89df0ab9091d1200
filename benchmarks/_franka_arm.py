"""A virtual Franka arm that keeps what it was told: ``python -m benchmarks._franka_arm LOG``.

The log (.npy, written at the end): one row a millisecond that the arm was connected; monotonic ns
at which the arm took up the client's command, and the torques (7,) Nm that it applied from then.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from hardware.franka.virtual.body import Body
from hardware.franka.virtual.process import robot_model, serve
from hardware.franka.virtual.server import VirtualArm

__all__ = ["KeepingArm", "main"]

LONGEST_S = 900


class KeepingArm(VirtualArm):
    """Keeps when it took up which torque."""

    def __init__(self, address: str) -> None:
        super().__init__(Body.alone("fr3"), address=address, robot_model=lambda: robot_model(10))
        self.kept = np.zeros((LONGEST_S * 1000, 8))
        self.count = 0

    def command(self) -> Any:
        torque = super().command()
        if self.count < len(self.kept):
            row = self.kept[self.count]
            row[0] = time.monotonic_ns()  # exact below 2^53 ns: 104 days of uptime
            row[1:] = torque
            self.count += 1
        return torque


def main(path: str, address: str) -> None:
    arm = KeepingArm(address)
    ready = {"address": address, "pid": os.getpid()}
    serve(arm, attached=True, ready=lambda: print(json.dumps(ready), flush=True))
    np.save(path, arm.kept[: arm.count])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
