"""A GELLO on the operator's table: its servo bus, and the operator's hand on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware.dynamixel.process import build
from hardware.dynamixel.virtual import VirtualBus
from hardware.franka.kinematics import HOME
from hardware.teleop.gello_config import VIRTUAL, GelloCalibration, GelloConfig
from hardware.teleop.gello_virtual import bus_description
from hardware.worlds.servo_hand import ServoHand

__all__ = ["GelloRig"]

Array = NDArray[np.float64]


class GelloRig:
    """Stands in the robot's ready pose at first. ``name`` is that of its port, which is linked in
    the station's runtime directory."""

    def __init__(
        self,
        config: GelloConfig,
        calibration: GelloCalibration,
        station: str,
        usb_latency_s: float = 0.001,
    ) -> None:
        self.name = config.port.removeprefix(VIRTUAL)
        self.calibration = calibration
        link = config.path(station)
        link.parent.mkdir(mode=0o700, exist_ok=True)
        self.bus: VirtualBus = build(
            bus_description(
                self.name, config, calibration, HOME, link=link, usb_latency_s=usb_latency_s
            )
        )
        servos = np.arange(len(config.servos))
        turn = np.full(len(servos), 2 * np.pi)
        self._hand = ServoHand(self.bus, servos, servos, -turn, turn)

    def move(self, joints: Array, opening: float) -> None:
        """Bring it to where the robot would stand at ``joints`` (7,) and ``opening``."""
        angles = self.calibration.angles(joints)
        if self.calibration.open is not None:
            angles = np.append(angles, self.calibration.trigger(opening))
        self._hand.want(angles)

    def release(self) -> None:
        """Let go of it."""
        self._hand.release()

    def step(self, dt: float) -> None:
        """Hand and servos move on by ``dt`` seconds."""
        self._hand.step(dt)
        self.bus.step(dt)
