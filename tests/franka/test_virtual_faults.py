"""Faults by order: what they do on the wire, repeatable to the millisecond in lock-step."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.franka.fci import Command, Status, errors_named
from hardware.franka.virtual.faults import Faults
from robot_stack.errors import ControlPlaneError
from tests.franka.conftest import StartArm
from tests.franka.wire import Client

VELOCITY = 1
COMMUNICATION = ("communication_constraints_violation",)


def hold(client: Client, steps: int) -> int:
    """Answer the states of `steps` milliseconds of a motion at rest; how many there were."""
    first = int(client.state["message_id"])
    for _ in range(steps):
        client.send()
        if client.read()["robot_mode"] != 2:
            break
    return int(client.state["message_id"]) - first


def test_ordered_losses_are_counted_one_by_one(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        before = arm.call("status")["lost"]
        move = client.start(VELOCITY)
        hold(client, 10)
        arm.fault("lose_next", count=7)
        hold(client, 50)
        assert arm.call("status")["lost"] - before == 7
        assert client.state["success_rate"] == pytest.approx(53 / 60, abs=0.02)
        client.send(motion_finished=True)
        assert client.outcome(move) == Status.SUCCESS


def test_a_twentieth_of_the_commands_lost_is_survived_and_shown(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        arm.fault("seed", seed=3)
        move = client.start(VELOCITY)
        hold(client, 2)
        arm.fault("lost_commands", rate=0.05)
        before = arm.call("status")["lost"]
        assert hold(client, 400) == 400
        lost = arm.call("status")["lost"] - before
        assert 8 <= lost <= 40
        assert 0.85 <= client.state["success_rate"] < 1.0
        arm.fault("calm")
        client.send(motion_finished=True)
        assert client.outcome(move) == Status.SUCCESS


@pytest.mark.parametrize(("kind", "arguments"), [("stall", {"ms": 100}), ("delay", {"ms": 3})])
def test_what_keeps_commands_away_for_20_ms_is_a_named_reflex(
    arms: StartArm, kind: str, arguments: dict[str, int]
) -> None:
    arm = arms()
    with Client(arm.address) as client:
        move = client.start(VELOCITY)
        hold(client, 10)
        arm.fault(kind, **arguments)
        client.send()
        while client.read()["robot_mode"] == 2:
            client.send()
        assert errors_named(client.state["errors"]) == COMMUNICATION
        assert client.outcome(move) == Status.REFLEX_ABORTED
        arm.fault("calm")
        assert client.status(Command.AUTOMATIC_ERROR_RECOVERY) == Status.SUCCESS


def test_a_network_that_is_away_for_15_ms_is_survived(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        move = client.start(VELOCITY)
        hold(client, 10)
        arm.fault("stall", ms=15)
        before = arm.call("status")["lost"]
        hold(client, 30)
        assert client.state["robot_mode"] == 2, errors_named(client.state["errors"])
        assert 10 <= arm.call("status")["lost"] - before <= 15
        client.send(motion_finished=True)
        assert client.outcome(move) == Status.SUCCESS


def test_lost_states_leave_gaps_in_their_numbers(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        arm.fault("seed", seed=1)
        arm.fault("lost_states", rate=0.3)
        client.newest()
        numbers = [int(client.one()["message_id"]) for _ in range(200)]
        gaps = np.diff(numbers)
        assert gaps.min() == 1
        assert 1.2 < gaps.mean() < 1.8


def test_a_half_closed_connection_still_brings_states(own_arm: StartArm) -> None:
    arm = own_arm()
    with Client(arm.address) as client:
        arm.fault("half_close")
        assert client.tcp.recv(10) == b""
        first = client.newest()["message_id"]
        for _ in range(50):
            client.read()
        assert client.state["message_id"] >= first + 50


def test_faults_of_wrong_names_and_arguments_are_refused(arms: StartArm) -> None:
    arm = arms()
    with pytest.raises(ControlPlaneError, match="lost_commands"):
        arm.fault("lose_everything")
    with pytest.raises(ControlPlaneError, match="rate"):
        arm.fault("lost_commands", rate=1.5)
    with pytest.raises(ControlPlaneError, match="joint_reflex"):
        arm.fault("reflex", name="joint")
    with pytest.raises(ControlPlaneError, match="six numbers"):
        arm.fault("push", wrench=[1.0])


def sent(faults: Faults, milliseconds: range) -> list[tuple[int, int]]:
    """(when, id) of the states that pass."""
    passed = []
    for now in milliseconds:
        state = bytearray(now.to_bytes(8, "little"))
        passed += [
            (now, int.from_bytes(datagram[:8], "little"))
            for _, datagram in faults.states(now, now, state)
        ]
    return passed


def test_a_delay_shifts_states_and_a_calm_lets_the_rest_arrive() -> None:
    faults = Faults()
    faults.delay_ms = 3
    assert sent(faults, range(10)) == [(n, n - 3) for n in range(3, 10)]
    faults.calm()
    assert sent(faults, range(10, 14)) == [
        (10, 7), (11, 8), (12, 9), (12, 10), (12, 11), (12, 12), (13, 13),
    ]  # fmt: skip


def test_jitter_keeps_the_order_and_loses_nothing() -> None:
    faults = Faults(seed=5)
    faults.jitter_ms = 4
    passed = sent(faults, range(500))
    numbers = [number for _, number in passed]
    assert numbers == sorted(numbers) == list(range(len(numbers)))
    waits = {when - number for when, number in passed}
    assert waits == {0, 1, 2, 3, 4}


def test_the_same_seed_is_the_same_sequence() -> None:
    def losses() -> list[bool]:
        return [faults.command_passes(n) for n in range(100)]

    faults = Faults(seed=9)
    faults.lost_commands = 0.2
    first = losses()
    faults.reseed(9)
    assert losses() == first
    assert 5 < first.count(False) < 40
