"""Intervals and tests for scores of episodes: bootstrap, Wilson, and a paired permutation test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "bootstrap", "paired_p", "wilson"]

Array = NDArray[np.float64]

LEVEL = 0.8
RESAMPLES = 10_000
FLIPS = 100_000
EXACT = 16  # pairs up to which all sign patterns are counted
BLOCK = 2_000  # resamples at a time: 300 scores are then 5 MB


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its interval; NaN where there is nothing to estimate from."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float] | Array, level: float = LEVEL) -> Estimate:
    """The mean and its percentile bootstrap interval (10,000 resamples, always the same ones).

    Scores pile up at 1, so their interval is not symmetric and no normal one would say so.
    """
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        return Estimate(math.nan, math.nan, math.nan)
    random = np.random.default_rng(0)
    means = np.concatenate(
        [
            sample[random.integers(len(sample), size=(BLOCK, len(sample)))].mean(axis=1)
            for _ in range(RESAMPLES // BLOCK)
        ]
    )
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(float(sample.mean()), float(low), float(high))


def wilson(successes: int, trials: int, level: float = LEVEL) -> Estimate:
    """A share and its interval (Wilson, 1927), which holds near 0 and 1 too."""
    if not trials:
        return Estimate(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    share = successes / trials
    center = (share + z * z / (2 * trials)) / (1.0 + z * z / trials)
    half = z / (1.0 + z * z / trials)
    half *= math.sqrt(share * (1.0 - share) / trials + z * z / (4 * trials * trials))
    return Estimate(share, max(0.0, center - half), min(1.0, center + half))


def paired_p(scores: Sequence[float] | Array, baseline: Sequence[float] | Array) -> float:
    """How likely a mean difference at least as large, of either sign, is by chance.

    Two-sided permutation test over the same seeds: if the methods are alike, each difference might
    as well have the other sign. All 2^n patterns up to 16 pairs, else 100,000 random ones (the
    same each time; the observed pattern counts as one, so p is never 0). Ties need no care, and
    nothing is assumed of the distribution. ValueError unless both have a score for each seed.
    """
    differences = np.asarray(scores, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if np.shape(scores) != np.shape(baseline) or differences.ndim != 1 or not len(differences):
        raise ValueError(
            f"a paired test needs one score for each seed of both, not {np.shape(scores)} and "
            f"{np.shape(baseline)}"
        )
    count = len(differences)
    observed = abs(float(differences.sum()))
    slack = 1e-12 * max(1.0, observed)  # so that rounding does not undo a tie
    if count <= EXACT:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        sums = (1.0 - 2.0 * patterns) @ differences
        return float(np.mean(np.abs(sums) >= observed - slack))
    random = np.random.default_rng(0)
    extreme = 0
    for _ in range(FLIPS // BLOCK):
        signs = random.integers(0, 2, size=(BLOCK, count)) * 2.0 - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed - slack))
    return (extreme + 1) / (FLIPS + 1)
