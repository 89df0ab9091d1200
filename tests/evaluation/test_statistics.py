"""Intervals and the paired test, against values worked out by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from collect.evaluation.statistics import bootstrap, paired_p, wilson


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (8, 10), (10, 10), (37, 300)])
def test_wilson_is_scipys(successes, trials):
    found = wilson(successes, trials)
    expected = stats.binomtest(successes, trials).proportion_ci(0.8, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.mean == successes / trials


def test_wilson_by_hand():
    # z = 1 at a level of .682689; 1 of 2: center .5, half = sqrt(1/8 + 1/16) / 1.5 = .288675.
    found = wilson(1, 2, level=0.6826894921370859)
    assert (found.low, found.high) == pytest.approx((0.211325, 0.788675), abs=1e-6)


def test_nothing_says_nothing():
    assert math.isnan(wilson(0, 0).mean)
    assert math.isnan(bootstrap([]).low)


def test_bootstrap_of_many_is_the_normal_interval():
    values = np.random.default_rng(1).normal(0.7, 0.2, 400)
    found = bootstrap(values)
    half = 1.2816 * values.std() / 20.0
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap(values) == found  # the same each time


def test_bootstrap_by_hand():
    # Of ten draws from nine ones and a zero, 0 zeros are drawn in 35 %, 3 or more in 7 %.
    found = bootstrap([1.0] * 9 + [0.0])
    assert (found.low, found.high) == pytest.approx((0.8, 1.0))


@pytest.mark.parametrize(
    ("scores", "baseline", "p"),
    [
        ([2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0], 2 / 16),  # all of one sign: two patterns
        ([1.0, 0.0], [0.0, 1.0], 1.0),  # +1 and -1 cancel
        ([1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], 10 / 16),  # |sum| >= 2 of 4 coins
        ([0.5, 0.5], [0.5, 0.5], 1.0),
    ],
)
def test_paired_p_by_hand(scores, baseline, p):
    assert paired_p(scores, baseline) == pytest.approx(p)


def test_paired_p_is_scipys_permutation_test():
    random = np.random.default_rng(2)
    a, b = random.random(12), random.random(12) - 0.2
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=np.inf,
    ).pvalue  # fmt: skip
    assert paired_p(a, b) == pytest.approx(expected, abs=1e-12)


def test_paired_p_of_many_is_near_the_t_test():
    random = np.random.default_rng(5)
    base = random.random(300)
    better = base + random.normal(0.03, 0.25, 300)
    expected = stats.ttest_rel(better, base).pvalue
    assert 0.005 < expected < 0.5
    assert paired_p(better, base) == pytest.approx(expected, rel=0.15)
    assert paired_p(base, better) == paired_p(better, base)
    assert paired_p(base + 0.2, base) == pytest.approx(1e-5, rel=0.1)  # never 0


def test_a_paired_test_needs_pairs():
    with pytest.raises(ValueError, match="each seed"):
        paired_p([1.0, 2.0], [1.0])
