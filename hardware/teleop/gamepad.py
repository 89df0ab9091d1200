"""A gamepad as a teleoperator, by the kernel's own events (evdev).

The kernel gives all pads one layout (Documentation/input/gamepad.rst): Xbox, PlayStation, Switch
and 8BitDo alike. Some Xbox pads over Bluetooth are shown by the generic HID driver instead, with
the right stick on Z/RZ and the triggers on GAS/BRAKE: that is seen by their axes. There is no SDL
and no pygame between: no window, no thread, no event loop, and a pad may come and go.

| | |
|---|---|
| right bumper, held | dead-man switch: nothing moves without it |
| left bumper, held | slow |
| left stick | forward and back, left and right |
| right stick | up and down; turn about the vertical |
| cross of buttons | tilt forward and back, left and right |
| right, left trigger | close, open the gripper |

A pad says only what changes, so that a wireless one that goes out of reach with a stick pushed is
noticed by the kernel after seconds: use a cable, or keep the stop button at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hardware.input.evdev import InputDevice
from hardware.input.keys import key_code
from hardware.teleop.cartesian import CartesianTeleoperator, Clutch, Grasp, grasp
from hardware.teleop.mapper import MotionConfig, Stick
from robot_stack.config import Station, TeleopConfig, parse

__all__ = ["GAMEPAD_KEYS", "Gamepad", "GamepadConfig"]

X, Y, Z, RX, RY, RZ, GAS, BRAKE, CROSS_X, CROSS_Y = 0, 1, 2, 3, 4, 5, 9, 10, 16, 17
TL2, TR2 = key_code("BTN_TL2"), key_code("BTN_TR2")
# What makes a device a gamepad: the lower of its four buttons, and both bumpers.
GAMEPAD_KEYS = frozenset(key_code(name) for name in ("BTN_SOUTH", "BTN_TL", "BTN_TR"))
# Of a pad that cannot be asked: xpad's.
STICK_RANGE, TRIGGER_RANGE, CROSS_RANGE = (-32768, 32767), (0, 255), (-1, 1)
NAMES = {
    "BTN_TR": "the right bumper",
    "BTN_TL": "the left bumper",
    "BTN_TR2": "the right trigger",
    "BTN_TL2": "the left trigger",
    "BTN_SOUTH": "the lower button",
}


@dataclass(frozen=True)
class GamepadConfig:
    """``teleop.options`` of driver ``gamepad``.

    device   name or path of the pad (`robot-stack stop-device --list`); empty: the first one
    robot    which arm of the group; not needed where there is one
    deadman, slow   buttons, by the kernel's names; ``deadman`` must be held for anything to move
    """

    device: str = ""
    robot: str = ""
    deadman: str = "BTN_TR"
    slow: str = "BTN_TL"
    motion: MotionConfig = field(default_factory=MotionConfig)


class Gamepad(CartesianTeleoperator):
    """See the module for what each stick and button does."""

    def __init__(self, config: GamepadConfig, grasp: Grasp) -> None:
        button = NAMES.get(config.deadman, config.deadman)
        super().__init__(
            grasp, config.motion, Clutch("hold"), invitation=f"hold {button} of the gamepad to move"
        )
        self._deadman, self._slow = key_code(config.deadman), key_code(config.slow)
        name = config.device or "a gamepad"
        self._device = InputDevice(config.device, GAMEPAD_KEYS, name)

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> Gamepad:
        options = parse(GamepadConfig, config.options, "teleop.options")
        return cls(options, grasp(config, station, options.robot))

    def _close(self) -> None:
        self._device.close()

    def _poll(self, now_ns: int) -> Stick | None:
        self._device.read()
        self.trouble = self._device.trouble
        if not self._device.connected:
            return None
        down, axes = self._device.pressed, self._device.axes
        generic = GAS in axes or BRAKE in axes
        right_x, right_y = (Z, RZ) if generic else (RX, RY)
        left_trigger, right_trigger = (BRAKE, GAS) if generic else (Z, RZ)
        twist = (
            -self._stick(Y),
            -self._stick(X),
            -self._stick(right_y),
            self._axis(CROSS_X, CROSS_RANGE),
            -self._axis(CROSS_Y, CROSS_RANGE),
            -self._stick(right_x),
        )
        return Stick(
            twist,
            self._deadman in down,
            gripper_rate=self._trigger(left_trigger, TL2) - self._trigger(right_trigger, TR2),
            speed=self.motion.fine if self._slow in down else 1.0,
        )

    def _stick(self, code: int) -> float:
        return self._axis(code, STICK_RANGE)

    def _trigger(self, code: int, button: int) -> float:
        """How far a trigger is pulled, 0..1; on some pads it is only a button."""
        if code not in self._device.axes:
            return float(button in self._device.pressed)
        return 0.5 + 0.5 * self._axis(code, TRIGGER_RANGE)

    def _axis(self, code: int, usual: tuple[int, int]) -> float:
        """Where an axis is, -1..1 over its range; its middle when the pad has not said."""
        lower, upper = self._device.ranges.get(code, usual)
        if code not in self._device.axes or upper <= lower:
            return 0.0
        return 2.0 * (self._device.axes[code] - lower) / (upper - lower) - 1.0
