"""What can be asked of a running virtual arm beside its wire: faults, pushes, how it is doing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hardware.franka.fci import ERROR_INDEX
from hardware.franka.kinematics import HOME
from hardware.franka.virtual.server import VirtualArm
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError

__all__ = ["FAULTS", "apply_fault", "operations", "status"]

Request = Mapping[str, Any]
Operation = Callable[[Request], Mapping[str, Any]]


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Rate:
    rate: float = within(0.0, 1.0)


@dataclass(frozen=True)
class _Count:
    count: int = within(1, 1000)


@dataclass(frozen=True)
class _Milliseconds:
    ms: int = within(0, 10_000, "ms")


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass(frozen=True)
class _Active:
    active: bool = True


@dataclass(frozen=True)
class _Version:
    number: int = within(0, 65535)


@dataclass(frozen=True)
class _Push:
    wrench: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Reset:
    q: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Seed:
    seed: int = within(0, 2**31 - 1)


def _set(name: str, field: str) -> Callable[[VirtualArm, Any], None]:
    def apply(arm: VirtualArm, arguments: Any) -> None:
        setattr(arm.faults, name, getattr(arguments, field))

    return apply


def _reflex(arm: VirtualArm, arguments: _Name) -> None:
    if arguments.name not in ERROR_INDEX:
        raise ConfigError(
            f"no Franka raises {arguments.name!r} (known: {', '.join(sorted(ERROR_INDEX))})"
        )
    arm.motion.reflex((arguments.name,))


def _push(arm: VirtualArm, arguments: _Push) -> None:
    if len(arguments.wrench) not in (0, 6):
        raise ConfigError("a push is a wrench of six numbers (N, Nm, base frame), or none")
    arm.body.push(arguments.wrench or None)


def _crash(arm: VirtualArm, _: _Nothing) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class _Fault:
    arguments: type
    apply: Callable[[VirtualArm, Any], None]


FAULTS: Mapping[str, _Fault] = {
    "lost_commands": _Fault(_Rate, _set("lost_commands", "rate")),
    "lost_states": _Fault(_Rate, _set("lost_states", "rate")),
    "lose_next": _Fault(_Count, _set("lose_next", "count")),
    "delay": _Fault(_Milliseconds, _set("delay_ms", "ms")),
    "jitter": _Fault(_Milliseconds, _set("jitter_ms", "ms")),
    "stall": _Fault(_Milliseconds, lambda arm, a: arm.faults.stall(arm.milliseconds, a.ms)),
    "reflex": _Fault(_Name, _reflex),
    "user_stop": _Fault(_Active, lambda arm, a: arm.motion.user_stop(a.active)),
    "guide": _Fault(_Active, lambda arm, a: arm.motion.guide(a.active)),
    "push": _Fault(_Push, _push),
    "version": _Fault(_Version, _set("version", "number")),
    "half_close": _Fault(_Nothing, lambda arm, _: arm.half_close()),
    "crash": _Fault(_Nothing, _crash),
    "gripper_hang": _Fault(_Active, _set("gripper_hangs", "active")),
    "seed": _Fault(_Seed, lambda arm, a: arm.faults.reseed(a.seed)),
    "calm": _Fault(_Nothing, lambda arm, _: arm.faults.calm()),
}


def apply_fault(arm: VirtualArm, kind: str, arguments: Request) -> None:
    """Do one of ``FAULTS`` to an arm; ConfigError for an unknown kind or a bad argument."""
    fault = FAULTS.get(kind)
    if fault is None:
        raise ConfigError(f"no fault is called {kind!r} (known: {', '.join(FAULTS)})")
    fault.apply(arm, parse(fault.arguments, arguments, kind))


def status(arm: VirtualArm) -> dict[str, Any]:
    """How an arm is doing, as JSON."""
    motion = arm.motion
    return {
        "address": arm.address,
        "server_version": arm.version,
        "connected": arm.connected,
        "mode": motion.mode.name.lower(),
        "moving": motion.moving,
        "errors": list(motion.errors),
        "milliseconds": arm.milliseconds,
        "lost": motion.lost,
        "success_rate": motion.state.success_rate,
        "q": arm.body.q.tolist(),
        "dq": arm.body.dq.tolist(),
        "finger_width": arm.body.finger_width,
        "grasped": arm.gripper.grasped,
        "skipped_ms": arm.clock.skipped_ns // 1_000_000,
        "longest_gap_ms": arm.clock.longest_gap_ns / 1e6,
    }


def operations(arm: VirtualArm) -> dict[str, Operation]:
    """Operations of one arm by name: `status`; `fault` with its `kind` and arguments; `reset`
    (as switched off and on again, at home or at `q`)."""

    def fault(request: Request) -> Request:
        arguments = dict(request)
        apply_fault(arm, str(arguments.pop("kind", "")), arguments)
        return {}

    def tell(request: Request) -> Request:
        parse(_Nothing, request, "status")
        return status(arm)

    def reset(request: Request) -> Request:
        arguments = parse(_Reset, request, "reset")
        if len(arguments.q) not in (0, 7):
            raise ConfigError("reset: q has seven angles (rad), or is left out")
        arm.reset(arguments.q or HOME)
        return {}

    return {"status": tell, "fault": fault, "reset": reset}
