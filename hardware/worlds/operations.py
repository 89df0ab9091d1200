"""What can be asked of an ALOHA world: one function an operation, its arguments a dataclass."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hardware.aloha.gripper import GripperCalibration
from hardware.dynamixel.log import LogRows
from hardware.worlds.command_server import apply_fault
from hardware.worlds.scripted import SEED, Nothing, Operation, Request
from robot_stack.config import parse, within
from robot_stack.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from hardware.worlds.world_process import World

__all__ = ["operations"]

# A whole log would hold the buses up for many milliseconds in one answer.
LOG_ROWS = 1000


@dataclass(frozen=True)
class _Hand:
    robot: str
    joints: tuple[float, ...] | None = None
    gripper: float | None = within(0.0, 1.0, default=None)
    at_once: bool = False


@dataclass(frozen=True)
class _Release:
    robot: str | None = None


@dataclass(frozen=True)
class _Script:
    name: Literal["transfer_cube"] = "transfer_cube"
    seed: int = within(0, SEED, default=0)
    noise: float = within(0.0, 2.0, default=1.0)
    ritual: bool = True


@dataclass(frozen=True)
class _Log:
    robot: str
    since: int = within(0, 2**62, default=0)


def operations(world: World) -> dict[str, Operation]:
    """Every operation by name; each raises ConfigError for arguments that it does not like."""

    def status(request: Request) -> Request:
        parse(Nothing, request, "status")
        plant = world.plant
        robots = {}
        for name, arm in world.arms.items():
            joints = arm.bus.positions_rad()[arm.master_rows]
            active = arm.bus.bank.active[arm.master_rows]
            robots[name] = {
                "model": arm.robot.model,
                "side": arm.robot.side,
                "role": "follower" if arm.follower else "leader",
                "port": arm.bus.port or None,
                "joints": joints.round(4).tolist(),
                "gripper": round(_opening(arm.gripper, float(joints[-1])), 4),
                "torque": active.tolist(),
                "held": not arm.follower and world.hands.held(world.leader(name)),
                "packets": arm.bus.packets,
                "dropped": arm.bus.faults.dropped,
                "corrupted": arm.bus.faults.corrupted,
            }
        return {
            "station": world.config.station,
            "pid": os.getpid(),
            "t_ns": time.monotonic_ns(),
            "seed": plant.seed,
            "reward": plant.reward(),
            "success": plant.success,
            "env_state": plant.env_state.round(5).tolist(),
            "robots": robots,
            "script": world.script_status(),
            **world.pace(),
        }

    def hand(request: Request) -> Request:
        args = parse(_Hand, request, "hand")
        arm = world.leader(args.robot)
        if args.joints is not None and len(args.joints) != 6:
            raise ConfigError(
                f"hand.joints: 6 arm joints in rad are needed, not {len(args.joints)}"
            )
        if world.script_runs:
            raise DeviceError(
                "the scripted operator has its hands on the leaders; send `release` first"
            )
        joints = None if args.joints is None else np.array(args.joints)
        world.hands.move(arm, joints, args.gripper, at_once=args.at_once)
        return {}

    def release(request: Request) -> Request:
        args = parse(_Release, request, "release")
        world.stop_script()
        names = world.leader_names if args.robot is None else [args.robot]
        for arm in [world.leader(name) for name in names]:
            world.hands.release(arm)
        return {}

    def script(request: Request) -> Request:
        args = parse(_Script, request, "script")
        world.start_script(args.name, args.seed, args.noise, ritual=args.ritual)
        return world.script_status()

    def fault(request: Request) -> Request:
        arguments = dict(request)
        robot, kind = arguments.pop("robot", None), arguments.pop("kind", None)
        if not isinstance(robot, str) or not isinstance(kind, str):
            raise ConfigError('fault: "robot" and "kind" are needed, both texts')
        apply_fault(world.arm(robot).bus, kind, arguments)
        return {}

    def goal_log(request: Request) -> Request:
        args = parse(_Log, request, "goal_log")
        return _rows(world.arm(args.robot).bus.goal_log(args.since), args.since)

    def sample_log(request: Request) -> Request:
        args = parse(_Log, request, "sample_log")
        return _rows(world.arm(args.robot).bus.sample_log(args.since), args.since)

    known = (status, hand, release, script, fault, goal_log, sample_log)
    return world.operations() | {operation.__name__: operation for operation in known}


def _opening(gripper: GripperCalibration, joint: float) -> float:
    return (joint - gripper.joint_closed) / (gripper.joint_open - gripper.joint_closed)


def _rows(rows: LogRows, since: int) -> dict[str, Any]:
    """At most LOG_ROWS rows as columns; ``next`` is the ``since`` of the call that goes on."""
    columns = {
        name: getattr(rows, name)[:LOG_ROWS].tolist()
        for name in ("seq", "t_ns", "servo_id", "value", "kind")
    }
    seq = columns["seq"]
    return {**columns, "next": seq[-1] + 1 if seq else since}
