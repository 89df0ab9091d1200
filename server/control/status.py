"""What the control plane tells of a station: ``describe`` (what it is), ``status`` (how it is)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from robot_stack import __version__
from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Difference, Lifecycle

from .children import Child
from .view import ArmView

if TYPE_CHECKING:
    from .control_plane import ControlPlane

__all__ = ["describe", "status"]


def describe(plane: ControlPlane) -> dict[str, Any]:
    """Groups, robots, cameras and rates, as the station file and the drivers say."""
    station = plane.station
    return {
        "station": station.station,
        "version": __version__,
        "file": station.path,
        "rate_hz": station.rate_hz,
        "task": station.task,
        "groups": {
            key: {"robots": list(group.robots), "dof": plane.dof(key)}
            for key, group in station.groups.items()
        },
        "robots": {
            key: {
                "embodiment": robot.spec.embodiment,
                "joints": list(robot.spec.names),
                "units": [joint.unit for joint in robot.spec.joints],
            }
            for key, robot in plane.robots.items()
        },
        "cameras": {
            key: {"width": c.width, "height": c.height, "fps": c.fps}
            for key, c in station.cameras.items()
        },
    }


def status(plane: ControlPlane, children: Mapping[str, Child]) -> dict[str, Any]:
    """Lifecycle, fault, rate and process of everything that runs, and who holds the leases."""
    return {
        "station": plane.station.station,
        "groups": {key: _group(plane, key) for key in plane.station.groups},
        "robots": {key: _robot(arm) for key, arm in plane.arms.items()},
        "cameras": {key: _camera(plane.station.station, key) for key in plane.station.cameras},
        "processes": {
            key: {"pid": child.pid, "alive": child.alive(), "restarts": child.restarts}
            for key, child in children.items()
        },
    }


def _group(plane: ControlPlane, group: str) -> dict[str, Any]:
    lease, stop = plane.leases.holder(group), plane.stops[group]
    return {
        "holder": None if lease is None else lease.holder,
        "token": -1 if lease is None else lease.token,
        "stop": stop.reason if stop.value else None,
    }


def _robot(arm: ArmView) -> dict[str, Any]:
    tick = arm.newest()
    if tick is None:
        return {"lifecycle": "starting", "fault": "", "rate_hz": 0.0}
    return {
        "lifecycle": Lifecycle(int(tick["lifecycle"])).name.lower(),
        "fault": tick["fault"].decode(errors="replace"),
        "notice": tick["notice"].decode(errors="replace"),
        "rate_hz": float(arm.ring.meta["rate_hz"]),
        "age_s": (time.monotonic_ns() - int(tick["t_ns"])) / 1e9,
        "torque": bool(tick["torque"].all()),
        "q": [float(v) if np.isfinite(v) else None for v in tick["q"]],
        "difference": [
            flag.name.lower()
            for flag in Difference
            if flag & int(tick["difference"]) and flag.name is not None
        ],
        "distance": _known(tick["distance"]),
        "success_rate": _known(tick["success_rate"]),
        "target_age_s": _known(tick["target_age_s"]),
        "overruns": int(tick["overruns"]),
        "retries": int(tick["retries"]),
    }


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _camera(station: str, name: str) -> dict[str, Any]:
    try:
        with Ring(ring_path(station, "camera", name)) as ring:
            index = ring.count - 1
            record = ring.view(index) if index >= 0 else None
            if record is None:
                return {"frames": 0, "age_s": None}
            age_s = (time.monotonic_ns() - int(record["t_ns"])) / 1e9
            return {"frames": index + 1, "age_s": age_s}
    except SharedMemoryError:
        return {"frames": 0, "age_s": None}
