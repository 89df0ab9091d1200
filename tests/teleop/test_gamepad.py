"""A gamepad by the kernel's event bytes: sticks, triggers, dead-man switch, unplugging."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hardware.input.evdev import InputDevice, find_nodes
from hardware.teleop.gamepad import GAMEPAD_KEYS, Gamepad, GamepadConfig
from tests.input.wire import event, key
from tests.teleop.rig import GRASP, HELD, Arm, Node, Session

SOUTH, TL, TR, TL2, TR2 = 0x130, 0x136, 0x137, 0x138, 0x139
X, Y, Z, RX, RY, RZ, GAS, BRAKE, CROSS_X, CROSS_Y = 0, 1, 2, 3, 4, 5, 9, 10, 16, 17
FULL = 32767


def axis(code: int, value: int) -> bytes:
    return event(3, code, value) + event(0, 0, 0)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(InputDevice, "RETRY_S", 0.0)
    node = Node(tmp_path / "event7")
    node.plug()
    yield node
    node.close()


@pytest.fixture
def session(arm: Arm, node: Node) -> Iterator[Session]:
    session = Session(Gamepad(GamepadConfig(device=str(node.path)), GRASP), arm)
    session.waits("hold the right bumper")
    yield session
    session.device.disconnect()


def test_nothing_moves_without_the_dead_man(session, node):
    node.send(axis(Y, -FULL) + axis(RX, FULL) + axis(RZ, 255))
    assert len(session.run(0.2)) == 0
    node.send(key(TR, 1))
    session.live()
    assert session.targets[0] == pytest.approx(HELD)
    assert session.moved(0.3)[0] > 0.02
    node.send(key(TR, 0))
    session.waits("hold the right bumper")
    assert len(session.run(0.2)) == 0
    node.send(key(TR, 1))
    session.live()


@pytest.mark.parametrize(
    ("events", "moved"),
    [
        (axis(Y, -FULL), (1, 0, 0, 0)),
        (axis(X, -FULL), (0, 1, 0, 0)),
        (axis(X, FULL), (0, -1, 0, 0)),
        (axis(RY, -FULL), (0, 0, 1, 0)),
        (axis(RZ, 255), (0, 0, 0, -1)),
        (axis(Z, 255), (0, 0, 0, 1)),
        (axis(Z, 255) + axis(RZ, 255), (0, 0, 0, 0)),
        (axis(RX, 2000) + axis(X, -2000), (0, 0, 0, 0)),  # within the dead zone
        (axis(GAS, 255) + axis(BRAKE, 0), (0, 0, 0, -1)),  # the generic driver's triggers
        (axis(GAS, 0) + axis(BRAKE, 0) + axis(RZ, -FULL), (0, 0, 1, 0)),  # and right stick
        (key(TR2, 1), (0, 0, 0, -1)),  # triggers that are only buttons
        (key(TL2, 1), (0, 0, 0, 1)),
    ],
)
def test_what_moves_which_way(session, node, events, moved):
    node.send(key(TR, 1) + events)
    session.live()
    change = session.moved(0.4)
    assert np.sign(np.where(np.abs(change) < 1e-6, 0.0, change)).tolist() == list(moved)


@pytest.mark.parametrize(
    ("events", "about"),
    [
        (axis(RX, -FULL), (0, 0, 1)),  # left: counter-clockwise from above
        (axis(CROSS_Y, -1), (0, 1, 0)),  # up: it tips forward
        (axis(CROSS_X, 1), (1, 0, 0)),  # right: it leans to the right
    ],
)
def test_what_turns_which_way(session, node, events, about):
    node.send(key(TR, 1) + events)
    session.live()
    before = session.arm.target.copy()
    session.run(0.4)
    from robot_stack.rotation import between

    turn = np.array(between(before[3:7], session.arm.target[3:7]))
    assert turn @ about > 0.1
    assert np.linalg.norm(np.cross(turn, about)) < 1e-6
    assert session.arm.target[:3] == pytest.approx(before[:3], abs=1e-9)


def test_slow_is_slow(session, node):
    node.send(key(TR, 1) + axis(Y, -FULL))
    session.live()
    session.run(0.3)
    fast = session.moved(0.4)[0]
    node.send(key(TL, 1))
    session.run(0.3)
    slow = session.moved(0.4)[0]
    assert 0.1 * fast < slow < 0.35 * fast  # a fifth, on a machine that is busy


def test_unplugged_with_a_stick_pushed_and_back(session, node):
    node.send(key(TR, 1) + axis(Y, -FULL))
    session.live()
    session.run(0.1)
    node.pull()
    session.waits(f"{node.path} was unplugged")
    session.waits(f"{node.path} is not plugged in")
    assert len(session.run(0.1)) == 0
    before = session.arm.target.copy()
    node.plug()
    session.waits("hold the right bumper")
    node.send(key(TR, 1))
    session.live()
    assert session.arm.target == pytest.approx(before)


def test_axes_that_the_kernel_dropped_are_not_believed(session, node):
    node.send(event(0, 3, 0) + event(3, Y, -FULL) + event(0, 0, 0) + key(TR, 1))
    session.live()
    assert session.moved(0.2) == pytest.approx(0.0, abs=1e-9)


def test_the_first_pad_is_found_by_its_buttons(tmp_path):
    sysfs, dev = tmp_path / "sys", tmp_path / "dev"
    pad = sum(1 << code for code in (SOUTH, 0x131, 0x133, 0x134, TL, TR, 0x13A, 0x13B, 0x13C))
    for number, name, bits in (
        (2, "A Keyboard", (1 << 28) | (1 << 57)),
        (4, "Wireless Controller Motion Sensors", 0),
        (5, "Wireless Controller", pad),
        (6, "Another Pad", pad),
    ):
        device = sysfs / f"event{number}" / "device"
        (device / "capabilities").mkdir(parents=True)
        (device / "name").write_text(name)
        words = [f"{bits >> shift & (1 << 64) - 1:x}" for shift in range(256, -1, -64)]
        (device / "capabilities" / "key").write_text(" ".join(words))
    assert [p.name for p in find_nodes("", GAMEPAD_KEYS, sysfs, dev)] == ["event5"]
    assert find_nodes("", frozenset(), sysfs, dev) == [], "no name and no keys is nobody"
