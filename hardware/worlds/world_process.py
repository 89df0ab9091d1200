"""The world behind a virtual ALOHA station: one process with physics, four servo buses and hands.

It stands for everything beyond the serial ports, so it is never under the supervisor: killing it
is pulling the plug of the robot. One thread, one event loop: the buses answer as their packets
arrive, and every 2 ms the physics, the hands and the control socket get their turn.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware.aloha.gripper import GripperCalibration
from hardware.aloha.rig import BAUD, GRIPPERS, ArmModel, arm_model
from hardware.aloha.virtual import bus_description
from hardware.dynamixel.control_table import CENTER_TICKS, CURRENT_UNIT_MA, RAD_PER_TICK
from hardware.dynamixel.process import build
from hardware.dynamixel.process import run as serve_buses
from hardware.dynamixel.virtual import VirtualBus
from hardware.worlds.aloha import CLOSED, SIDES, TIMESTEP_S, AlohaTransferCube
from hardware.worlds.aloha_servos import ARM_DRIVES, GRIPPER_DRIVE
from hardware.worlds.inverse_kinematics import both_arms
from hardware.worlds.leaders import LeaderHands
from hardware.worlds.operations import operations
from hardware.worlds.operator import ScriptedOperator
from hardware.worlds.scripted import ScriptedWorld
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError, DeviceError, RobotStackError
from robot_stack.realtime import setup
from robot_stack.shared_memory import runtime_dir

__all__ = ["World", "WorldConfig", "WorldRobot", "main", "tty_path", "world_config"]

STEP_HZ = 1.0 / TIMESTEP_S
MOST_STEPS = 25  # physics steps at one turn: after a longer hiccup time is lost, not made up
PUBLISH_EVERY, HANDS_EVERY = 5, 2  # turns: 100 Hz and 250 Hz
# The servo's current loop settles a little under its limit, so gripping alone is no overload.
CURRENT_HEADROOM = 0.95
FACTORY_P_GAIN = 800.0
WORLD_PRIORITY = 60

Array = NDArray[np.float64]

STALL_MA = 1000.0 * np.array([*(d.stall_current for d in ARM_DRIVES), GRIPPER_DRIVE.stall_current])


@dataclass(frozen=True, slots=True)
class WorldRobot:
    """One virtual arm: its name (of the port), model (vx300s follows, wx250s leads) and side."""

    name: str
    model: str
    side: str
    baud: int = BAUD
    gripper: GripperCalibration | None = None


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """What a world simulates, for which station."""

    station: str
    robots: tuple[WorldRobot, ...]
    seed: int = 0
    usb_latency_s: float = 0.001


def tty_path(station: str, name: str) -> str:
    """The serial port of a virtual arm: a stable link to the pty that the world made."""
    return str(runtime_dir(station) / "tty" / name)


def world_config(station: Station) -> WorldConfig:
    """The world of a station file; ConfigError if the station has none or an arm has no side."""
    if station.world is None:
        raise ConfigError(f"{station.path} has no `world` section: nothing to simulate")
    robots = []
    for name, robot in station.robots.items():
        port = str(robot.options.get("port", ""))
        if not port.startswith("virtual:"):
            continue
        label = port.removeprefix("virtual:")
        side = next((side for side in SIDES if label.endswith(side)), None)
        if side is None:
            raise ConfigError(
                f"{station.path}: robots.{name}: the virtual port {port!r} must end in "
                f"{' or '.join(SIDES)}, so that the world knows which arm it is"
            )
        model, baud = str(robot.options["model"]), int(robot.options.get("baud", BAUD))
        robots.append(WorldRobot(label, model, side, baud))
    return WorldConfig(
        station.station,
        tuple(robots),
        station.world.seed,
        station.world.usb_latency_ms / 1000.0,
    )


class _Arm:
    """One virtual arm: its bus, and how servo rows belong to joints."""

    def __init__(self, robot: WorldRobot, usb_latency_s: float) -> None:
        self.robot = robot
        self.model: ArmModel = arm_model(robot.model)
        self.follower = robot.model == "vx300s"
        self.gripper = robot.gripper or GRIPPERS["stanford"][robot.model]
        description = bus_description(
            robot.name,
            self.model,
            gripper_rad=CLOSED if self.follower else self.gripper.joint_open / 2,
            baud=robot.baud,
            usb_latency_s=usb_latency_s,
            external=self.follower,
        )
        self.bus = build(description)
        self.joint_of_row = np.array([servo.joint for servo in self.model.servos])
        self.master_rows = np.array([self.bus.ids.index(s.id) for s in self.model.masters])
        self._last_rows = np.array(
            [self.bus.ids.index(self.model.of_joint(joint)[-1].id) for joint in range(7)]
        )
        self._p_gain: NDArray[np.uint16] = self.bus.bank.memory[:, 84:86].view("<u2")[:, 0]
        self._drives = b""

    def _per_joint(self, rows: Array) -> Array:
        """The mean over the one or two servos of each joint, (9,) to (7,)."""
        return np.asarray(0.5 * (rows[self.master_rows] + rows[self._last_rows]))

    def command(self, index: int, plant: AlohaTransferCube) -> None:
        """Pass on to the plant where the servos want their shafts, and how hard they pull."""
        bank = self.bus.bank
        driven = bank.active & bank.position_mode
        drives = b"".join(v.tobytes() for v in (driven, bank.effort_limit, self._p_gain))
        if drives != self._drives:
            self._drives = drives
            limit_ma = bank.effort_limit * bank.current_scale * CURRENT_UNIT_MA
            allowed = np.minimum(1.0, CURRENT_HEADROOM * limit_ma / STALL_MA[self.joint_of_row])
            stiffness = driven * self._p_gain / FACTORY_P_GAIN
            plant.set_drives(index, self._per_joint(driven * allowed), self._per_joint(stiffness))
            # Of a pair with one limp servo the other one still pulls, at half strength.
            self._pulling = np.where(driven[self.master_rows], self.master_rows, self._last_rows)
        plant.goals[index] = (bank.trajectory[self._pulling] - CENTER_TICKS) * RAD_PER_TICK

    def measure(self, index: int, plant: AlohaTransferCube) -> None:
        """Tell the servos what the plant says of their shafts."""
        rows = self.joint_of_row
        q, dq, current = plant.measure(index)
        self.bus.set_measured(q[rows], dq[rows], 1000.0 * current[rows])


class World(ScriptedWorld):
    """Buses, physics, hands and script of one station; ``turn`` is called by the event loop."""

    script: ScriptedOperator | None

    def __init__(self, config: WorldConfig) -> None:
        super().__init__(config.station, "aloha_transfer_cube", config.seed, 23, 7)
        self.config = config
        self.plant: AlohaTransferCube = AlohaTransferCube(config.seed)
        self.plant.reset(config.seed, (*arm_model("vx300s").sleep, CLOSED))
        self.arms = {robot.name: _Arm(robot, config.usb_latency_s) for robot in config.robots}
        self._followers = [
            (SIDES.index(arm.robot.side), arm) for arm in self.arms.values() if arm.follower
        ]
        leaders = sorted(
            (arm for arm in self.arms.values() if not arm.follower),
            key=lambda arm: SIDES.index(arm.robot.side),
        )
        self.leader_names = [arm.robot.name for arm in leaders]
        self.hands = LeaderHands([(arm.bus, arm.model, arm.gripper) for arm in leaders])
        self._kinematics = both_arms()
        self._owed_s = 0.0
        (runtime_dir(config.station) / "tty").mkdir(mode=0o700, exist_ok=True)
        for name, arm in self.arms.items():
            arm.bus.link(tty_path(config.station, name))
        self.open(operations(self))

    # -- the event loop -------------------------------------------------------------------------

    @property
    def buses(self) -> list[VirtualBus]:
        return [arm.bus for arm in self.arms.values()]

    def turn(self, dt: float) -> None:
        """``dt`` seconds have passed: physics, hands, and what people ask of the world."""
        begun = time.perf_counter()
        self._owed_s += dt
        steps = int(self._owed_s / TIMESTEP_S)
        self._owed_s = (self._owed_s - steps * TIMESTEP_S) if steps <= MOST_STEPS else 0.0
        for index, arm in self._followers:
            arm.command(index, self.plant)
        self.plant.step(min(steps, MOST_STEPS))
        for index, arm in self._followers:
            arm.measure(index, self.plant)
        self.turns += 1
        if self.turns % HANDS_EVERY == 0:
            self.run_script(self._update_script)
            self.hands.step(HANDS_EVERY / STEP_HZ)
        if self.turns % PUBLISH_EVERY == 0:
            self.publish()
        self.answer()
        self.took(begun, dt)

    def _update_script(self) -> None:
        assert self.script is not None
        self.script.update(self.turns / STEP_HZ)

    # -- what operations.py offers to the outside -------------------------------------------------

    def arm(self, robot: str) -> _Arm:
        """The arm called ``robot``; ConfigError with the known names."""
        if robot not in self.arms:
            raise ConfigError(f"no robot is called {robot!r} (robots: {', '.join(self.arms)})")
        return self.arms[robot]

    def leader(self, robot: str) -> int:
        """The index of a leader in ``hands``; ConfigError if it is none."""
        if robot not in self.leader_names:
            known = ", ".join(self.leader_names)
            raise ConfigError(f"{robot!r} is no leader arm (leaders: {known})")
        return self.leader_names.index(robot)

    def start_script(self, name: str, seed: int, noise: float, *, ritual: bool) -> None:
        """Let the scripted operator take the leaders; DeviceError without two leaders."""
        if len(self.hands) != 2:
            raise DeviceError(f"the script moves two leader arms, this world has {len(self.hands)}")
        self.stop_script()
        for arm in range(2):
            self.hands.release(arm)
        self.script_name, self.script_error = name, ""
        self.script = ScriptedOperator(
            self.hands,
            self.plant.env_state,
            self._kinematics,
            seed=seed,
            noise=noise,
            ritual=ritual,
        )

    def reset(self, seed: int) -> None:
        """Put the cube where ``seed`` says; the arms stay where they are."""
        self.plant.reset(seed)
        self.publish()

    def close(self) -> None:
        """Pull all plugs and remove sockets and ring."""
        for bus in self.buses:
            bus.close()
        super().close()


def run_world(config: WorldConfig, *, attached: bool = False) -> None:
    """Run a world until SIGTERM, SIGINT or the operation ``shutdown``; when ``attached`` also
    until standard input closes, so that it ends with the program that started it."""
    world = World(config)

    def end(*_: object) -> None:
        world.ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Hardware does not wait for the host's other programs: above the arm processes' priority.
    setup(WORLD_PRIORITY)
    print(f"world of {config.station}: ports in {runtime_dir(config.station) / 'tty'}", flush=True)
    try:
        serve_buses(
            world.buses,
            STEP_HZ,
            lambda: world.ended,
            on_step=world.turn,
            watch_fd=sys.stdin.fileno() if attached else None,
        )
    finally:
        world.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m hardware.worlds.world_process STATION.yaml [--attached]``."""
    parser = argparse.ArgumentParser(description="run the world behind a virtual ALOHA station")
    parser.add_argument("station", help="station file (YAML) with a `world` section")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    args = parser.parse_args(arguments)
    try:
        run_world(world_config(load_station(args.station)), attached=args.attached)
    except RobotStackError as error:
        raise SystemExit(f"error: {error}") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
