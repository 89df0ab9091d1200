"""Doctor's checks of cameras: which are plugged in, and whether the station's give a frame.

A camera whose process runs is left alone; its ring tells how it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from robot_stack import registry
from robot_stack.config import CameraConfig, Station
from robot_stack.doctor import Check
from robot_stack.errors import ConfigError, RobotStackError, SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring

__all__ = ["checks"]

FIRST_FRAME_S = 6.0
ALIVE_NS = 2_000_000_000
VIDEO = Path("/sys/class/video4linux")


def checks(station: Station | None) -> Iterator[Check]:
    """One row a camera; without a station those that are plugged in."""
    if station is None:
        yield from _plugged_in()
        return
    for name, camera in station.cameras.items():
        yield _running(name, station) or _frame(name, camera, station)


def _plugged_in() -> Iterator[Check]:
    """V4L2 nodes by name, RealSense cameras among them, and whether they may be opened."""
    for entry in sorted(VIDEO.glob("video*")):
        node = f"/dev/{entry.name}"
        found = f"{(entry / 'name').read_text().strip()} at {node}"
        if os.access(node, os.R_OK | os.W_OK):
            yield Check(f"camera {entry.name}", "ok", found)
        else:
            mend = "sudo usermod -aG video $USER; then log in again"
            yield Check(f"camera {entry.name}", "fail", f"no right to use {found}", mend)


def _running(name: str, station: Station) -> Check | None:
    try:
        with Ring(ring_path(station.station, "camera", name)) as ring:
            index, closed = ring.count - 1, ring.closed
            view = ring.view(index) if index >= 0 else None
            age_ns = time.monotonic_ns() - int(view["t_ns"]) if view is not None else ALIVE_NS
    except SharedMemoryError:
        return None
    if closed or age_ns >= ALIVE_NS:
        return None
    return Check(f"camera {name}", "ok", f"its process runs, {index + 1} frames so far")


def _frame(name: str, config: CameraConfig, station: Station) -> Check:
    try:
        camera = registry.load("camera", config.driver).from_config(config, station)
        with camera:
            deadline = time.monotonic() + FIRST_FRAME_S
            while time.monotonic() < deadline:
                frame = camera.read(FIRST_FRAME_S)
                if frame is not None:
                    height, width = frame.image.shape[:2]
                    return Check(f"camera {name}", "ok", f"a frame of {width}x{height}")
    except ConfigError as error:
        return Check(f"camera {name}", "fail", str(error), "mend the station file")
    except RobotStackError as error:
        mend = "check the cable, and `robot-stack doctor` without a station for what is plugged in"
        if config.driver == "simulated":
            mend = f"robot-stack virtual {station.path}"
        return Check(f"camera {name}", "fail", str(error), mend)
    found = f"opened, but no frame came within {FIRST_FRAME_S:g} s"
    return Check(f"camera {name}", "fail", found, "unplug it and plug it in again; use USB 3")
