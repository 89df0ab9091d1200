"""Calibration on virtual arms: an operator's hands play the prompts, the file is read back."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.aloha import calibrate, measuring
from hardware.aloha.configuration import AlohaArmConfig, load_calibration
from hardware.aloha.rig import ARMS
from robot_stack.client import stop_all
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, DeviceError
from tests.aloha.setup_moves import (
    GRIPPER,
    GRIPPER_ACCELERATION,
    GRIPPER_SPEED,
    TICKS_PER_RAD,
    Fingers,
    assert_within,
    goals,
)

TICK = 2 * np.pi / 4096


def _station(tmp_path: Path, ports: Mapping[str, str]) -> Path:
    robots = {
        name: {
            "driver": "aloha",
            "options": {
                "role": name.partition("_")[0],
                "model": "vx300s" if name.startswith("follower") else "wx250s",
                "port": port,
            },
        }
        for name, port in ports.items()
    }
    path = tmp_path / "lab.yaml"
    groups = {name: {"robots": [name]} for name in robots}
    # JSON is YAML.
    path.write_text(json.dumps({"station": "lab", "robots": robots, "groups": groups}))
    return path


def _run(path: Path, *options: str, ask: Callable[[str], None] | None = None) -> int:
    parser = argparse.ArgumentParser()
    calibrate.add_arguments(parser)
    args = parser.parse_args([str(path), *options])
    return calibrate.run(args, ask or (lambda text: pytest.fail(f"asked: {text}")))


class Operator:
    """Does with the virtual arm what the prompts say."""

    def __init__(self, bench: Any, name: str, pose: Mapping[int, float], grip: Any) -> None:
        self.bench, self.name, self.pose, self.grip = bench, name, pose, grip
        self.asked: list[str] = []

    def hand(self, servo_id: int, angle: float | None, name: str | None = None) -> None:
        self.bench.control.call("hand", name or self.name, servo_id=servo_id, position_rad=angle)

    def __call__(self, text: str) -> None:
        self.asked.append(text)
        if "Turn the waist" in text:
            self.hand(1, 0.9)
        elif "zero pose" in text:
            for servo_id in range(1, 9):
                self.hand(servo_id, self.pose.get(servo_id, 0.0))
        elif "Close the gripper" in text:
            self.hand(9, self.grip[0])
        elif "Open it" in text:
            self.hand(9, self.grip[1])


def test_a_leader_by_hand(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench("leader_left", "leader_right")
    path = _station(tmp_path, bench.process.ports)
    # The horn of wrist_rotate sits 40 counts too far; the elbow pair 12 too little.
    pose = {8: 40 * TICK, 4: -12 * TICK, 5: -12 * TICK}
    operator = Operator(bench, "leader_left", pose, (-0.70, 0.35))
    assert _run(path, "--robot", "leader_left", ask=operator) == 0
    assert len(operator.asked) == 4
    written = load_calibration(tmp_path / "calibration" / "leader_left.yaml")
    assert written.gripper is not None
    assert written.gripper.joint_closed == pytest.approx(-0.70, abs=2 * TICK)
    assert written.gripper.joint_open == pytest.approx(0.35, abs=2 * TICK)
    assert written.robot == "leader_left"
    assert written.offsets["wrist_rotate"] == pytest.approx(40, abs=1)
    assert written.offsets["elbow"] == pytest.approx(-12, abs=1)
    # The station uses it: the arm in the operator's zero pose reads zero, and open reads 1.
    station = load_station(path)
    config = AlohaArmConfig.from_station(station.robots["leader_left"], station)
    assert config.calibration == written
    from hardware.aloha.arm import AlohaArm

    with AlohaArm(config) as arm:
        state = arm.read(0.3)
        np.testing.assert_allclose(state.q[:6], 0.0, atol=2 * TICK)
        assert state.q[6] == pytest.approx(1.0, abs=0.01)
    assert all(bench.get("leader_left", n, "torque_enable") == 0 for n in range(1, 10))


@pytest.mark.slow
def test_a_follower_gripper_finds_its_ends(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path
) -> None:
    bench = make_bench("follower_left")
    path = _station(tmp_path, bench.process.ports)
    ends = (-0.55, 1.40)
    asked: list[str] = []
    with Fingers(bench, "follower_left", ends):
        code = _run(path, "--robot", "follower_left", "--steps", "gripper", ask=asked.append)
    assert code == 0
    assert len(asked) == 1
    assert "robot-stack stop lab" in asked[0]
    written = load_calibration(tmp_path / "calibration" / "follower_left.yaml")
    assert written.gripper is not None
    assert written.gripper.joint_closed == pytest.approx(ends[0], abs=0.03)
    assert written.gripper.joint_open == pytest.approx(ends[1], abs=0.03)
    assert [bench.get("follower_left", n, "torque_enable") for n in range(1, 10)] == [0] * 9
    log = bench.control.goal_log(bus="follower_left")
    currents = log.value[log.kind == 1]
    assert len(currents)
    assert currents.max() <= 60
    assert bench.get("follower_left", GRIPPER, "goal_current") == 60
    t, ticks = goals(bench, "follower_left", GRIPPER)
    assert_within(t, ticks, GRIPPER_SPEED, GRIPPER_ACCELERATION)
    # The goal never stands far beyond an end, and nothing but the gripper was commanded.
    assert ticks.min() > 2048 + (ends[0] - 0.3) * TICKS_PER_RAD
    assert ticks.max() < 2048 + (ends[1] + 0.3) * TICKS_PER_RAD
    for servo_id in (1, 2, 4, 6, 7, 8):
        assert bench.goals("follower_left", servo_id) == []


@pytest.mark.slow
def test_a_gripper_that_is_stopped_writes_no_file(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    bench = make_bench("follower_left")
    path = _station(tmp_path, bench.process.ports)
    stopped: list[str] = []

    def stop() -> None:
        wait(lambda: len(bench.goals("follower_left", GRIPPER)) > 60, "the drive", 60.0)
        stopped.extend(stop_all("lab", "a finger is in it"))

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(DeviceError, match=r"was stopped: a finger is in it\. It holds"):
        _run(path, "--robot", "follower_left", "--steps", "gripper", ask=lambda _: None)
    thread.join(60)
    assert stopped == ["follower_left"]
    assert bench.get("follower_left", GRIPPER, "torque_enable") == 1
    assert not (tmp_path / "calibration").exists()


def test_swapped_ports_are_found(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench("leader_left", "leader_right")
    path = _station(tmp_path, bench.process.ports)

    def turn(name: str, angle: float) -> Callable[[str], None]:
        def ask(_: str) -> None:
            bench.control.call("hand", name, servo_id=1, position_rad=angle)

        return ask

    with pytest.raises(DeviceError, match=r"port of leader_right, not of leader_left.*swapped"):
        _run(path, "--robot", "leader_left", ask=turn("leader_right", 0.9))
    with pytest.raises(DeviceError, match="counts downwards"):
        _run(path, "--robot", "leader_left", ask=turn("leader_left", -0.9))
    with pytest.raises(DeviceError, match="leader_right did not move"):
        _run(path, "--robot", "leader_right", ask=lambda _: None)
    assert not (tmp_path / "calibration").exists()


def test_registers_are_told_then_mended(
    make_bench: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def factory(_: str, rows: list[dict[str, Any]]) -> None:
        rows[1]["registers"]["drive_mode"] = 4  # time-based, not reversed
        rows[2]["registers"]["secondary_id"] = 255
        rows[6]["registers"].update(min_position_limit=0, max_position_limit=4095)
        rows[8]["registers"]["return_delay_time"] = 250

    bench = make_bench("follower_left", edit=factory)
    path = _station(tmp_path, bench.process.ports)
    assert _run(path, "--robot", "follower_left", "--check", "--json") == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not told["ok"]
    assert len(told["mismatches"]) == 5
    assert bench.get("follower_left", 2, "drive_mode") == 4

    assert _run(path, "--robot", "follower_left", "--apply", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["mismatches"] == []
    assert bench.get("follower_left", 2, "drive_mode") == 5
    assert bench.get("follower_left", 3, "secondary_id") == 2
    assert bench.get("follower_left", 7, "min_position_limit") == 830
    assert bench.get("follower_left", 7, "max_position_limit") == 3504
    assert bench.get("follower_left", 9, "return_delay_time") == 0
    assert _run(path, "--robot", "follower_left", "--check") == 0
    with bench.arm("follower_left"):
        pass


def test_nothing_is_mended_under_torque(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    def wrong(_: str, rows: list[dict[str, Any]]) -> None:
        rows[3]["registers"]["velocity_limit"] = 200
        rows[0]["registers"]["velocity_limit"] = 200

    bench = make_bench("follower_left", edit=wrong)
    bench.set("follower_left", 4, "torque_enable", 1)
    path = _station(tmp_path, bench.process.ports)
    with pytest.raises(DeviceError, match=r"servos \[4\].*under torque"):
        _run(path, "--robot", "follower_left", "--apply")
    assert bench.get("follower_left", 1, "velocity_limit") == 200
    assert bench.get("follower_left", 4, "torque_enable") == 1
    with pytest.raises(DeviceError, match="under torque"):
        bench.set("follower_left", 4, "velocity_limit", 131)
        bench.set("follower_left", 1, "velocity_limit", 131)
        _run(path, "--robot", "follower_left", "--steps", "offsets")


def test_a_servo_at_another_speed_is_brought_back(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    bench = make_bench("follower_left")
    bench.set("follower_left", 6, "baud_rate", 1)  # the factory's 57,600
    path = _station(tmp_path, bench.process.ports)
    with pytest.raises(DeviceError, match="servo 6 at 57600 baud, the station says 1000000"):
        _run(path, "--robot", "follower_left", "--check")
    assert _run(path, "--robot", "follower_left", "--apply") == 0
    assert bench.get("follower_left", 6, "baud_rate") == 3


def test_numbers_from_a_log_book(tmp_path: Path) -> None:
    path = _station(tmp_path, {"leader_left": "/dev/null"})
    options = ["--robot", "leader_left", "--set"]
    assert _run(path, *options, "gripper_closed=-0.7", "gripper_open=0.3", "waist=5") == 0
    assert _run(path, *options, "waist=7", "elbow=-3") == 0
    written = load_calibration(tmp_path / "calibration" / "leader_left.yaml")
    assert written.offsets == {"waist": 7, "elbow": -3}
    assert written.gripper is not None
    assert written.gripper.joint_closed == -0.7
    before = load_calibration(tmp_path / "calibration" / "leader_left.yaml.before")
    assert before.offsets == {"waist": 5}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (["waist"], "KEY=NUMBER"),
        (["waist=far"], "KEY=NUMBER"),
        (["gripper_closed=0.1"], "both, or neither"),
        (["gripper_closed=0.3", "gripper_open=0.2"], "at least 0.2 rad above"),
        (["wrist=3"], "no joint 'wrist'"),
        (["waist=3000"], "over half a turn"),
        (["shoulder=-600"], "sleep pose needs shoulder"),
    ],
)
def test_wrong_numbers_write_nothing(tmp_path: Path, pairs: list[str], says: str) -> None:
    path = _station(tmp_path, {"leader_left": "/dev/null"})
    with pytest.raises(ConfigError, match=says):
        _run(path, "--robot", "leader_left", "--set", *pairs)
    assert not (tmp_path / "calibration").exists()


def test_an_arm_that_the_station_lacks(tmp_path: Path) -> None:
    path = _station(tmp_path, {"leader_left": "/dev/null"})
    with pytest.raises(ConfigError, match=r"no ALOHA arm 'leader_rigth'.*leader_left"):
        _run(path, "--robot", "leader_rigth")


def _counts(**joints: int) -> Any:
    names = [servo.name for servo in ARMS["vx300s"].servos]
    return np.array([2048 + joints.get(name, 0) for name in names], dtype=np.int32)


def test_offsets_within_reason() -> None:
    offsets, complaints = measuring.judge_offsets(
        ARMS["vx300s"], _counts(waist=30, shoulder=-20, shoulder_shadow=-25, wrist_rotate=4096 + 9)
    )
    assert complaints == []
    assert offsets == {
        "waist": 30, "shoulder": -20, "elbow": 0, "forearm_roll": 0, "wrist_angle": 0,
        "wrist_rotate": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("joints", "says"),
    [
        ({"forearm_roll": 1024 + 20}, r"servo 6 \(forearm_roll\) reads \+92.*a quarter turn"),
        ({"wrist_rotate": -1024}, r"servo 8 \(wrist_rotate\) reads -90.*a quarter turn"),
        ({"waist": 2040}, r"servo 1 \(waist\) reads \+179.*half a turn"),
        ({"waist": 500}, r"servo 1 \(waist\) reads \+44 degrees in the zero pose"),
        ({"elbow": 0, "elbow_shadow": 120}, r"servo 4 \(elbow\) and servo 5.*would fight"),
    ],
)
def test_offsets_that_are_mistakes(joints: dict[str, int], says: str) -> None:
    _, complaints = measuring.judge_offsets(ARMS["vx300s"], _counts(**joints))
    assert len(complaints) == 1
    import re

    assert re.search(says, complaints[0])
