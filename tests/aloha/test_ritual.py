"""The start ritual against a cell of ideal arms: order, speeds, and all the ways it can hang."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.aloha.rig import ARMS, build_spec
from hardware.aloha.ritual import ArmView, Phase, Ritual, RitualArm, RitualStep

Array = NDArray[np.float64]
DT_NS = 20_000_000
DT_S = 0.02
LEADERS = ("leader_left", "leader_right")
FOLLOWERS = ("follower_left", "follower_right")
START = [0, -0.96, 1.16, 0, -0.3, 0]


@dataclass
class Cell:
    """Arms that go where they are told while under torque; torque requests take two ticks."""

    arms: dict[str, RitualArm]
    q: dict[str, Array]
    torque: dict[str, NDArray[np.bool_]]
    faults: dict[str, str] = field(default_factory=dict)
    t_ns: int = 1_000_000_000
    pending: list[tuple[int, str, tuple[bool, ...], bool]] = field(default_factory=list)
    sent: dict[str, list[Array]] = field(default_factory=dict)
    torque_log: list[tuple[Phase, str, tuple[bool, ...], bool]] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    recovers: list[str] = field(default_factory=list)
    deaf: bool = False

    def views(self) -> dict[str, ArmView]:
        return {
            name: ArmView(
                self.q[name].copy(),
                self.sent[name][-1].copy() if self.sent.get(name) else self.q[name].copy(),
                self.torque[name].copy(),
                self.faults.get(name),
            )
            for name in self.arms
        }

    def run(
        self, ritual: Ritual, ticks: int, act: Callable[[RitualStep], None] = lambda _: None
    ) -> RitualStep:
        for _ in range(ticks):
            step = ritual.step(self.t_ns, self.views())
            if not self.phases or self.phases[-1] is not step.phase:
                self.phases.append(step.phase)
            for request in step.torque:
                self.torque_log.append((step.phase, request.arm, request.joints, request.on))
                if not self.deaf:
                    due = self.t_ns + 2 * DT_NS
                    self.pending.append((due, request.arm, request.joints, request.on))
            for name in step.recover:
                self.recovers.append(name)
            for name, target in step.targets.items():
                self.sent.setdefault(name, []).append(target.copy())
                on = self.torque[name]
                self.q[name][on] = target[on]
            for due, name, joints, on_ in list(self.pending):
                if due <= self.t_ns:
                    self.torque[name][np.array(joints)] = on_
                    self.pending.remove((due, name, joints, on_))
            act(step)
            self.t_ns += DT_NS
            if step.done:
                break
        return step


@pytest.fixture
def cell() -> Cell:
    arms = {name: RitualArm("leader", build_spec(ARMS["wx250s"]), 0.387) for name in LEADERS}
    arms |= {name: RitualArm("follower", build_spec(ARMS["vx300s"])) for name in FOLLOWERS}
    q = {name: np.array(arm.spec.sleep) for name, arm in arms.items()}
    return Cell(arms, q, {name: np.zeros(7, dtype=bool) for name in arms})


def _close(cell: Cell, *names: str) -> Callable[[RitualStep], None]:
    def hand(step: RitualStep) -> None:
        if step.phase is Phase.WAIT:
            for name in names:
                cell.q[name][6] = max(0.05, cell.q[name][6] - 0.05)

    return hand


def test_the_whole_ritual(cell: Cell) -> None:
    step = cell.run(Ritual(cell.arms), 1000, _close(cell, *LEADERS))
    assert step.phase is Phase.RUNNING
    assert cell.phases == [
        Phase.TORQUE, Phase.MOVE, Phase.GRIPPERS, Phase.RELEASE_GRIPPERS, Phase.WAIT,
        Phase.RELEASE_LEADERS, Phase.RUNNING,
    ]  # fmt: skip
    for name in cell.arms:
        np.testing.assert_allclose(cell.q[name][:6], START, atol=1e-9)
    for name in FOLLOWERS:
        assert cell.torque[name].all()
        assert cell.q[name][6] == 0.0
        # ALOHA's followers are never without torque once the ritual has switched it on.
        assert not any(arm == name and not on for _, arm, _, on in cell.torque_log)
    for name in LEADERS:
        assert not cell.torque[name].any()
        assert cell.sent[name][-1][6] == 0.5


def test_speeds(cell: Cell) -> None:
    cell.q["follower_left"] = np.array([2.5, 0.8, -1.2, 1.9, 1.5, -2.0, 1.0])
    cell.run(Ritual(cell.arms), 2000, _close(cell, *LEADERS))
    for name, sent in cell.sent.items():
        speed = np.abs(np.diff(np.array(sent), axis=0)) / DT_S
        assert speed[:, :6].max() < 1.0, name
        assert speed[:, 6].max() < 2.0, name
    # Both sides alike: the left arm was far away and still ends where the right one does.
    np.testing.assert_allclose(cell.q["follower_left"][:6], START, atol=1e-9)


def test_the_first_target_is_where_the_arm_is(cell: Cell) -> None:
    before = {name: q.copy() for name, q in cell.q.items()}
    cell.run(Ritual(cell.arms), 1000, _close(cell, *LEADERS))
    for name, q in before.items():
        np.testing.assert_allclose(cell.sent[name][0], q)


@pytest.mark.parametrize("only", [(), ("leader_left",), ("leader_right",)])
def test_one_gripper_or_none_does_not_start(cell: Cell, only: tuple[str, ...]) -> None:
    ritual = Ritual(cell.arms)
    step = cell.run(ritual, 5000, _close(cell, *only))
    assert step.phase is Phase.WAIT
    for name in LEADERS:
        assert (name in step.message) == (name not in only)
        # Only the gripper is free: the arm itself is still held.
        assert cell.torque[name].tolist() == [True] * 6 + [False]
    for name in FOLLOWERS:
        assert cell.torque[name].all()


def test_waiting_ends(cell: Cell) -> None:
    step = cell.run(Ritual(cell.arms, wait_s=5.0), 3000)
    assert step.phase is Phase.FAILED
    assert "leader_left, leader_right not closed within 5 s" in step.message
    assert all(cell.torque[name][:6].all() for name in cell.arms)


def test_a_gripper_that_does_not_answer_is_not_closed(cell: Cell) -> None:
    def lost(step: RitualStep) -> None:
        if step.phase is Phase.WAIT:
            cell.q["leader_left"][6] = np.nan
            cell.q["leader_right"][6] = 0.0

    assert cell.run(Ritual(cell.arms), 1500, lost).phase is Phase.WAIT


def test_gripper_faults_are_cleared_first(cell: Cell) -> None:
    cell.faults["follower_right"] = "servo 9 (gripper): overload"

    def rebooted(step: RitualStep) -> None:
        if len(cell.recovers) > 20:
            cell.faults.clear()

    step = cell.run(Ritual(cell.arms), 100, rebooted)
    assert set(cell.recovers) == {"follower_right"}
    assert step.phase is Phase.MOVE
    assert cell.phases[:2] == [Phase.RECOVER, Phase.TORQUE]


def test_a_fault_that_stays(cell: Cell) -> None:
    cell.faults["follower_left"] = "servo 9 (gripper): overload"
    step = cell.run(Ritual(cell.arms), 2000)
    assert step.phase is Phase.FAILED
    assert "follower_left: servo 9 (gripper): overload" in step.message
    assert not cell.sent


@pytest.mark.parametrize("during", [Phase.MOVE, Phase.GRIPPERS, Phase.WAIT])
def test_a_fault_on_the_way_stops_all_arms(cell: Cell, during: Phase) -> None:
    def fault(step: RitualStep) -> None:
        if step.phase is during:
            cell.faults["leader_right"] = "servo 4 (elbow): overheating"

    step = cell.run(Ritual(cell.arms), 2000, fault)
    assert step.phase is Phase.FAILED
    assert step.targets == {}
    assert "leader_right: servo 4 (elbow): overheating" in step.message
    assert all(cell.torque[name][:6].all() for name in cell.arms)


def test_torque_that_does_not_come(cell: Cell) -> None:
    cell.deaf = True
    step = cell.run(Ritual(cell.arms), 1000)
    assert step.phase is Phase.FAILED
    assert "no torque within 3 s on leader_left, leader_right, follower_left" in step.message


def test_a_blocked_arm_is_waited_for_and_named(cell: Cell) -> None:
    def hold(step: RitualStep) -> None:
        if step.phase is Phase.MOVE:
            cell.q["follower_left"][:] = [0, -1.85, 1.55, 0, 0.8, 0, 0]

    step = cell.run(Ritual(cell.arms), 1000, hold)
    assert step.phase is Phase.MOVE
    assert "waiting for follower_left to arrive" in step.message


def test_without_a_leader_there_is_no_ritual(cell: Cell) -> None:
    with pytest.raises(ValueError, match="at least one leader"):
        Ritual({"follower_left": cell.arms["follower_left"]})
