"""Makes the videos of one episode, in `collect.crowd.apart_process`.

One mp4 (H.264) a camera, in step with one another, with a key frame twice a second so that one
can scrub in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from collect.dataset.video import encode
from collect.jpeg import decode
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["make"]

MAX_FPS = 30.0
MAX_WIDTH = 640
KEY_S = 0.5

Image = NDArray[np.uint8]


def make(episode: Episode, folder: Path) -> dict[str, Any]:
    """Write a video of each camera into ``folder``; the index of them, as `video.Index` has it."""
    if not len(episode):
        raise EpisodeError(f"{episode.path} has no rows to show")
    rate = episode.schema.rate_hz
    step = max(1, math.ceil(rate / MAX_FPS))
    shown = Fraction(rate / step).limit_denominator(1000)
    files = {}
    for number, camera in enumerate(episode.cameras):
        files[camera] = f"{number}.mp4"
        encode(
            _images(episode, camera, step),
            folder / files[camera],
            shown,
            options={"g": str(max(1, round(KEY_S * float(shown)))), "threads": "1"},
        )
    return {"rate_hz": float(shown), "step": step, "rows": len(episode), "cameras": files}


def _images(episode: Episode, camera: str, step: int) -> Iterator[Image]:
    """Every ``step``-th image, no wider than MAX_WIDTH, of even size; repeated ones are not decoded
    again."""
    numbers = episode.frame_seq(camera)
    layout = episode.schema.cameras[camera]
    scale = min(1.0, MAX_WIDTH / layout.width)
    size = tuple(max(2, round(side * scale / 2) * 2) for side in (layout.width, layout.height))
    image: Image | None = None
    shown = -1
    for row in range(0, len(episode), step):
        number = int(numbers[row])
        if image is None or number != shown or number < 0:
            shown = number
            image = np.asarray(
                cv2.resize(episode.image(camera, row, decode), size, interpolation=cv2.INTER_AREA),
                np.uint8,
            )
        yield image
