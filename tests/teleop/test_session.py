"""`robot-stack teleop` with devices beside the robot: a served virtual FR3 follows them.

The programs are the real ones; the devices' bytes come from here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from collect.session import RecordingSession
from hardware.dynamixel.process import spawn
from hardware.teleop.gello_config import GelloCalibration, GelloConfig
from hardware.teleop.gello_virtual import bus_description, move
from hardware.teleop.mapper import Stick
from hardware.teleop.twists import TwistWriter
from robot_stack.client import StationClient
from robot_stack.config import load_station
from robot_stack.episode import Episode
from robot_stack.errors import LeaseError
from robot_stack.types import CommandMode, Lifecycle, Source
from tests.franka.station import NAME, FrankaStation, franka_station, until
from tests.input.wire import event, key
from tests.teleop.rig import Node

pytestmark = pytest.mark.slow

Y, TR = 1, 0x137
DOWN = (0.0, 0.0, -0.4, 0.0, 0.0, 0.0)
UP = (0.0, 0.0, 0.4, 0.0, 0.0, 0.0)
CALIBRATION = GelloCalibration(signs=(1, -1, 1, 1, 1, -1, 1), offsets=(1.5708,) * 7)
GELLO = GelloConfig(port="", gripper_id=None, baud=1_000_000)


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrankaStation]:
    directory = tmp_path_factory.mktemp("station")
    before = os.environ.get("ROBOT_STACK_RUNTIME")
    os.environ["ROBOT_STACK_RUNTIME"] = str(directory / "runtime")
    try:
        with franka_station(directory) as running:
            yield running
    finally:
        if before is None:
            del os.environ["ROBOT_STACK_RUNTIME"]
        else:
            os.environ["ROBOT_STACK_RUNTIME"] = before


def file_of(station: FrankaStation, directory: Path, **devices: Any) -> Path:
    """The station's file with devices that may move it."""
    described = yaml.safe_load(station.file.read_text())
    described["other_teleop"] = {
        name: {"driver": name, "group": "arm", "options": options}
        for name, options in devices.items()
    }
    path = directory / "teleop.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


class Teleop:
    """The program, with a terminal as its standard input."""

    def __init__(self, file: Path, *options: str) -> None:
        self.keyboard, terminal = os.openpty()
        self._log = file.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", "teleop", str(file), *options],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                stdin=terminal,
                stdout=log,
                stderr=log,
            )
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self.keyboard, text.encode())

    @property
    def said(self) -> str:
        return self._log.read_text()

    def waits(self, text: str, since: int = 0) -> None:
        def told() -> bool:
            assert self.process.poll() is None, self.said
            return text in self.said[since:]

        until(told, f"teleop saying {text!r}", 60.0)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30.0)
        os.close(self.keyboard)
        return code

    def __enter__(self) -> Teleop:
        return self

    def __exit__(self, *_: object) -> None:
        print(self.said)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Script(threading.Thread):
    """Says all the while what ``stick`` is, as a script must."""

    def __init__(self) -> None:
        super().__init__()
        self.stick = Stick()
        self._ended = threading.Event()
        self.start()

    def run(self) -> None:
        with TwistWriter(NAME) as writer:
            while not self._ended.wait(0.01):
                writer.push(self.stick)

    def end(self) -> None:
        self._ended.set()
        self.join(10.0)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.end()


def height(station: FrankaStation) -> float:
    return float(station.tick()["ee_pose"][2])


def lowered(station: FrankaStation, by: float, then: Callable[[], object] = lambda: None) -> None:
    """Returns when the hand is lower by so much than when it was called; ``then`` all the while."""
    began = height(station)

    def done() -> bool:
        then()
        return height(station) < began - by

    until(done, f"the hand going down by {by} m")


def steady(station: FrankaStation) -> None:
    until(lambda: np.abs(station.tick()["dq"]).max() < 0.005, "the arm standing still")


@pytest.fixture(autouse=True)
def back(station: FrankaStation) -> Iterator[None]:
    """Every test begins at home, with nobody in charge."""
    until(lambda: station.client.status()["groups"]["arm"]["holder"] is None, "the lease's end")
    station.client.request("reset", {"group": "arm"}, timeout_s=30.0)
    station.client.request("home", {"group": "arm"}, timeout_s=60.0)
    yield
    ticks = station.ticks()
    steps = np.abs(np.diff(ticks["sent"], axis=0)).max(initial=0.0)
    assert steps < 2.62 * 0.005 * 2, "a jump: more than two periods at full speed"


def test_twists_a_stop_and_taking_hold_again(station, script, tmp_path):
    with Teleop(file_of(station, tmp_path, twists={}), "--device", "twists") as teleop:
        teleop.waits("the script must hold the switch")
        assert np.isnan(station.tick()["asked"]).all()
        script.stick = Stick(DOWN, held=True)
        teleop.waits("r resets after a fault")
        lowered(station, 0.03)
        tick = station.tick()
        assert tick["mode"] == CommandMode.EE_POSE
        assert tick["source"] == Source.DEMO
        assert np.isfinite(tick["asked"]).all()
        station.client.stop("a test")
        teleop.waits("not following: a test; press r and enter")
        steady(station)
        stood = station.tick()["sent"].copy()
        assert station.lifecycle() is Lifecycle.STOPPED
        # Somebody else resets and arms: the switch is held, and nothing may move by itself.
        station.client.request("reset", {"group": "arm"}, timeout_s=30.0)
        station.client.request("arm", {"group": "arm"}, timeout_s=30.0)
        teleop.waits("they were stopped meanwhile")
        assert station.tick()["sent"] == pytest.approx(stood, abs=1e-9)
        teleop.type("r\n")
        teleop.waits("let go, then the script must hold", teleop.said.rfind("press r"))
        assert station.tick()["sent"] == pytest.approx(stood, abs=1e-9)
        script.stick = Stick(UP)
        time.sleep(0.2)
        script.stick = Stick(DOWN, held=True)
        lowered(station, 0.02)
        script.stick = Stick()
        teleop.waits("the script must hold", teleop.said.rfind("following"))
        steady(station)
        assert teleop.end() == 0


