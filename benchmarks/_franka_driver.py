"""The Franka driver fed at 50 Hz, in a process of its own: ``... ADDRESS SECONDS LOG [busy]``.

Joints 1 and 4 follow slow sines, joint 7 jumps to and fro by a little with every target, so that
the torque with which the arm answers each single one stands out. ``busy`` adds a Python thread
that never rests. Prints one JSON line; the log (.npz) has the targets and what was measured.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np

from hardware.franka.arm import FrankaArm
from hardware.franka.configuration import FrankaConfig
from robot_stack.realtime import Rate, setup

__all__ = ["main"]

LOOP_HZ = 200.0
EVERY = 4  # turns of the loop: 50 Hz
AMPLITUDE_RAD, SINE_HZ = 0.15, 0.25
JUMP_RAD = 0.002
SINES = (0, 3)
PRIORITY = 50
SETTLE_S = 2.0


def _spin() -> None:
    number = 0
    while True:
        number += 1


def main(address: str, seconds: float, path: str, *, busy: bool) -> None:
    setup(PRIORITY)
    arm = FrankaArm(FrankaConfig(address))
    targets: list[tuple[float, ...]] = []
    measured: list[tuple[float, ...]] = []
    rates: list[float] = []
    notices: set[str] = set()
    if busy:
        threading.Thread(target=_spin, daemon=True).start()
    with arm:
        arm.set_torque([True] * arm.spec.dof, on=True)
        start = arm.held()
        rate, turns = Rate(LOOP_HZ), round(seconds * LOOP_HZ)
        for turn in range(turns):
            rate.wait()
            state = arm.read(0.001)
            measured.append((state.t_ns, *state.q[:7]))
            if turn >= SETTLE_S * LOOP_HZ:
                rates.append(state.success_rate)
            notices.update(filter(None, [arm.faults(), state.notice]))
            if turn % EVERY:
                continue
            now_ns = time.monotonic_ns()
            passed = (now_ns - (targets[0][0] if targets else now_ns)) / 1e9
            target = start.copy()
            for joint in SINES:
                target[joint] += AMPLITUDE_RAD * np.sin(2.0 * np.pi * SINE_HZ * passed)
            target[6] += JUMP_RAD * (turn // EVERY % 2 * 2 - 1)
            targets.append((now_ns, *target[:7]))
            arm.write(target)
        reflexes = arm.faults()
    np.savez(path, targets=np.array(targets), measured=np.array(measured))
    known = np.array(rates)[np.isfinite(rates)]
    print(
        json.dumps(
            {
                "success_rate": float(known.mean()),
                "lowest_success_rate": float(known.min()),
                "fault": reflexes,
                "notices": sorted(notices),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3], busy=sys.argv[4:] == ["busy"])
