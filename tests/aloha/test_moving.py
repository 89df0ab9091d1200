"""Set-up moves through an arm process: judged from the goal registers, and stopped on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.aloha import moving
from robot_stack.client import stop_all
from robot_stack.config import load_station
from robot_stack.errors import ControlPlaneError, DeviceError
from robot_stack.one_robot import OneRobot
from robot_stack.processes import living_pid
from robot_stack.shared_memory import runtime_dir
from tests.aloha.setup_moves import (
    GRIPPER,
    GRIPPER_ACCELERATION,
    GRIPPER_SPEED,
    TICKS_PER_RAD,
    WIGGLE_ACCELERATION,
    WIGGLE_SPEED,
    WRIST,
    assert_within,
    goals,
    last_change_s,
)
from tests.input.wire import Button

pytestmark = pytest.mark.slow

WIGGLE_TICKS = 34.1  # 3 degrees
# The loop's period, the braking at the limits above, and a busy machine.
STOP_S = 1.0


def refuse(text: str) -> None:
    pytest.fail(f"asked: {text}")


def wiggler(bench: Any, name: str, *, falls: bool = False, **more: Any) -> OneRobot:
    return moving.wiggle_station(bench.config(name), falls=falls, **{"confirm": refuse, **more})


def torque(bench: Any, name: str) -> list[int]:
    return [bench.get(name, n, "torque_enable") for n in range(1, 10)]


class Stopped:
    """Runs ``move`` in a thread; its error, once it has ended."""

    def __init__(self, move: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._move = move
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._move()
        except Exception as error:  # noqa: BLE001  # judged by the test
            self.error = error

    def join(self) -> str:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert isinstance(self.error, DeviceError), repr(self.error)
        return str(self.error)


def test_a_wiggle_is_small_slow_and_leaves_the_rest_alone(
    make_bench: Callable[..., Any], runtime: Path
) -> None:
    bench = make_bench("leader_left")
    before = bench.positions("leader_left")
    with wiggler(bench, "leader_left") as robot:
        moved = moving.wiggle(robot, 2.2)
    assert moved == pytest.approx(np.radians(3), abs=5 / TICKS_PER_RAD)
    assert torque(bench, "leader_left") == [0] * 9
    t, ticks = goals(bench, "leader_left", WRIST)
    assert len(t) > 50
    assert np.ptp(ticks) == pytest.approx(WIGGLE_TICKS, abs=3)
    assert abs(ticks[-1] - ticks[0]) <= 1
    assert_within(t, ticks, WIGGLE_SPEED, WIGGLE_ACCELERATION)
    for servo_id in (1, 2, 4, 6, 7, 9):
        assert bench.goals("leader_left", servo_id) == []
    np.testing.assert_allclose(bench.positions("leader_left"), before, atol=4 / TICKS_PER_RAD)


def test_a_wiggle_asked_for_too_fast_is_slowed(
    make_bench: Callable[..., Any], runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits stand in the arm process, not in the command."""
    bench = make_bench("leader_left")
    monkeypatch.setattr(moving, "WIGGLE_PERIOD_S", 0.25)
    with wiggler(bench, "leader_left") as robot:
        moving.wiggle(robot, 2.0)
    t, ticks = goals(bench, "leader_left", WRIST)
    assert np.ptp(ticks) > 8
    assert_within(t, ticks, WIGGLE_SPEED, WIGGLE_ACCELERATION)


def test_an_arm_that_holds_itself_goes_on_holding(
    make_bench: Callable[..., Any], runtime: Path
) -> None:
    bench = make_bench("follower_left")
    with bench.arm("follower_left") as arm:
        arm.set_torque([True] * 7, True)
    with wiggler(bench, "follower_left", falls=True) as robot:
        moving.wiggle(robot, 1.2)
    assert torque(bench, "follower_left") == [1] * 9
    for servo_id in (1, 2, 4, 6, 7):
        ticks = bench.goals("follower_left", servo_id)
        assert np.ptp(ticks) <= 1


def test_a_blocked_wrist_is_told(make_bench: Callable[..., Any], runtime: Path) -> None:
    bench = make_bench("follower_left")
    bench.control.call("hand", "follower_left", servo_id=WRIST, position_rad=0.0)
    with (
        wiggler(bench, "follower_left") as robot,
        pytest.raises(DeviceError, match=r"moved [01]\.\d degrees where 3"),
    ):
        moving.wiggle(robot, 0.6)
    assert torque(bench, "follower_left") == [0] * 9


def test_a_stop_ends_a_wiggle_and_stands_until_it_is_confirmed(
    make_bench: Callable[..., Any], runtime: Path, wait: Callable[..., None]
) -> None:
    bench = make_bench("follower_left")

    def swing() -> None:
        with wiggler(bench, "follower_left") as robot:
            moving.wiggle(robot, 40.0)

    run = Stopped(swing)
    wait(lambda: len(bench.goals("follower_left", WRIST)) > 60, "the swing", 60.0)
    stopped_s = time.monotonic()
    assert stop_all("identify", "somebody shouted") == ["arm"]
    assert "somebody shouted" in run.join()
    t, ticks = goals(bench, "follower_left", WRIST)
    assert last_change_s(t, ticks) - stopped_s < STOP_S
    assert_within(t, ticks, WIGGLE_SPEED, WIGGLE_ACCELERATION)
    # What it had put under torque holds; nothing else was touched.
    assert torque(bench, "follower_left") == [0] * 7 + [1, 0]

    asked: list[str] = []

    def decline(text: str) -> None:
        asked.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), wiggler(bench, "follower_left", confirm=decline):
        pytest.fail("it was served in spite of the stop")
    assert "somebody shouted" in asked[0]
    count = len(bench.goals("follower_left", WRIST))
    with wiggler(bench, "follower_left", falls=True, confirm=asked.append) as robot:
        moving.wiggle(robot, 1.2)
    assert len(asked) == 2
    assert len(bench.goals("follower_left", WRIST)) > count


