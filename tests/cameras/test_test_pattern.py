"""The test pattern: what is written into the pixels is what is read back, also after JPEG."""

from __future__ import annotations

import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hardware.cameras.test_pattern import (
    PatternStamp,
    TestPatternCamera,
    camera_id,
    decode,
    stamp,
)
from robot_stack.errors import DeviceError
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

Image = NDArray[np.uint8]

stamps = st.builds(
    PatternStamp,
    camera=st.integers(0, 2**32 - 1),
    seq=st.integers(0, 2**32 - 1),
    t_ns=st.integers(0, 2**64 - 1),
)
sizes = st.tuples(st.integers(64, 300), st.integers(80, 400))


def noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    decoded: Image | None = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


@given(stamps, sizes)
@settings(max_examples=200, deadline=None)
def test_what_is_stamped_is_decoded(value: PatternStamp, size: tuple[int, int]) -> None:
    image = noise(*size)
    stamp(image, value)
    assert decode(image) == value
    assert decode(image[:, :, ::-1]) == value
    assert decode(image[:, :, 0]) == value


@given(stamps, st.integers(50, 100), st.sampled_from([(480, 640), (120, 160), (67, 83)]))
@settings(max_examples=100, deadline=None)
def test_the_stamp_survives_jpeg(value: PatternStamp, quality: int, size: tuple[int, int]) -> None:
    image = noise(*size)
    stamp(image, value)
    assert decode(jpeg(image, quality)) == value


@given(stamps, stamps)
@settings(max_examples=100, deadline=None)
def test_half_of_one_frame_and_half_of_another_does_not_decode(
    one: PatternStamp, two: PatternStamp
) -> None:
    first, second = noise(480, 640), noise(480, 640)
    stamp(first, one)
    stamp(second, two)
    torn = np.concatenate([first[:240], second[240:]])
    assert decode(torn) == (one if one == two else None)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((480, 640, 3), np.uint8),
        np.full((480, 640, 3), 255, np.uint8),
        noise(480, 640),
        np.zeros((10, 10, 3), np.uint8),
    ],
    ids=["black", "white", "noise", "tiny"],
)
def test_no_stamp_is_none(image: Image) -> None:
    assert decode(image) is None


def test_one_flipped_block_is_noticed() -> None:
    image = noise(480, 640)
    stamp(image, PatternStamp(1, 2, 3))
    for corner in (image[:16, :16], image[-16:, -16:]):
        corner[:] = 255 - corner
        assert decode(image) is None
        corner[:] = 255 - corner
        assert decode(image) is not None


def test_a_camera_makes_every_frame_stamped_as_it_says_and_then_ends() -> None:
    spec = CameraSpec("cam_left_wrist", 160, 120, 500.0)
    with TestPatternCamera(spec, limit=20) as camera:
        frames = take(camera, 20)
        assert camera.read(0.001) is None
    for i, frame in enumerate(frames):
        assert frame.seq == i
        assert frame.image.shape == (120, 160, 3)
        assert decode(frame.image) == PatternStamp(camera_id("cam_left_wrist"), i, frame.t_ns)
    assert len({frame.image.tobytes() for frame in frames}) == 20
    times = [frame.t_ns for frame in frames]
    assert times == sorted(set(times))


def take(camera: TestPatternCamera, count: int) -> list[Frame]:
    frames: list[Frame] = []
    deadline = time.monotonic() + 30
    while len(frames) < count:
        assert time.monotonic() < deadline, f"only {len(frames)} of {count} frames"
        frame = camera.read(0.05)
        if frame is not None:
            frames.append(frame)
    return frames


def test_deadlines_are_absolute_and_a_missed_one_skips_no_frame() -> None:
    """A camera whose clock began 50 periods ago delivers the 50 late frames, all numbered, and
    none before it is due."""
    start = time.monotonic_ns() - 1_000_000_000
    camera = TestPatternCamera(CameraSpec("a", 160, 120, 50.0), start_t_ns=start)
    with camera:
        frames = take(camera, 55)
    assert [frame.seq for frame in frames] == list(range(55))
    for frame in frames:
        assert frame.t_ns >= start + frame.seq * 20_000_000


def test_a_reconnect_does_not_restart_the_numbers() -> None:
    camera = TestPatternCamera(CameraSpec("a", 160, 120, 500.0))
    with camera:
        take(camera, 3)
    with camera:
        assert take(camera, 1)[0].seq == 3


def test_the_texture_weighs_about_what_a_real_image_weighs() -> None:
    with TestPatternCamera(CameraSpec("cam_high", 640, 480, 500.0), limit=1) as camera:
        frame = take(camera, 1)[0]
    ok, data = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok and 60_000 < len(data) < 160_000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TestPatternCamera(CameraSpec("a", 64, 64, 10.0)), "smallest is 80x64"),
        (lambda: TestPatternCamera(CameraSpec("a", 640, 480, 10.0, depth=True)), "depth"),
        (lambda: TestPatternCamera(CameraSpec("a", 640, 480, 10.0)).read(0.0), "not connected"),
    ],
    ids=["too small", "depth", "not connected"],
)
def test_refusals_say_why(make: Callable[[], object], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        make()
