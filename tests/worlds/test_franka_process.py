"""The Franka world as a process: its wires, its socket, its ring, and the ways in which it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.control_table import ticks_to_rad
from hardware.franka.fci import COMMAND_IDS, GRIPPER_PORT, HEADER, ROBOT_PORT, Command
from hardware.teleop.twists import STICK, twists_path
from hardware.worlds.control import WorldClient
from hardware.worlds.franka import sample_places
from hardware.worlds.franka_process import franka_world_config
from robot_stack import registry
from robot_stack.cli import main
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, ControlPlaneError
from robot_stack.records import world_path
from robot_stack.shared_memory import Ring
from tests.worlds.conftest import ROOT, until

# The ports are fixed in libfranka: an address of our own, also beside other workers' tests.
ADDRESS = f"127.{os.getpid() % 200 + 40}.{os.getpid() // 200 % 250}.7"

STATION = f"""
schema: 1
station: table
world: {{scene: franka_pick_place, seed: 3}}
robots:
  arm: {{driver: franka, falls: false, options: {{address: {ADDRESS}}}}}
groups:
  arm: {{robots: [arm]}}
teleop: {{driver: twists, group: arm}}
other_teleop:
  gello:
    driver: gello
    group: arm
    options:
      port: "virtual:gello"
      baud: 1000000
      calibration:
        signs: [1, -1, 1, 1, 1, 1, 1]
        offsets: [0.5, 0, 0, 3.1416, 0, 0, 0]
        open: 0.0
        closed: 1.0
"""


class World:
    """A world of a station of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "station.yaml"
        self.file.write_text(STATION)
        self.process = self.start()
        self.client = WorldClient("table", timeout_s=10.0)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "hardware.worlds.franka_process"),
                *(str(self.file), "--attached"),
            ],
            cwd=ROOT,
            env={**os.environ, "ROBOT_STACK_RUNTIME": str(self.directory)},
            stdin=subprocess.PIPE,  # when this process dies the world ends with it
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def answers(self) -> bool:
        assert self.process.poll() is None, "the world ended"
        if not (self.directory / "table" / "world.ipc").exists():
            return False
        try:
            self.client.call("status")
        except ControlPlaneError:
            return False
        return True

    def close(self) -> None:
        self.client.close()
        for stream in (self.process.stdin, self.process.stderr):
            assert stream is not None
            stream.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # A socket's path has 107 characters at most, and pytest's own directories are deep.
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        tempfile.TemporaryDirectory(prefix="world-") as directory,
    ):
        monkeypatch.setenv("ROBOT_STACK_RUNTIME", directory)
        world = World(Path(directory))
        try:
            until(world.answers, "the world answers")
            yield world
        finally:
            world.close()


def test_robot_and_hand_listen_where_libfranka_looks(world: World) -> None:
    import socket

    for port in (ROBOT_PORT, GRIPPER_PORT):
        socket.create_connection((ADDRESS, port), 5.0).close()
    with socket.create_connection((ADDRESS, ROBOT_PORT), 5.0) as tcp:
        payload = (10).to_bytes(2, "little") + (40000).to_bytes(2, "little")
        size = HEADER.size + len(payload)
        tcp.sendall(HEADER.pack(COMMAND_IDS[10][Command.CONNECT], 7, size) + payload)
        tcp.settimeout(20.0)
        reply = tcp.recv(64)
    command, number, _ = HEADER.unpack_from(reply)
    assert (command, number) == (COMMAND_IDS[10][Command.CONNECT], 7)
    assert reply[HEADER.size] == 0  # welcome


def test_the_ring_shows_the_table(world: World) -> None:
    with Ring(world_path("table")) as ring:
        assert ring.meta["scene"] == "franka_pick_place"
        world.client.call("reset", seed=9)
        cube, square = sample_places(9)

        def shown() -> bool:
            latest = ring.latest()
            return latest is not None and bool(
                np.allclose(latest[1]["env_state"], [*cube, *square], atol=1e-3)
            )

        until(shown, "the cube's new place")
        count = ring.count
        until(lambda: ring.count > count + 5, "states go on")
    assert world.client.call("status")["seed"] == 9


def test_its_clock_is_the_robots(world: World) -> None:
    before, began = world.client.call("status")["turns"], time.monotonic()
    until(lambda: world.client.call("status")["turns"] > before + 300, "0.3 s of turns")
    assert time.monotonic() - began > 0.28  # never faster than 1 kHz