def test_a_stop_button_ends_a_wiggle(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    bench = make_bench("leader_left")
    button = Button(tmp_path / "button")
    button.plug()

    def swing() -> None:
        devices = {"stop": {"device": str(button.path)}}
        with wiggler(bench, "leader_left", stop_devices=devices) as robot:
            moving.wiggle(robot, 40.0)

    run = Stopped(swing)
    wait(lambda: len(bench.goals("leader_left", WRIST)) > 60, "the swing", 60.0)
    pressed_s = time.monotonic()
    button.press()
    assert "stop: KEY_SPACE pressed" in run.join()
    button.close()
    assert last_change_s(*goals(bench, "leader_left", WRIST)) - pressed_s < STOP_S


def test_ctrl_c_holds_and_leaves_no_program(
    make_bench: Callable[..., Any], runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench("leader_left")
    interrupted_s: list[float] = []
    step = OneRobot.step

    def interrupt(robot: OneRobot, target: Any) -> Any:
        if len(bench.goals("leader_left", WRIST)) > 60 and not interrupted_s:
            interrupted_s.append(time.monotonic())
            raise KeyboardInterrupt
        return step(robot, target)

    monkeypatch.setattr(OneRobot, "step", interrupt)
    with pytest.raises(KeyboardInterrupt), wiggler(bench, "leader_left") as robot:
        moving.wiggle(robot, 40.0)
    assert last_change_s(*goals(bench, "leader_left", WRIST)) - interrupted_s[0] < STOP_S
    assert torque(bench, "leader_left") == [0] * 7 + [1, 0]
    assert [path for path in runtime.glob("*/pid.*") if living_pid(path)] == []


def test_a_station_that_runs_is_left_alone(make_bench: Callable[..., Any], runtime: Path) -> None:
    bench = make_bench("leader_left")
    with wiggler(bench, "leader_left"):
        with (
            pytest.raises(ControlPlaneError, match="robot-stack shutdown identify"),
            wiggler(bench, "leader_left"),
        ):
            pytest.fail("served twice")
        assert [path for path in (runtime / "identify").glob("pid.*") if living_pid(path)]
    assert len(bench.control.goal_log(bus="leader_left").value) == 0


def test_an_arm_that_is_not_there_is_told(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path
) -> None:
    bench = make_bench("leader_left")
    config = bench.config("leader_left", port=str(tmp_path / "nowhere"))
    with (
        pytest.raises(DeviceError, match=r"arm: .*nowhere"),
        moving.wiggle_station(config, falls=False, confirm=refuse),
    ):
        pytest.fail("it was served")


# -- a gripper's ends ----------------------------------------------------------------------------


def lab(tmp_path: Path, bench: Any) -> Any:
    file = tmp_path / "lab.yaml"
    file.write_text(
        "station: lab\n"
        "robots:\n  follower_left:\n    driver: aloha\n    options: {role: follower, "
        f"model: vx300s, port: {bench.process.ports['follower_left']}}}\n"
        "groups: {followers: {robots: [follower_left]}}\n"
    )
    return load_station(file)


def gripper(bench: Any, station: Any, **config: Any) -> tuple[OneRobot, float]:
    angle = float(bench.positions("follower_left")[8])
    arm = bench.config("follower_left", **config)
    return moving.gripper_station(station, "follower_left", arm, angle, refuse), angle


def test_a_stop_ends_the_measurement_and_the_gripper_holds(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path, wait: Callable[..., None]
) -> None:
    bench = make_bench("follower_left")
    robot, angle = gripper(bench, lab(tmp_path, bench))

    def measure() -> None:
        with robot:
            moving.measure_stroke(robot, angle)

    run = Stopped(measure)
    wait(lambda: len(bench.goals("follower_left", GRIPPER)) > 60, "the drive", 60.0)
    stopped_s = time.monotonic()
    assert stop_all("lab", "a finger is in it") == ["followers"]
    assert "a finger is in it" in run.join()
    t, ticks = goals(bench, "follower_left", GRIPPER)
    assert last_change_s(t, ticks) - stopped_s < STOP_S
    assert_within(t, ticks, GRIPPER_SPEED, GRIPPER_ACCELERATION)
    assert torque(bench, "follower_left") == [0] * 8 + [1]
    assert bench.get("follower_left", GRIPPER, "goal_current") == 60
    assert runtime_dir("lab").exists()


def test_a_gripper_without_ends_is_told(
    make_bench: Callable[..., Any],
    runtime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = make_bench("follower_left")
    monkeypatch.setattr(moving, "DRIVE_RANGE_RAD", 0.6)  # how far it looks, not the scale
    robot, angle = gripper(bench, lab(tmp_path, bench))
    with robot, pytest.raises(DeviceError, match="without meeting an end"):
        moving.measure_stroke(robot, angle)
    assert torque(bench, "follower_left") == [0] * 9
