"""What the review page draws of an episode: joints thinned out, cameras, flags."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.crowd.config import CrowdConfig
from collect.crowd.files import confined
from collect.crowd.flags import find_flags
from collect.crowd.tables import Play
from collect.crowd.untrusted import open_untrusted

__all__ = ["episode_file", "episode_view", "rows_of"]

MOST_POINTS = 1200  # of one joint; a screen has not many more


def episode_file(config: CrowdConfig, play: Play) -> Path | None:
    """Where a play's episode is; None when there is none within the site's episodes."""
    path = confined(config.episodes, play.file)
    return path if path is not None and path.is_file() else None


def rows_of(path: Path) -> int:
    """How many rows an episode has; EpisodeError for a damaged file."""
    with open_untrusted(path) as episode:
        return len(episode)


def episode_view(path: Path, par_s: float | None) -> dict[str, Any]:
    """As JSON: ``rows``, ``rate_hz``, ``cameras``, ``flags`` and ``joints`` (name, values).

    Every ``stride``-th value of a joint, scaled to 0..1 between its least and most in the episode
    (``lower``, ``upper``); null where it is unknown. EpisodeError for a damaged file.
    """
    with open_untrusted(path) as episode:
        rows = len(episode)
        stride = max(1, math.ceil(rows / MOST_POINTS))
        qpos = episode.qpos[::stride].astype(np.float64)
        return {
            "rows": rows,
            "rate_hz": episode.schema.rate_hz,
            "stride": stride,
            "cameras": list(episode.cameras),
            "joints": [
                _joint(name, qpos[:, index])
                for index, name in enumerate(episode.schema.joint_names)
            ],
            "flags": [
                {**asdict(flag), "value": round(flag.value, 2)}
                for flag in find_flags(episode, par_s)
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
