"""Makes the videos of one episode: `python -m collect.crowd.video_process EPISODE FOLDER PARENT`.

One mp4 (H.264) a camera, in step with one another, with a key frame twice a second so that one
can scrub in them, and `index.json` last. Runs when the processor has nothing else to do, and ends
with its parent process.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collect.crowd.untrusted import open_untrusted
from collect.crowd.video import INDEX, Index
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError
from robot_stack.processes import end_with

__all__ = ["main", "make"]

MAX_FPS = 30.0
MAX_WIDTH = 640
KEY_S = 0.5
MEMORY = 4 << 30
CPU_S = 3600

Image = NDArray[np.uint8]


def make(episode: Episode, folder: Path) -> Index:
    """Write a video of each camera and the index of them into ``folder``."""
    from collect.dataset.video import encode

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
    index = Index(float(shown), step, len(episode), files)
    (folder / INDEX).write_text(json.dumps(asdict(index)))
    return index


def _images(episode: Episode, camera: str, step: int) -> Iterator[Image]:
    """Every ``step``-th image, no wider than MAX_WIDTH, of even size; repeated ones are not decoded
    again."""
    import cv2

    from collect.jpeg import decode

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


def main(arguments: list[str]) -> int:
    """Exit status; what went wrong is on stderr, in the last line."""
    source, folder, parent = arguments
    if not end_with(int(parent), signal.SIGKILL):
        return 1
    os.nice(19)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    try:
        with open_untrusted(Path(source)) as episode:
            make(episode, Path(folder))
    except (EpisodeError, ImportError, OSError, KeyError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
