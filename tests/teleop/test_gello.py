"""A GELLO on a virtual servo bus: calibration, alignment, clutches, whole turns, silence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from hardware.dynamixel.process import BusProcess, spawn
from hardware.teleop.gello import Gello
from hardware.teleop.gello_config import (
    DeadmanConfig,
    GelloCalibration,
    GelloConfig,
    calibration_path,
    load_calibration,
    save_calibration,
)
from hardware.teleop.gello_virtual import bus_description, move
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, DeviceError
from robot_stack.registry import load
from robot_stack.spec import JointSpec, RobotSpec
from tests.input.wire import KEY_B, key
from tests.teleop.rig import Node

# Published for a Franka GELLO: quarter turns and mixed directions (here some wrapped by a turn).
CALIBRATION = GelloCalibration(
    signs=(1, -1, 1, 1, 1, -1, 1),
    offsets=(3 * math.pi / 2, math.pi, math.pi, math.pi / 2, math.pi, 3 * math.pi / 2, math.pi / 2),
    open=3.4,
    closed=2.6,
)
Q = np.array([0.1, -0.6, 0.2, -2.2, -0.1, 1.7, 0.6])
SPEC = RobotSpec(
    "seven",
    (
        *(JointSpec(f"joint{i}", "rad", -2.8, 2.8, 2.0, 10.0, 0.3) for i in range(1, 8)),
        JointSpec("gripper", "fraction", 0.0, 1.0, 3.0, 20.0, 1.0),
    ),
    home=(0.0,) * 8,
    sleep=(0.0,) * 8,
)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def buses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusProcess]:
    config = GelloConfig(port="", baud=1_000_000)
    directory = tmp_path_factory.mktemp("gello")
    description = bus_description("gello", config, CALIBRATION, Q, 1.0)
    with spawn([description], directory) as buses:
        yield buses


@dataclass
class Rig:
    """The GELLO, the hand that holds it, and the robot: it goes where it is asked to at once."""

    buses: BusProcess
    config: GelloConfig = field(default_factory=lambda: GelloConfig(port="", baud=1_000_000))

    def __post_init__(self) -> None:
        self.robot = np.array([*Q, 1.0])
        self.targets: list[np.ndarray] = []
        self.device = Gello(self.config, CALIBRATION, SPEC, slice(0, 8), self.buses.port)
        self.device.connect()
        self.device.engage(self.robot, time.monotonic_ns())

    def hand(self, q: np.ndarray, opening: float = 1.0) -> None:
        move(self.buses.control, "gello", self.config, CALIBRATION, q, opening)

    def turn(self) -> None:
        reading = self.device.read()
        if reading is not None:
            t_ns, target = reading
            assert 0 <= time.monotonic_ns() - t_ns < 1e9
            assert np.isfinite(target).all()
            self.robot = target
            self.targets.append(target)
        elif self.device.waiting() is not None:
            self.device.engage(self.robot, time.monotonic_ns())
        time.sleep(0.001)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; {self.device.waiting()}"
            self.turn()

    def live(self) -> None:
        self.until(lambda: self.device.waiting() is None, "the GELLO to be live")

    def waits(self, text: str) -> None:
        self.until(lambda: text in (self.device.waiting() or ""), text)

    def run(self, count: int) -> np.ndarray:
        """So many readings."""
        begun = len(self.targets)
        self.until(lambda: len(self.targets) >= begun + count, f"{count} readings")
        return np.array(self.targets[begun:])


@pytest.fixture
def rig(buses: BusProcess) -> Iterator[Rig]:
    rig = Rig(buses)
    rig.hand(Q)
    yield rig
    rig.device.disconnect()


def calm(buses: BusProcess) -> None:
    buses.control.call("calm", "gello")
    for servo in range(1, 9):
        buses.control.call("missing", "gello", servo_id=servo, gone=False)


def test_it_follows_joint_for_joint(rig):
    rig.live()
    goal = Q + np.array([0.1, -0.05, 0.08, 0.1, -0.1, 0.05, -0.1])
    rig.hand(goal, 0.25)
    rig.until(lambda: np.abs(rig.robot[:7] - goal).max() < 0.003, "the joints to be there")
    rig.until(lambda: abs(rig.robot[7] - 0.25) < 0.01, "the gripper to be there")


def test_it_says_which_joint_is_off_by_how_much_and_engages_when_brought_there(rig):
    away = Q + np.array([0, 0, 0, -0.4, 0, 0, 0.2])
    rig.hand(away)
    rig.waits("joint4 by +0.40 rad")
    assert "joint7 by -0.20 rad" in rig.device.waiting()
    assert not rig.targets
    rig.hand(Q + np.array([0, 0, 0, 0.1, 0, 0, 0]))
    rig.live()


def test_what_is_missing_when_it_engages_is_made_up_for_without_a_jump(rig):
    rig.hand(Q + 0.12)
    rig.live()
    rig.run(10)
    targets = np.array(rig.targets)
    rig.until(lambda: np.abs(rig.robot[:7] - Q - 0.12).max() < 0.003, "catching up")
    # At most 0.5 rad/s: what a reading may move depends on when it was made, 0.05 s at worst.
    steps = np.abs(np.diff(targets[:, :7], axis=0)).max()
    assert targets[0, :7] == pytest.approx(Q)
    assert 0.0 < steps <= 0.5 * 0.1


def test_the_trigger_must_be_where_the_gripper_is(rig):
    rig.robot[7] = 0.0  # it holds something
    rig.hand(Q, 1.0)
    rig.waits("squeeze the trigger (it is at 1.00, the gripper at 0.00)")
    rig.hand(Q, 0.1)
    rig.live()
    rig.robot[7] = 0.0
    rig.device.engage(rig.robot, time.monotonic_ns())
    rig.robot[7] = 1.0
    rig.device.engage(rig.robot, time.monotonic_ns())
    rig.waits("let go of the trigger")


def test_a_relative_leader_hands_on_its_motions(buses):
    rig = Rig(buses, GelloConfig(port="", baud=1_000_000, clutch="relative"))
    away = Q + np.array([0.8, -0.5, 0.3, 0.2, 0.9, -0.4, 1.2])
    rig.hand(away)
    rig.live()
    assert np.abs(rig.run(20)[:, :7] - Q).max() < 0.01
    rig.hand(away + 0.2)
    rig.until(lambda: np.abs(rig.robot[:7] - Q - 0.2).max() < 0.01, "the motion to be made")
    rig.device.disconnect()


def test_whole_turns_are_no_matter(rig):
    """A servo that counts 4096 more or less after power-up stands at the same angle."""
    turned = dataclasses.replace(
        CALIBRATION, offsets=tuple(o + 2 * math.pi * n for n, o in zip(
            (1, -1, 0, 2, -1, 0, 1), CALIBRATION.offsets, strict=True)))  # fmt: skip
    rig.device.calibration = turned
    rig.live()
    assert rig.run(3)[-1][:7] == pytest.approx(Q, abs=0.003)


def test_joints_beyond_half_a_turn_from_zero_are_followed_through(rig):
    """Joint 4 at -2.2 rad, and on through the servo's own end of turn."""
    rig.live()
    for step in np.linspace(0.0, -0.8, 9):
        rig.hand(Q + np.array([0, 0, 0, step, 0, 0, 0]))
        rig.run(4)
    rig.until(lambda: abs(rig.robot[3] + 3.0) < 0.003, "joint 4 to be at -3.0 rad")
    assert np.abs(np.diff(np.array(rig.targets)[:, 3])).max() < 0.2


