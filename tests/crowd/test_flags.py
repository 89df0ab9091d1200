"""Flags of the review desk: what was put into an episode is found, where it is; no more."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from collect.crowd.flags import derivative, find_flags
from robot_stack.episode import Episode
from robot_stack.types import Difference
from tests.collect.recorded import write_episode

ROWS = 300
FAULT = ROWS // 2  # where `write_episode` writes one


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A smooth episode of six seconds, whose file nobody changes."""
    return write_episode(tmp_path_factory.mktemp("flags") / "smooth.hdf5", rows=ROWS)


@pytest.fixture
def changed(made, tmp_path):
    """A copy of it with some datasets changed by ``change(file)``."""

    def copy(change):
        path = tmp_path / "changed.hdf5"
        path.write_bytes(made.read_bytes())
        with h5py.File(path, "r+", locking=False) as file:
            change(file)
        return path

    return copy


def flags(path, least_s=0.0):
    with Episode.open(path) as episode:
        found = find_flags(episode, least_s)
    return {kind: [one for one in found if one.kind == kind] for kind in {f.kind for f in found}}


def test_a_smooth_episode_has_no_flag_but_its_fault(made):
    found = flags(made)
    assert set(found) == {"fault"}
    (fault,) = found["fault"]
    assert fault.first_row == fault.last_row == FAULT
    assert "servo 4 overloaded" in fault.about


def test_a_jerk_is_found_with_its_joint_and_a_gripper_may_snap(changed):
    def jump(file):
        q = file["observations/qpos"][:]
        q[100:, 2] += 0.3
        q[200:, 6] += 0.5  # the gripper
        file["observations/qpos"][:] = q

    (jerk,) = flags(changed(jump))["jerk"]
    assert jerk.first_row <= 100 <= jerk.last_row + 1
    assert jerk.last_row - jerk.first_row < 15
    assert jerk.about == "left/elbow"
    assert jerk.value > 600


def test_standing_still_is_found_and_a_short_rest_is_not(changed):
    def stand(file):
        q = file["observations/qpos"][:]
        q[20:220] = q[20]
        q[220:] = np.linspace(q[20], q[20] + 3.0, 80)
        file["observations/qpos"][:] = q

    (idle,) = flags(changed(stand))["idle"]
    assert abs(idle.first_row - 20) <= 6 and abs(idle.last_row - 219) <= 6
    assert idle.value == pytest.approx(4.0, abs=0.3)

    def rest(file):
        q = file["observations/qpos"][:]
        q[:] = np.linspace(0, 6, ROWS)[:, None]
        q[100:200] = q[100]
        q[200:] = np.linspace(q[100], q[100] + 3, 100)
        file["observations/qpos"][:] = q

    assert "idle" not in flags(changed(rest))


def test_lost_frames_are_found_camera_by_camera(changed):
    def lose(file):
        times = file["frame_t_ns"][:]
        times[100:150, 1] = times[99, 1]
        times[:10, 0] = -1
        file["frame_t_ns"][:] = times

    drops = flags(changed(lose))["drop"]
    assert [one.about for one in drops] == ["cam_high", "cam_low"]
    assert (drops[0].first_row, drops[0].last_row) == (0, 9)
    assert 110 <= drops[1].first_row <= 114 and drops[1].last_row == 149


def test_near_collisions_are_found_and_those_close_by_are_one(changed):
    def collide(file):
        bits = file["difference"][:]
        bits[[50, 51, 60, 200]] |= int(Difference.COLLISION)
        bits[120] |= int(Difference.VELOCITY)
        file["difference"][:] = bits

    found = flags(changed(collide))["collision"]
    assert [(one.first_row, one.last_row) for one in found] == [(50, 60), (200, 200)]


def test_short_is_short_for_the_task(made):
    assert "short" not in flags(made, least_s=5.0)
    (short,) = flags(made, least_s=8.0)["short"]
    assert (short.first_row, short.last_row, short.value) == (0, ROWS - 1, 6.0)


def test_unknown_positions_are_no_flags(changed):
    def forget(file):
        file["observations/qpos"][:] = np.nan

    assert set(flags(changed(forget))) == {"fault"}


def test_derivatives_of_a_cubic_are_exact():
    t = np.arange(60) / 50.0
    values = np.stack([t**3 - 2 * t, 5 * t**2], axis=1)
    for order, wanted in (
        (1, np.stack([3 * t**2 - 2, 10 * t], axis=1)),
        (3, np.stack([np.full(60, 6.0), np.zeros(60)], axis=1)),
    ):
        found = derivative(values, 50.0, order)
        assert np.isnan(found[:5]).all() and np.isnan(found[-5:]).all()
        np.testing.assert_allclose(found[5:-5], wanted[5:-5], atol=1e-6)
    assert np.isnan(derivative(values[:8], 50.0, 1)).all()
