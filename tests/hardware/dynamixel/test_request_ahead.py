"""Asking ahead: the answer is taken up by the next reading, however late, and never mistaken."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hardware.dynamixel.bus import DynamixelBus
from robot_stack.errors import BusError

from .conftest import VX300S, StartBus

IDS = tuple(VX300S)


def settled(bus):
    """A reading without a request ahead."""
    return bus.read_state(0.5)


def test_the_answer_is_of_the_time_of_asking(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        before = settled(bus)
        bus.request_state()
        asked_ns = time.monotonic_ns()
        time.sleep(0.05)
        state = bus.read_state(0.001)
        assert state is not before
        assert state.t_ns < asked_ns + 5_000_000
        assert state.missing == ()
        assert (state.age_s == 0).all()


def test_a_late_answer_costs_a_reading_and_is_taken_up_by_the_next(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, slack_s=0.5) as bus:
        before = settled(bus)
        process.control.call("delay", ms=100.0)
        bus.request_state()
        assert bus.read_state(0.001) is before
        bus.request_state()  # nothing is asked twice
        deadline = time.monotonic() + 10
        while (state := bus.read_state(0.001)) is before:
            assert time.monotonic() < deadline
        assert state.t_ns > before.t_ns
        assert state.missing == ()


def test_goals_may_go_out_while_an_answer_is_late(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS, slack_s=0.5) as bus:
        before = settled(bus)
        bus.torque(IDS, True)
        process.control.call("delay", ms=60.0)
        bus.request_state()
        assert bus.read_state(0.001) is before
        began = time.monotonic()
        bus.write_goals(np.full(len(IDS), 2100))
        assert time.monotonic() - began < 0.05  # did not wait for the answer
        process.control.call("calm")
        state = bus.read_state(0.5)
        assert state.missing == ()
        assert process.control.call("get", servo_id=1, name="goal_position") == 2100


def test_another_question_hears_the_answer_out_first(start_bus: StartBus) -> None:
    """A register of the same servo must not be answered with the state's bytes."""
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        for value in (40, 50, 60):
            bus.write(4, "position_i_gain", value)
            bus.request_state()
            assert bus.read(4, "position_i_gain") == value


def test_a_lost_answer_is_silence_and_the_next_request_works(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        settled(bus)
        process.control.call("drop", rate=1.0)
        bus.request_state()
        with pytest.raises(BusError, match="answered"):
            bus.read_state(0.05)
        process.control.call("calm")
        bus.request_state()
        assert bus.read_state(0.5).missing == ()


def test_an_unplugged_port_is_told_by_the_reading(start_bus: StartBus) -> None:
    process = start_bus()
    with DynamixelBus(process.port, IDS) as bus:
        settled(bus)
        bus.request_state()
        process.control.call("unplug")
        deadline = time.monotonic() + 10
        with pytest.raises(BusError, match="hung up"):
            while time.monotonic() < deadline:
                bus.read_state(0.01)
                bus.request_state()