def test_silence_ends_it_and_alignment_is_asked_for_again(rig):
    rig.live()
    rig.run(3)
    rig.buses.control.call("missing", "gello", servo_id=3, gone=True)
    try:
        rig.waits("servos [3]")
        before = rig.robot.copy()
        rig.hand(Q + np.array([0, 0.5, 0, 0, 0, 0, 0]))
    finally:
        calm(rig.buses)
    rig.waits("joint2 by -0.50 rad")
    assert rig.robot == pytest.approx(before)
    rig.hand(Q)
    rig.live()


def test_a_few_lost_packets_are_no_matter(rig):
    rig.live()
    rig.buses.control.call("drop", "gello", rate=0.1)
    try:
        rig.run(60)
    finally:
        calm(rig.buses)


def test_unplugged_and_plugged_in_again(rig):
    rig.live()
    rig.buses.control.call("unplug", "gello")
    try:
        rig.waits("GELLO: ")
    finally:
        rig.buses.control.call("plug", "gello")
    rig.live()


def test_a_pedal_is_its_dead_man_switch(buses, tmp_path):
    node = Node(tmp_path / "pedal")
    node.plug()
    config = GelloConfig(port="", baud=1_000_000, deadman=DeadmanConfig(str(node.path), "KEY_B"))
    rig = Rig(buses, config)
    rig.hand(Q)
    rig.waits(f"hold KEY_B of {node.path}")
    node.send(key(KEY_B, 1))
    rig.live()
    rig.run(3)
    node.send(key(KEY_B, 0))
    rig.waits("hold KEY_B")
    rig.hand(Q + 0.3)
    rig.waits("bring joint")
    node.send(key(KEY_B, 1))
    count = len(rig.targets)
    for _ in range(100):
        rig.turn()
    rig.hand(Q)
    rig.waits("let go, then hold KEY_B")
    assert len(rig.targets) == count
    node.pull()
    rig.waits("was unplugged")
    rig.device.disconnect()
    node.close()


