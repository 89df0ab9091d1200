"""Every fault of the virtual servo bus under the real `robot-stack teleop`, on either side.

Hands swing the leaders, a fault comes, hands go on; it clears, r is pressed at teleop's terminal,
the leaders are driven to the followers, and the followers follow again. Judged from the goals on
the followers' wires, from before the fault until after that. One station serves all cases.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station, wait_until
from robot_stack.types import Lifecycle
from tests.faults.judge import (
    ARM_STOP_S,
    assert_continuous,
    goals_written,
    last_motion_ns,
    nothing_moves_for,
)
from tests.faults.teleoperation import (
    FOLLOWERS,
    LEADERS,
    WAIST,
    Operator,
    Teleop,
    asked,
    follows,
    move,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NOTICED_S = 0.5  # from the fault to the stop: 0.1 s of silence, and a busy machine
ROBOTS = (*FOLLOWERS, *LEADERS)


@dataclass(frozen=True)
class Fault:
    """An operation of the virtual bus, what undoes it, and the words that must name it."""

    op: str
    arguments: dict[str, Any] = field(default_factory=dict)
    undo: tuple[str, dict[str, Any]] | None = None
    words: tuple[str, ...] = ()
    servo: int | None = None  # the one that may lose its torque


STOPPING = {
    "silence": Fault("drop", {"rate": 1.0}, ("calm", {}), ("no answer for",)),
    "garbage": Fault("corrupt", {"rate": 1.0}, ("calm", {}), ("no answer for",)),
    # An answer names no register: one that is this late may be taken for another question's, so
    # the fault may be called a lost torque. It errs towards stopping.
    "delay": Fault("delay", {"ms": 300.0}, ("calm", {}), ("no answer for", "lost its torque")),
    "missing": Fault(
        "missing", {"servo_id": 4}, ("missing", {"servo_id": 4, "gone": False}), ("servo 4",)
    ),
    "unplug": Fault("unplug", {}, ("plug", {}), ("hung up",)),
    "overload": Fault("overload", {"servo_id": 9}, None, ("servo 9 (gripper): overload",), 9),
    "reboot": Fault("reboot", {"servo_id": 8}, None, ("servo 8",), 8),
}
RIDDEN_OUT = {
    "drop": Fault("drop", {"rate": 0.05}),
    "corrupt": Fault("corrupt", {"rate": 0.05}),
    "delay": Fault("delay", {"ms": 2.0}),
    "noise": Fault("noise", {"count": 3}),
}


class Session:
    """A served station with teleop running on it, engaged."""

    def __init__(self, station: VirtualStation) -> None:
        self.station = station
        self.teleop = Teleop(station)
        self.teleop.perform_ritual()

    def rest(self) -> bool:
        """Bring the leaders home; whether the followers are there with them."""
        if self.teleop.process.poll() is not None:
            return False
        for robot in ROBOTS:
            call = self.station.buses.control.call
            call("plug", robot)
            call("calm", robot)
            call("missing", robot, servo_id=4, gone=False)
        try:
            move(self.station, 0.0)
            wait_until(lambda: follows(self.station, 0.0), "following", 5.0)
        except TimeoutError:
            return False
        return True


class Sessions:
    """The session of a module, made anew when a case has left it unusable."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._session: Session | None = None

    def ready(self) -> Session:
        if self._session is None or not self._session.rest():
            self._kept.close()
            station = self._kept.enter_context(virtual_station(rate_hz=100.0))
            self._session = Session(station)
        return self._session

    def close(self) -> None:
        self._kept.close()


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    sessions = Sessions()
    yield sessions
    sessions.close()


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    session = sessions.ready()
    yield session
    print(session.teleop.said()[-2000:])


def inject(session: Session, robot: str, fault: Fault) -> int:
    t_ns = time.monotonic_ns()
    session.station.buses.control.call(fault.op, robot, **fault.arguments)
    return t_ns


def swinging(station: VirtualStation) -> bool:
    """Whether both followers are asked to move, and do."""
    ticks = [station.client.tick(robot) for robot in FOLLOWERS]
    return all(np.isfinite(t["asked"]).all() and abs(t["dq"][WAIST]) > 0.1 for t in ticks)


def assert_no_torque_lost(station: VirtualStation, robot: str, but: int | None = None) -> None:
    for servo in range(1, 10):
        on = station.buses.control.call("get", robot, servo_id=servo, name="torque_enable")
        assert on == 1 or servo == but, f"servo {servo} of {robot} lost its torque"


def both_stopped(station: VirtualStation) -> bool:
    stopped = (Lifecycle.STOPPED, Lifecycle.FAULT)
    return all(station.lifecycle(robot) in stopped for robot in FOLLOWERS)


