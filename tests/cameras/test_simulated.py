"""The simulated camera on a world ring that the test writes as the world process would."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hardware.cameras.simulated import SimulatedCamera
from hardware.worlds.aloha import CAMERAS, AlohaTransferCube
from robot_stack.errors import DeviceError
from robot_stack.interfaces import Camera
from robot_stack.records import world_path, world_record
from robot_stack.shared_memory import RingWriter
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

NQ = 23
SPEC = CameraSpec("elsewhere", 160, 120, 200.0)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))


@pytest.fixture
def world() -> Iterator[RingWriter]:
    with RingWriter(world_path("lab"), world_record(NQ, 14), 8) as ring:
        yield ring


@pytest.fixture(scope="module")
def rest() -> np.ndarray:
    return np.array(AlohaTransferCube(seed=1).data.qpos)


def show(world: RingWriter, qpos: np.ndarray, t_ns: int) -> None:
    with world.writing() as record:
        record["t_ns"], record["qpos"] = t_ns, qpos


def camera_of(
    name: str = "cam_high", *, fps: float = 200.0, depth: bool = False
) -> SimulatedCamera:
    return SimulatedCamera(CameraSpec(name, 160, 120, fps, depth), "lab")


def must(camera: SimulatedCamera) -> Frame:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        frame = camera.read(0.1)
        if frame is not None:
            return frame
    raise AssertionError("no frame")


def red(image: np.ndarray) -> np.ndarray:
    """Where the red cube is seen, as (row, column)."""
    r, g, b = np.moveaxis(image.astype(int), -1, 0)
    found = np.argwhere((r - g > 100) & (r - b > 100))
    assert len(found)
    return found


@pytest.mark.parametrize("name", CAMERAS)
def test_every_camera_of_aloha_shows_something(
    world: RingWriter, rest: np.ndarray, name: str
) -> None:
    show(world, rest, 5)
    with camera_of(name) as camera:
        assert isinstance(camera, Camera)
        frame = must(camera)
        assert camera.meta["intrinsics"]["fx"] > 0
    assert frame.image.shape == (120, 160, 3) and frame.image.dtype == np.uint8
    assert frame.image.std() > 10


@pytest.mark.parametrize("named", ["cam_low", "front_close"])
def test_the_view_can_be_named_by_aloha_or_by_the_scene(
    world: RingWriter, rest: np.ndarray, named: str
) -> None:
    show(world, rest, 5)
    images = []
    for camera in (SimulatedCamera(SPEC, "lab", named), camera_of("cam_low")):
        with camera:
            images.append(must(camera).image)
    assert np.array_equal(*images)


def test_a_frame_is_stamped_with_the_state_it_shows(world: RingWriter, rest: np.ndarray) -> None:
    """The cube moves across the table; the picture moves with it, and so does the time."""
    centres, times, numbers = [], [], []
    with camera_of() as camera:
        for i, x in enumerate((-0.2, -0.1, 0.1, 0.2)):
            qpos = rest.copy()
            qpos[16:19] = x, 0.7, 0.05
            show(world, qpos, 1000 + i)
            frame = must(camera)
            centres.append(red(frame.image).mean(axis=0)[1])
            times.append(frame.t_ns)
            numbers.append(frame.seq)
    assert times == [1000, 1001, 1002, 1003]
    assert numbers == [0, 1, 2, 3]
    assert centres == sorted(centres) and centres[-1] - centres[0] > 10


def test_a_world_that_stands_still_gives_no_frames(world: RingWriter, rest: np.ndarray) -> None:
    show(world, rest, 7)
    with camera_of() as camera:
        must(camera)
        assert all(camera.read(0.01) is None for _ in range(20))


def test_a_restarted_world_is_found_again(rest: np.ndarray) -> None:
    with RingWriter(world_path("lab"), world_record(NQ, 14), 8) as first:
        show(first, rest, 1)
        camera = camera_of()
        camera.connect()
        must(camera)
    with RingWriter(world_path("lab"), world_record(NQ, 14), 8) as second:
        show(second, rest, 2)
        frame = must(camera)
        camera.disconnect()
    assert (frame.t_ns, frame.seq) == (2, 1)


def test_depth_is_in_millimetres_and_zero_where_there_is_nothing(
    world: RingWriter, rest: np.ndarray
) -> None:
    """The cube, seen from straight above, is raised by 80 mm."""
    depths = []
    with camera_of(depth=True) as camera:
        for i, z in enumerate((0.05, 0.13)):
            qpos = rest.copy()
            qpos[16:19] = 0.0, 0.7, z
            show(world, qpos, i)
            frame = must(camera)
            assert frame.depth is not None and frame.depth.dtype == np.uint16
            assert frame.depth.shape == (120, 160)
            row, column = red(frame.image).mean(axis=0).astype(int)
            depths.append(int(frame.depth[row, column]))
    assert abs(depths[0] - depths[1] - 80) <= 2
    assert frame.depth[0, 0] == 0


def test_refusals_say_what_to_do(rest: np.ndarray) -> None:
    with pytest.raises(DeviceError, match="no world to look at"):
        camera_of().connect()
    with RingWriter(world_path("lab"), world_record(NQ, 14), 8):
        with pytest.raises(DeviceError, match=r"no camera 'cam_typo' .it has: .*top"):
            camera_of("cam_typo").connect()
        with pytest.raises(DeviceError, match="not connected"):
            camera_of().read(0.0)
    with (
        RingWriter(world_path("lab"), world_record(5, 14), 8),
        pytest.raises(DeviceError, match=r"qpos of shape \(5,\), the scene has 23"),
    ):
        camera_of().connect()
