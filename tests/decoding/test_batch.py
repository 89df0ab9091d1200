"""Decoding in one batch gives each session what it would get alone, for one encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.hosted import Hosted
from robot_stack import registry
from tests.decoding.made import Affine, contract, session

NAMES = registry.names("decoder")


def hosted() -> Hosted:
    shape = contract(cameras=("front", "wrist"))
    return Hosted(Affine(shape), Affine(shape, width=0.4))


@dataclass
class Robot:
    """One client's side of a session, with observations of its own."""

    session: Session
    random: np.random.Generator
    previous: int = -1

    def request(self) -> Request:
        consumed = int(self.random.integers(0, 5))
        at = self.session.begin(self.previous, consumed, int(self.random.integers(0, 3)))
        state = self.random.normal(size=(2, 2)).astype(np.float32)
        images = {
            name: self.random.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8)
            for name in ("front", "wrist")
        }
        return Request(self.session, at, state, images)

    def take(self, reply: tuple[int, NDArray[np.float64]]) -> NDArray[np.float64]:
        self.previous, rows = reply
        return rows


def robots(names: list[str], policy: Hosted) -> list[Robot]:
    return [
        Robot(session(name, policy, seed=i), np.random.default_rng(100 + i))
        for i, name in enumerate(names)
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6))
def test_a_batch_is_its_sessions_one_by_one(names: list[str]) -> None:
    policy = hosted()
    together, alone = robots(names, policy), robots(names, policy)
    for _ in range(3):
        in_one = decode(policy, [robot.request() for robot in together])
        for one, other, reply in zip(together, alone, in_one, strict=True):
            rows = one.take(reply)
            expected = other.take(decode(policy, [other.request()])[0])
            np.testing.assert_allclose(rows, expected, atol=1e-5)
            assert one.previous == other.previous


def test_each_observation_is_encoded_once_and_expanded() -> None:
    policy = hosted()
    fleet = robots(["bid", "receding_horizon", "coherence"], policy)
    decode(policy, [robot.request() for robot in fleet])
    strong, weak = policy.strong, policy.weak
    assert isinstance(strong, Affine)
    assert isinstance(weak, Affine)
    assert (strong.encoded, strong.sampled) == ([3], [31])
    assert (weak.encoded, weak.sampled) == ([1], [15])
    assert len({*strong.noises, *weak.noises}) == 31 + 15  # no noise is used twice


def test_guided_and_plain_draws_are_sampled_apart() -> None:
    policy = hosted()
    fleet = robots(["rtc", "receding_horizon", "rtc", "bid_warm", "bid"], policy)
    for _ in range(2):
        replies = decode(policy, [robot.request() for robot in fleet])
        for robot, reply in zip(fleet, replies, strict=True):
            robot.take(reply)
    assert isinstance(policy.strong, Affine)
    # First all alike; then guided, plain and warm ones.
    assert policy.strong.sampled[0] == 33
    assert sorted(policy.strong.sampled[1:]) == [8, 15, 16]


def test_guides_with_other_limits_are_not_mixed() -> None:
    policy = hosted()
    fleet = [
        Robot(session("rtc", policy, seed=i, limit=limit), np.random.default_rng(i))
        for i, limit in enumerate((0.25, 0.5, 0.25))
    ]
    for _ in range(2):
        replies = decode(policy, [robot.request() for robot in fleet])
        for robot, reply in zip(fleet, replies, strict=True):
            robot.take(reply)
    assert isinstance(policy.strong, Affine)
    assert sorted(policy.strong.sampled[1:]) == [4, 8]


def test_images_and_states_reach_the_session_that_sent_them() -> None:
    policy = Hosted(Affine(contract(cameras=("front",)), width=0.0))
    fleet = [session("receding_horizon", policy) for _ in range(3)]

    def request(robot: Session, state: float, pixel: int) -> Request:
        images: dict[str, Any] = {"front": np.full((2, 4, 4, 3), pixel, dtype=np.uint8)}
        states = np.full((2, 2), state, dtype=np.float32)
        return Request(robot, robot.begin(-1, 0, 0), states, images)

    values = [(0.5, 10), (-0.5, 20), (2.0, 0)]
    replies = decode(
        policy, [request(robot, *value) for robot, value in zip(fleet, values, strict=True)]
    )
    assert [float(rows[0, 0]) for _, rows in replies] == [10.5, 19.5, 2.0]


def test_bid_contrasts_with_the_weak_policy() -> None:
    """All strong chunks are alike but for noise; the weak ones pile up on the low side."""
    shape = contract()
    far, near = [], []
    for weak_width, sent in ((100.0, far), (1e-6, near)):
        policy = Hosted(Affine(shape), Affine(shape, width=weak_width))
        (reply,) = decode(policy, [robots(["bid"], policy)[0].request()])
        sent.append(reply[1])
    assert not np.allclose(far[0], near[0])


def test_nothing_asked_is_nothing_done() -> None:
    policy = hosted()
    assert decode(policy, []) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_session_alone_repeats_bit_for_bit(name: str) -> None:
    policy = hosted()
    runs = []
    for _ in range(2):
        (robot,) = robots([name], policy)
        runs.append([robot.take(decode(policy, [robot.request()])[0]) for _ in range(4)])
    np.testing.assert_array_equal(runs[0], runs[1])
