"""One control step on its way into an episode file."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Image", "PackedDepth", "Row", "pack_depth"]

Image = bytes | NDArray[np.uint8]


@dataclass(slots=True)
class Row:
    """One control step. D joints; what is not given is unknown (NaN, -1).

    ``images`` maps each camera to RGB uint8 (H, W, 3) in a raw episode, or to JPEG bytes;
    ``depth`` to uint16 (H, W) or what ``pack_depth`` made of it. ``state_t_ns``, ``success_rate``
    and ``target_age_s`` have one entry a robot in the rows. ``applied``, these two and ``fault``
    stand only in episodes of robots that track (``RobotSpec.tracks``).
    """

    t_ns: int
    qpos: ArrayLike
    action: ArrayLike
    images: Mapping[str, Image] = field(default_factory=dict)
    frame_t_ns: Mapping[str, int] = field(default_factory=dict)
    frame_seq: Mapping[str, int] = field(default_factory=dict)
    depth: Mapping[str, NDArray[np.uint16] | PackedDepth] = field(default_factory=dict)
    qvel: ArrayLike = np.nan
    effort: ArrayLike = np.nan
    action_sent: ArrayLike = np.nan
    state_t_ns: ArrayLike = -1
    source: int = 0
    token: int = -1
    takeover_id: int = -1
    chunk_id: int = -1
    chunk_index: int = -1
    observation_t_ns: int = -1
    difference: int = 0
    reward: float = float("nan")
    terminated: bool = False
    truncated: bool = False
    env_state: ArrayLike = np.nan
    env_t_ns: int = -1
    applied: ArrayLike = np.nan
    success_rate: ArrayLike = np.nan
    target_age_s: ArrayLike = np.nan
    fault: str = ""


class PackedDepth(NamedTuple):
    """A depth image as it lies in the file (a zlib stream), and the SHA-256 of its pixels."""

    data: bytes
    digest: bytes


def pack_depth(depth: NDArray[np.uint16]) -> PackedDepth:
    """Compress a depth image (H, W). Costs milliseconds, without the GIL: for a worker thread."""
    pixels = np.ascontiguousarray(depth, "<u2")
    return PackedDepth(zlib.compress(pixels.data, 1), hashlib.sha256(pixels.data).digest())
