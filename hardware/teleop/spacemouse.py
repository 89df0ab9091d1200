"""3Dconnexion SpaceMouse as a teleoperator: push, pull and turn the cap, and the hand follows.

Reports are read from /dev/hidraw and decoded here: three kinds, the same on every device since the
SpaceNavigator. That needs neither libhidapi nor a package, takes all that waits in one turn (a
library call gives one report, and the cap sends up to 250 a second), and sees the device go.

| report | bytes (little-endian, signed) |
|---|---|
| 1 | x, y, z; newer devices go on with the turns about x, y, z |
| 2 | turns about x, y, z, where report 1 ends after z |
| 3 | buttons, one bit each |

Axes as the device counts them (HID usage tables): x right, y towards the operator, z down; a cap
that is pushed all the way reads 350. The table of ids and layouts agrees with pyspacemouse's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hardware.input.hidraw import HidDevice, HidInfo
from hardware.teleop.cartesian import CartesianTeleoperator, Clutch, Grasp, grasp
from hardware.teleop.mapper import MotionConfig, Stick
from robot_stack.config import Station, TeleopConfig, parse, within

__all__ = ["MEND", "Cap", "SpaceMouse", "SpaceMouseConfig", "is_spacemouse"]

VENDOR = 0x256F
LOGITECH = 0x046D  # made the older ones: 0xC603..0xC62B
OLDER = range(0xC603, 0xC62C)
# Generic Desktop page, multi-axis controller: what a receiver's other nodes are not.
MULTI_AXIS = b"\x05\x01\x09\x08"
FULL = 350.0
SILENCE_NS = 300_000_000  # a deflected cap sends every 8 to 16 ms; after this it counts as let go

MEND = (
    """printf '%s\\n' 'KERNEL=="hidraw*", KERNELS=="*:256F:*", MODE="0660", GROUP="input", """
    """TAG+="uaccess"' 'KERNEL=="hidraw*", KERNELS=="*:046D:C6*", MODE="0660", GROUP="input", """
    """TAG+="uaccess"' | sudo tee /etc/udev/rules.d/70-spacemouse.rules; """
    "sudo usermod -aG input $USER; sudo udevadm control --reload; then plug it in and log in again"
)


def is_spacemouse(node: HidInfo) -> bool:
    """Whether a hidraw node is the axes of a SpaceMouse (receivers show further nodes)."""
    makers = node.vendor == VENDOR or (node.vendor == LOGITECH and node.product in OLDER)
    return makers and MULTI_AXIS in node.descriptor


class Cap:
    """Where the cap and the buttons are, by the reports so far."""

    def __init__(self) -> None:
        self.release()

    def release(self) -> None:
        """The cap in its middle, no button pressed: nothing is known of the device."""
        self.axes = [0] * 6
        self.buttons = 0
        self.t_ns = 0

    def take(self, report: bytes, t_ns: int) -> None:
        """One report; what is none of the three kinds is ignored."""
        kind, body = report[:1], report[1:]
        if kind == b"\x01" and len(body) >= 6:
            values = struct.unpack_from("<6h" if len(body) >= 12 else "<3h", body)
            self.axes[: len(values)] = values
            self.t_ns = t_ns
        elif kind == b"\x02" and len(body) >= 6:
            self.axes[3:] = struct.unpack_from("<3h", body)
            self.t_ns = t_ns
        elif kind == b"\x03":
            self.buttons = int.from_bytes(body, "little")

    def twist(self, now_ns: int) -> tuple[float, ...]:
        """Deflection (6,) of full, in the operator's axes: x forward, y left, z up. The cap counts
        as let go when it has sent nothing for a while: a wireless one may be out of reach."""
        if now_ns - self.t_ns > SILENCE_NS:
            return (0.0,) * 6
        x, y, z, a, b, c = (value / FULL for value in self.axes)
        return (-y, -x, -z, -b, -a, -c)

    def pressed(self, button: int) -> bool:
        return bool(self.buttons >> button & 1)


@dataclass(frozen=True)
class SpaceMouseConfig:
    """``teleop.options`` of driver ``spacemouse``.

    device   path of its node; empty: the first SpaceMouse that is plugged in
    robot    which arm of the group; not needed where there is one
    clutch_button, gripper_button   numbers of the buttons (0 is left, 1 right on small devices)
    """

    device: str = ""
    robot: str = ""
    clutch_button: int = within(0, 63, default=1)
    gripper_button: int = within(0, 63, default=0)
    motion: MotionConfig = field(default_factory=MotionConfig)


class SpaceMouse(CartesianTeleoperator):
    """The clutch is toggled by one button; the other closes and opens the gripper in turn."""

    def __init__(self, config: SpaceMouseConfig, grasp: Grasp) -> None:
        names = {0: "the left button", 1: "the right button"}
        button = names.get(config.clutch_button, f"button {config.clutch_button}")
        super().__init__(
            grasp,
            config.motion,
            Clutch("toggle"),
            invitation=f"press {button} of the SpaceMouse to move, and again to let go",
        )
        self.config = config
        self._device = HidDevice(
            config.device, is_spacemouse, name=config.device or "the SpaceMouse", mend=MEND
        )
        self._cap = Cap()
        self._gripper = math.nan
        self._gripping = False

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> SpaceMouse:
        options = parse(SpaceMouseConfig, config.options, "teleop.options")
        return cls(options, grasp(config, station, options.robot))

    def _close(self) -> None:
        self._device.close()

    def engage(self, held: NDArray[np.float64], t_ns: int) -> None:
        super().engage(held, t_ns)
        self._gripper = math.nan  # what somebody else has done with it meanwhile stays

    def _poll(self, now_ns: int) -> Stick | None:
        reports = self._device.read()
        self.trouble = self._device.trouble
        if not self._device.connected:
            self._cap.release()
            self._gripper, self._gripping = math.nan, False
            return None
        held = self._cap.pressed(self.config.clutch_button) and not reports
        for report in reports:
            self._cap.take(report, now_ns)
            self._press()
            # Pressed and let go within one look is a press: nobody's letting go is lost.
            held = held or self._cap.pressed(self.config.clutch_button)
        return Stick(self._cap.twist(now_ns), held, gripper_goal=self._gripper)

    def _press(self) -> None:
        """A press of the gripper's button sends it to the other end than where it is going."""
        gripping = self._cap.pressed(self.config.gripper_button)
        if gripping and not self._gripping:
            going = self._gripper if math.isfinite(self._gripper) else self.gripper
            self._gripper = 0.0 if going > 0.5 else 1.0
        self._gripping = gripping
