"""Doctor's rows of teleoperation devices."""

from __future__ import annotations

from pathlib import Path

from hardware.input.hidraw import HidInfo
from hardware.teleop import doctor
from robot_stack.config import load_station
from robot_stack.doctor import Check

STATION = """
schema: 1
station: s
robots:
  arm: {{driver: franka, options: {{address: 127.0.0.9}}}}
groups: {{arms: {{robots: [arm]}}}}
teleop: {{driver: spacemouse, group: arms, options: {{device: {device}}}}}
other_teleop:
  pad: {{driver: gamepad, group: arms, options: {{device: "No Such Pad"}}}}
  keys: {{driver: keyboard, group: arms}}
  leader:
    driver: gello
    group: arms
    options: {{port: /dev/serial/none, gripper_id: null, calibration: {{signs: {signs},
               offsets: [0., 0., 0., 0., 0., 0., 0.]}}}}
"""


def found(tmp_path: Path, device: object, signs: str = "[1, 1, 1, 1, 1, 1, 1]") -> dict[str, Check]:
    path = tmp_path / "station.yaml"
    path.write_text(STATION.format(device=device, signs=signs))
    return {check.name: check for check in doctor.checks(load_station(path))}


def test_what_is_missing_and_what_is_there(tmp_path):
    node = tmp_path / "hidraw5"
    rows = found(tmp_path, node)
    assert (rows["device teleop"].status, rows["device pad"].status) == ("fail", "warn")
    assert "not plugged in" in rows["device teleop"].found
    assert rows["device leader"].status == "warn"
    assert rows["device keys"].status == "ok"
    node.touch()
    assert found(tmp_path, node)["device teleop"].status == "ok"


def test_rights(tmp_path, monkeypatch):
    node = tmp_path / "hidraw5"
    node.touch()
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: path != node)
    row = found(tmp_path, node)["device teleop"]
    assert row.status == "fail"
    assert "no right to read" in row.found
    assert "udevadm" in row.mend


def test_a_wrong_section_is_told(tmp_path):
    row = found(tmp_path, tmp_path, signs="[1, 1]")["device leader"]
    assert row.status == "fail"
    assert "2 signs and 7 offsets" in row.found


def test_a_spacemouse_that_nobody_may_read_is_told_without_a_station(tmp_path, monkeypatch):
    node = HidInfo(tmp_path / "hidraw0", "SpaceNavigator", 0x46D, 0xC626, b"\x05\x01\x09\x08")
    monkeypatch.setattr(doctor, "list_hid", lambda: [node])
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    (row,) = doctor.checks(None)
    assert row.status == "warn"
    assert 'KERNELS=="*:256F:*"' in row.mend
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: True)
    assert list(doctor.checks(None)) == []
