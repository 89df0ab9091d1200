"""The watchdog: stale before the first feed, after the limit, and never younger than it is."""

from __future__ import annotations

import pytest

from robot_stack.safety.watchdog import StaleWatchdog

MS = 1_000_000


def test_it_is_stale_until_fed_and_again_after_the_limit() -> None:
    watchdog = StaleWatchdog(0.1)
    assert watchdog.stale(0)
    assert watchdog.age_s(0) is None
    watchdog.feed(50 * MS)
    assert not watchdog.stale(150 * MS)
    assert watchdog.age_s(150 * MS) == pytest.approx(0.1)
    assert watchdog.stale(150 * MS + 1)
    watchdog.clear()
    assert watchdog.stale(60 * MS)


def test_an_older_time_does_not_replace_a_newer_one() -> None:
    watchdog = StaleWatchdog(0.1)
    watchdog.feed(100 * MS)
    watchdog.feed(20 * MS)
    assert watchdog.age_s(150 * MS) == pytest.approx(0.05)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="positive limit"):
        StaleWatchdog(limit)
