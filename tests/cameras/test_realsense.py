"""The RealSense driver against librealsense's own software device: real queues, syncer, align."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.cameras.realsense import RealSenseCamera, RealSenseOptions
from hardware.cameras.test_pattern import PatternStamp, decode, stamp
from robot_stack.errors import DeviceError
from robot_stack.interfaces import Camera
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

rs = pytest.importorskip("pyrealsense2")

WIDTH, HEIGHT = 160, 120
SPEC = CameraSpec("cam_high", WIDTH, HEIGHT, 30.0)
DEPTH_SPEC = CameraSpec("cam_high", WIDTH, HEIGHT, 30.0, depth=True)
UNITS = 0.0001  # metres a count, as a D405 has it
SHIFT = 10  # pixels that the depth sensor's principal point lies to the right of colour's


def option_range(low: float, high: float, default: float) -> Any:
    value = rs.option_range()
    value.min, value.max, value.step, value.default = low, high, 1, default
    return value


@dataclass
class Plugged:
    """A software RealSense with a stereo and a colour sensor, and what feeds it."""

    serial: str = "819312070001"
    pixels: list[NDArray[Any]] = field(default_factory=list)  # librealsense does not copy them

    def __post_init__(self) -> None:
        self.device = rs.software_device()
        self.device.register_info(rs.camera_info.serial_number, self.serial)
        self.device.register_info(rs.camera_info.name, "Software D4xx")
        self.stereo = self.device.add_sensor("Stereo Module")
        self.rgb = self.device.add_sensor("RGB Camera")
        self.stereo.add_read_only_option(rs.option.depth_units, UNITS)
        self.rgb.add_option(rs.option.enable_auto_exposure, option_range(0, 1, 0), True)
        self.rgb.add_option(rs.option.exposure, option_range(1, 10000, 156), True)
        self.rgb.add_option(rs.option.gain, option_range(0, 128, 64), True)
        self.depth_profile = self.stereo.add_video_stream(
            self._stream(rs.stream.depth, 1, 2, rs.format.z16, SHIFT)
        )
        self.color_profile = self.rgb.add_video_stream(
            self._stream(rs.stream.color, 2, 3, rs.format.rgb8, 0)
        )
        extrinsics = rs.extrinsics()
        extrinsics.rotation = [1, 0, 0, 0, 1, 0, 0, 0, 1]
        extrinsics.translation = [0, 0, 0]
        self.depth_profile.register_extrinsics_to(self.color_profile, extrinsics)
        self.device.create_matcher(rs.matchers.dlr_c)

    def _stream(self, kind: Any, uid: int, bpp: int, form: Any, shift: int) -> Any:
        stream = rs.video_stream()
        stream.type, stream.index, stream.uid, stream.fmt, stream.bpp = kind, 0, uid, form, bpp
        stream.width, stream.height, stream.fps = WIDTH, HEIGHT, 30
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height = WIDTH, HEIGHT
        intrinsics.fx, intrinsics.fy = 120.0, 121.0
        intrinsics.ppx, intrinsics.ppy = 80.0 + shift, 60.0
        intrinsics.model, intrinsics.coeffs = rs.distortion.none, [0.0] * 5
        stream.intrinsics = intrinsics
        return stream

    def color(self, number: int, ms: float, domain: Any = None) -> None:
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        stamp(image, PatternStamp(1, number, number))
        self._feed(self.rgb, self.color_profile, image, number, ms, domain)

    def depth(self, number: int, ms: float, counts: NDArray[np.uint16]) -> None:
        self._feed(self.stereo, self.depth_profile, counts, number, ms, None)

    def _feed(
        self, sensor: Any, profile: Any, data: NDArray[Any], number: int, ms: float, domain: Any
    ) -> None:
        self.pixels.append(data)
        frame = rs.software_video_frame()
        frame.pixels, frame.bpp = data, data.itemsize * (data.shape[2] if data.ndim == 3 else 1)
        frame.stride = WIDTH * frame.bpp
        frame.timestamp, frame.frame_number = ms, number
        frame.domain = domain if domain is not None else rs.timestamp_domain.hardware_clock
        frame.profile = profile.as_video_stream_profile()
        if data.ndim == 2:
            frame.depth_units = UNITS
        sensor.on_video_frame(frame)


def camera_of(
    *plugged: Plugged, spec: CameraSpec = SPEC, serial: str = "819312070001", **options: float
) -> RealSenseCamera:
    return RealSenseCamera(
        spec, RealSenseOptions(serial, **options), lambda: [p.device for p in plugged]
    )


def must(frame: Frame | None) -> Frame:
    assert frame is not None
    return frame


def test_it_is_a_camera() -> None:
    assert isinstance(camera_of(), Camera)


def test_colour_frames_arrive_whole_in_order_and_numbered_by_the_device() -> None:
    device = Plugged()
    with camera_of(device) as camera:
        frames = []
        for number in (7, 8, 11):  # 9 and 10 were lost on the way
            device.color(number, number * 33.3)
            frames.append(must(camera.read(1.0)))
        assert camera.read(0.01) is None
    assert [frame.seq for frame in frames] == [0, 1, 4]
    assert [decode(frame.image) for frame in frames] == [PatternStamp(1, n, n) for n in (7, 8, 11)]


def test_a_counter_that_starts_again_goes_on_in_ours() -> None:
    device = Plugged()
    with camera_of(device) as camera:
        seqs = []
        for number in (7, 8, 1, 3):  # the firmware restarted its counter without a reconnect
            device.color(number, number * 33.3)
            seqs.append(must(camera.read(1.0)).seq)
    assert seqs == [0, 1, 2, 4]


def test_frames_outlive_librealsense_s_pool_of_sixteen() -> None:
    device = Plugged()
    with camera_of(device) as camera:
        frames = []
        for number in range(40):
            device.color(number, number * 33.3)
            frames.append(must(camera.read(1.0)))
    assert [found.seq if (found := decode(f.image)) else None for f in frames] == list(range(40))


def test_the_named_device_is_chosen_and_a_missing_one_named() -> None:
    one, two = Plugged("111"), Plugged("222")
    with camera_of(one, two, serial="222") as camera:
        two.color(0, 0.0)
        assert decode(must(camera.read(1.0)).image) == PatternStamp(1, 0, 0)
    with pytest.raises(DeviceError, match=r"serial number 333 .*found: 111, 222"):
        camera_of(one, two, serial="333").connect()
    with pytest.raises(DeviceError, match="found: none"):
        camera_of().connect()


def test_an_impossible_mode_is_refused_with_those_there_are() -> None:
    spec = CameraSpec("cam_high", 640, 480, 60.0)
    with pytest.raises(DeviceError, match=r"color 640x480@60 .*offers: 160x120@30"):
        camera_of(Plugged(), spec=spec).connect()


def test_settings_reach_the_sensor() -> None:
    device = Plugged()
    with camera_of(device, exposure=33, gain=20):
        assert device.rgb.get_option(rs.option.enable_auto_exposure) == 0
        assert device.rgb.get_option(rs.option.exposure) == 33
        assert device.rgb.get_option(rs.option.gain) == 20


def test_without_settings_exposure_is_automatic_even_if_it_was_left_manual() -> None:
    device = Plugged()
    device.rgb.set_option(rs.option.enable_auto_exposure, 0)
    with camera_of(device):
        assert device.rgb.get_option(rs.option.enable_auto_exposure) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exposure": 20000}, r"exposure 20000 is out of range, allowed 1\.\.10000"),
        ({"white_balance": 4600}, "no setting enable_auto_white_balance"),
    ],
    ids=["out of range", "unsupported"],
)
def test_wrong_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        camera_of(Plugged(), **options).connect()


def test_depth_is_aligned_to_colour_and_in_millimetres() -> None:
    """Depth's principal point is SHIFT pixels to the right, so an edge at column 90 in its image
    belongs at column 80 in colour; 0.1 mm counts become mm."""
    device = Plugged()
    counts = np.zeros((HEIGHT, WIDTH), np.uint16)
    counts[:, : 80 + SHIFT] = 3004
    counts[:, 80 + SHIFT :] = 12345
    counts[0, :] = 0
    with camera_of(device, spec=DEPTH_SPEC) as camera:
        frame = feed_pair(device, camera, counts)
        assert camera.meta["intrinsics"]["cx"] == 80.0
    assert decode(frame.image) is not None
    assert frame.depth is not None and frame.depth.dtype == np.uint16
    assert frame.depth.shape == (HEIGHT, WIDTH)
    assert not frame.depth[0, 20:100].any()
    # Alignment rounds whole rows away here and there; where it says something it must be right.
    for columns, value in ((slice(5, 75), 300), (slice(85, 145), 1234)):
        part = frame.depth[5:, columns]
        assert (part == value).mean() > 0.9
        assert set(np.unique(part)) <= {0, value}


def feed_pair(device: Plugged, camera: RealSenseCamera, counts: NDArray[np.uint16]) -> Frame:
    """Pairs until the syncer has understood that the two belong together."""
    for number in range(1, 20):
        device.depth(number, number * 33.0, counts)
        device.color(number, number * 33.0)
        while (frame := camera.read(0.05)) is not None:
            return frame
    raise AssertionError("no pair came out of the syncer")


def test_a_lost_depth_frame_costs_its_colour_frame_and_shows_as_a_gap() -> None:
    device = Plugged()
    counts = np.full((HEIGHT, WIDTH), 5000, np.uint16)
    frames: list[Frame] = []
    with camera_of(device, spec=DEPTH_SPEC) as camera:
        frames.append(feed_pair(device, camera, counts))
        start = must_decode(frames[0])
        for number in range(start + 1, start + 9):
            if number != start + 3:
                device.depth(number, number * 33.0, counts)
            device.color(number, number * 33.0)
            while (frame := camera.read(0.05)) is not None:
                frames.append(frame)
    assert [frame.seq - frames[0].seq for frame in frames] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [must_decode(frame) - start for frame in frames] == [0, 1, 2, 4, 5, 6, 7, 8]


def must_decode(frame: Frame) -> int:
    found = decode(frame.image)
    assert found is not None
    return found.seq


def test_host_clock_stamps_become_the_same_moment_in_monotonic_time() -> None:
    device = Plugged()
    with camera_of(device) as camera:
        for number in range(3):
            taken_ns = time.monotonic_ns() - 20_000_000
            wall_ms = (time.time_ns() - 20_000_000) / 1e6
            device.color(number, wall_ms, rs.timestamp_domain.global_time)
            frame = must(camera.read(1.0))
            assert abs(frame.t_ns - taken_ns) < 1_000_000
        assert camera.meta["clock"] == "global_time"


def test_device_clock_stamps_keep_the_device_s_spacing() -> None:
    """Frames taken 10 ms apart that arrive late and in one burst get times 10 ms apart."""
    device = Plugged()
    with camera_of(device) as camera:
        device.color(0, 5000.0)
        frames = [must(camera.read(1.0))]
        time.sleep(0.05)  # the lateness itself
        for number in (1, 2, 3):
            device.color(number, 5000.0 + 10.0 * number)
        frames += [must(camera.read(1.0)) for _ in range(3)]
        assert "device clock" in camera.meta["clock"]
    assert [frame.t_ns - frames[0].t_ns for frame in frames] == [0, 10**7, 2 * 10**7, 3 * 10**7]


def test_a_wall_clock_stamp_from_the_future_is_not_believed() -> None:
    device = Plugged()
    with camera_of(device) as camera:
        device.color(0, time.time_ns() / 1e6 + 3_600_000, rs.timestamp_domain.global_time)
        frame = must(camera.read(1.0))
        assert frame.t_ns <= time.monotonic_ns()
        assert "device clock" in camera.meta["clock"]


def until_error(camera: RealSenseCamera) -> DeviceError:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            camera.read(0.05)
        except DeviceError as error:
            return error
    raise AssertionError("silence was not noticed")


@pytest.mark.slow
def test_a_pulled_cable_is_noticed_and_the_device_found_again() -> None:
    device = Plugged()
    present = [device]
    camera = RealSenseCamera(
        SPEC, RealSenseOptions("819312070001"), lambda: [p.device for p in present]
    )
    with camera:
        for number in (40, 41):
            device.color(number, number * 33.0)
            must(camera.read(1.0))
        present.clear()
        assert "cable" in str(until_error(camera))
        with pytest.raises(DeviceError, match="found: none"):
            camera.connect()
        present.append(Plugged())  # the device's counter and clock start again
        camera.connect()
        present[0].color(1, 12.0)
        frame = must(camera.read(1.0))
        assert frame.seq == 2
        assert frame.t_ns <= time.monotonic_ns()


def test_disconnect_twice_and_read_after_it() -> None:
    camera = camera_of(Plugged())
    camera.connect()
    camera.disconnect()
    camera.disconnect()
    with pytest.raises(DeviceError, match="not connected"):
        camera.read(0.01)
