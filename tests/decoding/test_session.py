"""Sessions: which chunks are priors, how they line up, what a reset forgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.decoding.session import Session
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.interfaces import Array
from tests.decoding.made import Affine, ask, contract, session

H, FIRST = 8, 1


def hosted(horizon: int = H, first_action: int = FIRST) -> Hosted:
    return Hosted(Affine(contract(horizon=horizon, first_action=first_action, dof=1)))


def ramp(begin: float, rows: int = H) -> Array:
    """Row i asks for begin + i: a plan whose value is its moment."""
    return np.arange(begin, begin + rows, dtype=np.float32)[None, :, None]


NONE = np.zeros((0, H, 1), dtype=np.float32)


def test_a_prior_says_for_each_row_what_was_planned_for_the_same_moment() -> None:
    robot = session("receding_horizon", hosted())
    first, rows = robot.finish(robot.begin(-1, 0, 0), ramp(100), NONE)
    np.testing.assert_array_equal(rows[:, 0], np.arange(101, 108))  # from the newest moment on
    at = robot.begin(first, 3, 2)
    assert at.delay == 2
    # Three rows later: row 0 of the new chunk is the moment of row 3 of the old one.
    np.testing.assert_array_equal(at.priors[0][:, 0], np.arange(103, 108))
    second, _ = robot.finish(at, ramp(103), NONE)
    at = robot.begin(second, 2, 0)
    np.testing.assert_array_equal(at.priors[0][:, 0], np.arange(105, 111))
    np.testing.assert_array_equal(at.priors[1][:, 0], np.arange(105, 108))


def test_nothing_consumed_leaves_the_whole_chunk() -> None:
    robot = session("receding_horizon", hosted())
    first, _ = robot.finish(robot.begin(-1, 0, 0), ramp(100), NONE)
    assert len(robot.begin(first, 0, 0).priors[0]) == H


@pytest.mark.parametrize("consumed", [7, 8, 9, 10_000])
def test_a_chunk_that_has_passed_is_no_prior(consumed: int) -> None:
    robot = session("receding_horizon", hosted())
    first, _ = robot.finish(robot.begin(-1, 0, 0), ramp(100), NONE)
    assert len(robot.begin(first, 6, 0).priors[0]) == 2  # its last row, and one of the past
    assert robot.begin(first, consumed, 0).priors == ()


def test_an_unknown_chunk_gives_no_priors() -> None:
    robot = session("receding_horizon", hosted())
    robot.finish(robot.begin(-1, 0, 0), ramp(0), NONE)
    for unknown in (-1, -7, 1, 99):
        assert robot.begin(unknown, 1, 0).priors == ()


@pytest.mark.parametrize(("consumed", "delay"), [(-1, 0), (0, -1)])
def test_counts_below_zero_are_refused(consumed: int, delay: int) -> None:
    robot = session("receding_horizon", hosted())
    with pytest.raises(ValueError, match="counted from 0"):
        robot.begin(-1, consumed, delay)


def test_a_chunk_that_was_never_executed_is_no_prior() -> None:
    robot = session("receding_horizon", hosted())
    first, _ = robot.finish(robot.begin(-1, 0, 0), ramp(0), NONE)
    robot.finish(robot.begin(first, 1, 0), ramp(501), NONE)  # its reply is lost
    third, _ = robot.finish(robot.begin(first, 2, 0), ramp(2), NONE)
    at = robot.begin(third, 1, 0)
    assert [float(prior[0, 0]) for prior in at.priors] == [3.0, 3.0]  # ramps from 2 and from 0


def test_two_requests_under_way_do_not_mix_their_alignment() -> None:
    robot = session("receding_horizon", hosted())
    first, _ = robot.finish(robot.begin(-1, 0, 0), ramp(0), NONE)
    early, late = robot.begin(first, 1, 0), robot.begin(first, 4, 0)
    late_id, _ = robot.finish(late, ramp(4), NONE)
    early_id, _ = robot.finish(early, ramp(1), NONE)
    for chunk_id, moment in ((late_id, 4), (early_id, 1)):
        at = robot.begin(chunk_id, 1, 0)
        assert {float(prior[0, 0]) for prior in at.priors} == {moment + 1.0}


def test_reset_drops_the_priors_and_ids_go_on() -> None:
    policy = hosted()
    robot = session("receding_horizon", policy)
    ids = [ask(policy, robot)[0] for _ in range(3)]
    robot.reset()
    for old in ids:
        assert robot.begin(old, 1, 0).priors == ()
    later, _ = ask(policy, robot, ids[-1], 1)
    assert later not in ids
    assert len(robot.begin(later, 1, 0).priors) == 1


def test_a_step_begun_before_a_reset_brings_back_nothing_of_before() -> None:
    robot = session("receding_horizon", hosted())
    first, _ = robot.finish(robot.begin(-1, 0, 0), ramp(0), NONE)
    at = robot.begin(first, 1, 0)
    robot.reset()
    chunk_id, _ = robot.finish(at, ramp(1), NONE)
    assert robot.begin(first, 1, 0).priors == ()
    assert len(robot.begin(chunk_id, 1, 0).priors) <= 1


def test_a_long_session_remembers_no_more_than_can_overlap() -> None:
    policy = hosted()
    robot = session("receding_horizon", policy)
    previous = -1
    for n in range(200):
        previous, _ = ask(policy, robot, previous, int(n > 0))
    assert len(robot._history) == 2 * H
    assert len(robot.begin(previous, 1, 0).priors) == H - FIRST - 1
    assert robot.begin(previous - 2 * H, 1, 0).priors == ()


def test_what_is_remembered_cannot_be_changed_by_a_decoder_or_caller() -> None:
    robot = session("receding_horizon", hosted())
    samples = ramp(0)
    first, rows = robot.finish(robot.begin(-1, 0, 0), samples, NONE)
    samples += 100.0
    rows += 100.0
    prior = robot.begin(first, 0, 0).priors[0]
    np.testing.assert_array_equal(prior[:, 0], np.arange(H))
    with pytest.raises(ValueError, match="read-only"):
        prior[0] = 1.0


def test_the_same_seed_gives_the_same_chunks_and_another_seed_others() -> None:
    policy = hosted()

    def run(seed: int) -> Array:
        robot = session("receding_horizon", policy, seed)
        return np.stack([ask(policy, robot)[1] for _ in range(3)])

    np.testing.assert_array_equal(run(5), run(5))
    assert (run(5) != run(6)).all()


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-1, 60), st.integers(0, 12), st.integers(0, 12), st.booleans()),
        max_size=80,
    )
)
def test_whatever_is_asked_priors_are_aligned_and_memory_is_bounded(
    asked: list[tuple[int, int, int, bool]],
) -> None:
    """Every chunk is the ramp of its own moments, so all priors must agree on row 0's moment."""
    robot = Session(make_decoder("receding_horizon"), hosted(), 0)
    moments: dict[int, float] = {}
    seen = set()
    for previous, consumed, delay, reset in asked:
        if reset:
            robot.reset()
            moments.clear()
        at = robot.begin(previous, consumed, delay)
        assert (previous in moments) or not at.priors
        moment = moments.get(previous, 0.0) + consumed
        for prior in at.priors:
            assert FIRST < len(prior) <= H
            assert prior[0, 0] == moment
        chunk_id, rows = robot.finish(at, ramp(moment), NONE)
        assert rows.shape == (H - FIRST, 1)
        assert chunk_id not in seen
        seen.add(chunk_id)
        moments[chunk_id] = moment
        assert len(robot._history) <= 2 * H