def test_servos_that_are_not_there_are_named(buses):
    config = GelloConfig(port="", baud=1_000_000, ids=(1, 2, 3, 4, 5, 6, 9))
    with pytest.raises(DeviceError, match=r"servos \[9\] do not answer"):
        Gello(config, CALIBRATION, SPEC, slice(0, 8), buses.port).connect()


def test_calibration_is_its_own_inverse():
    assert CALIBRATION.joints(CALIBRATION.angles(Q)) == pytest.approx(Q)
    for opening in (0.0, 0.3, 1.0):
        assert CALIBRATION.fraction(CALIBRATION.trigger(opening)) == pytest.approx(opening)
        turned = CALIBRATION.trigger(opening) - 2 * math.pi
        assert CALIBRATION.fraction(turned) == pytest.approx(opening)
    assert CALIBRATION.fraction(4.0) == 1.0


STATION = """
schema: 1
station: s
robots:
  left: {driver: aloha, options: {role: follower, model: vx300s, port: /dev/null}}
  right: {driver: aloha, options: {role: follower, model: vx300s, port: /dev/null}}
groups: {arms: {robots: [left, right]}}
teleop:
  driver: gello
  group: arms
  options:
"""
GOOD = "    port: virtual:gello\n    ids: [1, 2, 3, 4, 5, 6]\n    robot: right\n"


def station(tmp_path: Path, options: str):
    path = tmp_path / "station.yaml"
    path.write_text(STATION + options)
    return load_station(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GOOD.replace("    robot: right\n", ""), "say which robot of group 'arms'"),
        (GOOD.replace("right", "middle"), "'middle' is not one"),
        (GOOD.replace(", 6]", ", 6, 7]"), "has 6 joints and the GELLO 7 servos"),
        (GOOD.replace(", 6]", ", 5]"), "each servo has an id of its own"),
        (GOOD + "    baud: 1234\n", "1234 is none of"),
        (GOOD, "is not calibrated .*robot-stack gello"),
        (GOOD + "    calibration: {signs: [1, 2], offsets: [0.0, 0.0]}\n", "2 is neither 1 nor -1"),
        (GOOD + "    calibration: {signs: [1], offsets: [0.0, 0.0]}\n", "one a joint"),
        (GOOD + "    calibration: {signs: [1], offsets: [0.0]}\n", "ids of 6 servos"),
        (GOOD + "    calibration: {signs: [1,1,1,1,1,1], offsets: [0.,0.,0.,0.,0.,0.]}\n",
         "open and closed of the trigger are missing"),
    ],
)  # fmt: skip
def test_a_wrong_station_file_is_told(tmp_path, options, message):
    described = station(tmp_path, options)
    with pytest.raises(ConfigError, match=message):
        load("teleop", "gello").from_config(described.teleop, described)


def test_the_calibration_file_is_read_back(tmp_path):
    described = station(tmp_path, GOOD)
    path = calibration_path(described.path, "right")
    six = dataclasses.replace(
        CALIBRATION, signs=CALIBRATION.signs[:6], offsets=CALIBRATION.offsets[:6], calibrated="now"
    )
    save_calibration(path, dataclasses.replace(six, calibrated="before"))
    save_calibration(path, six)
    assert path.with_suffix(".yaml.before").exists()
    device = load("teleop", "gello").from_config(described.teleop, described)
    assert device.calibration.signs == six.signs
    assert device.calibration.offsets == pytest.approx(six.offsets, abs=1e-5)
    path.write_text("[1, 2")
    with pytest.raises(ConfigError, match="not a readable calibration file"):
        load_calibration(device.config, described, "right")
