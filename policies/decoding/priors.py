"""What earlier chunks say about the rows of a new one."""

from __future__ import annotations

import numpy as np

from policies.interfaces import Array

__all__ = ["blended", "extended"]


def extended(prior: Array, rows: int) -> Array:
    """``prior`` (n, D) as (rows, D): beyond its end its last row is held."""
    missing = rows - len(prior)
    return np.pad(prior, ((0, missing), (0, 0)), mode="edge") if missing > 0 else prior[:rows]


def blended(chunks: list[Array], decay: float) -> Array:
    """The weighted mean of all chunks that reach a row; oldest first, none longer than the next.

    Row by row, w_i = exp(-decay * i), i counting from the oldest chunk that reaches the row.
    """
    rows = len(chunks[-1])
    reaches = np.array([[row < len(chunk) for row in range(rows)] for chunk in chunks])
    weights = np.exp(-decay * np.arange(len(chunks)))[:, None] * reaches  # up to a factor a row
    weights /= weights.sum(axis=0)
    values = np.stack([extended(chunk, rows) for chunk in chunks])
    mean = np.einsum("kr,krd->rd", weights, values)
    return np.asarray(mean, dtype=np.float32)
