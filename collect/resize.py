"""One way of making frames smaller, for training and for the robot: a policy must see the same."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["resize"]


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """RGB uint8 (h, w, 3) -> (height, width, 3): averaged over areas when it gets smaller."""
    if image.shape[:2] == (height, width):
        return image
    smaller = height <= image.shape[0] and width <= image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
