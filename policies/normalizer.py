"""Between the units of the robot and the range that networks learn in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from policies.interfaces import Array
from robot_stack.config import parse
from robot_stack.errors import PolicyError

__all__ = ["Kind", "Normalizer", "Scale"]

Kind = Literal["minmax", "gaussian"]

# Features that move less than this (rad, m, px) count as constant and are only shifted.
CONSTANT = 1e-4


@dataclass(frozen=True)
class Scale:
    """One affine map a feature: normalised = (value - center) / width.

    ``minmax`` maps what was seen to [-1, 1]; ``gaussian`` to mean 0 and standard deviation 1.
    A feature that never moved has width 1, so it maps to 0 and deviations keep their unit.
    """

    kind: Kind
    center: tuple[float, ...]
    width: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.center) != len(self.width):
            raise ValueError(f"{len(self.center)} centers for {len(self.width)} widths")
        if any(width <= 0 for width in self.width):
            raise ValueError(f"widths must be above 0, not {min(self.width)}")

    @classmethod
    def fit(cls, values: NDArray[np.floating[Any]], kind: Kind = "minmax") -> Scale:
        """Of rows (N, F). PolicyError where there are none, or a number is unknown (NaN)."""
        if values.ndim != 2 or not len(values):
            raise PolicyError(f"statistics need rows (N, F) with N > 0, not shape {values.shape}")
        data = values.astype(np.float64)
        unknown = ~np.isfinite(data).all(axis=0)
        if unknown.any():
            raise PolicyError(
                f"columns {np.flatnonzero(unknown).tolist()} hold NaN or infinity; leave those "
                "rows or columns out"
            )
        if kind == "minmax":
            low, high = data.min(axis=0), data.max(axis=0)
            center, width = (high + low) / 2, (high - low) / 2
        else:
            center, width = data.mean(axis=0), data.std(axis=0)
        constant = data.max(axis=0) - data.min(axis=0) < CONSTANT
        width = np.where(constant, 1.0, width)
        return cls(kind, tuple(center.tolist()), tuple(width.tolist()))

    def __len__(self) -> int:
        return len(self.center)

    def normalize(self, values: NDArray[np.floating[Any]]) -> Array:
        """Values (..., F) to the network's range."""
        normalized: Array = ((values - np.array(self.center)) / np.array(self.width)).astype(
            np.float32
        )
        return normalized

    def restore(self, normalized: NDArray[np.floating[Any]]) -> Array:
        """The inverse of ``normalize``."""
        values: Array = (normalized * np.array(self.width) + np.array(self.center)).astype(
            np.float32
        )
        return values


@dataclass(frozen=True)
class Normalizer:
    """The statistics of a policy's state (S) and action (D); kept in its checkpoint as JSON."""

    state: Scale
    action: Scale

    @classmethod
    def fit(
        cls,
        state: NDArray[np.floating[Any]],
        action: NDArray[np.floating[Any]],
        kind: Kind = "minmax",
    ) -> Normalizer:
        """Of states (N, S) and actions (M, D)."""
        return cls(Scale.fit(state, kind), Scale.fit(action, kind))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str = "normalizer") -> Normalizer:
        """ConfigError names an unknown, missing or impossible key."""
        return parse(cls, values, where)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the statistics: which they are, in a contract."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
