"""What the arm process does and tells while the robot follows nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from collect.observation import ObservationReader
from robot_stack.client import StationClient
from robot_stack.contract import Feature, PolicyContract
from robot_stack.errors import DeviceError
from robot_stack.types import CommandMode, Difference, Lifecycle
from tests.control.ideal_franka import DT_NS, IdealFranka, Rig, rig

JOINT = CommandMode.JOINT_POSITION
GRIPPER = 7


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def robot(arm: Rig) -> IdealFranka:
    assert isinstance(arm.arm.robot, IdealFranka)
    return arm.arm.robot


def observed(arm: Rig) -> NDArray[np.float32]:
    """The state that a policy is given now."""
    features = tuple(Feature(f"arm/{joint.name}", joint.unit) for joint in arm.spec.joints)
    contract = PolicyContract("p", "fr3", "", features, features, (), 20_000_000, 1, 1, 0, 1)
    with StationClient(arm.arm.station.station) as client:
        reader = ObservationReader(client, arm.arm.station, contract)
        state: NDArray[np.float32] = reader.read(arm.clock.now_ns).state[0]
        return state


def test_a_hand_that_was_halted_goes_on_from_where_it_stands(arm: Rig) -> None:
    closed = arm.sent.copy()
    closed[GRIPPER] = 0.0
    for _ in range(60):  # the filter is at the end of its way long before a hand is
        arm.send(closed, JOINT)
        arm.turn()
    assert arm.sent[GRIPPER] == 0.0
    robot(arm).fingers = 0.6
    assert robot(arm).q[GRIPPER] == 0.0, "whoever follows is not halted"
    arm.arm.lifecycle = Lifecycle.STOPPED
    tick = arm.turn()
    assert tick["difference"] & Difference.STOPPED
    assert tick["sent"][GRIPPER] == robot(arm).q[GRIPPER] == 0.6
    np.testing.assert_array_equal(tick["sent"][:GRIPPER], closed[:GRIPPER])
    robot(arm).fingers = 0.55
    assert arm.turn()["rest"][GRIPPER] == 0.55
    robot(arm).fingers = None
    arm.arm.lifecycle = Lifecycle.ARMED
    assert arm.turn()["sent"][GRIPPER] == 0.55, "armed, it stays"
    arm.send(closed, JOINT)
    sent = arm.turn()["sent"][GRIPPER]
    assert 0.5 < sent < 0.55, "and starts from there, within its limits"


def test_an_arm_brakes_while_its_hand_stands(arm: Rig) -> None:
    target = arm.sent.copy()
    for _ in range(20):
        target[0] += 0.004
        arm.send(target, JOINT)
        arm.turn()
    before = arm.sent
    robot(arm).fingers = 0.6
    arm.arm.lifecycle = Lifecycle.DISARMED
    steps = []
    for _ in range(100):
        sent = arm.turn()["sent"]
        steps.append(sent[0] - before[0])
        before = sent
    assert steps[0] > 0.002, "no joint stands still at once"
    assert (np.diff(steps) <= 1e-12).all() and steps[-1] == 0.0
    assert arm.arm.standing


def test_what_a_lost_robot_measured_before_is_not_told_as_what_it_measures_now(arm: Rig) -> None:
    before = arm.turn()
    robot(arm).silent = True
    ticks = [arm.turn() for _ in range(30)]  # 0.15 s: silent for long enough
    kept = [tick for tick in ticks if tick["lifecycle"] == Lifecycle.ARMED]
    assert all(tick["t_ns"] == before["t_ns"] for tick in kept), "it says how old it is"
    lost = ticks[-1]
    with pytest.raises(DeviceError, match="arm does not say where its joints are"):
        observed(arm)
    assert lost["lifecycle"] == Lifecycle.FAULT and lost["t_ns"] > ticks[-2]["t_ns"]
    for measured in ("q", "dq", "tau", "ee_pose"):
        assert np.isfinite(before[measured]).all() and np.isnan(lost[measured]).all(), measured
    np.testing.assert_array_equal(lost["sent"], before["sent"])
    robot(arm).silent = False
    arm.clock.now_ns += int(1e9)
    assert np.isfinite(arm.turn()["q"]).all()
    np.testing.assert_allclose(observed(arm), robot(arm).q, atol=1e-6)


@pytest.mark.parametrize("end", ["stop", "disarm", "lease"])
def test_who_follows_nobody_carries_out_no_chunk(arm: Rig, end: str) -> None:
    rows = np.repeat(arm.sent[None], 20, axis=0)
    arm.send(rows, JOINT, start_ns=arm.clock.now_ns + DT_NS, dt_ns=10 * DT_NS, chunk_id=7)
    for _ in range(15):
        tick = arm.turn()
    assert (tick["chunk_id"], tick["chunk_index"]) == (7, 1)
    if end == "lease":
        arm.clock.now_ns += int(120e9)
    else:
        arm.arm.lifecycle = Lifecycle.STOPPED if end == "stop" else Lifecycle.DISARMED
    tick = arm.turn()
    assert tick["difference"] & (
        Difference.STOPPED | Difference.DISARMED | Difference.OUT_OF_LEASE | Difference.STALE
    )
    assert (tick["chunk_id"], tick["chunk_index"], tick["observation_t_ns"]) == (-1, -1, -1)
