"""The scripted operator of a Franka arm: a person who puts the cube on the square.

It sees the cube, the square and the fingertips, follows a plan of its own, and waits for a robot
that lags behind. What it has in its hand is a `Hand`: a SpaceMouse that takes twists, or a GELLO
arm whose joints it moves.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hardware.franka.virtual.scene import MAX_WIDTH
from hardware.worlds.franka_plan import Wish, apart, plan_pick_place
from robot_stack.errors import DeviceError

__all__ = ["Hand", "Phase", "PickPlaceOperator", "Sight"]

Array = NDArray[np.float64]

# A person waits while the robot is farther than this from where it should be, and at the end of a
# movement until it is there.
LAG, LAG_TURN = 0.06, 0.35
FIRST_LAG = 0.3  # of these, for a robot that has not followed yet
THERE, THERE_TURN = 0.005, 0.04
PATIENCE_S = 20.0
STARTED = 0.003  # m: the robot follows
FINGERS_STILL_S, FINGERS_STILL = 0.3, 0.002  # m/s
MINDED = 0.01  # m that fingers must go the wished way before they count as obeying


class Phase(StrEnum):
    """What the operator is doing; ``waiting`` for the robot to follow the first movement."""

    WAITING = "waiting"
    MOVING = "moving"
    DONE = "done"
    INTERRUPTED = "interrupted"


class Sight(Protocol):
    """What the operator sees."""

    @property
    def fingertips(self) -> Array:
        """The pose (7,) between the fingertips."""

    @property
    def env_state(self) -> Array:
        """(9,): the cube's pose and the square's x and y."""

    @property
    def width(self) -> float:
        """Between the fingers, m."""


class Hand(Protocol):
    """What the operator moves the robot with."""

    def take(self) -> None:
        """Grasp the device; it is as the robot is."""

    def guide(self, wish: Wish, seen: Array, waited_s: float, dt: float) -> None:
        """Move it for ``dt`` seconds so that the fingertips, seen at pose (7,), come to where they
        are wished; for ``waited_s`` a robot that had followed has not got on."""

    def release(self) -> None:
        """Let go of it."""


class PickPlaceOperator:
    """Takes the device and makes one plan come true; ``update`` is called often.

    It goes on in its plan while the robot keeps up, and waits while not: at first for a robot that
    does not follow yet, in the end of each movement until it is there. DeviceError when it has
    waited ``PATIENCE_S`` for a robot that had followed.
    """

    def __init__(
        self, hand: Hand, sight: Sight, *, seed: int = 0, noise: float = 1.0, max_wait_s: float
    ) -> None:
        self._hand = hand
        self._sight = sight
        self._max_wait_s = max_wait_s
        self._start = sight.fingertips
        self._plan = plan_pick_place(self._start, sight.env_state, seed, noise)
        self._plan_s = self._shake_s = self._waited_s = self._still_s = 0.0
        self._width = self._width_before = sight.width
        self._gripping, self._obeyed = "", False
        self.phase = Phase.WAITING
        hand.take()

    @property
    def action(self) -> str:
        """The movement in words."""
        return self._plan.name(self._plan_s) if self.phase is Phase.MOVING else ""

    @property
    def done(self) -> bool:
        return self.phase in (Phase.DONE, Phase.INTERRUPTED)

    def cancel(self) -> None:
        """Let go of the device and stop."""
        self._end(Phase.INTERRUPTED)

    def _end(self, phase: Phase) -> None:
        self.phase = phase
        self._hand.release()

    def update(self, dt: float) -> None:
        """Do the next ``dt`` seconds."""
        if self.done:
            return
        seen = self._sight.fingertips
        wish = self._plan.at(self._plan_s, self._shake_s)
        if self.phase is Phase.WAITING:
            # As the robot's own fingers are, so that nothing moves unawares when it engages.
            wish = replace(wish, opening=min(1.0, max(0.0, self._sight.width / MAX_WIDTH)))
        if self._may_go_on(wish, seen, dt):
            self._plan_s += dt
            self._waited_s = 0.0
        else:
            self._waited_s += dt
        self._shake_s += dt
        waited_s = self._waited_s if self.phase is Phase.MOVING else 0.0
        self._hand.guide(wish, seen, waited_s, dt)
        if self.phase is Phase.WAITING and apart(self._start, seen)[0] > STARTED:
            self.phase = Phase.MOVING
        if self._waited_s > (PATIENCE_S if self.phase is Phase.MOVING else self._max_wait_s):
            action = self.action or "the first movement"
            self.cancel()
            raise DeviceError(f"the robot does not follow in {action!r}; is it armed and engaged?")
        if self._plan_s >= self._plan.duration_s:
            self._end(Phase.DONE)

    def _may_go_on(self, wish: Wish, seen: Array, dt: float) -> bool:
        at_end = self._plan_s + dt >= self._plan.end_of(self._plan_s)
        if self._plan.fingers(self._plan_s):
            return self._fingers_rest(wish.opening, dt) or not at_end
        far, turned = apart(wish.pose, seen)
        if at_end:
            return far < THERE and turned < THERE_TURN
        allowed = 1.0 if self.phase is Phase.MOVING else FIRST_LAG
        return far < allowed * LAG and turned < allowed * LAG_TURN

    def _fingers_rest(self, opening: float, dt: float) -> bool:
        """Whether the fingers have moved in this movement and stand still now."""
        move = self._plan.name(self._plan_s)
        if move != self._gripping:
            self._gripping, self._obeyed = move, False
            self._width = self._width_before = self._sight.width
        width = self._sight.width
        moving = abs(width - self._width) > FINGERS_STILL * dt
        self._width = width
        way = width - self._width_before
        self._obeyed = (way if opening > 0.5 else -way) > MINDED
        self._still_s = 0.0 if moving else self._still_s + dt
        return self._obeyed and self._still_s > FINGERS_STILL_S
