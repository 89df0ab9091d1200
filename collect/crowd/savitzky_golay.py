"""Derivatives of sampled motion by polynomials fitted around each sample.

Savitzky and Golay, Analytical Chemistry 36 (1964) 1627.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["derivative"]

Array = NDArray[np.float64]


def derivative(values: Array, degree: int, *, window: int, order: int, dt: float) -> Array:
    """The ``degree``-th derivative of ``values`` (T, D), sampled every ``dt`` seconds, by a
    polynomial of ``order`` fitted to each ``window`` rows (odd, at most T): (T - window + 1, D)."""
    half = window // 2
    at = np.arange(-half, half + 1) / half  # between -1 and 1, or the fit is ill-conditioned
    fit = np.linalg.pinv(np.vander(at, order + 1, increasing=True))[degree]
    weights = fit * math.factorial(degree) / (half * dt) ** degree
    found = np.empty((len(values) - 2 * half, values.shape[1]))
    for column in range(values.shape[1]):
        found[:, column] = np.convolve(values[:, column], weights[::-1], mode="valid")
    return found
