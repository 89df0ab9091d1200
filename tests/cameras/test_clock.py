"""The clock map against simulated clocks: offset, drift, jitter and resets."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.cameras.clock import ClockMap

MS = 1_000_000
PERIOD = 33 * MS


@given(
    offset=st.integers(-(10**18), 10**18),
    ppm=st.integers(-100, 100),
    jitter_ms=st.floats(0, 25),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_jitter_is_filtered_and_drift_followed(
    offset: int, ppm: int, jitter_ms: float, seed: int
) -> None:
    """True capture times are recovered to the least delay, 1 ms of drift and what the luckiest
    of the last frames had in jitter; naive arrival times would be off by up to 25 ms."""
    rng = random.Random(seed)
    clock = ClockMap(window_s=10)
    least_delay = 8 * MS
    arrival, last = 0, -1
    for i in range(600):
        true = 10**12 + i * PERIOD
        device = offset + true + true * ppm // 1_000_000
        # One frame in ten comes through without jitter.
        jitter = 0 if rng.random() < 0.1 else round(rng.random() * jitter_ms * MS)
        arrival = max(true + least_delay + jitter, arrival + 1)
        t_ns = clock.to_monotonic(device, arrival)
        assert last < t_ns <= arrival
        last = t_ns
        if i > 150:
            assert abs(t_ns - true - least_delay) < 2.5 * MS


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**9)), min_size=1, max_size=50))
def test_results_rise_and_never_lie_in_the_future(steps: list[tuple[int, int]]) -> None:
    clock = ClockMap()
    arrival, last = 0, None
    for device, step in steps:  # device times jump about freely, as with resets
        arrival += step
        t_ns = clock.to_monotonic(device, arrival)
        assert t_ns <= arrival
        assert last is None or t_ns > last
        last = t_ns


def test_a_device_reset_starts_a_new_estimate() -> None:
    clock = ClockMap()
    for i in range(100):
        clock.to_monotonic(50 * 10**9 + i * PERIOD, 10**12 + i * PERIOD)
    after = 10**12 + 200 * PERIOD
    assert clock.to_monotonic(0, after) == after
    assert clock.to_monotonic(PERIOD, after + PERIOD + 5 * MS) == after + PERIOD


def test_old_estimates_are_forgotten_as_the_clocks_drift_apart() -> None:
    """100 ppm over an hour are 360 ms; over the window of 10 s they are 1 ms."""
    clock = ClockMap(window_s=10)
    for second in range(3600):
        true = 10**12 + second * 10**9
        t_ns = clock.to_monotonic(second * (10**9 - 100_000), true + 8 * MS)
        assert abs(t_ns - true - 8 * MS) <= 1.1 * MS
