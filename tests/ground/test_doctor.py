"""Doctor finds what is wrong with machine, arms, cameras and buttons, and changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hardware.aloha.rig import arm_model
from hardware.aloha.virtual import bus_description
from hardware.dynamixel.bus import DynamixelBus
from hardware.dynamixel.process import spawn
from robot_stack.config import load_station
from robot_stack.doctor import Check, device_checks, machine_checks, run_checks
from robot_stack.records import frame_record, ring_path, tick_record
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Lifecycle
from tests.input.wire import Button


@pytest.fixture(autouse=True)
def _own_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "run"))


def write_station(path: Path, **sections: Any) -> str:
    file = path / "station.yaml"
    file.write_text(yaml.safe_dump({"station": "lab", "robots": {}, "groups": {}, **sections}))
    return str(file)


def arm_section(port: str, **options: Any) -> dict[str, Any]:
    values = {"role": "follower", "model": "vx300s", "port": port, **options}
    return {
        "robots": {"left": {"driver": "aloha", "options": values}},
        "groups": {"arms": {"robots": ["left"]}},
    }


def find(file: str, *prefixes: str) -> dict[str, Check]:
    return {c.name: c for c in device_checks(load_station(file)) if c.name.startswith(prefixes)}


# -- the machine -------------------------------------------------------------------------------


def test_json_is_one_line_and_the_status_follows_the_findings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "robot_stack", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    failed = [c["name"] for c in answer["checks"] if c["status"] == "fail"]
    assert answer["ok"] == (not failed) == (done.returncode == 0)
    names = {c["name"] for c in answer["checks"]}
    assert names >= {
        "python",
        "extra aloha",
        "scheduler",
        "rt throttle",
        "kernel",
        "cpu governor",
        "wake-up",
        "shared memory",
        "disk",
        "egl",
    }
    for check in answer["checks"]:
        assert check["status"] in ("ok", "warn", "fail")
        assert check["found"]
        assert check["mend"] or check["status"] == "ok", check


def test_text_names_what_to_mend(tmp_path: Path) -> None:
    file = write_station(tmp_path, **arm_section(str(tmp_path / "nowhere")))
    done = subprocess.run(
        [sys.executable, "-m", "robot_stack", "doctor", file],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path}/nowhere is not there" in done.stdout
    assert "-> plug it in; `ls /dev/serial/by-id`" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert "to mend: " in last
    assert "left" in last


def test_a_wrong_station_file_is_a_finding(tmp_path: Path) -> None:
    file = write_station(tmp_path, robots={}, camras={})
    check = next(run_checks(file))
    assert check.name == "station file"
    assert check.status == "fail"
    assert "did you mean 'cameras'" in check.found


def test_a_missing_extra_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    checks = {check.name: check for check in machine_checks(None)}
    assert checks["extra realsense"] == Check(
        "extra realsense",
        "warn",
        "not installed: pyrealsense2",
        "pip install 'robot-stack[realsense]'",
    )


def test_a_full_disk_is_a_finding(tmp_path: Path) -> None:
    recording = {"directory": str(tmp_path / "a" / "b"), "free_space_floor_gb": 99999.0}
    file = write_station(tmp_path, cameras={"top": {"driver": "test_pattern"}}, recording=recording)
    check = {c.name: c for c in machine_checks(load_station(file))}["disk"]
    assert check.status == "fail"
    assert str(tmp_path) in check.found
    assert list(tmp_path.glob("a")) == [], "doctor creates nothing"


def test_a_disk_slower_than_the_cameras_is_a_finding(tmp_path: Path) -> None:
    cameras = {
        f"c{i}": {"driver": "test_pattern", "width": 8192, "height": 8192, "fps": 1000}
        for i in range(4)
    }
    recording = {"directory": str(tmp_path), "encoding": "raw", "free_space_floor_gb": 0.0}
    file = write_station(tmp_path, cameras=cameras, recording=recording)
    check = {c.name: c for c in machine_checks(load_station(file))}["disk"]
    assert check.status == "warn"
    assert "the cameras make 805306 MB/s" in check.found


WHOLE = ("port", "ids", "models", "registers", "grip", "errors", "supply", "heat", "wraps")

# -- arms --------------------------------------------------------------------------------------


def description(tmp_path: Path, **options: Any) -> dict[str, Any]:
    return bus_description("left", arm_model("vx300s"), link=tmp_path / "tty", **options)


def servo_row(bus: dict[str, Any], servo_id: int) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in bus["servos"] if row["id"] == servo_id)
    return row


def arm_checks(tmp_path: Path, bus: dict[str, Any], **options: Any) -> dict[str, Check]:
    file = write_station(tmp_path, **arm_section(str(tmp_path / "tty"), **options))
    with spawn([bus], tmp_path):
        return find(file, "left")


def test_a_sound_arm_passes(tmp_path: Path) -> None:
    bus = description(tmp_path)
    servo_row(bus, 9)["registers"]["current_limit"] = 200
    checks = arm_checks(tmp_path, bus)
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        [f"left {what}" for what in WHOLE],
        "ok",
    )


def test_wrong_registers_are_named_with_what_they_must_hold(tmp_path: Path) -> None:
    bus = description(tmp_path)
    del servo_row(bus, 3)["registers"]["secondary_id"]
    servo_row(bus, 4)["registers"]["drive_mode"] = 0
    servo_row(bus, 6)["registers"]["return_delay_time"] = 250
    servo_row(bus, 7)["registers"]["max_position_limit"] = 4095
    servo_row(bus, 9)["registers"]["current_limit"] = 500
    checks = arm_checks(tmp_path, bus)
    check = checks["left registers"]
    assert check.status == "fail"
    for words in (
        "secondary_id is 255, must be 2",
        "drive_mode is 0, must be 1",
        "return_delay_time is 250, must be 0",
        "max_position_limit is 4095, must be 3504",
    ):
        assert words in check.found
    assert check.mend.endswith("--robot left --apply")
    assert checks["left grip"].status == "warn"
    assert "500 (1.34 A), the station says 200" in checks["left grip"].found


def test_a_silent_servo_is_named(tmp_path: Path) -> None:
    bus = description(tmp_path)
    bus["servos"] = [row for row in bus["servos"] if row["id"] != 5]
    checks = arm_checks(tmp_path, bus)
    assert set(checks) == {"left port", "left ids"}
    assert checks["left ids"].status == "fail"
    assert "servo 5" in checks["left ids"].found


def test_another_model_is_named(tmp_path: Path) -> None:
    bus = description(tmp_path)
    servo_row(bus, 1)["model"] = "XM430-W350"
    check = arm_checks(tmp_path, bus)["left models"]
    assert check.status == "fail"
    assert "XM430-W350, must be XM540-W270" in check.found


def test_another_speed_is_a_bus_without_servos(tmp_path: Path) -> None:
    check = arm_checks(tmp_path, description(tmp_path, baud=4_000_000))["left servos"]
    assert check.status == "fail"
    assert "no servo answers" in check.found


def test_a_joint_outside_its_limits_is_named(tmp_path: Path) -> None:
    bus = description(tmp_path, pose=(0, 0, 0, 0, 3.0, 0))  # wrist_angle ends at 2.23 rad
    check = arm_checks(tmp_path, bus)["left wraps"]
    assert check.status == "fail"
    assert "servo 7" in check.found


def test_a_servo_that_has_shut_down_and_a_bad_supply_are_named(tmp_path: Path) -> None:
    file = write_station(tmp_path, **arm_section(str(tmp_path / "tty")))
    with spawn([description(tmp_path)], tmp_path) as buses:
        buses.control.call("overload", "left", servo_id=9)
        buses.control.call("set", "left", servo_id=2, name="present_input_voltage", value=0)
        checks = find(file, "left")
    assert checks["left errors"].status == checks["left supply"].status == "fail"
    assert "servo 9" in checks["left errors"].found
    assert "OVERLOAD" in checks["left errors"].found
    assert "0.0 to 12.0 V" in checks["left supply"].found


def test_nothing_is_written(tmp_path: Path) -> None:
    """Every register of every servo is as before."""
    file = write_station(tmp_path, **arm_section(str(tmp_path / "tty")))
    arm = arm_model("vx300s")

    def snapshot() -> dict[tuple[int, str], int]:
        with DynamixelBus(str(tmp_path / "tty"), [s.id for s in arm.servos]) as bus:
            return {
                (servo.id, register.name): bus.read(servo.id, register.name)
                for servo in arm.servos
                for register in bus.table(servo.id).registers.values()
                if not register.name.startswith(("present", "realtime", "indirect"))
            }

    with spawn([description(tmp_path)], tmp_path):
        before = snapshot()
        assert len(before) > 300
        find(file, "left")
        assert snapshot() == before


@pytest.fixture
def running_arm(tmp_path: Path) -> Iterator[RingWriter]:
    (tmp_path / "tty").touch()
    with RingWriter(ring_path("lab", "arm", "left"), tick_record(7), 8) as ring:
        yield ring


def publish_tick(ring: RingWriter, lifecycle: Lifecycle, fault: bytes = b"") -> None:
    record = np.zeros(1, tick_record(7))
    record["t_ns"], record["lifecycle"], record["fault"] = time.monotonic_ns(), lifecycle, fault
    record["retries"] = 3
    ring.publish(record[0])


def test_the_bus_of_a_running_arm_is_left_alone(tmp_path: Path, running_arm: RingWriter) -> None:
    file = write_station(tmp_path, **arm_section(str(tmp_path / "tty")))
    publish_tick(running_arm, Lifecycle.ARMED)
    check = find(file, "left servos")["left servos"]
    assert check.status == "ok"
    assert "its arm process runs (armed, 3 bus retries)" in check.found
    publish_tick(running_arm, Lifecycle.FAULT, b"gripper overload")
    check = find(file, "left servos")["left servos"]
    assert (check.status, check.mend) == ("fail", "robot-stack reset lab")
    assert "gripper overload" in check.found


# -- cameras, buttons --------------------------------------------------------------------------


def test_a_camera_that_gives_frames_passes_and_a_missing_one_fails(tmp_path: Path) -> None:
    cameras = {
        "top": {"driver": "test_pattern", "width": 320, "height": 240, "fps": 50},
        "gone": {"driver": "opencv", "options": {"source": str(tmp_path / "video9")}},
        "odd": {"driver": "test_pattern", "options": {"nonsense": 1}},
    }
    checks = find(write_station(tmp_path, cameras=cameras), "camera ")
    assert checks["camera top"] == Check("camera top", "ok", "a frame of 320x240")
    assert checks["camera gone"].status == checks["camera odd"].status == "fail"
    assert checks["camera odd"].mend == "mend the station file"


def test_a_running_camera_is_left_alone(tmp_path: Path) -> None:
    file = write_station(
        tmp_path, cameras={"top": {"driver": "opencv", "options": {"source": "/dev/none"}}}
    )
    with RingWriter(ring_path("lab", "camera", "top"), frame_record(16, 16), 4) as ring:
        record = np.zeros(1, frame_record(16, 16))
        record["t_ns"] = time.monotonic_ns()
        ring.publish(record[0])
        check = find(file, "camera ")["camera top"]
    assert check == Check("camera top", "ok", "its process runs, 1 frames so far")


def test_stop_devices_and_pedals(tmp_path: Path) -> None:
    button = Button(tmp_path / "button")
    button.plug()
    gone = str(tmp_path / "gone")
    file = write_station(
        tmp_path,
        cameras={"top": {"driver": "test_pattern"}},
        stop_devices={
            "button": {"device": str(button.path), "keys": ["KEY_SPACE"]},
            "gone": {"device": gone},
            "spare": {"device": gone, "required": False},
            "typo": {"device": gone, "keys": ["KEY_SPCE"]},
        },
        recording={"pedal": {"device": gone, "keys": {"KEY_B": "toggle"}}},
    )
    checks = find(file, "stop device", "pedal")
    assert {name: check.status for name, check in checks.items()} == {
        "stop device button": "ok",
        "stop device gone": "fail",
        "stop device spare": "warn",
        "stop device typo": "fail",
        "pedal": "warn",
    }
    assert "did you mean 'KEY_SPACE'" in checks["stop device typo"].found
    button.close()
