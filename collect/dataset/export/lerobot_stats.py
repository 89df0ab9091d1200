"""The statistics that a LeRobot dataset keeps of every feature: min, max, mean, std, quantiles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["PixelStats", "Stats", "vector_stats"]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STRIDE = 4  # of the pixels in a counted image, each way

Stats = dict[str, Any]


def vector_stats(values: NDArray[Any]) -> Stats:
    """Statistics of the columns of (T, D), or of (T,) as if D were 1: lists of D, and a count."""
    table = np.asarray(values, np.float64).reshape(len(values), -1)
    stats = {
        "min": table.min(axis=0).tolist(),
        "max": table.max(axis=0).tolist(),
        "mean": table.mean(axis=0).tolist(),
        "std": table.std(axis=0).tolist(),
        "count": [len(table)],
    }
    for name, share in QUANTILES.items():
        stats[name] = np.quantile(table, share, axis=0).tolist()
    return stats


class PixelStats:
    """Statistics of a camera's images per channel, in [0, 1], from a histogram: exact, and small.

    Every ``STRIDE``-th pixel of the images given to ``add`` counts.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._images = 0

    def add(self, image: NDArray[np.uint8]) -> None:
        """Count an RGB image (H, W, 3)."""
        self._images += 1
        for channel in range(3):
            pixels = image[::STRIDE, ::STRIDE, channel].reshape(-1)
            self._counts[channel] += np.bincount(pixels, minlength=256)

    @classmethod
    def together(cls, parts: Iterable[PixelStats]) -> Self:
        """As if all images had been given to one."""
        whole = cls()
        for part in parts:
            whole._counts += part._counts
            whole._images += part._images
        return whole

    def stats(self) -> Stats:
        """Lists of shape (3, 1, 1), and how many images were counted."""
        values = np.arange(256) / 255
        total = self._counts.sum(axis=1)
        mean = (self._counts * values).sum(axis=1) / total
        square = (self._counts * values**2).sum(axis=1) / total
        cumulated = np.cumsum(self._counts, axis=1)
        found = {
            "min": [values[np.flatnonzero(c)[0]] for c in self._counts],
            "max": [values[np.flatnonzero(c)[-1]] for c in self._counts],
            "mean": mean,
            "std": np.sqrt(np.maximum(square - mean**2, 0)),
        }
        for name, share in QUANTILES.items():
            found[name] = [
                values[np.searchsorted(c, share * n)] for c, n in zip(cumulated, total, strict=True)
            ]
        shaped: Stats = {
            name: np.reshape(numbers, (3, 1, 1)).tolist() for name, numbers in found.items()
        }
        return {**shaped, "count": [self._images]}
