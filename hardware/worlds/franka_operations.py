"""What can be asked of a Franka world: one function an operation, its arguments a dataclass."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hardware.franka.virtual.operations import apply_fault as apply_arm_fault
from hardware.franka.virtual.operations import status as arm_status
from hardware.worlds.command_server import apply_fault as apply_bus_fault
from hardware.worlds.scripted import SEED, Nothing, Operation, Request
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError

if TYPE_CHECKING:
    from hardware.worlds.franka_process import FrankaWorld

__all__ = ["operations"]


@dataclass(frozen=True)
class _Script:
    name: Literal["pick_place"] = "pick_place"
    hand: Literal["twists", "gello"] = "twists"
    seed: int = within(0, SEED, default=0)
    noise: float = within(0.0, 2.0, default=1.0)


def operations(world: FrankaWorld) -> dict[str, Operation]:
    """Every operation by name; each raises ConfigError for arguments that it does not like."""

    def status(request: Request) -> Request:
        parse(Nothing, request, "status")
        return {
            "pid": os.getpid(),
            **world.status(),
            "robots": {world.config.robot: arm_status(world.arm)},
        }

    def script(request: Request) -> Request:
        args = parse(_Script, request, "script")
        world.start_script(args.name, args.hand, args.seed, args.noise)
        return world.script_status()

    def release(request: Request) -> Request:
        parse(Nothing, request, "release")
        world.stop_script()
        return {}

    def fault(request: Request) -> Request:
        arguments = dict(request)
        robot, kind = arguments.pop("robot", world.config.robot), str(arguments.pop("kind", ""))
        if robot == world.config.robot:
            apply_arm_fault(world.arm, kind, arguments)
        elif world.gello is not None and robot == world.gello.name:
            apply_bus_fault(world.gello.bus, kind, arguments)
        else:
            known = [world.config.robot, *([] if world.gello is None else [world.gello.name])]
            raise ConfigError(f"nothing is called {robot!r} (there: {', '.join(known)})")
        return {}

    known = (status, script, release, fault)
    return world.operations() | {operation.__name__: operation for operation in known}