def test_after_a_reflex_the_hand_must_take_hold_again(station, script, tmp_path):
    with Teleop(file_of(station, tmp_path, twists={}), "--device", "twists") as teleop:
        teleop.waits("the script must hold the switch")
        script.stick = Stick(DOWN, held=True)
        lowered(station, 0.03)
        station.virtual.fault("reflex", name="cartesian_reflex")
        until(lambda: "cartesian_reflex" in str(station.tick()["notice"]), "the reflex")
        until(lambda: bool(station.tick()["torque"].all()), "the recovery")
        stood = height(station)
        teleop.waits("let go, then the script must hold", teleop.said.rfind("following"))
        steady(station)
        assert station.lifecycle() is Lifecycle.ARMED
        assert abs(height(station) - stood) < 0.01, "the switch was held all the while"
        script.stick = Stick(UP)
        time.sleep(0.2)
        script.stick = Stick(DOWN, held=True)
        lowered(station, 0.02)
        script.stick = Stick()
        assert teleop.end() == 0


def test_a_person_takes_over_from_a_policy_by_gamepad(station, tmp_path):
    node = Node(tmp_path / "event5")
    node.plug()
    file = file_of(station, tmp_path, gamepad={"device": str(node.path)})
    client = StationClient(NAME)
    lost = []

    def policy() -> None:
        with client.lease("arm", "policy", source=Source.POLICY) as lease:
            client.request("arm", {"group": "arm"}, timeout_s=30.0, keep=lease.renew)
            start, began = client.tick("arm")["sent"].copy(), time.monotonic()
            try:
                while time.monotonic() - began < 60.0:
                    target = start.copy()
                    target[0] += 0.2 * np.sin(2.0 * (time.monotonic() - began))
                    lease.send(target)
                    time.sleep(0.02)
            except LeaseError as error:
                lost.append(str(error))

    thread = threading.Thread(target=policy)
    thread.start()
    until(station.moves, "the policy moving the arm")
    with Teleop(file, "--device", "gamepad", "--takeover") as teleop:
        teleop.waits("hold the right bumper of the gamepad to move")
        thread.join(20.0)
        assert lost
        steady(station)
        node.send(key(TR, 1) + event(3, 4, 32767) + event(0, 0, 0))  # the right stick towards me
        lowered(station, 0.03)
        assert station.tick()["source"] == Source.HUMAN
        node.pull()  # the cable
        teleop.waits("plugged")
        steady(station)
        assert teleop.end() == 0
    node.close()
    client.close()


def test_keys_of_a_terminal(station, tmp_path):
    with Teleop(file_of(station, tmp_path), "--device", "keyboard") as teleop:
        teleop.waits("press space to move")
        teleop.type("q")
        assert np.isnan(station.tick()["asked"]).all()
        teleop.type(" ")
        teleop.waits("r resets after a fault")
        lowered(station, 0.02, lambda: (teleop.type("q"), time.sleep(0.03)))
        steady(station)
        station.client.stop("a test")
        teleop.waits("not following: a test; press r to re-engage")
        teleop.type("r")
        teleop.waits("press space to move", teleop.said.rfind("press r"))
        teleop.type(" ")
        lowered(station, 0.01, lambda: (teleop.type("q"), time.sleep(0.03)))
        assert teleop.end() == 0


def test_a_gello_and_what_it_does_is_recorded(station, tmp_path):
    q = station.tick()["sent"][:7].copy()
    with spawn([bus_description("gello", GELLO, CALIBRATION, q + 0.3)], tmp_path) as buses:
        options = {
            "port": buses.port, "gripper_id": None, "baud": 1_000_000,
            "calibration": {"signs": list(CALIBRATION.signs), "offsets": [1.5708] * 7},
        }  # fmt: skip
        file = file_of(station, tmp_path, gello=options)
        with Teleop(file, "--device", "gello") as teleop:
            teleop.waits("bring joint")
            assert np.isnan(station.tick()["asked"]).all()
            move(buses.control, "gello", GELLO, CALIBRATION, q, 1.0)
            teleop.waits("r resets after a fault")
            session = RecordingSession(load_station(file), directory=tmp_path / "episodes")
            with session:
                session.start()
                goal = q + np.array([0.2, 0.1, 0.0, -0.1, 0.0, 0.1, 0.2])
                for share in np.linspace(0.0, 1.0, 50):
                    move(buses.control, "gello", GELLO, CALIBRATION, q + share * (goal - q), 1.0)
                    session.poll()
                    time.sleep(0.02)
                until(
                    lambda: np.abs(station.tick()["sent"][:7] - goal).max() < 0.01,
                    "the arm standing as the GELLO does",
                )
                saved = session.stop(True)
            assert teleop.end() == 0
    with Episode.open(saved.path) as episode:
        assert np.isfinite(episode.action).all()
        assert episode.action[-1][:7] == pytest.approx(goal, abs=0.01)


def test_wrong_devices_are_told(station, tmp_path):
    for device, words in (("gamepd", "did you mean 'gamepad'"), ("gello", "missing, and required")):
        with Teleop(file_of(station, tmp_path), "--device", device) as teleop:
            assert teleop.process.wait(60.0) == 1
            assert words in teleop.said
