"""What a client may configure on the robot, with the ranges that the robot accepts."""

from __future__ import annotations

from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware.franka.fci import Command, Status

__all__ = ["Settings"]

Array = NDArray[np.float64]

JOINT_STIFFNESS_MAX = 14250.0  # Nm/rad
CARTESIAN_STIFFNESS = ((10.0, 3000.0),) * 3 + ((1.0, 300.0),) * 3  # N/m, Nm/rad
PAYLOAD_MAX = 3.0  # kg, hand included
FILTER_MAX = 1000.0  # Hz; that value switches a filter off
_ORTHONORMAL = 1e-5


def _rigid(columns: Array) -> Array | None:
    """The (4, 4) transform of sixteen column-major numbers, or None if it is none."""
    transform = columns.reshape(4, 4).T
    rotation = transform[:3, :3]
    if (
        not np.isfinite(transform).all()
        or not np.allclose(transform[3], (0.0, 0.0, 0.0, 1.0), atol=_ORTHONORMAL)
        or not np.allclose(rotation @ rotation.T, np.eye(3), atol=_ORTHONORMAL)
        or np.linalg.det(rotation) < 0.0
    ):
        return None
    return np.ascontiguousarray(transform)


class Settings:
    """Thresholds, stiffnesses, frames and load, as the robot has them after booting.

    Frames are (4, 4): `F_T_NE` (flange to the mounted hand's end effector, set in Desk),
    `NE_T_EE`, `EE_T_K`, and their product `F_T_EE`. `torque` (4, 7) and `force` (4, 6) are the
    collision thresholds: rows lower acceleration, upper acceleration, lower nominal, upper
    nominal. `revision` counts changes.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.reset()

    def reset(self) -> None:
        """As after booting."""
        self.revision += 1
        self.torque: Array = np.repeat([[20.0], [20.0], [10.0], [10.0]], 7, axis=1)
        self.force: Array = np.repeat([[20.0], [20.0], [10.0], [10.0]], 6, axis=1)
        self.torque[1] = self.torque[3] = 20.0
        self.force[1] = self.force[3] = 20.0
        self.joint_stiffness: Array = np.array([3000.0, 3000, 3000, 2500, 2500, 2000, 2000])
        self.cartesian_stiffness: Array = np.array([2000.0, 2000, 2000, 100, 100, 100])
        self.guiding_axes: tuple[bool, ...] = (True,) * 6
        self.guiding_nullspace = True
        # The Franka hand: 0.1034 m to the fingertips, turned by -45 degrees.
        c, s = cos(-pi / 4), sin(-pi / 4)
        self.F_T_NE: Array = np.array(
            [[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0.1034], [0, 0, 0, 1.0]]
        )
        self.NE_T_EE: Array = np.eye(4)
        self.EE_T_K: Array = np.eye(4)
        self.F_T_EE: Array = self.F_T_NE.copy()
        self.hand_mass = 0.73
        self.hand_com: Array = np.array([-0.01, 0.0, 0.03])
        self.hand_inertia: Array = np.diag([0.001, 0.0025, 0.0017])
        self.load_mass = 0.0
        self.load_com: Array = np.zeros(3)
        self.load_inertia: Array = np.zeros((3, 3))
        self.filters: Array = np.full(5, FILTER_MAX)

    def apply(self, command: Command, request: Any) -> Status:
        """Take over a setter's request (a record of fci.REQUESTS) if it is valid."""
        accepted = _SETTERS[command](self, request)
        if accepted:
            self.revision += 1
        return Status.SUCCESS if accepted else Status.INVALID_ARGUMENT

    def _collision(self, request: Any) -> bool:
        torque, force = np.array(request["torque"]), np.array(request["force"])
        for thresholds in (torque, force):
            lower, upper = thresholds[[0, 2]], thresholds[[1, 3]]
            if not (np.isfinite(thresholds).all() and (lower > 0).all() and (upper >= lower).all()):
                return False
        self.torque, self.force = torque, force
        return True

    def _joint_stiffness(self, request: Any) -> bool:
        stiffness = np.array(request["stiffness"])
        if not ((stiffness >= 0.0) & (stiffness <= JOINT_STIFFNESS_MAX)).all():
            return False
        self.joint_stiffness = stiffness
        return True

    def _cartesian_stiffness(self, request: Any) -> bool:
        stiffness = np.array(request["stiffness"])
        lower, upper = np.array(CARTESIAN_STIFFNESS).T
        if not ((stiffness >= lower) & (stiffness <= upper)).all():
            return False
        self.cartesian_stiffness = stiffness
        return True

    def _guiding(self, request: Any) -> bool:
        self.guiding_axes = tuple(bool(axis) for axis in request["axes"])
        self.guiding_nullspace = bool(request["nullspace"])
        return True

    def _stiffness_frame(self, request: Any) -> bool:
        transform = _rigid(np.array(request["transform"]))
        if transform is None:
            return False
        self.EE_T_K = transform
        return True

    def _end_effector(self, request: Any) -> bool:
        transform = _rigid(np.array(request["transform"]))
        if transform is None:
            return False
        self.NE_T_EE = transform
        self.F_T_EE = self.F_T_NE @ transform
        return True

    def _load(self, request: Any) -> bool:
        mass, com = float(request["mass"]), np.array(request["com"])
        inertia = np.array(request["inertia"]).reshape(3, 3).T
        if not (mass >= 0.0 and mass + self.hand_mass <= PAYLOAD_MAX):
            return False
        if not (np.isfinite(com).all() and np.isfinite(inertia).all()):
            return False
        if not np.allclose(inertia, inertia.T) or np.linalg.eigvalsh(inertia)[0] < -1e-9:
            return False
        self.load_mass, self.load_com, self.load_inertia = mass, com, inertia
        return True

    def _filters(self, request: Any) -> bool:
        frequencies = np.array(request["frequencies"])
        if not ((frequencies > 0.0) & (frequencies <= FILTER_MAX)).all():
            return False
        self.filters = frequencies
        return True


_SETTERS = {
    Command.SET_COLLISION_BEHAVIOR: Settings._collision,
    Command.SET_JOINT_IMPEDANCE: Settings._joint_stiffness,
    Command.SET_CARTESIAN_IMPEDANCE: Settings._cartesian_stiffness,
    Command.SET_GUIDING_MODE: Settings._guiding,
    Command.SET_EE_TO_K: Settings._stiffness_frame,
    Command.SET_NE_TO_EE: Settings._end_effector,
    Command.SET_LOAD: Settings._load,
    Command.SET_FILTERS: Settings._filters,
}
