"""Orders that wait for a moving robot: given up they are not carried out, and they hold up nobody
who takes its motion away."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

from robot_stack.errors import ControlPlaneError
from robot_stack.records import OrderKind
from robot_stack.types import CommandMode, Lifecycle
from server.control.view import ArmView
from tests.control.ideal_franka import DT_NS, Rig, rig

ALL = [True] * 8
GIVEN_UP_NS = 11_000_000_000  # an order is waited for during 10 s


class Ordered:
    """A robot that falls, at its sleep pose and following a stream, and who gives it orders."""

    def __init__(self, arm: Rig) -> None:
        self.rig = arm
        self.arm = arm.arm
        self.view = ArmView("ideal", self.arm.config, self.arm.spec)
        self.start = np.array(self.arm.spec.sleep)
        self.middle = 0.0
        self._turns = 0

    def move(self, turns: int) -> None:
        """Joint 1 goes to and fro, and never stands."""
        for _ in range(turns):
            self._turns += 1
            target = self.start.copy()
            target[0] += self.middle + 0.1 * math.sin(4.0 * self._turns * DT_NS / 1e9)
            self.rig.send(target, CommandMode.JOINT_POSITION)
            self.rig.turn()

    def pause(self) -> None:
        """Commands stop: it brakes and stands."""
        for _ in range(100):
            self.rig.turn()
        assert self.arm.standing

    def order(self, kind: OrderKind, value: int = 0) -> Generator[None, None, None]:
        """Given; what is returned goes on when it has been carried out."""
        asking = self.view.order(kind, ALL, value)
        next(asking)
        return asking


def done(asking: Generator[None, None, None]) -> bool:
    try:
        next(asking)
    except StopIteration:
        return True
    return False


@pytest.fixture
def ordered(tmp_path: Path) -> Iterator[Ordered]:
    with rig(tmp_path, falls=True) as arm:
        made = Ordered(arm)
        made.move(100)
        yield made
        made.view.close()


def test_torque_is_taken_at_rest_when_the_robot_stands(ordered: Ordered) -> None:
    asking = ordered.order(OrderKind.TORQUE)
    ordered.move(50)
    assert ordered.arm.torque.all() and not done(asking)
    ordered.pause()
    assert done(asking)
    assert not ordered.arm.torque.any()


def test_torque_is_kept_where_the_robot_would_fall_by_the_time_it_stands(ordered: Ordered) -> None:
    asking = ordered.order(OrderKind.TORQUE)
    for middle in np.arange(0.0, 0.5, 0.01):  # a long way at once would not be followed
        ordered.middle = middle
        ordered.move(5)
    ordered.pause()
    assert done(asking)
    assert ordered.arm.torque.all(), "it was at rest when somebody asked, and is not any more"


@pytest.mark.parametrize("kind", [OrderKind.TORQUE, OrderKind.RESET, OrderKind.ARM])
def test_an_order_that_was_given_up_is_not_carried_out(ordered: Ordered, kind: OrderKind) -> None:
    ordered.pause()
    ordered.arm.lifecycle, ordered.arm.fault = Lifecycle.DISARMED, ""
    if kind is OrderKind.RESET:
        ordered.arm._fail("a fault")
    before = ordered.arm.lifecycle
    asking = ordered.order(kind)
    ordered.rig.clock.now_ns += GIVEN_UP_NS  # the arm process hung
    with pytest.raises(ControlPlaneError, match=f"did not carry out {kind.name} within 10 s"):
        next(asking)
    ordered.pause()
    assert ordered.arm.lifecycle is before
    assert ordered.arm.torque.all()
    later = ordered.order(OrderKind.DISARM)
    ordered.rig.turn()
    assert done(later), "the next order gets its turn"


def test_whoever_asks_is_never_told_that_an_expired_order_was_carried_out(ordered: Ordered) -> None:
    asking = ordered.order(OrderKind.TORQUE)
    ordered.move(50)
    ordered.rig.clock.now_ns += GIVEN_UP_NS
    ordered.pause()  # it has expired, and counts as done in the ticks
    assert ordered.view.tick()["order_done"] > 0
    with pytest.raises(ControlPlaneError, match="did not carry out TORQUE"):
        next(asking)
    assert ordered.arm.torque.all()


@pytest.mark.parametrize("kind", [OrderKind.DISARM, OrderKind.RESET, OrderKind.SHUTDOWN])
def test_what_takes_motion_away_does_not_wait_behind_torque(
    ordered: Ordered, kind: OrderKind
) -> None:
    torque = ordered.order(OrderKind.TORQUE, 1)
    ordered.move(10)
    asking = ordered.order(kind)
    ordered.move(1)
    assert ordered.arm.lifecycle is Lifecycle.DISARMED
    ordered.pause()
    assert done(torque) and done(asking)


def test_a_disarm_that_nobody_waits_for_any_more_disarms(ordered: Ordered) -> None:
    asking = ordered.order(OrderKind.DISARM)
    ordered.rig.clock.now_ns += GIVEN_UP_NS
    ordered.move(1)
    assert ordered.arm.lifecycle is Lifecycle.DISARMED
    with pytest.raises(ControlPlaneError, match="did not carry out DISARM"):
        next(asking)
