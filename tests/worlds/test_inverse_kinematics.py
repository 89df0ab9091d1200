"""Inverse kinematics: what it solves is there, what it cannot it says."""

from __future__ import annotations

import numpy as np
import pytest

from hardware.worlds.aloha import LEFT, RIGHT, START, AlohaTransferCube
from hardware.worlds.inverse_kinematics import ArmKinematics, both_arms, rotation


@pytest.fixture(scope="module")
def arms() -> tuple[ArmKinematics, ArmKinematics]:
    return both_arms()


@pytest.mark.parametrize("arm", [LEFT, RIGHT])
def test_random_poses_are_reached(arms: tuple[ArmKinematics, ArmKinematics], arm: int) -> None:
    random = np.random.default_rng(arm)
    kinematics = arms[arm]
    for _ in range(50):
        wanted = np.array(START[:6]) + random.uniform(-0.35, 0.35, 6)
        position, orientation = kinematics.forward(wanted)
        q, error = kinematics.solve(position, orientation, np.array(START[:6]))
        at, frame = kinematics.forward(q)
        assert np.linalg.norm(at - position) < 1e-3
        assert np.abs(frame - orientation).max() < 1e-2
        assert error < 1e-3
        assert (q >= kinematics.lower).all()
        assert (q <= kinematics.upper).all()


def test_out_of_reach_is_said(arms: tuple[ArmKinematics, ArmKinematics]) -> None:
    _, error = arms[LEFT].solve(np.array([0.8, 0.5, 0.3]), rotation(LEFT, 0.0), np.array(START[:6]))
    assert error > 0.1


def test_grippers_point_at_each_other(arms: tuple[ArmKinematics, ArmKinematics]) -> None:
    for arm, direction in ((LEFT, 1.0), (RIGHT, -1.0)):
        _, frame = arms[arm].forward(np.zeros(6))
        np.testing.assert_allclose(frame, rotation(arm, 0.0), atol=1e-3)
        assert frame[0, 0] == pytest.approx(direction, abs=1e-3)
        assert rotation(arm, 0.5)[2, 0] < 0.0  # tipped down


def test_sag_is_what_the_plant_does(arms: tuple[ArmKinematics, ArmKinematics]) -> None:
    plant = AlohaTransferCube()
    plant.reset(0, START)
    for arm in (LEFT, RIGHT):
        plant.set_drives(arm, np.ones(7), np.ones(7))
        plant.goals[arm, :6] = np.array(START[:6]) + arms[arm].sag(np.array(START[:6]))
    plant.step(1500)
    for arm in (LEFT, RIGHT):
        np.testing.assert_allclose(plant.measure(arm)[0][:6], START[:6], atol=0.008)
