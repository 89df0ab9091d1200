"""Two groups compared by ranks: Mann-Whitney's U with ties, and Holm's correction for pairs.

H. B. Mann and D. R. Whitney, "On a test of whether one of two random variables is stochastically
larger than the other" (1947); S. Holm, "A simple sequentially rejective multiple test procedure"
(1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT", "RankTest", "holm", "least_p", "mann_whitney", "superiority_interval"]

Array = NDArray[np.float64]
EXACT = 40  # people in both groups together up to which all ways to divide them are counted
RESAMPLES = 4000
BLOCK = 500  # at a time


@dataclass(frozen=True, slots=True)
class RankTest:
    """``u`` of the first group; ``superiority``: how likely one of the first has more than one of
    the second, a tie counting half; two-sided ``p``."""

    u: float
    superiority: float
    p: float
    method: Literal["exact", "normal"]


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> RankTest:
    """Whether two groups differ. Exact (ties included) for up to ``EXACT`` people; else by the
    normal distribution with corrections for ties and continuity. ValueError for an empty group."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, m = len(a), len(b)
    if not n or not m:
        raise ValueError("a rank test needs somebody in both groups")
    doubled, ties = _ranks(np.concatenate([a, b]))
    u = float(doubled[:n].sum()) / 2.0 - n * (n + 1) / 2.0
    exact = n + m <= EXACT
    p = _exact(doubled, n) if exact else _normal(u, n, m, ties)
    return RankTest(u, u / (n * m), p, "exact" if exact else "normal")


def least_p(n: int, m: int) -> float:
    """The smallest two-sided p that groups of ``n`` and ``m`` can give at all."""
    return min(1.0, 2.0 / math.comb(n + m, n)) if n and m else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given."""
    adjusted = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def superiority_interval(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``RankTest.superiority`` (always the same resamples)."""
    n, m = len(first), len(second)
    values, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    # To draw people is to draw how many have each value.
    shares_a = np.bincount(place[:n], minlength=len(values)) / n
    shares_b = np.bincount(place[n:], minlength=len(values)) / m
    random = np.random.default_rng(0)
    shares = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, BLOCK):
        a = random.multinomial(n, shares_a, size=BLOCK)
        b = random.multinomial(m, shares_b, size=BLOCK)
        fewer = np.cumsum(b, axis=1) - 0.5 * b  # of the second have less, a tie counting half
        shares[start : start + BLOCK] = (a * fewer).sum(axis=1) / (n * m)
    low, high = np.quantile(shares, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _ranks(values: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Twice the mean ranks (whole numbers), and how many values share each."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (2 * last - counts + 1)[place], counts


def _exact(doubled: NDArray[np.int64], n: int) -> float:
    """Of all ways to choose ``n`` of the people, the share as extreme as the one that happened.

    Counts of sums of ranks by dynamic programming; with 40 people they fit 64 bits.
    """
    total = int(doubled.sum())
    ways = np.zeros((n + 1, total + 1), np.int64)
    ways[0, 0] = 1
    for rank in doubled.tolist():
        ways[1:, rank:] += ways[:-1, : total + 1 - rank].copy()
    mine = ways[n]
    at = int(doubled[:n].sum())
    every = math.comb(len(doubled), n)
    below, above = int(mine[: at + 1].sum()), int(mine[at:].sum())
    return min(1.0, 2.0 * min(below, above) / every)


def _normal(u: float, n: int, m: int, ties: NDArray[np.int64]) -> float:
    everybody = n + m
    tied = float((ties.astype(np.float64) ** 3 - ties).sum()) / (everybody * (everybody - 1))
    variance = n * m / 12.0 * (everybody + 1 - tied)
    if variance <= 0.0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2.0) - 0.5) / math.sqrt(variance)
    return 2.0 * NormalDist().cdf(-z)
