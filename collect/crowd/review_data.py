"""What the review page draws of an episode: joints thinned out, cameras, flags.

Runs in `collect.crowd.apart_process`, so it imports little.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.crowd.flags import find_flags
from robot_stack.episode import Episode

__all__ = ["episode_view"]

MOST_POINTS = 1200  # of one joint; a screen has not many more


def episode_view(episode: Episode, least_s: float) -> dict[str, Any]:
    """As JSON: ``rows``, ``rate_hz``, ``cameras``, ``flags`` and ``joints`` (name, values).

    Every ``stride``-th value of a joint, scaled to 0..1 between its least and most in the episode
    (``lower``, ``upper``); null where it is unknown. What takes less than ``least_s`` is short.
    """
    rows = len(episode)
    stride = max(1, math.ceil(rows / MOST_POINTS))
    qpos = episode.qpos[::stride].astype(np.float64)
    return {
        "rows": rows,
        "rate_hz": float(episode.schema.rate_hz),
        "stride": stride,
        "cameras": list(episode.cameras),
        "joints": [
            _joint(name, qpos[:, index]) for index, name in enumerate(episode.schema.joint_names)
        ],
        "flags": [
            {**asdict(flag), "value": round(flag.value, 2)} for flag in find_flags(episode, least_s)
        ],
    }


def _joint(name: str, values: NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    lower, upper = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    scaled = (values - lower) / ((upper - lower) or 1.0)
    return {
        "name": name,
        "lower": round(lower, 3),
        "upper": round(upper, 3),
        "values": [round(v, 3) if math.isfinite(v) else None for v in scaled.tolist()],
    }
