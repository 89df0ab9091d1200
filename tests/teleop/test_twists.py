"""A scripted device: clutch, engaging, staleness; what all Cartesian devices share."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from hardware.teleop.cartesian import Clutch, Grasp
from hardware.teleop.mapper import Stick
from hardware.teleop.twists import Twists, TwistsConfig, TwistWriter, twists_path
from robot_stack.shared_memory import RingWriter
from tests.teleop.rig import GRASP, HELD, STATION, Arm, Session

FORWARD = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Hands:
    """A script that goes on saying what it said, as it must."""

    def __init__(self, session: Session) -> None:
        self.writer = TwistWriter(STATION)
        self.stick = Stick()
        turn = session.turn

        def pushing():
            self.writer.push(self.stick)
            return turn()

        session.turn = pushing


@pytest.fixture
def session(arm: Arm) -> Iterator[Session]:
    session = Session(Twists(TwistsConfig(), GRASP), arm)
    yield session
    session.device.disconnect()


@pytest.fixture
def hands(session: Session) -> Iterator[Hands]:
    hands = Hands(session)
    yield hands
    hands.writer.close()


def test_it_moves_while_the_switch_is_held_and_begins_where_the_robot_is(session, hands):
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    assert session.targets[0] == pytest.approx(HELD)
    moved = session.moved(0.5)
    assert moved[0] > 0.05
    assert moved[1:] == pytest.approx(0.0, abs=1e-9)
    assert max(session.jumps) <= 0.25 * 0.05 + 1e-9  # 0.25 m/s, no step longer than 50 ms
    hands.stick = Stick(FORWARD, held=False)
    session.waits("the script must hold")
    assert len(session.run(0.1)) == 0


def test_taking_hold_again_begins_where_the_robot_is_then(session, hands):
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    session.run(0.2)
    hands.stick = Stick()
    session.waits("the script must hold")
    session.arm.target = HELD + np.array([0.0, 0.3, -0.2, 0, 0, 0, 0, -0.5])  # somebody moved it
    session.jumps.clear()
    session.run(0.1)
    hands.stick = Stick(held=True)
    session.live()
    session.run(0.1)
    assert max(session.jumps) == pytest.approx(0.0, abs=1e-9)
    assert session.arm.target[7] == pytest.approx(0.0)


def test_a_switch_that_is_held_when_it_engages_must_be_let_go_of_first(session, hands):
    hands.stick = Stick(FORWARD, held=True)
    session.waits("let go, then the script must hold")
    assert len(session.run(0.1)) == 0
    hands.stick = Stick(FORWARD, held=False)
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    session.device.engage(session.arm.target, time.monotonic_ns())  # after a stop
    session.waits("let go, then")
    assert len(session.run(0.2)) == 0
    hands.stick = Stick(FORWARD, held=False)
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()


def test_what_was_held_before_the_last_motion_is_not_begun_from(session, hands):
    """Pressed again before the session has said what the robot holds now: nothing moves."""
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    session.run(0.1)
    engage, session.device.engage = session.device.engage, lambda held, t_ns: None
    hands.stick = Stick()
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    assert len(session.run(0.2)) == 0
    session.device.engage = engage
    hands.stick = Stick()
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()


def test_a_script_that_falls_silent_has_let_go(session, hands):
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    hands.writer.push = lambda stick: None
    session.waits("the script must hold")
    before = session.arm.target.copy()
    assert len(session.run(0.2)) == 0
    assert session.arm.target == pytest.approx(before)


def test_without_a_script_it_says_so_and_finds_one_that_comes_or_comes_again(session):
    session.waits("no script writes")
    hands = Hands(session)
    hands.stick = Stick(held=True)
    session.waits("let go, then")
    hands.stick = Stick()
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    hands.writer.close()
    hands.writer.push = lambda stick: None
    session.waits("no script writes")
    again = Hands(session)
    session.waits("the script must hold")
    again.stick = Stick(FORWARD, held=True)
    session.live()
    again.writer.close()


def test_a_ring_of_another_layout_is_no_script(session):
    other = RingWriter(twists_path(STATION), np.dtype([("t_ns", "<i8")]), 4)
    session.run(0.3)
    session.waits("no script writes")
    other.close(unlink=True)


def test_an_arm_that_is_silent_or_lost_is_not_led(session, hands):
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    session.arm.silent = True
    session.waits("arm is silent")
    before = session.arm.target.copy()
    assert len(session.run(0.2)) == 0
    session.arm.silent = False
    session.waits("let go, then")
    session.arm.stuck, session.arm.pose = True, np.full(7, np.nan)
    session.waits("arm does not say where its end effector is")
    assert session.arm.target == pytest.approx(before)


def test_a_robot_that_is_stuck_is_led_no_farther_than_the_leash(session, hands):
    session.run(0.05)
    session.arm.stuck = True
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    session.run(0.7)
    assert session.arm.target[0] - HELD[0] == pytest.approx(0.08, abs=1e-6)


def test_other_arms_of_the_group_stay(arm):
    device = Twists(TwistsConfig(), Grasp(STATION, "arm", slice(6, 14)))
    arm.target = np.concatenate([np.arange(6.0), HELD, [7.0]])
    held = arm.target.copy()
    arm.stuck, arm.pose = True, HELD[:7].copy()
    session = Session(device, arm)
    hands = Hands(session)
    session.waits("the script must hold")
    hands.stick = Stick(FORWARD, held=True)
    session.live()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        session.turn()
    assert arm.target[6] > held[6]
    arm.target[6] = held[6]
    assert arm.target == pytest.approx(held)
    hands.writer.close()
    device.disconnect()


def test_clutch_toggle_needs_presses_and_hold_needs_holding():
    toggle, hold = Clutch("toggle"), Clutch("hold")
    seen = [(toggle.update(down), hold.update(down)) for down in (1, 1, 0, 1, 1, 0, 0, 1, 0)]
    assert [t for t, _ in seen] == [0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert [h for _, h in seen] == [0, 0, 0, 1, 1, 0, 0, 1, 0]