def test_faults_reach_the_arm(world: World) -> None:
    world.client.call("fault", robot="arm", kind="reflex", name="joint_reflex")
    assert world.client.call("status")["robots"]["arm"]["mode"] == "reflex"
    with pytest.raises(ControlPlaneError, match="nothing is called 'leg'"):
        world.client.call("fault", robot="leg", kind="calm")
    with pytest.raises(ControlPlaneError, match="no fault is called 'rust'"):
        world.client.call("fault", kind="rust")
    world.client.call("fault", kind="user_stop")
    assert world.client.call("status")["robots"]["arm"]["mode"] == "user_stopped"
    world.client.call("fault", kind="user_stop", active=False)


def test_the_gello_stands_like_the_robot(world: World) -> None:
    tty = world.directory / "table" / "tty" / "gello"
    with DynamixelBus(str(tty), (1, 2, 3, 4, 5, 6, 7, 8), 1_000_000) as bus:
        angles = ticks_to_rad(until(lambda: bus.read_state(1.0), "the servos").position_ticks)
    joints = np.array(world.client.call("status")["robots"]["arm"]["q"])
    signs, offsets = np.array([1, -1, 1, 1, 1, 1, 1]), np.array([0.5, 0, 0, 3.1416, 0, 0, 0])
    np.testing.assert_allclose(signs * (angles[:7] - offsets), joints, atol=0.01)
    assert angles[7] == pytest.approx(0.0, abs=0.01)  # the trigger is let go


def test_the_gello_can_be_unplugged(world: World) -> None:
    tty = world.directory / "table" / "tty" / "gello"
    world.client.call("fault", robot="gello", kind="unplug")
    assert not tty.exists()
    world.client.call("fault", robot="gello", kind="plug")
    assert tty.exists()


def test_the_operator_works_at_its_device_until_told_to_let_go(world: World) -> None:
    def stick() -> Any:
        latest = ring.latest()
        return None if latest is None else latest[1]

    def pushed() -> bool:
        now = stick()
        return now is not None and bool(now["held"]) and bool(np.abs(now["twist"]).max() > 0.1)

    assert world.client.call("script_status")["phase"] == "idle"
    status = world.client.call("script", hand="twists", seed=1)
    assert (status["phase"], status["done"]) == ("waiting", False)
    with Ring(twists_path("table")) as ring:
        assert ring.dtype == STICK
        until(pushed, "the stick being pushed with its switch held")
        assert np.abs(stick()["twist"]).max() <= 1.0
        world.client.call("release")
        until(lambda: not stick()["held"], "the switch being let go")
    assert world.client.call("script_status")["phase"] == "interrupted"
    with pytest.raises(ControlPlaneError, match=r"script\.hand"):
        world.client.call("script", hand="nose")


def test_the_command_speaks_to_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["virtual", str(world.file), "reset", "seed=4", "--json"]) == 0
    cube, square = sample_places(4)
    told = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(told["env_state"], [*cube, *square], atol=1e-5)
    assert main(["virtual", str(world.file), "--page"]) != 0
    assert "has no page" in capsys.readouterr().err


def test_a_second_world_of_the_station_is_refused(world: World) -> None:
    second = world.start()
    _, words = second.communicate(timeout=60)
    assert second.returncode != 0
    assert words
    assert world.answers()


def test_it_is_only_for_one_arm_on_the_loopback(tmp_path: Path) -> None:
    file = tmp_path / "station.yaml"
    file.write_text(STATION)
    config = franka_world_config(load_station(file))
    assert (config.robot, config.address, config.model) == ("arm", ADDRESS, "fr3")
    assert config.gello is not None
    file.write_text(STATION.replace(ADDRESS, "172.16.0.2"))
    with pytest.raises(ConfigError, match="loopback"):
        franka_world_config(load_station(file))
    file.write_text(STATION.replace("driver: franka, falls", "driver: aloha, falls"))
    with pytest.raises(ConfigError, match="has one robot of driver franka"):
        franka_world_config(load_station(file))
    file.write_text(STATION.replace("world:", "# world:"))
    with pytest.raises(ConfigError, match="no `world` section"):
        franka_world_config(load_station(file))


@pytest.mark.parametrize("name", ["franka_virtual", "fr3"])
def test_the_stations_that_come_with_the_project_are_what_their_drivers_take(name: str) -> None:
    station = load_station(ROOT / "configs" / f"{name}.yaml")
    arm = registry.load("robot", "franka").from_config(station.robots["arm"], station)
    assert arm.spec.embodiment == "fr3"
    assert not station.robots["arm"].falls
    assert station.teleop is not None
    registry.load("teleop", station.teleop.driver).from_config(station.teleop, station)
    gello = station.other_teleop["gello"]
    if name == "fr3":  # a real rig has to be measured first
        with pytest.raises(ConfigError, match="robot-stack gello"):
            registry.load("teleop", "gello").from_config(gello, station)
    else:
        registry.load("teleop", "gello").from_config(gello, station)
        assert franka_world_config(station).gello is not None
