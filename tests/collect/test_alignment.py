"""Rows and frames: every rule of alignment, on clocks that drift, stutter and stall."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collect.alignment import FrameAssigner, TakeoverCounter, Track
from robot_stack.types import Source

PERIOD = 20_000_000
START = 1_000_000_000_000


def deal(times: list[int], fps: float = 50.0) -> list[tuple[int, int | None]]:
    assigner = FrameAssigner(START, PERIOD, fps=fps)
    return [(t, assigner.offer(t)) for t in times]


frame_times = st.lists(st.integers(0, 60_000_000), min_size=1, max_size=80).map(
    lambda gaps: (START + np.cumsum(gaps)).tolist()
)


@given(times=frame_times, fps=st.sampled_from([10.0, 30.0, 50.0, 60.0]))
def test_each_row_gets_one_frame_in_order_within_a_period(times: list[int], fps: float) -> None:
    rows = [(t, row) for t, row in deal(times, fps) if row is not None]
    numbers = [row for _, row in rows]
    assert numbers == sorted(set(numbers))
    assert all(row >= 0 for row in numbers)
    ages = [START + row * PERIOD - t for t, row in rows]
    if fps < 45:
        assert len(rows) == len(times)  # slower cameras lose nothing
        assert all(age >= 0 for age in ages)  # and show nothing from the future
    else:
        assert all(abs(age) <= PERIOD for age in ages)


@given(
    phase=st.integers(0, PERIOD - 1),
    jitter=st.lists(st.integers(0, 15_000_000), min_size=200, max_size=200),
)
def test_a_camera_at_the_row_rate_loses_no_frame_to_jitter(phase: int, jitter: list[int]) -> None:
    jitter[0] = min(jitter[0], 3_000_000)
    times = [START + phase + i * PERIOD + late for i, late in enumerate(jitter)]
    rows = [row for _, row in deal(times)]
    assert None not in rows
    first = rows[0]
    assert first is not None
    assert rows == list(range(first, first + len(rows)))  # and none repeats


@given(
    phase=st.integers(0, PERIOD - 1),
    at=st.integers(5, 100),
    stall=st.integers(0, 15_000_000),
)
def test_a_stall_shorter_than_the_slack_costs_nothing(phase: int, at: int, stall: int) -> None:
    due = [START + phase + i * PERIOD for i in range(150)]
    times = [max(t, due[at] + stall) if i >= at else t for i, t in enumerate(due)]
    rows = [row for _, row in deal(times)]
    assert None not in rows
    assert rows == list(range(rows[0] or 0, (rows[0] or 0) + len(rows)))


@given(ppm=st.integers(-2000, 2000), phase=st.integers(0, PERIOD - 1))
def test_drifting_clocks_cost_only_what_the_rates_force(ppm: int, phase: int) -> None:
    count = 3000
    step = PERIOD * (1 + ppm / 1e6)
    times = [START + phase + round(i * step) for i in range(count)]
    rows = [row for _, row in deal(times)]
    dropped = rows.count(None)
    surplus = max(0.0, -ppm / 1e6 * count)  # frames that there is no row for
    assert dropped <= np.ceil(surplus)
    if ppm >= 0:
        assert dropped == 0


def test_a_camera_twice_as_fast_has_every_other_frame_dropped() -> None:
    times = [START + 1_000_000 + i * PERIOD // 2 for i in range(400)]
    rows = [row for _, row in deal(times, 100.0)]
    kept = [row for row in rows if row is not None]
    assert kept == list(range(kept[0], kept[0] + len(kept)))
    assert abs(rows.count(None) - 200) <= 3


def test_a_camera_at_half_the_rate_repeats_and_never_shows_the_future() -> None:
    times = [START + 3_000_000 + i * 2 * PERIOD for i in range(50)]
    rows = [row for _, row in deal(times, 25.0)]
    assert rows == [1 + 2 * i for i in range(50)]


def test_frames_from_before_the_first_row_do_not_take_it() -> None:
    assigner = FrameAssigner(START, PERIOD, fps=50.0)
    assert assigner.offer(START - 38_000_000) is None
    assert assigner.offer(START - 18_000_000) is None  # the next one suits row 0 better
    assert assigner.offer(START + 2_000_000) == 0


def test_a_closed_row_is_not_given_any_more() -> None:
    assigner = FrameAssigner(START, PERIOD, fps=50.0)
    assert assigner.offer(START + 1_000_000) == 0
    assigner.close(4)
    assert assigner.offer(START + 4 * PERIOD + 1_000_000) == 5
    assert assigner.offer(START + 4 * PERIOD + 2_000_000) is None


TICK = np.dtype([("t_ns", "<i8"), ("value", "<i4")])


@given(
    times=st.lists(st.integers(0, 1000), min_size=1, max_size=60).map(sorted),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    queries=st.lists(st.integers(0, 1100), min_size=1, max_size=20).map(sorted),
)
def test_a_track_finds_what_a_plain_search_finds(
    times: list[int], cuts: list[int], queries: list[int]
) -> None:
    records = np.array([(t, i) for i, t in enumerate(times)], TICK)
    track = Track(TICK)
    edges = sorted({0, len(times), *(c for c in cuts if c < len(times))})
    for a, b in itertools.pairwise(edges):
        track.add(records[a:b])
    for t in queries:
        before = [i for i, x in enumerate(times) if x <= t]
        after = [i for i, x in enumerate(times) if x >= t]
        last, first = track.last_until(t), track.first_from(t)
        assert (last["value"] if last is not None else None) == (before[-1] if before else None)
        assert (first["t_ns"] if first is not None else None) == (
            times[after[0]] if after else None
        )
        track.forget_before(t)


def test_a_track_follows_a_writer_with_another_layout() -> None:
    track = Track(TICK)
    track.add(np.array([(1, 1)], TICK))
    other = np.dtype([("t_ns", "<i8"), ("value", "<i4"), ("more", "<i4")])
    track.add(np.array([(5, 2, 3)], other))
    record = track.last_until(9)
    assert record is not None
    assert record["more"] == 3


def test_takeovers_are_counted_when_a_person_follows_a_policy() -> None:
    counter = TakeoverCounter()
    sources = [
        Source.DEMO,
        Source.HUMAN,  # nothing automatic before it: no takeover
        Source.POLICY,
        Source.HUMAN,
        Source.NONE,  # hands over through an empty tick
        Source.HUMAN,
        Source.POLICY,
        Source.HUMAN,
    ]
    assert [counter.row(source) for source in sources] == [-1, -1, -1, 0, -1, 0, -1, 1]
    assert counter.takeovers == 2
