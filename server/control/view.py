"""The supervisor's view of one arm process: its ticks, and the orders it is given."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from robot_stack.config import RobotConfig
from robot_stack.errors import ControlPlaneError, SharedMemoryError
from robot_stack.records import ORDER, OrderKind, orders_path, ring_path
from robot_stack.shared_memory import Ring, RingWriter
from robot_stack.spec import RobotSpec
from robot_stack.types import Lifecycle

__all__ = ["ArmView"]

ORDER_TIMEOUT_S = 10.0


class ArmView:
    """Reads ``arm.<name>`` and writes ``orders.<name>``."""

    def __init__(self, station: str, config: RobotConfig, spec: RobotSpec) -> None:
        self.station = station
        self.name = config.name
        self.config = config
        self.spec = spec
        self._orders = RingWriter(orders_path(station, self.name), ORDER, 32)
        self._ring: Ring | None = None
        self._seq = time.monotonic_ns()  # grows across restarts of the supervisor

    @property
    def ring(self) -> Ring:
        if self._ring is None:
            self._ring = Ring(ring_path(self.station, "arm", self.name))
        elif self._ring.closed:
            self._ring.reopen()
        return self._ring

    def newest(self) -> Any | None:
        """The newest tick, None while the arm process has not run one."""
        try:
            latest = self.ring.latest()
        except SharedMemoryError:
            return None
        return None if latest is None else latest[1]

    def tick(self) -> Any:
        """The newest tick; ControlPlaneError while there is none."""
        tick = self.newest()
        if tick is None:
            raise ControlPlaneError(f"{self.name} has not started yet; see `robot-stack status`")
        return tick

    def trouble(self, tick: Any) -> str:
        return (
            tick["fault"].decode(errors="replace") or "stopped, reset it with `robot-stack reset`"
        )

    def ready(self) -> bool:
        tick = self.newest()
        return tick is not None and tick["lifecycle"] != Lifecycle.STARTING

    def at_pose(self, pose: Sequence[float], tolerance: float) -> bool:
        """Whether all arm joints (not grippers) are measured within ``tolerance`` of a pose."""
        q = self.tick()["q"]
        return all(
            abs(q[i] - pose[i]) < tolerance
            for i, joint in enumerate(self.spec.joints)
            if joint.unit != "fraction"
        )

    def order(
        self, kind: OrderKind, joints: Sequence[bool] = (), value: int = 0
    ) -> Generator[None, None, None]:
        """Give an order; yields until the arm process has carried it out."""
        self._seq += 1
        record = np.zeros((), ORDER)
        record["seq"], record["kind"], record["value"] = self._seq, int(kind), value
        record["mask"][: len(joints)] = joints
        self._orders.publish(record)
        deadline = time.monotonic() + ORDER_TIMEOUT_S
        while True:
            tick = self.newest()
            if tick is not None and int(tick["order_done"]) >= self._seq:
                return
            if time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"{self.name} did not carry out {kind.name} within {ORDER_TIMEOUT_S:g} s; see "
                    "`robot-stack status`"
                )
            yield

    def close(self) -> None:
        self._orders.close()
        if self._ring is not None:
            self._ring.close()
