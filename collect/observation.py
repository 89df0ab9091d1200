"""What a policy sees of a station: states and frames out of shared memory, by capture time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collect.resize import resize
from robot_stack import registry
from robot_stack.client import StationClient
from robot_stack.config import GroupConfig, Station
from robot_stack.contract import CameraInput, Feature, PolicyContract, Unit
from robot_stack.errors import DeviceError, SharedMemoryError
from robot_stack.policy_client import PolicyObservation
from robot_stack.shared_memory import Ring
from robot_stack.spec import RobotSpec

__all__ = ["ObservationReader", "offered_contract"]

STALE_S = 0.3  # of the newest state
FRAME_PERIODS = 4.0  # a frame older than this many periods of its camera is stale

VALUES: dict[str, Callable[[Any], Any]] = {
    "arm": lambda tick: tick["q"].copy(),
    "world": lambda record: record["env_state"].copy(),
}


def group_specs(station: Station, group: GroupConfig) -> dict[str, RobotSpec]:
    """The specs of a group's robots, in the order of its commands."""
    return {
        name: registry.load("robot", station.robots[name].driver)
        .from_config(station.robots[name], station)
        .spec
        for name in group.robots
    }


def offered_contract(
    station: Station, group: GroupConfig, policy: PolicyContract, env_dim: int = 0
) -> PolicyContract:
    """What the station has for a policy: its own action joints, and of the policy's state and
    cameras those that exist here, to be compared by ``PolicyContract.differences``."""
    specs = group_specs(station, group)
    joints: dict[str, Unit] = {
        f"{name}/{joint.name}": joint.unit for name, spec in specs.items() for joint in spec.joints
    }
    known = joints.copy()
    for i in range(env_dim):
        known[f"env/{i}"] = "1"
    return dataclasses.replace(
        policy,
        embodiment="+".join(dict.fromkeys(spec.embodiment for spec in specs.values())),
        state=tuple(Feature(f.name, known[f.name]) for f in policy.state if f.name in known),
        action=tuple(Feature(name, unit) for name, unit in joints.items()),
        cameras=tuple(
            CameraInput(camera.name, camera.height, camera.width)
            for camera in policy.cameras
            if camera.name in station.cameras
        ),
        control_dt_ns=round(1e9 / station.rate_hz),
    )


class ObservationReader:
    """Reads the observations that a contract asks for.

    The newest observation stands at the newest time for which the state of every robot (those of
    the state and those that move) is known;
    the others stand ``control_dt_ns`` before one another. Each holds what had been captured by its
    time: the last state and the last frame before it, as the rows of an episode do.
    """

    def __init__(self, client: StationClient, station: Station, contract: PolicyContract) -> None:
        self.client = client
        self.contract = contract
        self._fps = {c.name: station.cameras[c.name].fps for c in contract.cameras}
        self._columns: list[tuple[str, str, int]] = []  # ring kind, ring name, column
        for feature in contract.state:
            owner, _, item = feature.name.partition("/")
            if owner == "env":
                self._columns.append(("world", "world", int(item)))
            else:
                config = station.robots[owner]
                spec = registry.load("robot", config.driver).from_config(config, station).spec
                self._columns.append(("arm", owner, spec.names.index(item)))
        self._sources = list(dict.fromkeys((kind, name) for kind, name, _ in self._columns))
        arms = dict.fromkeys(feature.name.partition("/")[0] for feature in contract.action)
        self._clocks = list(dict.fromkeys([*self._sources, *(("arm", name) for name in arms)]))

    def read(self, now_ns: int) -> PolicyObservation:
        """The newest observation. DeviceError names a robot, world or camera that is silent, and a
        robot whose joints are unknown, as they are while its connection is lost."""
        newest = {source: self._newest_ns(*source) for source in self._clocks}
        t_ns = min(newest.values())
        if now_ns - t_ns > STALE_S * 1e9:
            kind, name = min(newest, key=lambda source: newest[source])
            raise DeviceError(
                f"{name} ({kind}) has been silent for {(now_ns - t_ns) / 1e9:.2f} s; see "
                "`robot-stack status`"
            )
        count, dt_ns = self.contract.observations, self.contract.control_dt_ns
        times = [t_ns - dt_ns * (count - 1 - i) for i in range(count)]
        return PolicyObservation(
            t_ns=np.array(times, np.int64),
            state=np.stack([self._state(t) for t in times]),
            images={
                camera.name: np.stack([self._image(camera, t) for t in times])
                for camera in self.contract.cameras
            },
        )

    def _newest_ns(self, kind: str, name: str) -> int:
        latest = self.client.ring(kind, name).latest()
        if latest is None:
            raise DeviceError(f"{name} ({kind}) has sent nothing yet; see `robot-stack status`")
        return int(latest[1]["t_ns"])

    def _state(self, t_ns: int) -> NDArray[np.float32]:
        records = {
            (kind, name): self._last_until(self.client.ring(kind, name), t_ns, VALUES[kind])
            for kind, name in self._sources
        }
        for kind, name in self._sources:
            if kind == "arm" and not np.isfinite(records[kind, name]).all():
                raise DeviceError(
                    f"{name} does not say where its joints are; see `robot-stack status`"
                )
        return np.array([records[k, n][column] for k, n, column in self._columns], np.float32)

    def _image(self, camera: CameraInput, t_ns: int) -> NDArray[np.uint8]:
        ring = self.client.ring("camera", camera.name)

        def resized(view: Any) -> tuple[int, NDArray[np.uint8]]:
            image = resize(view["image"], camera.height, camera.width)
            return int(view["t_ns"]), np.array(image)  # the ring's own pixels don't stay

        image: NDArray[np.uint8]
        taken_ns, image = self._last_until(ring, t_ns, resized)
        if t_ns - taken_ns > max(STALE_S, FRAME_PERIODS / self._fps[camera.name]) * 1e9:
            raise DeviceError(
                f"camera {camera.name} has shown no frame for {(t_ns - taken_ns) / 1e9:.2f} s; see "
                "`robot-stack status`"
            )
        return image

    @staticmethod
    def _last_until(ring: Ring, t_ns: int, take: Callable[[Any], Any]) -> Any:
        """``take`` of the last record captured at or before ``t_ns``; of the oldest there is when
        all are newer (a station that has just begun)."""
        for index in range(ring.count - 1, max(ring.count - ring.slots, -1), -1):
            view = ring.view(index)
            if view is None:
                break
            if int(view["t_ns"]) > t_ns and index > 0:
                continue
            taken = take(view)
            if ring.intact(index):
                return taken
            break
        raise SharedMemoryError(f"{ring.path}: nothing that was captured by then is left to read")
