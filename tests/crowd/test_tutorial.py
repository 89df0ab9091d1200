"""The tutorial is judged by the arms' own state, read from real shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.crowd import tutorial
from collect.crowd.agent_messages import TUTORIAL_STEPS
from collect.crowd.tutorial import RobotView, Seen, Tutorial
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError
from robot_stack.records import ring_path, tick_record
from robot_stack.shared_memory import RingWriter
from robot_stack.types import Difference, Lifecycle

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ARMS = ("follower_left", "follower_right", "leader_left", "leader_right")
LEADERS = ARMS[2:]
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5)
TABLE = (0.0, -0.1, 1.16, 0.0, -0.3, 0.0, 0.5)
REST = (0.0, -1.8, 1.55, 0.0, 0.8, 0.0, 0.3)


class Arms:
    """What arm processes would publish: the rings of four arms."""

    def __init__(self) -> None:
        self._rings = {
            name: RingWriter(ring_path("aloha_virtual", "arm", name), tick_record(7), 4)
            for name in ARMS
        }
        self._values: dict[str, dict[str, Any]] = {name: {} for name in ARMS}
        self.set(
            ARMS,
            q=HOME,
            dq=np.zeros(7),
            torque=np.ones(7),
            lifecycle=Lifecycle.ARMED,
            distance=np.inf,
            difference=0,
            fault=b"",
        )

    def set(self, names: tuple[str, ...], **values: Any) -> None:
        for name in names:
            self._values[name].update(values)
        self.publish()

    def publish(self, age_s: float = 0.0) -> None:
        for name, ring in self._rings.items():
            with ring.writing() as record:
                record["t_ns"] = time.monotonic_ns() - int(age_s * 1e9)
                for key, value in self._values[name].items():
                    record[key] = value

    def close(self) -> None:
        for ring in self._rings.values():
            ring.close(unlink=True)


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    return load_station(CONFIGS / "aloha_virtual.yaml")


@pytest.fixture
def client(station: Station) -> Iterator[StationClient]:
    with StationClient(station.station) as client:
        yield client


@pytest.fixture
def view(station: Station, client: StationClient) -> RobotView:
    return RobotView(station, client)


@pytest.fixture
def arms(station: Station) -> Iterator[Arms]:
    arms = Arms()
    yield arms
    arms.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_robot_without_programs_is_trouble(view: RobotView) -> None:
    assert "robot-stack serve" in str(view.look().trouble)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lifecycle": Lifecycle.FAULT, "fault": b"servo 9: overload"}, "servo 9: overload"),
        ({"lifecycle": Lifecycle.STOPPED}, "stopped"),
        ({"lifecycle": Lifecycle.STARTING}, "starting"),
        ({"lifecycle": Lifecycle.DISARMED}, None),
    ],
)
def test_what_hinders_is_told(
    view: RobotView, arms: Arms, values: dict[str, Any], told: str | None
) -> None:
    arms.set(("follower_left",), **values)
    trouble = view.look().trouble
    assert (trouble is None) if told is None else (told in str(trouble))


def test_an_arm_that_says_nothing_is_trouble(view: RobotView, arms: Arms) -> None:
    arms.publish(age_s=2.0)
    assert "silent" in str(view.look().trouble)


def test_home_is_a_pose_that_is_held(view: RobotView, arms: Arms) -> None:
    seen = view.look()
    assert seen.home and seen.led and not seen.free
    arms.set(("leader_left",), q=TABLE)
    assert not view.look().home
    arms.set(LEADERS, q=HOME, torque=np.zeros(7))
    seen = view.look()
    assert seen.free and not seen.led and not seen.home


def test_each_arm_touches_the_table_for_itself(view: RobotView, arms: Arms) -> None:
    assert view.look().touching == frozenset()
    arms.set(("follower_right",), q=TABLE)
    assert view.look().touching == {"follower_right"}
    arms.set(LEADERS, q=TABLE)  # a leader's height says nothing
    assert view.look().touching == {"follower_right"}


def test_leaders_rest_when_all_do_for_a_second(view: RobotView, arms: Arms) -> None:
    arms.set(LEADERS, torque=np.zeros(7))
    assert not view.look().resting
    arms.set(("leader_left",), q=REST)
    assert not view.look().resting
    arms.set(("leader_right",), q=REST)
    began = time.monotonic()
    until(lambda: view.look().resting)
    assert time.monotonic() - began >= tutorial.REST_S - 0.05
    arms.set(("leader_right",), dq=np.full(7, 1.0))  # moved off again
    assert not view.look().resting
    arms.set(("leader_right",), dq=np.zeros(7))
    assert not view.look().resting, "the second counts anew"
    arms.set(LEADERS, torque=np.ones(7))  # held by servos is not rested
    assert not view.look().resting


def test_warnings_have_two_levels_and_stay_to_be_seen(view: RobotView, arms: Arms) -> None:
    seen = view.look()
    assert (seen.level, seen.near) == (0, "")
    arms.set(("follower_right",), distance=0.025)
    seen = view.look()
    assert (seen.level, seen.near) == (1, "follower_right")
    assert seen.distance_m == pytest.approx(0.025)
    arms.set(("follower_left",), difference=int(Difference.COLLISION))
    assert view.look().level == 2
    arms.set(("follower_left", "follower_right"), difference=0, distance=np.inf)
    assert view.look().level == 2, "one tick would not be seen"
    until(lambda: view.look().level == 0)


def test_without_a_guard_nothing_is_near(view: RobotView, arms: Arms) -> None:
    arms.set(ARMS, distance=np.nan)
    seen = view.look()
    assert (seen.level, seen.distance_m) == (0, None)


LEFT, RIGHT = "follower_left", "follower_right"


def run(*shown: tuple[Seen, bool]) -> Tutorial:
    lesson = Tutorial(frozenset((LEFT, RIGHT)))
    for seen, following in shown:
        lesson.see(seen, following=following)
    return lesson


def touch(*arms: str) -> tuple[Seen, bool]:
    return Seen(free=True, touching=frozenset(arms)), True


AT_HOME = (Seen(led=True, home=True), False)
FREE = (Seen(free=True), True)
RESTING = (Seen(free=True, resting=True), True)


def test_the_steps_come_in_order() -> None:
    lesson = run((Seen(led=True), False))
    assert (lesson.step, lesson.done) == ("home", [])
    assert run(AT_HOME).step == "squeeze"
    assert run(AT_HOME, AT_HOME).step == "squeeze"
    assert run(AT_HOME, FREE).step == "touch"
    assert run(AT_HOME, FREE, touch(LEFT)).step == "touch"
    assert run(AT_HOME, FREE, touch(LEFT), FREE, touch(RIGHT)).step == "rest"
    passed = run(AT_HOME, FREE, touch(LEFT, RIGHT), RESTING)
    assert passed.passed and passed.step == "done"
    assert passed.done == list(TUTORIAL_STEPS)
    passed.see(*RESTING[:1], following=True)
    assert passed.done == list(TUTORIAL_STEPS)


def test_no_step_is_skipped() -> None:
    assert run(AT_HOME, FREE, touch(LEFT), RESTING, RESTING).step == "touch"
    assert run((Seen(resting=True), False), (Seen(resting=True), False)).step == "home"
    early = run(touch(LEFT, RIGHT), touch(LEFT, RIGHT))  # at the table before it was asked for
    assert early.step == "touch" and early.touched == set()


def test_only_stations_with_leaders_are_for_the_public(tmp_path: Path) -> None:
    text = (CONFIGS / "aloha_virtual.yaml").read_text()
    path = tmp_path / "station.yaml"
    path.write_text(
        text.replace("driver: leader_arms", "driver: gamepad").replace(
            "    pairs: {leader_left: follower_left, leader_right: follower_right}\n", "    {}\n"
        )
    )
    station = load_station(path)
    with StationClient(station.station) as client, pytest.raises(ConfigError, match="leader arms"):
        RobotView(station, client)
