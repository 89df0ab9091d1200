"""The keyboard through a pseudo-terminal: taps, repeats, letting go, and keys that mean nothing."""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Iterator

import pytest

from hardware.teleop.keyboard import Keyboard, KeyboardConfig
from robot_stack.errors import DeviceError
from tests.teleop.rig import GRASP, Arm, Session


class Fingers:
    """The far side of the terminal; a key that is held down repeats 30 times a second."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.closed = False

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def hold(self, session: Session, text: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.type(text)
            session.run(0.033)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self.master)


@pytest.fixture
def fingers() -> Iterator[Fingers]:
    fingers = Fingers()
    yield fingers
    fingers.close()
    os.close(fingers.slave)


@pytest.fixture
def session(arm: Arm, fingers: Fingers) -> Iterator[Session]:
    session = Session(Keyboard(KeyboardConfig(), GRASP, fingers.slave), arm)
    session.waits("press space")
    session.run(0.05)
    yield session
    session.device.disconnect()


def test_space_takes_hold_and_lets_go(session, fingers):
    fingers.hold(session, "w", 0.2)
    assert not session.targets
    fingers.type(" ")
    session.live()
    session.run(0.2)
    fingers.type(" ")
    session.waits("press space")
    assert len(session.run(0.1)) == 0


def test_space_held_down_does_not_flutter(session, fingers):
    fingers.type(" ")
    session.live()
    for _ in range(10):
        fingers.hold(session, " ", 0.03)
        assert session.device.waiting() is None


def test_motion_while_a_key_repeats_and_not_for_long_after(session, fingers):
    fingers.type(" ")
    session.live()
    start = session.arm.target.copy()
    fingers.hold(session, "w", 0.8)
    moved = session.arm.target - start
    assert 0.03 < moved[0] <= 0.1 * 1.2  # 0.1 m/s, with a generous end
    assert moved[1:] == pytest.approx(0.0, abs=1e-9)
    session.run(0.5)  # it brakes
    assert session.moved(0.2) == pytest.approx(0.0, abs=1e-9)


def test_a_tap_is_a_nudge(session, fingers):
    fingers.type(" ")
    session.live()
    start = session.arm.target.copy()
    fingers.type("e")
    session.run(0.8)
    assert 0.001 < session.arm.target[2] - start[2] <= 0.1 * 0.35  # 0.15 s and the ramps


@pytest.mark.parametrize(
    ("keys", "which", "sign"),
    [("s", 0, -1), ("a", 1, 1), ("d", 1, -1), ("q", 2, -1), (".", 3, 1), (",", 3, -1)],
)
def test_what_moves_which_way(session, fingers, keys, which, sign):
    fingers.type(" ")
    session.live()
    before = session.arm.target[[0, 1, 2, 7]].copy()
    fingers.hold(session, keys, 0.3)
    assert (session.arm.target[[0, 1, 2, 7]] - before)[which] * sign > 0.005


def test_slow_capitals_arrows_and_other_keys(session, fingers):
    fingers.type(" f")
    session.live()
    start = session.arm.target.copy()
    fingers.hold(session, "W", 0.5)
    assert 0.0 < session.arm.target[0] - start[0] <= 0.02 * 0.9
    session.run(0.4)
    fingers.type("\x1b[A\x1b[D")
    assert session.moved(0.2) == pytest.approx(0.0, abs=1e-9)
    fingers.type("rx")
    session.run(0.1)
    assert session.device.take("r")
    assert not session.device.take("r"), "it was taken"
    assert session.device.take("x")


def test_a_terminal_that_is_closed_ends_it(session, fingers):
    fingers.type(" ")
    session.live()
    fingers.close()
    session.waits("the terminal was closed")
    assert len(session.run(0.1)) == 0


def test_the_terminal_is_put_back(arm, fingers):
    before = termios.tcgetattr(fingers.slave)
    device = Keyboard(KeyboardConfig(), GRASP, fingers.slave)
    session = Session(device, arm)
    assert not termios.tcgetattr(fingers.slave)[3] & termios.ICANON
    session.device.disconnect()
    assert termios.tcgetattr(fingers.slave) == before


def test_without_a_terminal_it_says_so(arm, tmp_path):
    arm.tick()
    with (tmp_path / "file").open("w") as file, pytest.raises(DeviceError, match="ssh -t"):
        Keyboard(KeyboardConfig(), GRASP, file.fileno()).connect()
