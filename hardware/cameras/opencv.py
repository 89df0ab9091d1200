"""V4L2 cameras (webcams, capture cards) and video files through OpenCV.

``source`` is a device, best by its stable name under /dev/v4l/by-id, or a video file, which is
played at the configured rate. OpenCV reports the kernel's buffer time of a V4L2 frame as its
position in ms; drivers that follow the documentation (uvcvideo does) take that from the monotonic
clock at the start of the frame's transfer. Where it is no plausible monotonic time, the time of
arrival is taken instead, and ``meta["clock"]`` says so. OpenCV does not pass on the kernel's frame
counter: ``seq`` counts what was read, so losses inside the kernel show in ``t_ns`` only.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

# Seconds that a silent V4L2 device blocks; read by OpenCV as it is imported, 10 without this.
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")
import cv2

from hardware.cameras.base import CameraDriver, sleep_toward
from robot_stack.config import parse
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

if TYPE_CHECKING:
    from robot_stack.config import CameraConfig, Station

__all__ = ["OpenCVCamera", "OpenCVOptions"]

# One buffer that is being read here and one for the kernel to fill: with a single one a camera
# loses every frame that begins while the last is decoded, and more only hold older frames.
BUFFERS = 2
MAX_TRANSPORT_NS = 1_000_000_000


@dataclass(frozen=True)
class OpenCVOptions:
    """``source``: device or file. ``fourcc``: a device's pixel format; MJPG is what lets two
    webcams share a USB 2 bus. ``loop``: a file starts over at its end, else it ends in silence."""

    source: str
    fourcc: str = "MJPG"
    loop: bool = True

    def __post_init__(self) -> None:
        if len(self.fourcc) != 4:
            raise ValueError(f"fourcc {self.fourcc!r} must have four letters, as MJPG or YUYV")


class OpenCVCamera(CameraDriver):
    """One V4L2 device or video file."""

    def __init__(self, spec: CameraSpec, options: OpenCVOptions) -> None:
        super().__init__(spec)
        if spec.depth:
            raise self._error("OpenCV cameras have no depth; set depth to false")
        self._options = options
        self._capture: Any = None
        self._is_device = False
        self._clock: str | None = None
        self._seq = 0
        self._start_ns = 0
        self._played = 0  # frames of a file since the clock started
        self._ended = False

    @classmethod
    def from_config(cls, config: CameraConfig, station: Station) -> Self:
        """Options: ``OpenCVOptions``."""
        return cls(
            config.spec, parse(OpenCVOptions, config.options, f"cameras.{config.name}.options")
        )

    @property
    def meta(self) -> dict[str, Any]:
        source = Path(self._options.source)
        return {
            "driver": "opencv",
            "serial": source.name if source.parent.name == "by-id" else None,
            "source": str(source),
            "intrinsics": None,
            "clock": self._clock,
        }

    def connect(self) -> None:
        """Open the source and check its size; DeviceError says what is there instead."""
        self.disconnect()
        source = Path(self._options.source)
        try:
            self._is_device = stat.S_ISCHR(source.stat().st_mode)
        except OSError as error:
            raise self._error(
                f"cannot open {source}: {error.strerror}; `ls -l /dev/v4l/by-id` lists the cameras"
            ) from error
        self._capture = self._open(source)
        size = tuple(
            int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if size != (self._spec.width, self._spec.height):
            self.disconnect()
            raise self._error(
                f"{source} gives {size[0]}x{size[1]} where {self._spec.width}x{self._spec.height} "
                "was configured; `v4l2-ctl --list-formats-ext -d DEVICE` lists what a device offers"
            )
        self._start_ns, self._played, self._ended = time.monotonic_ns(), 0, False

    def _open(self, source: Path) -> Any:
        if not self._is_device:
            capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
        else:
            capture = cv2.VideoCapture(str(source.resolve()), cv2.CAP_V4L2)
            # The format comes first: it decides which sizes and rates there are.
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._options.fourcc))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._spec.width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._spec.height)
            capture.set(cv2.CAP_PROP_FPS, self._spec.fps)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, BUFFERS)
        if not capture.isOpened():
            raise self._error(
                f"OpenCV cannot read {source}; it must be a video capture device that no other "
                "program holds, or a video file"
            )
        return capture

    def disconnect(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame. A V4L2 device that is silent may block up to 2 s, whatever
        ``timeout_s``; then, or when it has gone, DeviceError."""
        if self._capture is None:
            raise self._not_connected()
        if self._is_device:
            image = self._grab()
            if image is None:
                raise self._error(f"{self._options.source} gives no frames; check its cable")
            return self._frame(image, self._kernel_time())
        if self._ended:
            time.sleep(timeout_s)
            return None
        due = self._start_ns + round(self._played * 1e9 / self._spec.fps)
        if not sleep_toward(due, timeout_s):
            return None
        image = self._grab()
        if image is None:
            return self._at_end()
        self._played += 1
        self._clock = "monotonic, as played"
        return self._frame(image, time.monotonic_ns())

    def _at_end(self) -> Frame | None:
        if not self._played:
            raise self._error(f"{self._options.source} holds no frames")
        if self._options.loop:
            self.connect()
        else:
            self._ended = True
        return None

    def _grab(self) -> Any | None:
        arrived, image = self._capture.read()
        return image if arrived else None

    def _frame(self, image: Any, t_ns: int) -> Frame:
        frame = Frame(t_ns, self._seq, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        self._seq += 1
        return frame

    def _kernel_time(self) -> int:
        arrival_ns = time.monotonic_ns()
        t_ns = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * 1e6)
        if 0 <= arrival_ns - t_ns < MAX_TRANSPORT_NS:
            self._clock = "kernel buffer time, monotonic"
            return t_ns
        self._clock = "arrival"
        return arrival_ns
