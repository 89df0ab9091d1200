"""A Franka that is at once where it is sent, in the real arm process, on a clock of the test's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.arm import FrankaArm
from robot_stack import registry
from robot_stack.config import load_station
from robot_stack.errors import DeviceError
from robot_stack.records import command_record, mailbox_path
from robot_stack.shared_memory import RingWriter
from robot_stack.types import CommandMode, Lifecycle, RobotState, Source
from server.control import arm_process, orders, view
from server.control.arm_process import ArmProcess
from server.control.lease import LeaseTable

__all__ = ["DT_NS", "IdealFranka", "Rig", "rig"]

Array = NDArray[np.float64]

DT_NS = 5_000_000
DOF = 8
STATION = """
schema: 1
station: ideal
robots:
  arm:
    driver: ideal_franka
    falls: {falls}
    options: {{address: 127.0.0.9, model: {model}}}
    {workspace}
groups:
  arm: {{robots: [arm]}}
"""


class IdealFranka(FrankaArm):
    """The Franka driver's spec and kinematics on a robot without wires, mass or delay.

    ``fingers``: where its hand stands while it is halted, None for a hand that stands where it is
    sent. ``silent``: it does not answer.
    """

    fingers: float | None = None
    silent = False

    def connect(self) -> None:
        if self.silent:
            raise DeviceError("it does not answer")
        self.q = np.array(self.spec.home)
        self.powered = np.ones(DOF, dtype=bool)
        self._poses = self.inverse_kinematics()

    def disconnect(self) -> None:
        """Nothing is open."""

    def read(self, deadline_s: float) -> RobotState:
        if self.silent:
            raise DeviceError("it does not answer")
        return RobotState(
            t_ns=arm_process.time.monotonic_ns(),
            q=self.q,
            dq=np.zeros(DOF),
            tau=np.zeros(DOF),
            age_s=np.zeros(DOF),
            ee_pose=self._poses.pose(self.q),
        )

    def request(self) -> None:
        """The next state is there when it is read."""

    def write(self, target: Array) -> Array:
        self.q = target
        return target

    def halt(self) -> Array | None:
        if self.fingers is None:
            return None
        return np.append(np.full(DOF - 1, np.nan), self.fingers)

    def held(self) -> Array:
        return self.q

    def torque(self) -> NDArray[np.bool_]:
        return self.powered

    def set_torque(self, joints: Sequence[bool], on: bool) -> None:
        self.powered = np.where(joints, on, self.powered)

    def faults(self) -> str | None:
        return None


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_ns = time.monotonic_ns()

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9


class Rig:
    """One armed arm process, turn by turn, and the mailbox of the client that moves it."""

    def __init__(
        self, directory: Path, clock: Clock, model: str, workspace: str, *, falls: bool
    ) -> None:
        self.clock = clock
        file = directory / "station.yaml"
        text = STATION.format(model=model, workspace=workspace, falls=str(falls).lower())
        file.write_text(text)
        self.arm = ArmProcess(load_station(file), "arm")
        self.spec = self.arm.spec
        self.kinematics = self.arm.robot.inverse_kinematics()  # type: ignore[attr-defined]
        self._table = LeaseTable("ideal", ["arm"])
        self._lease = self._table.acquire("arm", "test", Source.HUMAN, 60.0)
        self._mailbox = RingWriter(
            mailbox_path("ideal", "arm", self._lease.token), command_record(DOF), 8
        )
        self._seq = 0
        self.turn()
        assert self.arm.lifecycle is Lifecycle.DISARMED
        self.arm.lifecycle = Lifecycle.ARMED

    def close(self) -> None:
        self._mailbox.close()
        self._table.close()
        self.arm.stop.close()
        self.arm._ring.close()

    @property
    def sent(self) -> Array:
        return self.arm.sent

    @property
    def pose(self) -> Array:
        """Of what was sent."""
        return self.kinematics.pose(self.arm.sent)

    def send(
        self,
        rows: Any,
        mode: int = CommandMode.EE_POSE,
        *,
        start_ns: int = 0,
        dt_ns: int = 0,
        chunk_id: int = -1,
    ) -> None:
        rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
        with self._mailbox.writing() as record:
            record["token"] = self._lease.token
            record["seq"] = self._seq
            record["t_ns"] = self.clock.now_ns
            record["source"] = Source.HUMAN
            record["mode"] = mode
            record["rows"] = len(rows)
            record["start_t_ns"] = start_ns
            record["dt_ns"] = dt_ns
            record["observation_t_ns"] = -1
            record["chunk_id"] = chunk_id
            record["target"][: len(rows)] = rows
        self._seq += 1

    def turn(self) -> Any:
        """One turn, 5 ms after the last; returns its tick."""
        self.clock.now_ns += DT_NS
        difference, distance = self.arm.turn()
        self.arm._publish(difference, distance, 0, 0, self.clock.now_ns)
        return self.arm._record[0].copy()


@contextmanager
def rig(
    directory: Path, *, model: str = "fr3", workspace: str = "", falls: bool = False
) -> Iterator[Rig]:
    """An armed FR3 or FER; ``workspace`` is a line of its station file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBOT_STACK_RUNTIME", str(directory))
        patch.setitem(registry.REGISTRY["robot"], "ideal_franka", f"{__name__}:IdealFranka")
        clock = Clock()
        for module in (arm_process, orders, view):
            patch.setattr(module, "time", clock)
        made = Rig(directory, clock, model, workspace, falls=falls)
        try:
            yield made
        finally:
            made.close()
