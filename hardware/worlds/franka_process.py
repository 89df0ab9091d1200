"""The world behind a virtual Franka station: one process with physics, the arm's far side of the
network, and what the operator has in the hand.

It stands for everything beyond the wires, so it is never under the supervisor: killing it is
pulling the plug of the robot. One thread, one event loop: the robot's 1 kHz are its clock, and
every few milliseconds the operator, the cameras' ring and the control socket get their turn.
"""

from __future__ import annotations

import argparse
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.configuration import FrankaConfig
from hardware.franka.fci import Version
from hardware.franka.limits import Model
from hardware.franka.virtual.process import robot_model
from hardware.franka.virtual.server import VirtualArm
from hardware.teleop.gello_config import (
    VIRTUAL,
    GelloCalibration,
    GelloConfig,
    gello_config,
    load_calibration,
)
from hardware.teleop.twists import TwistsConfig, TwistWriter
from hardware.worlds.franka import FrankaPickPlace
from hardware.worlds.franka_hands import JointHand, TwistHand
from hardware.worlds.franka_operations import operations
from hardware.worlds.franka_operator import Hand, PickPlaceOperator
from hardware.worlds.gello_rig import GelloRig
from hardware.worlds.scripted import ScriptedWorld
from robot_stack.config import Station, load_station, parse
from robot_stack.errors import ConfigError, DeviceError, RobotStackError
from robot_stack.realtime import setup

__all__ = ["FrankaWorld", "FrankaWorldConfig", "franka_world_config", "main"]

Array = NDArray[np.float64]

# Milliseconds: the operator, the servos of its GELLO, the judge, the ring, the socket.
OPERATOR_EVERY, SERVOS_EVERY, LOOK_EVERY, PUBLISH_EVERY, ANSWER_EVERY = 10, 5, 10, 20, 5
# A station takes its time to start, to arm and to engage.
MOST_WAIT_S = 60.0
PRIORITY = 60
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FrankaWorldConfig:
    """What a world simulates, for which station. ``gello`` is its configuration and calibration,
    where the station has a virtual one."""

    station: str
    robot: str
    address: str
    model: Model
    seed: int = 0
    usb_latency_s: float = 0.001
    twists: TwistsConfig = field(default_factory=TwistsConfig)
    gello: tuple[GelloConfig, GelloCalibration] | None = None


def franka_world_config(station: Station) -> FrankaWorldConfig:
    """The world of a station file; ConfigError if it has none, or not one arm on the loopback."""
    if station.world is None:
        raise ConfigError(f"{station.path} has no `world` section: nothing to simulate")
    arms = {
        name: FrankaConfig.from_station(robot, station)
        for name, robot in station.robots.items()
        if robot.driver == "franka"
    }
    if len(arms) != 1:
        raise ConfigError(
            f"{station.path}: scene {station.world.scene} has one robot of driver franka, this "
            f"station has {', '.join(arms) or 'none'}"
        )
    name, arm = next(iter(arms.items()))
    if not arm.address.startswith("127."):
        raise ConfigError(
            f"{station.path}: robots.{name}: a virtual arm lives on the loopback (127.0.0.2, "
            f"127.0.0.3, ...), not at {arm.address!r}"
        )
    twists, gello = TwistsConfig(), None
    for device in (*station.other_teleop.values(), station.teleop):
        if device is None:
            continue
        if device.driver == "twists":
            twists = parse(TwistsConfig, device.options, "teleop.options")
        elif device.driver == "gello":
            options = gello_config(device)
            if options.port.startswith(VIRTUAL):
                gello = options, load_calibration(options, station, name)
    return FrankaWorldConfig(
        station.station,
        name,
        arm.address,
        arm.model,
        station.world.seed,
        station.world.usb_latency_ms / 1000.0,
        twists,
        gello,
    )