def a_stopping_fault(session: Session, robot: str, fault: Fault) -> None:
    """Inject, judge the stop, undo, re-engage, judge all of it."""
    station, teleop = session.station, session.teleop
    leads = robot in LEADERS
    with Operator(station) as operator:
        wait_until(lambda: swinging(station), "motion")
        marks = {name: goals_written(station, name) for name in FOLLOWERS}
        said = len(teleop.said())
        logged = len(station.log(f"arm.{robot}"))
        fault_ns = inject(session, robot, fault)

        wait_until(lambda: station.lifecycle(robot) is Lifecycle.FAULT, "the fault")
        # The fault's text in the tick goes on to what stands in the way of a new connection.
        named = station.log(f"arm.{robot}")[logged:]
        assert any(words in named for words in fault.words), named
        if leads:  # the followers are well: they see their commands go stale, and hold
            wait_until(lambda: not any(asked(station, [r]) for r in FOLLOWERS), "stale commands")
            assert all(station.lifecycle(name) is Lifecycle.ARMED for name in FOLLOWERS)
        else:
            wait_until(lambda: both_stopped(station), "both arms stopping")
            assert robot in station.client.status()["groups"]["followers"]["stop"]
        nothing_moves_for(station, 0.3)  # while the hands go on
        for name in FOLLOWERS:
            t_ns, servos, ticks = station.goals(name, marks[name])
            late_s = (last_motion_ns(t_ns, servos, ticks) - fault_ns) / 1e9
            assert late_s < NOTICED_S + ARM_STOP_S + 1.0, f"{name} moved {late_s:.2f} s later"
            assert_no_torque_lost(station, name, fault.servo if name == robot else None)
        wait_until(lambda: "not following: " in teleop.said()[said:], "the operator being told")
        assert robot in teleop.said()[said:]

        operator.pause()
        if fault.undo is not None:
            station.buses.control.call(fault.undo[0], robot, **fault.undo[1])
            wait_until(
                lambda: station.client.tick(robot)["age_s"].max() < 0.1, "the bus's return", 10
            )
        nothing_moves_for(station, 0.2)  # a fault that is gone moves nothing by itself
        teleop.re_engage()
        wait_until(lambda: asked(station), "following again")
        operator.go_on()
        wait_until(lambda: swinging(station), "motion again")
    for name in FOLLOWERS:
        assert assert_continuous(*station.goals(name, marks[name])) > 100
        assert_no_torque_lost(station, name)


def a_fault_ridden_out(session: Session, robot: str, fault: Fault) -> None:
    """Lost, damaged and late packets are retried: nobody stops, nothing jumps."""
    station = session.station
    with Operator(station):
        wait_until(lambda: swinging(station), "motion")
        marks = {name: goals_written(station, name) for name in FOLLOWERS}
        inject(session, robot, fault)
        bad = station.buses.control.call("counters", robot)["packets"] + 200
        wait_until(
            lambda: station.buses.control.call("counters", robot)["packets"] > bad, "200 packets"
        )
        wait_until(lambda: swinging(station), "motion on the bad line")
        station.buses.control.call("calm", robot)
        for name in ROBOTS:
            assert station.lifecycle(name) is Lifecycle.ARMED, station.fault(name)
        wait_until(lambda: swinging(station), "motion afterwards")
    for name in FOLLOWERS:
        assert assert_continuous(*station.goals(name, marks[name])) > 100
        assert_no_torque_lost(station, name)


def cases(faults: dict[str, Fault], robots: tuple[str, ...], fast: set[tuple[str, str]]):
    """Every fault on every robot; all but the ``fast`` ones only in `make test-all`."""
    return [
        pytest.param(
            robot,
            fault,
            id=f"{name}-{robot}",
            marks=() if (name, robot) in fast else pytest.mark.exhaustive,
        )
        for robot in robots
        for name, fault in faults.items()
    ]


@pytest.mark.parametrize(
    ("robot", "fault"),
    cases(
        STOPPING,
        ("follower_left", "leader_right"),
        {("unplug", "follower_left"), ("missing", "leader_right"), ("silence", "leader_right")},
    ),
)
def test_a_fault_stops_the_followers_and_teleop_goes_on_after_it(session, robot, fault):
    a_stopping_fault(session, robot, fault)


@pytest.mark.parametrize(
    ("robot", "fault"),
    cases(
        RIDDEN_OUT,
        ("follower_left", "leader_right"),
        {("corrupt", "follower_left"), ("drop", "leader_right")},
    ),
)
def test_a_bad_line_is_ridden_out_while_following(session, robot, fault):
    a_fault_ridden_out(session, robot, fault)
