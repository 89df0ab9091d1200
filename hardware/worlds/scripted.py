"""What every world of a virtual station has: its ring, its control socket, its scripted operator,
and what it knows of its own pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from hardware.worlds.command_server import WorldServer
from hardware.worlds.control import socket_path
from robot_stack.config import parse, within
from robot_stack.errors import RobotStackError
from robot_stack.records import world_path, world_record
from robot_stack.shared_memory import RingWriter

__all__ = ["SEED", "Nothing", "Operation", "Plant", "Request", "Reset", "Script", "ScriptedWorld"]

Request = Mapping[str, Any]
Operation = Callable[[Request], Mapping[str, Any]]

RING_SLOTS = 256
SEED = 2**31 - 1


@dataclass(frozen=True)
class Nothing:
    """An operation without arguments."""


@dataclass(frozen=True)
class Reset:
    """Where things are put."""

    seed: int = within(0, SEED)


class Plant(Protocol):
    """The physics with their task."""

    data: mujoco.MjData
    seed: int

    @property
    def env_state(self) -> NDArray[np.float64]: ...

    @property
    def success(self) -> bool: ...

    def reward(self) -> float: ...


class Script(Protocol):
    """A scripted operator."""

    phase: Any

    @property
    def action(self) -> str: ...

    @property
    def done(self) -> bool: ...

    def cancel(self) -> None: ...


class ScriptedWorld:
    """The common part of a world. Made first of all: its ring's lock refuses a second world of the
    station before that touches the first one's ports."""

    plant: Plant
    script: Script | None

    def __init__(self, station: str, scene: str, seed: int, nq: int, env_dim: int) -> None:
        self.station = station
        self._ring = RingWriter(
            world_path(station),
            world_record(nq, env_dim),
            RING_SLOTS,
            {"scene": scene, "seed": seed},
        )
        self._server: WorldServer | None = None
        self.script = None
        self.script_name = ""
        self.script_error = ""
        self.ended = False
        self.turns = 0
        self.busy_s = 0.0
        self.slowest_turn_s = 0.0
        self.longest_gap_s = 0.0

    def open(self, operations: Mapping[str, Operation]) -> None:
        """Publish for the first time, and listen."""
        self._server = WorldServer(socket_path(self.station), operations)
        self.publish()

    def answer(self) -> None:
        """Serve the control socket; never waits."""
        assert self._server is not None
        self._server.poll()

    def publish(self) -> None:
        """The state as it is now, for cameras and the recorder."""
        plant = self.plant
        self._ring.publish(
            (
                time.monotonic_ns(),
                plant.data.qpos,
                plant.env_state,
                float(plant.reward()),
                int(plant.success),
            )
        )

    def took(self, begun: float, dt: float) -> None:
        """A turn that began at ``begun`` (time.perf_counter), ``dt`` s after the one before, is
        over."""
        took = time.perf_counter() - begun
        self.busy_s += took
        self.slowest_turn_s = max(self.slowest_turn_s, took)
        self.longest_gap_s = max(self.longest_gap_s, dt)

    @property
    def script_runs(self) -> bool:
        return self.script is not None and not self.script.done

    def stop_script(self) -> None:
        """The scripted operator lets go."""
        if self.script is not None and self.script_runs:
            self.script.cancel()

    def run_script(self, update: Callable[[], None]) -> None:
        """Let the operator do its next bit; what it complains of ends its work."""
        if self.script is None or self.script.done:
            return
        try:
            update()
        except RobotStackError as error:
            self.script_error = str(error)
            self.script.cancel()

    def script_status(self) -> dict[str, Any]:
        """How far the scripted operator is."""
        script = self.script
        return {
            "name": self.script_name,
            "phase": script.phase.value if script is not None else "idle",
            "action": script.action if script is not None else "",
            "done": script is None or script.done,
            "error": self.script_error or None,
            "success": self.plant.success,
        }

    def pace(self) -> dict[str, Any]:
        """How the process keeps up."""
        return {
            "turns": self.turns,
            "busy_s": round(self.busy_s, 3),
            "slowest_turn_ms": round(1e3 * self.slowest_turn_s, 2),
            "longest_gap_ms": round(1e3 * self.longest_gap_s, 2),
            "cpu_s": round(time.process_time(), 3),
        }

    def reset(self, seed: int) -> None:
        """Put everything but the robot where ``seed`` says."""
        raise NotImplementedError

    def operations(self) -> dict[str, Operation]:
        """What can be asked of every world: reset, script_status, shutdown."""

        def reset(request: Request) -> Request:
            self.reset(parse(Reset, request, "reset").seed)
            return {"env_state": self.plant.env_state.round(5).tolist()}

        def script_status(request: Request) -> Request:
            parse(Nothing, request, "script_status")
            return self.script_status()

        def shutdown(request: Request) -> Request:
            parse(Nothing, request, "shutdown")
            self.ended = True
            return {}

        known = (reset, script_status, shutdown)
        return {operation.__name__: operation for operation in known}

    def close(self) -> None:
        """Remove socket and ring."""
        if self._server is not None:
            self._server.close()
        self._ring.close(unlink=True)
