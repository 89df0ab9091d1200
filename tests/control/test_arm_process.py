"""What the arm process does and tells while the robot follows nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

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
