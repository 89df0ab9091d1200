"""A camera that writes frame number, camera and capture time into its pixels, and the decoder.

Whoever reads a recording back can then count every dropped, repeated, swapped or torn frame.

A stamp is a grid of 20 x 8 solid black or white blocks, most significant bit first, row by row:
camera id (u32), frame number (u32), capture time in ns (u64), CRC-32 of those 16 bytes. It stands
in the top-left and again in the bottom-right corner; an image that is half of one frame and half
of another carries two different stamps and does not decode. Blocks are 16, 8 or 4 pixels wide,
the largest that fits, and lie on the 8-pixel grid of JPEG where they can.
"""

from __future__ import annotations

import struct
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hardware.cameras.base import CameraDriver, sleep_toward
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

if TYPE_CHECKING:
    from robot_stack.config import CameraConfig, Station

__all__ = ["PatternStamp", "TestPatternCamera", "camera_id", "decode", "stamp"]

COLUMNS, ROWS = 20, 8
PAYLOAD = struct.Struct(">IIQ")
CRC = struct.Struct(">I")
SCROLL = 128  # the texture repeats after this many frames
NOISE_AMPLITUDE = 30.0  # grey levels; a 480x640 JPEG at quality 90 is then about 100 kB


@dataclass(frozen=True, slots=True)
class PatternStamp:
    """What a test-pattern image says about itself."""

    camera: int
    seq: int
    t_ns: int


def camera_id(name: str) -> int:
    """The 32-bit number that stands for a camera's name in its stamps (CRC-32 of the name)."""
    return zlib.crc32(name.encode())


def _block(height: int, width: int) -> int:
    """Side of a block in pixels; the two stamps must not overlap. 0 when they do not fit."""
    for side in (16, 8, 4):
        if COLUMNS * side <= width and 2 * ROWS * side <= height:
            return side
    return 0


def _require_block(height: int, width: int) -> int:
    side = _block(height, width)
    if not side:
        raise ValueError(
            f"a test pattern of {width}x{height} has no room for its stamps; the smallest is "
            f"{COLUMNS * 4}x{2 * ROWS * 4}"
        )
    return side


def stamp(image: NDArray[np.uint8], value: PatternStamp) -> None:
    """Write ``value`` into both corners of ``image`` (H, W, 3) or (H, W), in place."""
    height, width = image.shape[:2]
    side = _require_block(height, width)
    payload = PAYLOAD.pack(value.camera, value.seq, value.t_ns)
    payload += CRC.pack(zlib.crc32(payload))
    bits = np.unpackbits(np.frombuffer(payload, np.uint8)).reshape(ROWS, COLUMNS) * np.uint8(255)
    channels = image.shape[2] if image.ndim == 3 else 1
    h, w = ROWS * side, COLUMNS * side
    blocks = bits.repeat(side * channels, axis=1).repeat(side, axis=0)
    blocks = blocks.reshape(h, w, *image.shape[2:])
    image[:h, :w] = blocks
    image[height - h :, width - w :] = blocks


def _read_corner(corner: NDArray[np.uint8], side: int) -> bytes:
    grid = corner.reshape(ROWS, side, COLUMNS, side, -1)
    # Only the middle of a block: compression and scaling bleed over its edges.
    edge = side // 4
    middle = grid[:, edge : side - edge, :, edge : side - edge]
    return np.packbits(middle.mean(axis=(1, 3, 4)) > 127).tobytes()


def decode(image: NDArray[np.uint8]) -> PatternStamp | None:
    """The stamp of an image (H, W, 3) or (H, W), any channel order.

    None when there is none, when it does not check, or when the two corners disagree.
    """
    height, width = image.shape[:2]
    side = _block(height, width)
    if not side:
        return None
    h, w = ROWS * side, COLUMNS * side
    data = _read_corner(image[:h, :w], side)
    payload, (crc,) = data[: PAYLOAD.size], CRC.unpack(data[PAYLOAD.size :])
    if zlib.crc32(payload) != crc or _read_corner(image[height - h :, width - w :], side) != data:
        return None
    return PatternStamp(*PAYLOAD.unpack(payload))


def _texture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Coloured noise with the 1/f amplitude spectrum of natural scenes, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    radius = np.hypot(fy, fx)
    radius[0, 0] = np.inf
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / radius
        plane = np.fft.irfft2(spectrum, (height, width))
        planes.append(plane / plane.std())
    grey, blue, red = planes
    rgb = np.stack([grey + 0.3 * red, grey, grey + 0.3 * blue], axis=-1)
    return np.clip(128 + NOISE_AMPLITUDE * rgb, 0, 255).astype(np.uint8)


class TestPatternCamera(CameraDriver):
    """Frame ``i`` is due at ``start_t_ns + i / fps``, textured and stamped.

    A missed deadline skips nothing: every number is produced, late ones back to back, so that
    exactly ``limit`` frames exist in the end. ``t_ns`` is when the frame was really made, not
    when it was due. After ``limit`` frames ``read`` returns None for good.
    """

    __test__ = False  # the name makes pytest take it for a test case

    def __init__(
        self, spec: CameraSpec, limit: int | None = None, start_t_ns: int | None = None
    ) -> None:
        super().__init__(spec)
        if spec.depth:
            raise self._error("a test pattern has no depth; set depth to false")
        try:
            _require_block(spec.height, spec.width)
        except ValueError as error:
            raise self._error(str(error)) from error
        self._limit = limit
        self._start_t_ns = start_t_ns
        self._id = camera_id(spec.name)
        self._seq = 0
        self._texture: NDArray[np.uint8] | None = None

    @classmethod
    def from_config(cls, config: CameraConfig, station: Station) -> Self:
        """Options: ``limit`` (frames), ``start_t_ns`` (monotonic time of frame 0)."""
        from robot_stack.config import parse

        options = parse(_Options, config.options, f"cameras.{config.name}.options")
        return cls(config.spec, options.limit, options.start_t_ns)

    @property
    def meta(self) -> dict[str, Any]:
        return {
            "driver": "test_pattern",
            "serial": None,
            "intrinsics": None,
            "clock": "monotonic",
            "stamp_id": self._id,
        }

    def connect(self) -> None:
        """Make the texture; the first connect starts the clock, later ones do not reset it."""
        if self._texture is None:
            self._texture = _texture(self._spec.height + SCROLL, self._spec.width, self._id)
        if self._start_t_ns is None:
            self._start_t_ns = time.monotonic_ns()

    def disconnect(self) -> None:
        self._texture = None

    def read(self, timeout_s: float) -> Frame | None:
        """The next frame, at its deadline or at once when that has passed."""
        if self._texture is None or self._start_t_ns is None:
            raise self._not_connected()
        if self._limit is not None and self._seq >= self._limit:
            time.sleep(timeout_s)
            return None
        due = self._start_t_ns + round(self._seq * 1e9 / self._spec.fps)
        if not sleep_toward(due, timeout_s):
            return None
        t_ns = time.monotonic_ns()
        offset = self._seq % SCROLL
        image = self._texture[offset : offset + self._spec.height].copy()
        stamp(image, PatternStamp(self._id, self._seq, t_ns))
        frame = Frame(t_ns, self._seq, image)
        self._seq += 1
        return frame


@dataclass(frozen=True)
class _Options:
    limit: int | None = None
    start_t_ns: int | None = None
