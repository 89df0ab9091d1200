"""The chunk buffer: what comes out when, between which rows, and what when nothing comes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_stack.types import ActionChunk, Difference, Source
from server.control.chunk_buffer import ChunkBuffer, Sample

MS = 1_000_000


def chunk(start_ms: float, rows: object, *, dt_ms: float = 20, chunk_id: int = 7) -> ActionChunk:
    actions = np.asarray(rows, dtype=np.float64)
    return ActionChunk(
        observation_t_ns=0,
        start_t_ns=round(start_ms * MS),
        dt_ns=round(dt_ms * MS),
        actions=actions[:, None] if actions.ndim == 1 else actions,
        source=Source.POLICY,
        token=1,
        chunk_id=chunk_id,
    )


def value(sample: Sample) -> float:
    assert sample.target is not None, sample
    return float(sample.target[0])


def run(buffer: ChunkBuffer, begin_ms: int, end_ms: int, step_ms: int = 5) -> NDArray[np.float64]:
    """Values of every tick, NaN where there was none."""
    samples = [buffer.target(t * MS) for t in range(begin_ms, end_ms, step_ms)]
    return np.array([np.nan if s.target is None else s.target[0] for s in samples])


def test_nothing_was_ever_asked() -> None:
    sample = ChunkBuffer(1).target(0)
    assert sample.target is None
    assert sample.difference == Difference.STALE


# -- immediate targets ---------------------------------------------------------------------------


def test_a_stream_as_fast_as_the_loop_passes_bit_for_bit_in_the_same_tick() -> None:
    buffer = ChunkBuffer(2)
    random = np.random.default_rng(0)
    now = 0
    for _ in range(200):
        now += int(random.normal(5, 0.4) * MS)
        target = random.normal(size=2)
        buffer.put_target(now - 1 * MS, target)
        sample = buffer.target(now)
        assert sample.target is not None
        assert sample.target.tobytes() == target.tobytes()
        assert (sample.chunk_id, sample.index, sample.difference) == (-1, -1, Difference.NONE)


def test_a_50_hz_stream_becomes_a_line_that_starts_at_once_and_arrives_in_one_period() -> None:
    buffer = ChunkBuffer(1)
    out = []
    for t in range(0, 200, 5):
        if t % 20 == 0:
            buffer.put_target(t * MS, np.array([t / 20.0]))  # +1 a period
        out.append(value(buffer.target(t * MS)))
    steps = np.diff(out[8:])  # two intervals are known from the third target on
    np.testing.assert_allclose(steps, 0.25)
    assert out[8] == pytest.approx(1.25)  # the tick of target 2 has left target 1 already


def test_a_lost_target_does_not_slow_the_next_line_down() -> None:
    buffer = ChunkBuffer(1)
    out = {}
    for t in range(0, 140, 5):
        if t % 20 == 0 and t != 80:
            buffer.put_target(t * MS, np.array([float(t)]))
        out[t] = value(buffer.target(t * MS))
    assert out[115] == pytest.approx(100.0)


def test_an_immediate_target_is_stale_after_its_age_not_after_its_arrival() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    buffer.put_target(0, np.array([1.0]))
    assert value(buffer.target(90 * MS)) == 1.0
    assert value(buffer.target(100 * MS)) == 1.0
    sample = buffer.target(101 * MS)
    assert sample.target is None
    assert sample.difference == Difference.STALE


def test_a_clock_that_runs_ahead_does_not_put_off_staleness() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    buffer.put_target(900 * MS, np.array([1.0]))
    assert value(buffer.target(0)) == 1.0
    assert buffer.target(101 * MS).target is None


def test_after_silence_the_first_target_passes_unchanged() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    for t in (0, 20, 40):
        buffer.put_target(t * MS, np.array([0.0]))
        buffer.target(t * MS)
    assert buffer.target(200 * MS).target is None
    buffer.put_target(220 * MS, np.array([5.0]))
    assert value(buffer.target(220 * MS)) == 5.0


# -- chunks --------------------------------------------------------------------------------------


def test_rows_come_out_exactly_at_their_times_with_their_names() -> None:
    buffer = ChunkBuffer(1)
    rows = np.random.default_rng(1).normal(size=6)
    buffer.put_chunk(chunk(100, rows, chunk_id=3))
    for i, row in enumerate(rows):
        sample = buffer.target((100 + 20 * i) * MS)
        assert value(sample) == row
        assert (sample.chunk_id, sample.index, sample.difference) == (3, i, Difference.NONE)


def test_before_its_first_row_a_chunk_asks_for_nothing() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    buffer.put_chunk(chunk(500, [1.0, 2.0]))
    far, near = buffer.target(300 * MS), buffer.target(450 * MS)
    assert far.target is None
    assert far.difference == Difference.STALE
    assert near.target is None
    assert near.difference == Difference.NONE


def test_passed_rows_are_dropped_and_a_passed_chunk_is_ignored() -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, np.arange(10.0)))
    assert value(buffer.target(90 * MS)) == pytest.approx(4.5)
    assert buffer.target(90 * MS).index == 4
    buffer.put_chunk(chunk(-300, np.full(10, -1.0), chunk_id=8))
    sample = buffer.target(100 * MS)
    assert (value(sample), sample.chunk_id) == (5.0, 7)


def test_the_newest_chunk_wins_from_its_start_and_only_from_there() -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, np.zeros(50), chunk_id=1))
    buffer.target(0)
    buffer.put_chunk(chunk(200, np.ones(50), chunk_id=2))
    before = run(buffer, 5, 185)
    assert (before == 0.0).all()
    meeting = run(buffer, 185, 200)
    assert ((meeting >= 0.0) & (meeting <= 1.0)).all()
    sample = buffer.target(200 * MS)
    assert (value(sample), sample.chunk_id, sample.index) == (1.0, 2, 0)
    buffer.put_chunk(chunk(100, np.full(50, 2.0), chunk_id=3))  # it began in the past: at once
    sample = buffer.target(205 * MS)
    assert (value(sample), sample.chunk_id, sample.index) == (2.0, 3, 5)


def test_late_the_last_row_is_held_then_starved_then_stale() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    buffer.put_chunk(chunk(0, [0.0, 1.0, 2.0]))  # rows at 0, 20, 40 ms; the last one until 60
    buffer.target(0)
    assert buffer.target(59 * MS).difference == Difference.NONE
    starved = buffer.target(60 * MS)
    assert (value(starved), starved.index) == (2.0, 2)
    assert starved.difference == Difference.STARVED
    assert value(buffer.target(160 * MS)) == 2.0
    stale = buffer.target(161 * MS)
    assert stale.target is None
    assert stale.difference == Difference.STALE


def test_after_starving_the_next_chunk_is_met_within_one_row() -> None:
    buffer = ChunkBuffer(1, stale_s=0.2)
    buffer.put_chunk(chunk(0, [0.0, 1.0]))
    buffer.target(0)
    buffer.target(100 * MS)
    buffer.put_chunk(chunk(150, [2.0, 3.0], chunk_id=8))
    out = run(buffer, 105, 150)
    assert (out[:6] == 1.0).all()  # held until one row's time before the new start
    assert (np.diff(out[6:]) > 0.0).all()
    assert out[-1] < 2.0
    assert value(buffer.target(150 * MS + 5 * MS)) > 2.0


def test_what_went_stale_is_not_revived_by_a_chunk_that_is_yet_to_start() -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    buffer.put_chunk(chunk(0, [0.0, 1.0]))
    buffer.target(0)
    assert buffer.target(300 * MS).target is None
    buffer.put_chunk(chunk(400, [2.0, 3.0]))
    assert np.isnan(run(buffer, 305, 400)).all()
    assert value(buffer.target(400 * MS)) == 2.0


def test_a_person_takes_over_from_a_chunk_at_once_and_a_chunk_from_a_person() -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, np.zeros(50)))
    buffer.target(0)
    buffer.put_target(4 * MS, np.array([1.0]))
    sample = buffer.target(5 * MS)
    assert (value(sample), sample.chunk_id) == (1.0, -1)
    buffer.put_chunk(chunk(30, [3.0, 3.0], chunk_id=9))
    assert value(buffer.target(10 * MS)) == 1.0
    assert 1.0 < value(buffer.target(20 * MS)) < 3.0
    assert buffer.target(30 * MS).chunk_id == 9


def test_clear_forgets_the_plan_and_what_waits() -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, np.zeros(50)))
    buffer.target(0)
    buffer.put_target(5 * MS, np.array([1.0]))
    buffer.clear()
    assert buffer.target(5 * MS).target is None


@pytest.mark.parametrize(
    "bad",
    [
        chunk(0, np.zeros((3, 2))),
        chunk(0, np.zeros((0, 1))),
        chunk(0, [0.0, np.nan]),
        chunk(0, [0.0, 1.0], dt_ms=0),
        chunk(0, [0.0, 1.0], dt_ms=-20),
        np.zeros(2),
        np.array([np.inf]),
        np.zeros((1, 1)),
    ],
)
def test_a_malformed_command_changes_nothing_and_is_marked(
    bad: ActionChunk | NDArray[np.float64],
) -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, np.arange(10.0)))
    buffer.target(0)
    if isinstance(bad, ActionChunk):
        buffer.put_chunk(bad)
    else:
        buffer.put_target(0, bad)
    sample = buffer.target(20 * MS)
    assert value(sample) == 1.0
    assert sample.difference == Difference.INVALID
    assert buffer.target(25 * MS).difference == Difference.NONE


numbers = st.floats(-3.0, 3.0)
# One number is an immediate target, a tuple is a chunk: start offset, row time, rows.
commands = st.one_of(
    numbers,
    st.tuples(
        st.integers(-100, 150), st.integers(1, 40), st.lists(numbers, min_size=1, max_size=8)
    ),
)


@given(st.lists(st.tuples(st.integers(1, 30), st.lists(commands, max_size=2)), max_size=40))
def test_whatever_comes_the_output_is_finite_and_among_what_was_asked(
    ticks: list[tuple[int, list[float | tuple[int, int, list[float]]]]],
) -> None:
    buffer = ChunkBuffer(1, stale_s=0.1)
    now, low, high = 1000, np.inf, -np.inf
    for step, arrived in ticks:
        now += step
        for command in arrived:
            if isinstance(command, tuple):
                offset, dt_ms, rows = command
                buffer.put_chunk(chunk(now + offset, rows, dt_ms=dt_ms))
            else:
                rows = [command]
                buffer.put_target((now - 3) * MS, np.array(rows))
            low, high = min(low, *rows), max(high, *rows)
        sample = buffer.target(now * MS)
        if sample.target is not None:
            assert low - 1e-12 <= value(sample) <= high + 1e-12
        else:
            assert sample.index == -1


@given(st.lists(numbers, min_size=2, max_size=12), st.integers(2, 50))
def test_between_two_rows_the_output_stays_between_them_and_does_not_turn(
    rows: list[float], dt_ms: int
) -> None:
    buffer = ChunkBuffer(1)
    buffer.put_chunk(chunk(0, rows, dt_ms=dt_ms))
    times = np.arange(0, dt_ms * (len(rows) - 1) * MS, MS // 2)
    out = np.array([value(buffer.target(int(t))) for t in times])
    for i, (a, b) in enumerate(pairwise(rows)):
        part = out[(times >= i * dt_ms * MS) & (times < (i + 1) * dt_ms * MS)]
        assert (part >= min(a, b) - 1e-12).all()
        assert (part <= max(a, b) + 1e-12).all()
        assert (np.diff(part) * np.sign(b - a) >= -1e-12).all()
