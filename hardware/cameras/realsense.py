"""Intel RealSense cameras by serial number: colour, and depth aligned to it if asked for.

Time: with the device's global time enabled librealsense stamps frames in the host's wall clock,
from its own estimate of the device clock; that is shifted to monotonic time by the difference of
the two host clocks at arrival. Where the kernel passes no metadata to librealsense the stamps are
the device's bare clock, which a ``ClockMap`` turns into monotonic time. ``meta["clock"]`` says
which of the two it was.

Frames wait in librealsense's own queue until this thread takes them: no callback runs Python in
another thread. Depth is uint16 millimetres, 0 where the device saw nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyrealsense2 as rs
from numpy.typing import NDArray

from hardware.cameras.base import CameraDriver
from hardware.cameras.clock import ClockMap
from robot_stack.config import parse
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

if TYPE_CHECKING:
    from robot_stack.config import CameraConfig, Station

__all__ = ["RealSenseCamera", "RealSenseOptions"]

QUEUE = 4  # librealsense has 16 frames a stream in all; those that wait here come from them
FIRST_FRAME_S = 5.0  # a D435 takes up to 2 s to start streaming after open
STALL_S = 2.0
MAX_TRANSPORT_NS = 1_000_000_000  # a stamp older than this at arrival is not a capture time


@dataclass(frozen=True)
class RealSenseOptions:
    """``exposure``, ``gain`` and ``white_balance`` are in the device's own units (see
    ``rs-enumerate-devices -o``; exposure of a D400's RGB sensor counts 100 us, that of a stereo
    module 1 us; white balance is in kelvin). Those left out are automatic."""

    serial: str
    exposure: float | None = None
    gain: float | None = None
    white_balance: float | None = None


def _connected_devices() -> Iterable[Any]:
    return list(rs.context().query_devices())


class RealSenseCamera(CameraDriver):
    """One RealSense. ``devices`` lists what is plugged in; the default asks librealsense."""

    def __init__(
        self,
        spec: CameraSpec,
        options: RealSenseOptions,
        devices: Callable[[], Iterable[Any]] = _connected_devices,
    ) -> None:
        super().__init__(spec)
        self._options = options
        self._devices = devices
        self._sensors: list[Any] = []
        self._queue: Any = None
        self._align: Any = None
        self._depth_scale = 0.001
        self._meta: dict[str, Any] = {}
        self._clock = ClockMap()
        self._seq_base = 0
        self._next_seq = 0
        self._first_number: int | None = None
        self._last_arrival = 0.0

    @classmethod
    def from_config(cls, config: CameraConfig, station: Station) -> Self:
        """Options: ``RealSenseOptions``."""
        options = parse(RealSenseOptions, config.options, f"cameras.{config.name}.options")
        return cls(config.spec, options)

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "driver": "realsense",
            "serial": self._options.serial,
            "intrinsics": None,
            "clock": None,
            **self._meta,
        }

    def connect(self) -> None:
        """Find the device by serial number, apply the settings and start streaming.

        DeviceError says which devices, modes or values there are instead.
        """
        self.disconnect()
        try:
            self._open()
        except RuntimeError as error:  # librealsense raises nothing more specific
            self.disconnect()
            raise self._error(
                f"RealSense {self._options.serial} would not start ({error}); check the cable, "
                "and that no other program has it open"
            ) from error

    def _open(self) -> None:
        device = self._find()
        wanted = [(rs.stream.color, rs.format.rgb8)]
        if self._spec.depth:
            wanted.append((rs.stream.depth, rs.format.z16))
        chosen: dict[int, tuple[Any, list[Any]]] = {}  # a D405 has both streams on one sensor
        sensors = list(device.query_sensors())
        for stream, form in wanted:
            index, profile = self._profile(sensors, stream, form)
            chosen.setdefault(index, (sensors[index], []))[1].append(profile)
            if stream == rs.stream.color:
                self._configure(sensors[index])
                self._meta["intrinsics"] = _intrinsics(profile.get_intrinsics())
            else:
                self._depth_scale = sensors[index].as_depth_sensor().get_depth_scale()
        for kind in ("name", "firmware_version", "usb_type_descriptor"):
            info = getattr(rs.camera_info, kind)
            self._meta[kind] = device.get_info(info) if device.supports(info) else None
        self._queue = rs.syncer(QUEUE) if self._spec.depth else rs.frame_queue(QUEUE)
        self._align = rs.align(rs.stream.color) if self._spec.depth else None
        for sensor, profiles in chosen.values():
            if sensor.supports(rs.option.global_time_enabled):
                sensor.set_option(rs.option.global_time_enabled, 1)
            sensor.open(profiles)
            self._sensors.append(sensor)
            sensor.start(self._queue)
        self._clock = ClockMap()
        self._first_number = None
        self._last_arrival = time.monotonic() + FIRST_FRAME_S - STALL_S

    def _find(self) -> Any:
        serials = []
        for device in self._devices():
            serial = device.get_info(rs.camera_info.serial_number)
            if serial == self._options.serial:
                return device
            serials.append(serial)
        raise self._error(
            f"no RealSense with serial number {self._options.serial} is plugged in "
            f"(found: {', '.join(serials) or 'none'})"
        )

    def _profile(self, sensors: list[Any], stream: Any, form: Any) -> tuple[int, Any]:
        offered: set[str] = set()
        for index, sensor in enumerate(sensors):
            for profile in sensor.get_stream_profiles():
                if profile.stream_type() != stream or profile.format() != form:
                    continue
                video = profile.as_video_stream_profile()
                size = (video.width(), video.height())
                if size == (self._spec.width, self._spec.height) and profile.fps() == round(
                    self._spec.fps
                ):
                    return index, video
                offered.add(f"{size[0]}x{size[1]}@{profile.fps()}")
        raise self._error(
            f"{stream.name} {self._spec.width}x{self._spec.height}@{self._spec.fps:g} is not a "
            f"mode of this device (it offers: {', '.join(sorted(offered)) or 'none'})"
        )

    def _configure(self, sensor: Any) -> None:
        """Exposure, gain and white balance; a RealSense keeps settings of earlier programs."""
        o = self._options
        manual = o.exposure is not None or o.gain is not None
        for option, value, asked in (
            (rs.option.enable_auto_exposure, float(not manual), manual),
            (rs.option.exposure, o.exposure, o.exposure is not None),
            (rs.option.gain, o.gain, o.gain is not None),
            (
                rs.option.enable_auto_white_balance,
                float(o.white_balance is None),
                o.white_balance is not None,
            ),
            (rs.option.white_balance, o.white_balance, o.white_balance is not None),
        ):
            if value is None:
                continue
            if not sensor.supports(option):
                if asked:
                    raise self._error(f"this sensor has no setting {option.name}")
                continue
            allowed = sensor.get_option_range(option)
            if not allowed.min <= value <= allowed.max:
                raise self._error(
                    f"{option.name} {value:g} is out of range, allowed {allowed.min:g}.."
                    f"{allowed.max:g} in steps of {allowed.step:g}"
                )
            sensor.set_option(option, value)

    def disconnect(self) -> None:
        for sensor in self._sensors:
            for end in (sensor.stop, sensor.close):
                try:
                    end()
                except RuntimeError:  # an unplugged sensor cannot be stopped
                    continue
        self._sensors = []
        self._queue = None

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame. DeviceError when none has come for 2 s: then the cable or the USB
        bandwidth failed, and only opening it again helps."""
        if self._queue is None:
            raise self._not_connected()
        try:
            pair = self._take(round(timeout_s * 1000))
        except RuntimeError as error:
            raise self._error(f"lost: {error}") from error
        now = time.monotonic()
        if pair is None:
            if now - self._last_arrival > STALL_S:
                raise self._error(
                    f"no frame from RealSense {self._options.serial} for {STALL_S:g} s; check its "
                    "cable, and use a port of its own USB 3 controller"
                )
            return None
        self._last_arrival = now
        color, depth = pair
        t_ns = self._capture_time(color, time.monotonic_ns())
        return Frame(t_ns, self._number(color), _array(color), depth)

    def _take(self, timeout_ms: int) -> tuple[Any, NDArray[np.uint16] | None] | None:
        if not self._spec.depth:
            arrived, frame = self._queue.try_wait_for_frame(timeout_ms)
            return (frame, None) if arrived else None
        arrived, frames = self._queue.try_wait_for_frames(timeout_ms)
        # The syncer hands out single frames when the other stream lost its partner.
        if not arrived or not frames.get_color_frame() or not frames.get_depth_frame():
            return None
        aligned = self._align.process(frames)
        return aligned.get_color_frame(), self._millimetres(_array(aligned.get_depth_frame()))

    def _millimetres(self, raw: NDArray[Any]) -> NDArray[np.uint16]:
        per_unit = self._depth_scale * 1000
        if abs(per_unit - 1) < 1e-6:
            return raw
        return np.minimum(np.rint(raw * per_unit), 65535).astype(np.uint16)

    def _number(self, frame: Any) -> int:
        """The device's own frame counter, which restarts with the device, carried on."""
        device_number = int(frame.get_frame_number())
        if self._first_number is None or device_number < self._first_number:
            self._seq_base, self._first_number = self._next_seq, device_number
        seq = self._seq_base + device_number - self._first_number
        self._next_seq = seq + 1
        return seq

    def _capture_time(self, frame: Any, arrival_ns: int) -> int:
        stamp_ns = round(float(frame.get_timestamp()) * 1e6)
        domain = frame.get_frame_timestamp_domain()
        if domain != rs.timestamp_domain.hardware_clock:  # host wall clock
            t_ns = stamp_ns - (time.time_ns() - time.monotonic_ns())
            if 0 <= arrival_ns - t_ns < MAX_TRANSPORT_NS:
                self._meta["clock"] = domain.name
                return t_ns
        self._meta["clock"] = "device clock, offset by minimum filter"
        return self._clock.to_monotonic(stamp_ns, arrival_ns)


def _array(frame: Any) -> NDArray[Any]:
    """A copy: whoever holds on to a librealsense frame takes it from the 16 there are."""
    return np.array(frame.as_video_frame().get_data())


def _intrinsics(value: Any) -> dict[str, Any]:
    return {
        "fx": value.fx,
        "fy": value.fy,
        "cx": value.ppx,
        "cy": value.ppy,
        "model": value.model.name,
        "coefficients": list(value.coeffs),
    }
