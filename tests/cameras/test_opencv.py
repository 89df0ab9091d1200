"""The OpenCV camera on video files that the test writes; no webcam is at hand here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from hardware.cameras.opencv import OpenCVCamera, OpenCVOptions
from hardware.cameras.test_pattern import PatternStamp, decode, stamp
from robot_stack.config import parse
from robot_stack.errors import ConfigError, DeviceError
from robot_stack.interfaces import Camera
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

SPEC = CameraSpec("cam", 160, 120, 200.0)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten stamped frames whose lower left is red."""
    path = tmp_path / "camera.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (160, 120))
    for n in range(10):
        image = np.full((120, 160, 3), 90, np.uint8)
        stamp(image, PatternStamp(7, n, n))
        image[90:, :40] = (0, 0, 255)  # BGR
        writer.write(image)
    writer.release()
    return path


def camera_of(source: Path, spec: CameraSpec = SPEC, *, loop: bool = True) -> OpenCVCamera:
    return OpenCVCamera(spec, OpenCVOptions(str(source), loop=loop))


def take(camera: OpenCVCamera, count: int) -> list[Frame]:
    frames: list[Frame] = []
    for _ in range(20 * count):
        frame = camera.read(0.2)
        if frame is not None:
            frames.append(frame)
        if len(frames) == count:
            return frames
    raise AssertionError(f"only {len(frames)} of {count} frames")


def numbers(frames: list[Frame]) -> list[int | None]:
    return [found.seq if (found := decode(frame.image)) else None for frame in frames]


def test_a_file_is_played_in_order_in_rgb_and_over_again(video: Path) -> None:
    with camera_of(video) as camera:
        assert isinstance(camera, Camera)
        frames = take(camera, 25)
    assert numbers(frames) == [*range(10), *range(10), *range(5)]
    assert [frame.seq for frame in frames] == list(range(25))
    red, green, blue = frames[0].image[95:115, 5:35].mean(axis=(0, 1))
    assert red > 200 and green < 60 and blue < 60


def test_frames_are_a_period_apart_and_never_early(video: Path) -> None:
    with camera_of(video, CameraSpec("cam", 160, 120, 50.0)) as camera:
        frames = take(camera, 8)
    for frame in frames:
        # Frame i is due i periods after the clock began, which was before frame 0.
        assert frame.t_ns - frames[0].t_ns >= (frame.seq - 1) * 20_000_000
    times = [frame.t_ns for frame in frames]
    assert times == sorted(set(times))


def test_without_loop_it_ends_in_silence(video: Path) -> None:
    with camera_of(video, loop=False) as camera:
        take(camera, 10)
        assert all(camera.read(0.001) is None for _ in range(50))


def test_a_source_that_has_gone_is_an_error_until_it_is_back(video: Path, tmp_path: Path) -> None:
    with camera_of(video) as camera:
        take(camera, 10)
        video.rename(tmp_path / "away.avi")
        with pytest.raises(DeviceError, match="No such file"):
            take(camera, 1)
        camera.disconnect()
        (tmp_path / "away.avi").rename(video)
        camera.connect()
        frame = take(camera, 1)[0]
    assert (frame.seq, numbers([frame])) == (10, [0])


def test_refusals_say_what_is_there_instead(video: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="gives 160x120 where 640x480"):
        camera_of(video, CameraSpec("cam", 640, 480, 30.0)).connect()
    text = tmp_path / "notes.txt"
    text.write_text("no video")
    with pytest.raises(DeviceError, match="OpenCV cannot read"):
        camera_of(text).connect()
    with pytest.raises(DeviceError, match="OpenCV cannot read"):
        camera_of(Path("/dev/null")).connect()  # a device, but no camera
    with pytest.raises(DeviceError, match="depth"):
        camera_of(video, CameraSpec("cam", 160, 120, 30.0, depth=True))
    with pytest.raises(DeviceError, match="not connected"):
        camera_of(video).read(0.0)
    with pytest.raises(ConfigError, match="four letters"):
        parse(OpenCVOptions, {"source": "x", "fourcc": "MJPEG"})
