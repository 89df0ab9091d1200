"""One picture of several episodes: a row each, frames of one camera from first to last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["film_strip"]

WIDTH, HEIGHT = 320, 240
MARGIN, CAPTION = 8, 30
INK, PAPER = (40, 40, 40), (250, 250, 248)
VERDICTS = {
    True: ("success", (40, 130, 60)),
    False: ("failure", (180, 60, 40)),
    None: ("unknown", INK),
}


def _decode(jpeg: bytes) -> NDArray[np.uint8]:
    # Episodes hold JPEGs of the RGB array as it is, so no channel swap here.
    image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(image, dtype=np.uint8)


def _write(canvas: NDArray[np.uint8], text: str, at: tuple[int, int], colour: Any) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)


def film_strip(paths: Sequence[Path], output: Path, *, frames: int = 5) -> None:
    """Write ``output`` (PNG): for each episode ``frames`` pictures of its first camera."""
    row = HEIGHT + CAPTION + MARGIN
    width = frames * (WIDTH + MARGIN) + MARGIN
    canvas: NDArray[np.uint8] = np.full((len(paths) * row + MARGIN, width, 3), PAPER, np.uint8)
    for i, path in enumerate(paths):
        top = MARGIN + i * row
        with Episode.open(path) as episode:
            if not episode.cameras:
                raise EpisodeError(f"{path} has no camera to show")
            camera = episode.cameras[0]
            success = episode.metadata.success
            seconds = (episode.t_ns - episode.t_ns[0]) / 1e9
            verdict, colour = VERDICTS[success]
            caption = f"{path.stem}  {len(episode)} rows  {seconds[-1]:.1f} s  {camera}"
            _write(canvas, caption, (MARGIN, top + 20), INK)
            _write(canvas, verdict, (width - 90, top + 20), colour)
            for k, at in enumerate(np.linspace(0, len(episode) - 1, frames).astype(int)):
                image = cv2.resize(episode.image(camera, int(at), _decode), (WIDTH, HEIGHT))
                x, y = MARGIN + k * (WIDTH + MARGIN), top + CAPTION
                canvas[y : y + HEIGHT, x : x + WIDTH] = image
                _write(canvas, f"{seconds[at]:.1f} s", (x + 6, y + HEIGHT - 8), (255, 255, 255))
    if not cv2.imwrite(str(output), cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR)):
        raise EpisodeError(f"could not write {output}")
