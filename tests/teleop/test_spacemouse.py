"""SpaceMouse by the reports that it sends: layouts, buttons, silence, unplugging, rights."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pyspacemouse
import pytest
from pyspacemouse.config_helpers import apply_axis_convention

from hardware.input import hidraw
from hardware.input.hidraw import HidDevice, HidInfo, list_hid
from hardware.teleop.spacemouse import MEND, Cap, SpaceMouse, SpaceMouseConfig, is_spacemouse
from tests.teleop.rig import GRASP, HELD, Arm, Node, Session

SPECS = pyspacemouse.get_device_specs()
MULTI_AXIS = bytes.fromhex("05010908a101")
CENTRED = struct.pack("<B3h", 1, 0, 0, 0)
LEFT, RIGHT = b"\x03\x01\x00", b"\x03\x02\x00"  # gripper, clutch
NONE = b"\x03\x00\x00"


def translation(x: int = 0, y: int = 0, z: int = 0) -> bytes:
    """Report 1 of a SpaceNavigator: right, towards the operator, down."""
    return struct.pack("<B3h", 1, x, y, z)


def rotation(a: int = 0, b: int = 0, c: int = 0) -> bytes:
    return struct.pack("<B3h", 2, a, b, c)


class Fed:
    """What pyspacemouse reads from: a HID device that gives these reports."""

    def __init__(self, reports: list[bytes]) -> None:
        self.reports = reports

    def read(self, size: int) -> bytes:
        return self.reports.pop(0)


@pytest.mark.parametrize("name", SPECS)
def test_decoding_agrees_with_pyspacemouse(name: str) -> None:
    spec = SPECS[name]
    split = spec.mappings["yaw"].channel == 2  # turns in a report of their own
    stream = random.Random(name)
    values = [[stream.randint(-350, 350) for _ in range(6)] for _ in range(50)]
    cap = Cap()
    converted = apply_axis_convention(spec, pyspacemouse.AxisConvention.ROS)
    for one in values:
        if split:
            reports = [translation(*one[:3]), rotation(*one[3:])]
        else:
            reports = [struct.pack("<B6h", 1, *one)]
        device = pyspacemouse.SpaceMouseDevice(converted, Fed(list(reports)))
        for report in reports:
            cap.take(report, 0)
            state = device.read()
        theirs = (state.x, state.y, state.z, state.roll, state.pitch, state.yaw)
        assert cap.twist(0) == pytest.approx(theirs)


@pytest.mark.parametrize("name", ["SpaceNavigator", "SpaceMouseCompact", "SpaceMouseWireless"])
def test_buttons_agree_with_pyspacemouse(name: str) -> None:
    spec = SPECS[name]
    for bits in range(4):
        report = bytes([3, bits, 0])
        device = pyspacemouse.SpaceMouseDevice(spec, Fed([report]))
        cap = Cap()
        cap.take(report, 0)
        assert [cap.pressed(0), cap.pressed(1)] == [bool(b) for b in device.read().buttons]


def test_what_is_no_report_is_ignored() -> None:
    cap = Cap()
    cap.take(translation(350), 0)
    for junk in (b"", b"\x01", b"\x01\x02\x03", b"\x02\x00", b"\x17\x50", b"\x1c" + bytes(12)):
        cap.take(junk, 0)
    assert cap.twist(0) == pytest.approx((0, -1, 0, 0, 0, 0))


def test_a_cap_that_falls_silent_counts_as_let_go() -> None:
    cap = Cap()
    cap.take(translation(0, -350, 0), 1_000_000_000)
    assert cap.twist(1_250_000_000)[0] == pytest.approx(1.0)
    assert cap.twist(1_350_000_000) == (0.0,) * 6  # 0.3 s without a word


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(hidraw, "RETRY_S", 0.0)
    node = Node(tmp_path / "hidraw0", packets=True)
    yield node
    node.close()


@pytest.fixture
def session(arm: Arm, node: Node) -> Iterator[Session]:
    node.plug()
    session = Session(SpaceMouse(SpaceMouseConfig(device=str(node.path)), GRASP), arm)
    session.waits("press the right button")
    session.run(0.05)
    yield session
    session.device.disconnect()


class Pushing:
    """A cap that is held where it is sends that 100 times a second."""

    def __init__(self, session: Session, node: Node, *reports: bytes) -> None:
        turn = session.turn
        due = 0.0

        def pushed():
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + 0.01
                for report in reports:
                    node.send(report)
            return turn()

        self.session, self.turn, self.pushed = session, turn, pushed

    def __enter__(self) -> None:
        self.session.turn = self.pushed

    def __exit__(self, *_: object) -> None:
        self.session.turn = self.turn


def engage(session: Session, node: Node) -> None:
    node.send(RIGHT)
    session.live()
    node.send(NONE)


def test_push_turn_and_let_go(session, node):
    with Pushing(session, node, translation(0, -350, 0)):  # away from the operator
        assert len(session.run(0.1)) == 0, "the clutch is not pressed"
        engage(session, node)
        moved = session.moved(0.5)
        assert moved[0] > 0.05
        assert moved[1:] == pytest.approx(0.0, abs=1e-9)
    with Pushing(session, node, translation(350), rotation()):  # to the right
        assert session.moved(0.5)[1] < -0.05
    with Pushing(session, node, translation(0, 0, -350)):  # lifted
        assert session.moved(0.5)[2] > 0.05
    before = session.arm.target.copy()
    with Pushing(session, node, translation(), rotation(0, 0, -350)):  # counter-clockwise
        session.run(0.5)
    w, _, _, z = turn_between(before, session.arm.target)
    assert w > 0.5
    assert z > 0.1
    node.send(CENTRED)
    session.run(0.5)
    assert session.moved(0.1) == pytest.approx(0.0, abs=1e-9), "centred, it holds"
    node.send(RIGHT)
    session.waits("press the right button")
    assert len(session.run(0.1)) == 0


def turn_between(before, after):
    from robot_stack.rotation import multiply

    w, x, y, z = before[3:7]
    return multiply(after[3:7], (w, -x, -y, -z))


def test_the_other_button_closes_and_opens_the_gripper(session, node):
    engage(session, node)
    session.arm.target[7] = HELD[7]
    ends = []
    for _ in range(2):
        node.send(LEFT)
        session.run(0.05)
        node.send(NONE)
        session.run(0.9)
        ends.append(float(session.arm.target[7]))
    assert ends == [1.0, 0.0]  # it stood at 0.5, which is not open


def test_a_gripper_wish_does_not_outlive_the_clutch(session, node):
    engage(session, node)
    node.send(LEFT)
    session.until(lambda: session.arm.target[7] == 1.0, "the gripper to open")
    node.send(NONE)
    session.run(0.05)
    node.send(RIGHT)
    session.waits("press the right button")
    node.send(NONE)
    session.arm.target[7] = 0.0  # a policy has closed it
    session.run(0.1)
    engage(session, node)
    session.run(0.3)
    assert session.arm.target[7] == 0.0


def test_many_reports_wait_and_the_newest_counts(session, node):
    engage(session, node)
    for value in (*range(-350, 350, 7), 0):
        node.send(translation(value))
    session.run(0.02)
    assert session.moved(0.2) == pytest.approx(0.0, abs=2e-3)


def test_a_press_between_two_looks_is_a_press(session, node):
    engage(session, node)
    session.run(0.05)
    node.send(RIGHT)
    node.send(NONE)  # before anybody has looked
    session.waits("press the right button")
    assert len(session.run(0.1)) == 0


def test_unplugged_while_moving_and_plugged_in_again(session, node):
    with Pushing(session, node, translation(0, -350, 0)):
        engage(session, node)
        session.run(0.1)
    node.pull()
    session.waits(f"{node.path} was unplugged")
    session.waits(f"{node.path} is not plugged in")
    before = session.arm.target.copy()
    assert len(session.run(0.1)) == 0
    node.plug()
    session.waits("press the right button")
    session.run(0.05)
    session.jumps.clear()
    engage(session, node)
    session.run(0.2)
    assert session.arm.target == pytest.approx(before, abs=1e-9)
    assert max(session.jumps) == pytest.approx(0.0, abs=1e-9)


def test_without_rights_it_says_how_to_get_them(tmp_path, monkeypatch):
    path = tmp_path / "hidraw3"
    path.touch()

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(hidraw.os, "open", refuse)
    device = HidDevice(str(path), is_spacemouse, name="the SpaceMouse", mend=MEND)
    assert device.read() == []
    assert "no right to read" in device.trouble
    assert 'KERNELS=="*:256F:*"' in device.trouble
    assert "udevadm" in device.trouble


def test_a_file_is_no_hid_device(tmp_path):
    path = tmp_path / "hidraw3"
    path.write_bytes(translation())
    device = HidDevice(str(path), is_spacemouse, name="it", mend="")
    assert device.read() == []
    assert "no HID device" in device.trouble


def make_sysfs(root: Path) -> tuple[Path, Path]:
    """A keyboard, a receiver of two nodes, an old SpaceNavigator and a Logitech mouse."""
    sysfs, dev = root / "sys", root / "dev"
    for number, name, ids, descriptor in (
        (0, "A Keyboard", "0003:0000046D:0000C31C", "05010906"),
        (2, "3Dconnexion Universal Receiver", "0003:0000256F:0000C652", "05010902a101"),
        (3, "3Dconnexion Universal Receiver", "0003:0000256F:0000C652", "05010908a101"),
        (10, "3Dconnexion SpaceNavigator", "0003:0000046D:0000C626", "05010908a101"),
        (11, "Logitech Mouse", "0003:0000046D:0000C077", "05010902a101"),
    ):
        device = sysfs / f"hidraw{number}" / "device"
        device.mkdir(parents=True)
        (device / "uevent").write_text(f"DRIVER=hid\nHID_ID={ids}\nHID_NAME={name}\n")
        (device / "report_descriptor").write_bytes(bytes.fromhex(descriptor))
    broken = sysfs / "hidraw12" / "device"
    broken.mkdir(parents=True)
    (broken / "uevent").write_text("HID_ID=rubbish\n")
    (broken / "report_descriptor").write_bytes(b"")
    return sysfs, dev


def test_nodes_are_found_by_what_the_kernel_knows(tmp_path):
    nodes = list_hid(*make_sysfs(tmp_path))
    assert [node.path.name for node in nodes] == [
        "hidraw0", "hidraw2", "hidraw3", "hidraw10", "hidraw11"
    ]  # fmt: skip
    assert [node.path.name for node in nodes if is_spacemouse(node)] == ["hidraw3", "hidraw10"]


@pytest.mark.parametrize("name", SPECS)
def test_every_device_that_pyspacemouse_knows_is_one(name):
    spec = SPECS[name]
    assert is_spacemouse(HidInfo(Path(), name, spec.vendor_id, spec.product_id, MULTI_AXIS))


def test_the_first_spacemouse_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(hidraw, "RETRY_S", 0.0)
    sysfs, dev = make_sysfs(tmp_path)
    dev.mkdir()
    node = Node(dev / "hidraw3", packets=True)
    node.plug()
    device = HidDevice(
        "", is_spacemouse, name="the SpaceMouse", mend="", find=lambda: list_hid(sysfs, dev)
    )
    assert device.read() == []
    assert device.connected
    node.send(translation(1, 2, 3))
    node.send(rotation(4, 5, 6))
    assert device.read() == [translation(1, 2, 3), rotation(4, 5, 6)]
    device.close()
    node.close()
