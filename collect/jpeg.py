"""JPEG of RGB images the way ALOHA files hold them.

The RGB array is given to ``cv2.imencode`` as it is, and ``cv2.imdecode`` gives the RGB array back:
that is what ALOHA's scripts do and its loaders expect. In a picture viewer, red and blue are
swapped. Neither function holds the GIL while it works.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import EpisodeError

__all__ = ["LOWEST_QUALITY", "decode", "encode", "encode_within"]

LOWEST_QUALITY = 1
STEP = 15


def encode(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an RGB image (H, W, 3); ``quality`` 1-100."""
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise EpisodeError(f"OpenCV could not encode an image of shape {image.shape} as JPEG")
    return bytes(data.tobytes())


def encode_within(image: NDArray[np.uint8], quality: int, limit: int) -> tuple[bytes, int]:
    """(JPEG bytes no longer than ``limit``, the quality that it took, at most ``quality``).

    EpisodeError when even the lowest quality is too long.
    """
    while True:
        data = encode(image, quality)
        if len(data) <= limit:
            return data, quality
        if quality <= LOWEST_QUALITY:
            raise EpisodeError(
                f"an image of shape {image.shape} takes {len(data)} bytes of {limit} even at JPEG "
                f"quality {quality}; record raw or raise jpeg_bits_per_pixel"
            )
        quality = max(quality - STEP, LOWEST_QUALITY)


def decode(data: bytes) -> NDArray[np.uint8]:
    """The RGB image (H, W, 3) of ``encode``'s bytes; EpisodeError when they are damaged."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise EpisodeError(f"{len(data)} bytes are not a JPEG image")
    return np.asarray(image, np.uint8)
