"""All cameras of a station in one picture, each with its name and state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from server.console.feed import CameraStatus, FeedState

__all__ = ["contact_sheet"]

TILE = (640, 480)
LABEL = 34
GAP = 8
BACKGROUND = (16, 18, 22)
TEXT = (222, 226, 232)
DIM = (140, 148, 160)
COLOURS = {
    FeedState.LIVE: (74, 200, 120),
    FeedState.STALE: (240, 170, 60),
    FeedState.ENDED: (230, 80, 80),
    FeedState.WAITING: (120, 128, 140),
}


def contact_sheet(
    cameras: Sequence[tuple[CameraStatus, NDArray[np.uint8] | None]],
) -> NDArray[np.uint8]:
    """RGB (H, W, 3): a grid of tiles of 640x480, images scaled to fit, with a line below each.

    ``cameras`` are (status, RGB image or None). What is not live is darkened.
    """
    columns = math.ceil(math.sqrt(len(cameras)))
    rows = math.ceil(len(cameras) / columns)
    width, height = TILE[0] + GAP, TILE[1] + LABEL + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), BACKGROUND, np.uint8)
    for i, (status, image) in enumerate(cameras):
        x, y = GAP + (i % columns) * width, GAP + (i // columns) * height
        _tile(sheet[y : y + TILE[1] + LABEL, x : x + TILE[0]], status, image)
    return sheet


def _tile(area: NDArray[np.uint8], status: CameraStatus, image: NDArray[np.uint8] | None) -> None:
    picture = area[: TILE[1]]
    picture[:] = 0
    if image is not None:
        scale = min(TILE[0] / image.shape[1], TILE[1] / image.shape[0])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        fitted = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)
        if status.state != FeedState.LIVE:
            fitted = fitted // 3
        x, y = (TILE[0] - size[0]) // 2, (TILE[1] - size[1]) // 2
        picture[y : y + size[1], x : x + size[0]] = fitted
    baseline = TILE[1] + 23
    cv2.circle(area, (12, baseline - 6), 6, COLOURS[status.state], -1, cv2.LINE_AA)
    _text(area, status.name, 28, baseline, TEXT)
    _text(area, _details(status), 250, baseline, DIM)


def _details(status: CameraStatus) -> str:
    if status.age_s is None:
        return "no frame yet"
    if status.state != FeedState.LIVE:
        return f"{status.state}: {status.age_s:.1f} s old"
    rate = "" if status.fps is None else f"{status.fps:.1f} fps  "
    return f"{rate}{1000 * status.age_s:.0f} ms old  frame {status.seq}"


def _text(area: NDArray[np.uint8], text: str, x: int, y: int, colour: tuple[int, ...]) -> None:
    cv2.putText(area, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 1, cv2.LINE_AA)
