"""A visitor's hands on the virtual leader arms, beside the browser: squeeze, touch, rest, transfer.

They move the leaders at human speed in the virtual world, as hands do in a cafe; all that follows
(teleoperation, safety filter, followers, recorder) is the ordinary station's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.crowd.evidence_metrics import tips
from hardware.worlds.control import WorldClient
from robot_stack import registry
from robot_stack.config import Station

__all__ = ["Hands", "wait_until"]

HANG_S = 300.0
TABLE_M = 0.015  # the fingertips above what the arm stands on: fingers may touch it
REACH_M = 0.38  # in front of the arm's base: far from the other arm
PAIRS = {"leader_left": "follower_left", "leader_right": "follower_right"}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = HANG_S) -> None:
    """Until ``condition()`` holds; it fails with ``what`` when that never happens."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.25)


class Hands:
    """Two hands, one on each leader of the virtual station."""

    def __init__(self, station: Station) -> None:
        self.world = WorldClient(station.station, timeout_s=10.0)
        self._specs = {}
        for name in PAIRS:
            config = station.robots[name]
            self._specs[name] = (
                registry.load("robot", config.driver).from_config(config, station).spec
            )
        self._tips = tips(station)

    def close(self) -> None:
        self.world.close()

    def squeeze(self) -> None:
        """Close both grippers and keep them closed."""
        for name in PAIRS:
            self.world.call("hand", robot=name, gripper=0.0)

    def touch(self, name: str) -> None:
        """Take one leader down until the follower's fingertips are at the table."""
        self.world.call("hand", robot=name, joints=self._down(name))

    def lift(self, name: str) -> None:
        """Back to where the robot starts."""
        self.world.call("hand", robot=name, joints=[*self._specs[name].home[:6]])

    def rest(self) -> None:
        """Lay both leaders on their rests."""
        for name, spec in self._specs.items():
            self.world.call("hand", robot=name, joints=[*spec.sleep[:6]], gripper=0.5)

    def let_go(self) -> None:
        self.world.call("release")

    def transfer(self, seed: int) -> None:
        """Take hold at the start pose, then hand the cube over."""
        self.world.call("reset", seed=seed)
        self.world.call("script", name="transfer_cube", seed=seed)

    def transferred(self) -> bool:
        status = self.world.call("script_status")
        assert not status["error"], status["error"]
        return bool(status["done"])

    def _down(self, name: str) -> list[float]:
        """Shoulder, elbow and wrist by which the fingertips are at the table, fingers steep."""
        tip = self._tips[PAIRS[name]]
        home = np.array(self._specs[name].home)
        best, least = home, np.inf
        draw = np.random.default_rng(0)
        centre, spread = home.copy(), np.array([0.0, 0.6, 0.6, 0.0, 0.8, 0.0, 0.0])
        for _ in range(12):
            for q in centre + spread * draw.uniform(-1.0, 1.0, (60, 7)):
                cost = self._cost(tip(q), q, home)
                if cost < least:
                    best, least = q, cost
            centre, spread = best, 0.6 * spread
        return [float(value) for value in best[:6]]

    @staticmethod
    def _cost(at: NDArray[np.float64], q: NDArray[np.float64], home: NDArray[np.float64]) -> float:
        away = abs(float(np.hypot(at[0], at[1])) - REACH_M)
        return 20.0 * abs(float(at[2]) - TABLE_M) + away + 0.02 * float(np.square(q - home).sum())
