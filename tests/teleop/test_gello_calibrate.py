"""`robot-stack gello` on a virtual leader, its operator's hands on the far side of the bus."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hardware.dynamixel.process import BusProcess, spawn
from hardware.teleop import gello_calibrate
from hardware.teleop.gello_config import GelloCalibration, GelloConfig, calibration_path
from hardware.teleop.gello_virtual import bus_description, move
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, DeviceError
from robot_stack.registry import load

HOME = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0])  # of an ALOHA follower
TRUTH = GelloCalibration(
    signs=(1, -1, -1, 1, -1, 1),
    offsets=(math.pi / 2, math.pi, 0.0, -math.pi / 2, 3 * math.pi / 2, math.pi),
    open=3.4,
    closed=2.6,
)
CONFIG = GelloConfig(port="virtual:gello", ids=(1, 2, 3, 4, 5, 6), gripper_id=7, baud=1_000_000)
STATION = """
schema: 1
station: s
robots:
  arm: {driver: aloha, options: {role: follower, model: vx300s, port: /dev/null}}
groups: {arms: {robots: [arm]}}
teleop:
  driver: gello
  group: arms
  options: {port: "virtual:gello", ids: [1, 2, 3, 4, 5, 6], gripper_id: 7, baud: 1000000}
"""


class Operator:
    """Does what is asked, with hands that are 3 degrees off."""

    def __init__(self, buses: BusProcess) -> None:
        self.buses = buses
        self.asked: list[str] = []
        self.q = HOME + 0.4
        self.opening = 1.0
        self.wrong = ""
        self.place()

    def place(self) -> None:
        move(self.buses.control, "gello", CONFIG, TRUTH, self.q, self.opening)

    def __call__(self, text: str) -> None:
        self.asked.append(text)
        if match := re.match(r"Turn joint (\d)", text):
            if self.wrong != "nothing":
                self.q[int(match[1]) - 1 + (self.wrong == "next")] += math.radians(30)
        elif "Hold the GELLO as the robot stands" in text:
            self.q = HOME + math.radians(40 if self.wrong == "pose" else 3)
        elif "Squeeze" in text:
            self.opening = 0.0
        elif "Let go" in text:
            self.opening = 1.0
        self.place()


@pytest.fixture(scope="module")
def buses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusProcess]:
    directory = tmp_path_factory.mktemp("gello")
    with spawn([bus_description("gello", CONFIG, TRUTH, HOME)], directory) as buses:
        yield buses


@pytest.fixture
def file(buses: BusProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))
    tty = tmp_path / "shm" / "s" / "tty"
    tty.mkdir(parents=True)
    (tty / "gello").symlink_to(buses.port)
    path = tmp_path / "station.yaml"
    path.write_text(STATION)
    return path


def calibrate(file: Path, operator: Operator, *options: str) -> int:
    parser = argparse.ArgumentParser()
    gello_calibrate.add_arguments(parser)
    return gello_calibrate.run(parser.parse_args([str(file), *options]), operator)


def test_it_measures_what_the_rig_is_and_teleoperation_reads_it(file, buses, capsys):
    operator = Operator(buses)
    assert calibrate(file, operator, "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["signs"] == list(TRUTH.signs)
    away = np.array(result["offsets"]) - np.array(TRUTH.offsets)
    assert np.remainder(away + math.pi, 2 * math.pi) - math.pi == pytest.approx(0.0, abs=1e-4)
    opened, closed = result["gripper"]
    assert opened - closed == pytest.approx(0.8, abs=0.01)
    assert math.remainder(opened - 3.4, 2 * math.pi) == pytest.approx(0.0, abs=0.01)
    assert "waist +0, shoulder -55, elbow +66" in " ".join(operator.asked)
    station = load_station(file)
    device = load("teleop", "gello").from_config(station.teleop, station)
    assert device.calibration.signs == TRUTH.signs
    assert calibrate(file, operator, "--steps", "gripper") == 0
    assert calibrate(file, operator, "--steps", "offsets", "--exact") == 0
    off = np.array(load("teleop", "gello").from_config(station.teleop, station).calibration.offsets)
    assert np.abs(np.remainder(off - np.array(TRUTH.offsets) + 0.5, 2 * math.pi) - 0.5) == (
        pytest.approx(math.radians(3), abs=0.01)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nothing", "no servo of the GELLO turned"),
        ("next", "servo 2 turned, and joint 1 is servo 1"),
        ("pose", r"joint 1 [+-]\d+ degrees"),
    ],
)
def test_a_mistake_is_told_and_nothing_written(file, buses, wrong, message):
    operator = Operator(buses)
    operator.wrong = wrong
    with pytest.raises(DeviceError, match=message):
        calibrate(file, operator)
    assert not calibration_path(file, "arm").exists()


def test_what_is_missing_must_be_measured(file, buses):
    with pytest.raises(ConfigError, match="also needs --steps signs offsets gripper"):
        calibrate(file, Operator(buses), "--steps", "gripper")
    with pytest.raises(ConfigError, match="which GELLO"):
        calibrate(file, Operator(buses), "--device", "other")
