"""The camera process: one camera's frames into its ring in shared memory, until SIGTERM.

A camera that drops off the bus is opened again with a growing pause; its ring stays, so that
readers see the frames grow old and then come back. Nothing here runs in a second thread.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from robot_stack.config import load_station
from robot_stack.errors import DeviceError, RobotStackError
from robot_stack.interfaces import Camera
from robot_stack.records import frame_record, ring_path
from robot_stack.registry import load
from robot_stack.shared_memory import RingWriter
from robot_stack.spec import CameraSpec
from robot_stack.types import Frame

__all__ = ["main", "ring_slots", "run_camera"]

log = logging.getLogger("camera")

MIN_SLOTS = 8
MAX_RING_BYTES = 64 << 20
READ_TIMEOUT_S = 0.1  # also how long SIGTERM may wait
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
SILENCE_S = 2.0


def ring_slots(spec: CameraSpec, directory: Path) -> int:
    """Slots for a second of frames: at most 64 MiB or an eighth of the free space in
    ``directory``, and at least 8."""
    frame = frame_record(spec.width, spec.height, depth=spec.depth).itemsize
    space = os.statvfs(directory)
    budget = min(MAX_RING_BYTES, space.f_bavail * space.f_frsize // 8)
    return max(MIN_SLOTS, min(math.ceil(spec.fps) + 1, budget // frame))


class _StopRequest:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than until the request."""
        end = time.monotonic() + seconds
        while not self.requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, READ_TIMEOUT_S))


def run_camera(station: str, camera_name: str, camera: Camera, slots: int | None = None) -> None:
    """Publish frames until SIGTERM or SIGINT; call from a process's main thread.

    The ring is made at the first frame, since its meta says what the camera turned out to be.
    SharedMemoryError when another process already writes this camera's ring or there is no room.
    """
    stop = _StopRequest()
    output = _Output(station, camera_name, camera, slots)
    pause_s = FIRST_PAUSE_S
    try:
        while not stop.requested:
            before = output.frames
            try:
                camera.connect()
                log.info("camera %s: connected (serial %s)", camera_name, camera.meta.get("serial"))
                _stream(camera, output, stop)
            except DeviceError as error:
                if output.frames > before:
                    pause_s = FIRST_PAUSE_S
                log.warning("%s; trying again in %.2g s", error, pause_s)
                camera.disconnect()
                stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    finally:
        camera.disconnect()
        output.close()


def _stream(camera: Camera, output: _Output, stop: _StopRequest) -> None:
    """Frames into the ring until ``stop``; DeviceError when the camera is gone."""
    last = time.monotonic()
    silent = False
    while not stop.requested:
        frame = camera.read(READ_TIMEOUT_S)
        now = time.monotonic()
        if frame is None:
            if not silent and now - last > max(SILENCE_S, 5 / camera.spec.fps):
                silent = True
                log.warning("camera %s: no frame for %.1f s", camera.spec.name, now - last)
            continue
        output.publish(frame)
        if silent:
            log.warning("camera %s: frames again", camera.spec.name)
        silent, last = False, now


class _Output:
    """The ring of one camera, made when there is something to put into it."""

    def __init__(self, station: str, name: str, camera: Camera, slots: int | None) -> None:
        self._path = ring_path(station, "camera", name)
        self._camera = camera
        self._spec = camera.spec
        self._slots = slots or ring_slots(self._spec, self._path.parent)
        self._ring: RingWriter | None = None

    @property
    def frames(self) -> int:
        return self._ring.count if self._ring is not None else 0

    def publish(self, frame: Frame) -> None:
        spec = self._spec
        shape = (spec.height, spec.width, 3)
        if frame.image.shape != shape or (spec.depth and frame.depth is None):
            raise DeviceError(
                f"camera {spec.name}: got an image of shape {frame.image.shape} where {shape} "
                f"{'with depth ' if spec.depth else ''}was configured; correct width, height and "
                "depth in the station file"
            )
        if self._ring is None:
            self._ring = self._create()
        with self._ring.writing() as record:
            record["t_ns"] = frame.t_ns
            record["seq"] = frame.seq
            record["image"][...] = frame.image
            if spec.depth:
                record["depth"][...] = frame.depth

    def _create(self) -> RingWriter:
        spec = self._spec
        meta = {
            "name": spec.name,
            "width": spec.width,
            "height": spec.height,
            "fps": spec.fps,
            "depth": spec.depth,
            **self._camera.meta,
        }
        record = frame_record(spec.width, spec.height, depth=spec.depth)
        return RingWriter(self._path, record, self._slots, meta)

    def close(self) -> None:
        if self._ring is not None:
            self._ring.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server.control.camera_process",
        description="Publish one camera of a station. The supervisor starts this; by hand it is "
        "useful to try a camera without its robots.",
        epilog="example: python -m server.control.camera_process "
        "--station-file configs/aloha_virtual.yaml --camera cam_high",
    )
    parser.add_argument("--station-file", type=Path, required=True, help="the station's YAML file")
    parser.add_argument("--camera", required=True, help="a name under `cameras:` in that file")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        station = load_station(args.station_file)
        config = station.cameras.get(args.camera)
        if config is None:
            known = ", ".join(station.cameras) or "none"
            raise DeviceError(
                f"{args.station_file} has no camera {args.camera!r} (it has: {known})"
            )
        camera = load("camera", config.driver).from_config(config, station)
        run_camera(station.station, args.camera, camera)
    except RobotStackError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
