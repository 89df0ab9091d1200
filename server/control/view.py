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

from .orders import at_rest

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

    def at_rest(self) -> bool:
        """Whether it is measured at the sleep pose, where it does not fall without torque."""
        return at_rest(self.spec, self.tick()["q"])

    def order(
        self, kind: OrderKind, joints: Sequence[bool] = (), value: int = 0
    ) -> Generator[None, None, None]:
        """Give an order; yields until the arm process has carried it out.

        ControlPlaneError when it has not within 10 s; an order not begun by then never is.
        """
        self._seq += 1
        expires_ns = time.monotonic_ns() + int(ORDER_TIMEOUT_S * 1e9)
        record = np.zeros((), ORDER)
        record["expires_t_ns"] = expires_ns
        record["seq"], record["kind"], record["value"] = self._seq, int(kind), value
        record["mask"][: len(joints)] = joints
        self._orders.publish(record)
        seq = self._seq
        while True:
            tick = self.newest()
            # The clock after the tick: what expires there counts as done there, in a later tick.
            if time.monotonic_ns() > expires_ns:
                raise ControlPlaneError(
                    f"{self.name} did not carry out {kind.name} within {ORDER_TIMEOUT_S:g} s; see "
                    "`robot-stack status`"
                )
            if tick is not None and int(tick["order_done"]) >= seq:
                return
            yield

    def close(self) -> None:
        self._orders.close()
        if self._ring is not None:
            self._ring.close()
