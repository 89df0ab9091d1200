"""The replay camera on episodes that the real writer made."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from hardware.cameras.replay import ReplayCamera, ReplayOptions
from hardware.cameras.test_pattern import PatternStamp, decode, stamp
from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    Row,
)
from robot_stack.errors import DeviceError
from robot_stack.interfaces import Camera
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

SIZE = (160, 120)
SPEC = CameraSpec("cam_high", *SIZE, 50.0)
STEP_NS = 20_000_000
# The frame numbers that the rows hold: none yet, some repeated, number 3 lost in recording.
HELD = (-1, 0, 0, 1, 2, 4, 4, 5)
PLAYED = [0, 1, 2, 4, 5]


def image_of(number: int) -> np.ndarray:
    image = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    stamp(image, PatternStamp(1, max(number, 0), 0))
    image[90:, :40] = (255, 0, 0)
    return image


def record(path: Path, encoding: str, *, depth: bool = False) -> Path:
    schema = EpisodeSchema(
        robots=(),
        cameras={"cam_high": ImageLayout(*SIZE, depth), "other": ImageLayout(*SIZE)},
        encoding=encoding,
    )
    writer = EpisodeWriter(path, schema, EpisodeMetadata())
    for row, number in enumerate(HELD):
        image = image_of(number)
        data = image if encoding == "raw" else cv2.imencode(".jpg", image)[1].tobytes()
        writer.append(
            Row(
                t_ns=10**9 + row * STEP_NS,
                qpos=[],
                action=[],
                images={"cam_high": data, "other": data},
                frame_t_ns={"cam_high": 10**9 + number * STEP_NS if number >= 0 else -1},
                frame_seq={"cam_high": 1000 + number if number >= 0 else -1},
                depth={"cam_high": np.full(SIZE[::-1], 500 + number, np.uint16)} if depth else {},
            )
        )
    return writer.finalise()


def camera_of(path: Path, spec: CameraSpec = SPEC, **options: object) -> ReplayCamera:
    return ReplayCamera(spec, ReplayOptions(str(path), **options))


def take(camera: ReplayCamera, count: int) -> list[Frame]:
    frames: list[Frame] = []
    deadline = time.monotonic() + 30
    while len(frames) < count:
        assert time.monotonic() < deadline, f"only {len(frames)} of {count} frames"
        frame = camera.read(0.05)
        if frame is not None:
            frames.append(frame)
    return frames


def numbers(frames: list[Frame]) -> list[int | None]:
    return [found.seq if (found := decode(frame.image)) else None for frame in frames]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_each_recorded_frame_is_played_once_in_rgb_with_its_gaps(
    tmp_path: Path, encoding: str
) -> None:
    with camera_of(record(tmp_path / "episode_0.hdf5", encoding)) as camera:
        assert isinstance(camera, Camera)
        frames = take(camera, 8)
    assert numbers(frames) == [*PLAYED, 0, 1, 2]
    assert [frame.seq for frame in frames] == [*PLAYED, 6, 7, 8]
    red, green, blue = frames[0].image[95:115, 5:35].mean(axis=(0, 1))
    assert red > 230 and green < 20 and blue < 20


def test_the_pace_is_the_recording_s(tmp_path: Path) -> None:
    path = record(tmp_path / "episode_0.hdf5", "raw")
    start = time.monotonic_ns()
    with camera_of(path) as camera:
        frames = take(camera, 5)
    for frame in frames:
        assert frame.t_ns - start >= frame.seq * STEP_NS
    times = [frame.t_ns for frame in frames]
    assert times == sorted(set(times))


def test_without_loop_it_ends_in_silence(tmp_path: Path) -> None:
    with camera_of(record(tmp_path / "episode_0.hdf5", "raw"), loop=False) as camera:
        take(camera, 5)
        assert all(camera.read(0.001) is None for _ in range(50))


def test_depth_and_another_camera_s_name(tmp_path: Path) -> None:
    path = record(tmp_path / "episode_0.hdf5", "jpeg", depth=True)
    spec = CameraSpec("elsewhere", *SIZE, 50.0, depth=True)
    with camera_of(path, spec, camera="cam_high") as camera:
        for frame, number in zip(take(camera, 5), PLAYED, strict=True):
            assert frame.depth is not None and (frame.depth == 500 + number).all()


def test_numbers_go_on_after_a_reconnect(tmp_path: Path) -> None:
    camera = camera_of(record(tmp_path / "episode_0.hdf5", "raw"))
    with camera:
        assert [frame.seq for frame in take(camera, 2)] == [0, 1]
    with camera:
        assert [frame.seq for frame in take(camera, 2)] == [2, 3]


def test_refusals_say_what_is_there_instead(tmp_path: Path) -> None:
    path = record(tmp_path / "episode_0.hdf5", "raw")
    with pytest.raises(DeviceError, match="does not exist"):
        camera_of(tmp_path / "none.hdf5").connect()
    with pytest.raises(DeviceError, match=r"no camera 'cam_low', only .'cam_high', 'other'"):
        camera_of(path, camera="cam_low").connect()
    with pytest.raises(DeviceError, match="holds 160x120 images of cam_high, not 640x480"):
        camera_of(path, CameraSpec("cam_high", 640, 480, 50.0)).connect()
    with pytest.raises(DeviceError, match="has no depth"):
        camera_of(path, CameraSpec("cam_high", *SIZE, 50.0, depth=True)).connect()
    with pytest.raises(DeviceError, match="holds no frame of other"):
        camera_of(path, camera="other").connect()
    with pytest.raises(DeviceError, match="not connected"):
        camera_of(path).read(0.0)
