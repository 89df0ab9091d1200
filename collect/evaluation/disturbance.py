"""Stochastic actions as in BID's experiments: noise in proportion to the motion, that lasts.

Liu, Hamid, Xie, Lee, Du and Finn, "Bidirectional Decoding", 2024, and its published simulator.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERSISTENCE", "StochasticActions"]

Array = NDArray[np.float64]

PERSISTENCE = 0.9


class StochasticActions:
    """The noise of one episode.

    With each chunk one factor a dimension is drawn, U[.5, 1.5] with a random sign. A step's noise
    is that factor times the chunk's own step times ``sigma``, then .9 of the last chunk's noise of
    the same row plus .1 of this (the first chunk: all of this). Along a chunk it adds up.
    """

    def __init__(self, sigma: float, rng: np.random.Generator) -> None:
        self._sigma = sigma
        self._rng = rng
        self._last: Array | None = None

    def of(self, steps: Array) -> Array:
        """What to add to the rows of a chunk (H, D), where ``steps`` (H, D) lead to them: the
        first from the row before the newest observation's moment."""
        dim = steps.shape[1]
        factor = self._rng.uniform(0.5, 1.5, dim) * self._rng.choice((-1.0, 1.0), dim)
        noise = factor * steps * self._sigma
        if self._last is not None:
            noise = PERSISTENCE * self._last + (1.0 - PERSISTENCE) * noise
        self._last = noise
        return np.cumsum(noise, axis=0)
