"""`robot-stack teleop` at a terminal, and the operator whose hands move the leader arms."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.virtual_station import VirtualStation, wait_until
from hardware.dynamixel.control import ControlClient
from robot_stack.errors import RobotStackError
from robot_stack.realtime import Rate
from robot_stack.types import Lifecycle

LEADERS = ("leader_left", "leader_right")
FOLLOWERS = ("follower_left", "follower_right")
CLOSED_RAD = -0.68  # a leader's gripper, tonyzhaozh/aloha
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
WAIST, WRIST, GRIPPER = 0, 5, 6
SERVO = {WAIST: 1, WRIST: 8}  # of the joints that the hands move


class Teleop:
    """The real program, its standard input a terminal, so that keys can be pressed."""

    def __init__(self, station: VirtualStation, *options: str) -> None:
        self.station = station
        self._keyboard, terminal = os.openpty()
        arguments = ["teleop", str(station.file), "--wait", "60", *options]
        with (station.directory / "teleop.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "robot_stack.cli", *arguments],
                env=station.environment,
                stdin=terminal,
                stdout=log,
                stderr=log,
            )
        os.close(terminal)
        station.others.append(self.process)

    def press(self, key: str) -> None:
        os.write(self._keyboard, key.encode() + b"\n")

    def said(self) -> str:
        return self.station.log("teleop")

    def perform_ritual(self) -> None:
        """What an operator does until the followers follow."""
        station = self.station
        wait_until(
            lambda: all(
                station.lifecycle(r) is Lifecycle.ARMED and grippers_free(station, r)
                for r in LEADERS
            ),
            "the leaders' grippers being freed",
            60,
        )
        for robot in LEADERS:  # held at home under torque, the gripper in the operator's hand
            assert np.abs(station.client.tick(robot)["q"][:6] - HOME).max() < 0.1
            station.hand(robot, {GRIPPER: CLOSED_RAD})
        wait_until(lambda: free(station), "the leaders' release", 30)
        for robot in LEADERS:  # a hand takes over from the torque
            station.hand(robot, dict(enumerate(HOME)))
        wait_until(lambda: follows(station, 0.0), "following")

    def re_engage(self) -> None:
        """Press r and be driven, until the followers follow. As an operator would, once more when
        something else gives way meanwhile: on a starved machine a bus may fall silent."""
        deadline = time.monotonic() + 90
        while True:
            said = len(self.said())
            self.press("r")
            wait_until(lambda said=said: self._goes(said) is not None, "the drive", 60)
            if self._goes(said):
                self.be_driven()
                said = len(self.said())
                wait_until(
                    lambda said=said: asked(self.station) or self._goes(said) is False, "following"
                )
                if asked(self.station):
                    return
            assert time.monotonic() < deadline, "the followers never followed again"

    def _goes(self, said: int) -> bool | None:
        """Whether the drive began after ``said`` characters; None before teleop has spoken."""
        news = self.said()[said:]
        if "let go of them" in news:
            return True
        return False if news.rstrip().endswith("press r and enter to re-engage") else None

    def be_driven(self) -> None:
        """Let go while the leaders come to the followers, and take them again."""
        station = self.station
        began = self.said().rfind("let go of them")
        let_go(station)
        wait_until(lambda: "move both grippers" in self.said()[began:], "driving", 60)
        for robot in LEADERS:  # hands are back, and show it
            assert grippers_free(station, robot)
            closed = station.client.tick(robot)["q"][GRIPPER] < 0.15
            station.hand(robot, {GRIPPER: CLOSED_RAD + 0.4 * closed})
        wait_until(lambda: free(station), "the leaders' release", 60)


class Operator:
    """Hands that swing both leaders' waists and wrists about home while the block runs.

    They begin where the leaders are. ``pause`` leaves the leaders where they are.
    """

    SWING = 0.25  # rad, at up to 0.5 rad/s
    RETURN_S = 1.5

    def __init__(self, station: VirtualStation) -> None:
        self.station = station
        self._ended = threading.Event()
        self._moving = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Operator:
        self._moving.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        """Returns when the hands stand still."""
        self._moving.clear()
        wait_until(lambda: not self._busy, "the hands' rest")

    def go_on(self) -> None:
        self._moving.set()

    _busy = False

    def _run(self) -> None:
        control = ControlClient(self.station.buses.control.path)
        try:
            while not self._ended.is_set():
                if self._moving.wait(0.05):
                    self._busy = True
                    self._swing(control)
                    self._busy = False
        except RobotStackError as error:  # for the test's own thread
            self._error, self._busy = error, False
        finally:
            control.close()

    def _swing(self, control: ControlClient) -> None:
        began = time.monotonic()
        rate = Rate(50.0, spin_ns=0)
        away = {
            (robot, servo): control.call("positions_rad", robot)[servo - 1] - HOME[joint]
            for robot in LEADERS
            for joint, servo in SERVO.items()
        }
        while self._moving.is_set() and not self._ended.is_set():
            seconds = time.monotonic() - began
            left = 0.5 + 0.5 * np.cos(np.pi * min(1.0, seconds / self.RETURN_S))
            swing = self.SWING * np.sin(2.0 * seconds)
            for robot in LEADERS:
                for joint, servo in SERVO.items():
                    angle = HOME[joint] + left * away[robot, servo] + swing
                    control.call("hand", robot, servo_id=servo, position_rad=float(angle))
            rate.wait()


def leader_torque(station: VirtualStation, robot: str) -> list[bool]:
    return [bool(on) for on in station.client.tick(robot)["torque"]]


def grippers_free(station: VirtualStation, robot: str) -> bool:
    return leader_torque(station, robot) == [True] * 6 + [False]


def free(station: VirtualStation) -> bool:
    return not any(any(leader_torque(station, robot)) for robot in LEADERS)


def follows(station: VirtualStation, waist: float) -> bool:
    """Whether both followers are asked to have their waist at ``waist``, and have it there."""
    ticks = [station.client.tick(robot) for robot in FOLLOWERS]
    return all(abs(t["asked"][0] - waist) < 0.02 and abs(t["q"][0] - waist) < 0.05 for t in ticks)


def asked(station: VirtualStation, robots: Sequence[str] = FOLLOWERS) -> bool:
    """Whether all of ``robots`` are asked for something now."""
    return all(np.isfinite(station.client.tick(robot)["asked"]).all() for robot in robots)


def move(station: VirtualStation, waist: float) -> None:
    for robot in LEADERS:
        station.hand(robot, {WAIST: waist})


def let_go(station: VirtualStation) -> None:
    for robot in LEADERS:
        station.hand(robot, dict.fromkeys(range(7)))