class FrankaWorld(ScriptedWorld):
    """Arm, table and operator of one station; ``run`` is the event loop."""

    script: PickPlaceOperator | None

    def __init__(self, config: FrankaWorldConfig) -> None:
        super().__init__(config.station, "franka_pick_place", config.seed, 18, 9)
        self.config = config
        self.plant: FrankaPickPlace = FrankaPickPlace(config.seed, config.model)
        version: Version = 10 if config.model == "fr3" else 5
        self.arm = VirtualArm(
            self.plant.body,
            version=version,
            address=config.address,
            robot_model=lambda: robot_model(version),
        )
        self._stick = TwistWriter(config.station, config.twists.name)
        self.gello: GelloRig | None = None
        if config.gello is not None:
            self.gello = GelloRig(*config.gello, config.station, config.usb_latency_s)
        self.open(operations(self))

    # -- what the operator sees --------------------------------------------------------------------

    @property
    def fingertips(self) -> Array:
        """The pose (7,) between the fingertips."""
        return self.plant.fingertips

    @property
    def env_state(self) -> Array:
        """(9,): the cube's pose, the square's place."""
        return self.plant.env_state

    @property
    def width(self) -> float:
        """Between the fingers, m."""
        return self.plant.body.finger_width

    # -- the event loop ----------------------------------------------------------------------------

    def run(self, watch_fd: int | None = None) -> None:
        """Until ``ended``, or ``watch_fd`` becomes readable (its writer has gone)."""
        watched: list[int] = [] if watch_fd is None else [watch_fd]
        bus = None if self.gello is None else self.gello.bus
        last_ns = time.monotonic_ns()
        while not self.ended:
            due_ns = self.arm.due_ns()
            answer_ns = None if bus is None else bus.next_deadline_ns()
            if answer_ns is not None:
                due_ns = min(due_ns, answer_ns)
            wait_s = max(0.0, (due_ns - time.monotonic_ns()) / _NS)
            wires = [] if bus is None or bus.fileno() < 0 else [bus.fileno()]
            ready = select.select([*self.arm.filenos(), *wires, *watched], (), (), wait_s)[0]
            now_ns = time.monotonic_ns()
            for fd in ready:
                if fd == watch_fd:
                    return
                if bus is not None and fd == bus.fileno():
                    bus.on_readable(now_ns)
                else:
                    self.arm.on_readable(fd)
            if bus is not None and answer_ns is not None and answer_ns <= now_ns:
                bus.on_deadline(now_ns)
            now_ns = time.monotonic_ns()
            if self.arm.ready(now_ns):
                self._turn((now_ns - last_ns) / _NS)
                last_ns = now_ns

    def _turn(self, dt: float) -> None:
        """One millisecond of the world, ``dt`` s after the one before."""
        begun = time.perf_counter()
        self.arm.turn()
        self.turns += 1
        if self.turns % OPERATOR_EVERY == 0:
            self.run_script(self._update_script)
        if self.gello is not None and self.turns % SERVOS_EVERY == 0:
            self.gello.step(SERVOS_EVERY / 1000.0)
        if self.turns % LOOK_EVERY == 0:
            self.plant.look()
        if self.turns % PUBLISH_EVERY == 0:
            self.publish()
        if self.turns % ANSWER_EVERY == 0:
            self.answer()
        self.took(begun, dt)

    def _update_script(self) -> None:
        assert self.script is not None
        self.script.update(OPERATOR_EVERY / 1000.0)

    # -- what operations offer to the outside ---------------------------------------------------

    def reset(self, seed: int) -> None:
        """Put cube and square where ``seed`` says; the arm stays where it is."""
        self.plant.reset(seed)
        self.publish()

    def start_script(self, name: str, hand: str, seed: int, noise: float) -> None:
        """Let the scripted operator take a device in its hand, and do its work."""
        self.stop_script()
        self.script_name, self.script_error = name, ""
        self.script = PickPlaceOperator(
            self._hand(hand), self, seed=seed, noise=noise, max_wait_s=MOST_WAIT_S
        )

    def _hand(self, name: str) -> Hand:
        if name == "twists":
            motion = self.config.twists.motion
            return TwistHand(self._stick.push, motion.linear_m_s, motion.angular_rad_s)
        if self.gello is None:
            raise DeviceError(
                f"the world of {self.station} has no GELLO: a teleop device of driver gello with "
                "port virtual:NAME in the station file brings one"
            )
        return JointHand(self.gello.move, self.gello.release, lambda: self.plant.body.q)

    def status(self) -> dict[str, Any]:
        """What the table looks like, beside the arm's own."""
        plant = self.plant
        return {
            "station": self.station,
            "t_ns": time.monotonic_ns(),
            "seed": plant.seed,
            "reward": plant.reward(),
            "success": plant.success,
            "env_state": plant.env_state.round(5).tolist(),
            "fingertips": plant.fingertips.round(5).tolist(),
            "script": self.script_status(),
            **self.pace(),
        }

    def close(self) -> None:
        """Pull all plugs and remove sockets and ring."""
        self.arm.close()
        self._stick.close()
        if self.gello is not None:
            self.gello.bus.close()
        super().close()


def run_world(config: FrankaWorldConfig, *, attached: bool = False) -> None:
    """Run a world until SIGTERM, SIGINT or the operation ``shutdown``; when ``attached`` also
    until standard input closes, so that it ends with the program that started it."""
    world = FrankaWorld(config)

    def end(*_: object) -> None:
        world.ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Hardware does not wait for the host's other programs: above the arm processes' priority.
    setup(PRIORITY)
    print(f"world of {config.station}: {config.model} at {config.address}", flush=True)
    try:
        world.run(sys.stdin.fileno() if attached else None)
    finally:
        world.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m hardware.worlds.franka_process STATION.yaml [--attached]``."""
    parser = argparse.ArgumentParser(description="run the world behind a virtual Franka station")
    parser.add_argument("station", help="station file (YAML) with a `world` section")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    args = parser.parse_args(arguments)
    try:
        run_world(franka_world_config(load_station(args.station)), attached=args.attached)
    except RobotStackError as error:
        raise SystemExit(f"error: {error}") from None
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
