"""JPEG in ALOHA's colour order, and within a given number of bytes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from collect import jpeg
from robot_stack.errors import EpisodeError


def test_imdecode_gives_rgb_back() -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:] = (220, 120, 20)
    data = jpeg.encode(image, 95)
    plain = cv2.imdecode(np.frombuffer(data, np.uint8), 1)  # what ALOHA's loaders do
    assert np.abs(plain.astype(int) - image).max() < 6
    assert (jpeg.decode(data) == plain).all()


def test_noise_is_coded_at_the_quality_that_fits() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    free = len(jpeg.encode(noise, 90))
    data, quality = jpeg.encode_within(noise, 90, free)
    assert (len(data), quality) == (free, 90)
    data, quality = jpeg.encode_within(noise, 90, free // 3)
    assert len(data) <= free // 3
    assert 1 <= quality < 90
    with pytest.raises(EpisodeError, match="even at JPEG quality 1"):
        jpeg.encode_within(noise, 90, 100)


def test_damaged_bytes_are_named() -> None:
    with pytest.raises(EpisodeError, match="4 bytes are not a JPEG"):
        jpeg.decode(b"\xff\xd8\xff\xd9")
