"""The parallel gripper: joint angle, finger position, and the two fractions ALOHA records.

A horn on the servo (radius r) pushes a rod (length L) that slides a finger: a slider-crank. With
the joint at 0 the horn stands across the slide, so the finger is at
``r sin(joint) + sqrt(L^2 - (r cos(joint))^2)`` from the centre. The geometry is Interbotix' own
(interbotix_xs_driver); with its horn and rod the published finger positions of both ALOHA rigs
follow from their published joint angles to 0.3 mm.

ALOHA (Zhao et al., 2023) observes the follower's gripper as a fraction of *finger position* but
commands it as a fraction of *joint angle*, taken from the leader; both conventions are kept, so
that recordings mean what ALOHA's readers expect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Gripper", "GripperCalibration", "Linkage"]


@dataclass(frozen=True, slots=True)
class Linkage:
    """Horn radius and rod length in metres; the rod is longer than the horn."""

    horn_m: float
    rod_m: float

    def finger(self, joint: float) -> float:
        """Finger position in m at a joint angle in rad; rises over [-pi/2, pi/2]."""
        along = self.horn_m * math.sin(joint)
        across = self.horn_m * math.cos(joint)
        return along + math.sqrt(self.rod_m**2 - across**2)

    def slope(self, joint: float) -> float:
        """d finger / d joint in m/rad at a joint angle in rad."""
        along = self.horn_m * math.sin(joint)
        across = self.horn_m * math.cos(joint)
        return across * (1.0 + along / math.sqrt(self.rod_m**2 - across**2))

    def joint(self, finger: float) -> float:
        """Joint angle in [-pi/2, pi/2] rad at a finger position in m, clipped to the stroke."""
        low, high = self.rod_m - self.horn_m, self.rod_m + self.horn_m
        d = min(max(finger, low), high)
        # Law of cosines in the triangle horn, rod, finger position.
        sine = (self.horn_m**2 + d**2 - self.rod_m**2) / (2.0 * self.horn_m * d)
        return math.asin(min(max(sine, -1.0), 1.0))


@dataclass(frozen=True, slots=True)
class GripperCalibration:
    """One gripper's own readings: joint angles in rad, finger positions in m.

    ``start_joint``: a leader gripper that is closed beyond this joint angle starts an episode.
    Finger positions are None where they follow from the linkage.
    """

    joint_closed: float
    joint_open: float
    finger_closed: float | None = None
    finger_open: float | None = None
    start_joint: float | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.joint_closed, self.joint_open))):
            raise ValueError("gripper: joint_closed and joint_open must be finite angles in rad")
        # Below 0.2 rad one servo count is over 0.7 % of the stroke: the readings are mistaken.
        if self.joint_open - self.joint_closed < 0.2:
            raise ValueError(
                f"gripper: joint_open {self.joint_open:.3f} must be at least 0.2 rad above "
                f"joint_closed {self.joint_closed:.3f}; run `robot-stack calibrate` again"
            )
        fingers = (self.finger_closed, self.finger_open)
        if (fingers[0] is None) != (fingers[1] is None):
            raise ValueError("gripper: give finger_closed and finger_open both, or neither")
        if fingers[0] is not None and fingers[1] is not None and not fingers[0] < fingers[1]:
            raise ValueError("gripper: finger_closed must be below finger_open")


class Gripper:
    """Conversions of one calibrated gripper; fractions are 0 closed, 1 open, and not clipped."""

    def __init__(self, linkage: Linkage, calibration: GripperCalibration) -> None:
        self.linkage = linkage
        self.calibration = calibration
        closed, opened = calibration.finger_closed, calibration.finger_open
        self._finger_closed = linkage.finger(calibration.joint_closed) if closed is None else closed
        self._finger_open = linkage.finger(calibration.joint_open) if opened is None else opened

    @property
    def joint_span(self) -> float:
        """Radians between closed and open."""
        return self.calibration.joint_open - self.calibration.joint_closed

    @property
    def start_fraction(self) -> float:
        """The joint fraction below which a leader's gripper counts as closed by the operator."""
        start = self.calibration.start_joint
        return 0.25 if start is None else self.fraction_of_joint(start)

    def fraction_of_joint(self, joint: float) -> float:
        """Joint angle in rad to joint fraction: what a leader commands."""
        return (joint - self.calibration.joint_closed) / self.joint_span

    def joint_of_fraction(self, fraction: float) -> float:
        """Joint fraction to joint angle in rad: what a follower is sent."""
        return self.calibration.joint_closed + fraction * self.joint_span

    def position_fraction(self, joint: float) -> float:
        """Joint angle in rad to fraction of finger position: what a follower is observed at."""
        finger = self.linkage.finger(joint)
        return (finger - self._finger_closed) / (self._finger_open - self._finger_closed)

    def position_rate(self, joint: float) -> float:
        """d position_fraction / d joint, per rad, at a joint angle in rad."""
        return self.linkage.slope(joint) / (self._finger_open - self._finger_closed)

    def joint_of_position(self, fraction: float) -> float:
        """Fraction of finger position to joint angle in rad, the inverse of the above."""
        span = self._finger_open - self._finger_closed
        return self.linkage.joint(self._finger_closed + fraction * span)
