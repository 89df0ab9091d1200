"""Push-T: gym-pusht's physics to the bit, the published initial states, the dataset's keypoints."""

from __future__ import annotations

import numpy as np
import pytest
from gym_pusht.envs.pusht import PushTEnv

from hardware.worlds.pusht import PushT, keypoints

# Rows 0, 12345 and 25649 of the human demonstrations: block x, y, angle and its keypoints.
ROWS = [
    (
        (222.9938202, 381.5990295, 3.0079994),
        [
            (201.8135, 293.5951), (283.5920, 374.6525), (162.8094, 391.0933), (219.8596, 356.2470),
            (220.5748, 258.0041), (179.9621, 354.2294), (258.2447, 343.8376), (231.2951, 317.0551),
            (199.8886, 386.4198),
        ],
    ),
    (
        (319.4066467, 291.5468750, 0.3105521),
        [
            (300.7179, 380.1134), (261.7030, 271.7813), (377.8314, 308.8341), (311.3434, 315.7859),
            (268.4839, 404.1898), (346.5030, 334.7512), (271.3503, 310.4978), (284.1771, 346.2617),
            (342.3416, 297.1218),
        ],
    ),
    (
        (255.1774750, 253.3053, 0.8870488),
        [
            (191.2422, 317.3800), (217.5660, 205.2860), (294.7433, 299.6385), (235.2070, 269.2342),
            (151.0946, 320.0010), (254.3518, 304.2963), (204.5552, 243.0058), (195.8211, 279.9826),
            (271.3690, 270.4777),
        ],
    ),
]  # fmt: skip

# The 193rd human demonstration: its first state, its first actions, and the state they led to.
FIRST = (148.0, 427.0, 170.6958771, 467.5896606, 4.0802379)
ACTIONS = [
    (157, 454), (152, 441), (151, 441), (150, 442), (152, 439), (155, 431),
    (158, 424), (162, 418), (169, 409), (173, 402), (178, 391), (184, 370),
]  # fmt: skip
LATER = (176.1583557, 391.7014771, 199.2409058, 427.8996887, 4.4981151)

# What RandomState(100000) draws: disc, block, angle.
DRAWN = (235.0, 124.0, 335.0, 128.0, -0.9049274284249247)


def test_steps_are_the_environments_own_to_the_bit():
    ours, theirs = PushT(), PushTEnv()
    ours.reset(100_000)
    theirs.reset(options={"reset_to_state": DRAWN})
    moved = np.array(theirs.block.position)
    random = np.random.default_rng(0)
    for _ in range(200):
        action = random.normal(theirs.block.position, 60.0)
        _, reward, done, _, info = theirs.step(action)
        assert ours.step(action) == pytest.approx(reward, abs=1e-12)
        assert ours.coverage == pytest.approx(info["coverage"], abs=1e-12)
        assert ours.success == done
        agent, block = theirs.agent, theirs.block
        expected = (*agent.position, *block.position, block.angle % (2 * np.pi))
        assert ours.state.tolist() == list(expected)
    assert np.linalg.norm(moved - theirs.block.position) > 20.0, "the block was never pushed"


def test_initial_states_are_the_published_ones():
    world = PushT()
    world.reset(100_000)
    disc_x, disc_y, x, y, angle = world.state
    assert (disc_x, disc_y) == DRAWN[:2]
    assert angle == pytest.approx(DRAWN[4] % (2 * np.pi), abs=1e-9)
    # Put there and then turned around its centre of mass, (0, 45) in the block's frame.
    turned = (45.0 * np.sin(DRAWN[4]), 45.0 * (1.0 - np.cos(DRAWN[4])))
    assert (x - DRAWN[2], y - DRAWN[3]) == pytest.approx(turned, abs=1e-6)
    assert np.hypot(*turned) > 30.0


def test_a_demonstration_leads_where_it_led():
    world = PushT()
    world.reset_to(FIRST)
    for action in ACTIONS:
        world.step(action)
    assert world.state == pytest.approx(LATER, abs=1e-3)


def test_a_state_is_reached_exactly():
    world = PushT()
    world.reset_to(FIRST)
    assert world.state == pytest.approx(FIRST, abs=1e-6)


@pytest.mark.parametrize(("pose", "points"), ROWS)
def test_keypoints_are_the_datasets(pose, points):
    assert np.abs(keypoints(*pose) - points).max() < 0.1
    assert np.abs(np.array(points)[::-1] - keypoints(*pose)).max() > 10.0  # their order counts


def test_env_state_is_pose_then_keypoints():
    world = PushT()
    world.reset_to((50.0, 60.0, *ROWS[1][0]))
    state = world.env_state
    assert state.shape == (21,)
    assert state[:3] == pytest.approx(ROWS[1][0], abs=1e-3)
    assert np.abs(state[3:].reshape(9, 2) - ROWS[1][1]).max() < 0.1


def test_a_moving_object_drifts_by_so_much_a_step():
    still, moving = PushT(), PushT(drift_px=1.5)
    for world in (still, moving):
        world.reset_to((60.0, 60.0, 300.0, 300.0, 0.5))
        for _ in range(10):
            world.step((60.0, 60.0))
    assert still.state[2:4] == pytest.approx((300.0, 300.0), abs=1e-3)
    assert moving.state[2:4] == pytest.approx((315.0, 315.0), abs=1e-3)


def test_covering_the_goal_is_success():
    world = PushT()
    world.reset_to((50.0, 50.0, 256.0, 256.0, np.pi / 4))
    assert world.success
    assert world.coverage == pytest.approx(1.0, abs=1e-6)
    assert world.reward == 1.0
    world.reset_to((50.0, 50.0, 262.0, 256.0, np.pi / 4))
    assert not world.success
    # Bar (120 x 30) and stem (30 x 90) lie at 45 degrees: 6 px sideways are 4.2426 px along both
    # sides. The bar keeps 115.7574 x 25.7574, the stem 25.7574 x 85.7574, and where the stem now
    # covers the bar's goal are 30 x 4.2426 more.
    bar, stem = 115.757359 * 25.757359, 85.757359 * 25.757359
    assert world.coverage == pytest.approx((bar + stem + 30.0 * 4.242641) / 6300.0, abs=1e-4)
    assert world.reward == pytest.approx(world.coverage / 0.95)


def test_an_action_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        PushT().step((float("nan"), 3.0))


def test_images_are_the_cameras():
    world = PushT()
    world.reset_to((50.0, 50.0, 400.0, 400.0, 0.0))
    image = world.image()
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert image[9, 9, 2] > image[9, 9, 0] + 50  # the disc is blue
    assert tuple(image[50, 46]) == (144, 238, 144)  # the goal is light green
    world.step((200.0, 60.0))
    assert not (world.image() == (255, 0, 0)).all(axis=-1).any()  # no marker of the target
    picture = world.picture(384)
    assert picture.shape == (384, 384, 3)
    assert tuple(picture[45, 150]) == (255, 0, 0)  # 200, 60 of 512
