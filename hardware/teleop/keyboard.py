"""The keys of a terminal as a teleoperator: works over ssh, with nothing plugged in.

A terminal never says that a key was let go of. So a key moves the hand for a short while, and on
for as long as it repeats: a tap is a nudge, holding it down moves after the keyboard's own delay,
and letting go ends the motion within ``hold_s``. One key repeats at a time.

| keys | |
|---|---|
| space | take hold of the robot, and let go |
| w s, a d, e q | forward back, left right, up down |
| i k, j l, u o | tilt forward back, turn left right, roll left right |
| , . | close, open the gripper |
| f | slow, and back |
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hardware.input.terminal import Terminal
from hardware.teleop.cartesian import CartesianTeleoperator, Clutch, Grasp, grasp
from hardware.teleop.mapper import MotionConfig, Stick
from robot_stack.config import Station, TeleopConfig, parse, within

__all__ = ["Keyboard", "KeyboardConfig"]

# key: (axis of the twist, 6 for the gripper; direction)
MOTIONS = {
    "w": (0, 1.0),
    "s": (0, -1.0),
    "a": (1, 1.0),
    "d": (1, -1.0),
    "e": (2, 1.0),
    "q": (2, -1.0),
    "o": (3, 1.0),
    "u": (3, -1.0),
    "i": (4, 1.0),
    "k": (4, -1.0),
    "j": (5, 1.0),
    "l": (5, -1.0),
    ".": (6, 1.0),
    ",": (6, -1.0),
}
GRIPPER = 6
REPEAT_NS = 100_000_000  # keys that come faster than this are one that is held down
OTHERS = 32


@dataclass(frozen=True)
class _KeyMotion(MotionConfig):
    """A key is all or nothing: slower, and without dead zone and expo."""

    linear_m_s: float = within(0.001, 2.0, "m/s", default=0.1)
    angular_rad_s: float = within(0.0, 3.0, "rad/s", default=0.5)
    dead_zone: float = within(0.0, 0.9, default=0.0)
    expo: float = within(0.0, 1.0, default=0.0)


@dataclass(frozen=True)
class KeyboardConfig:
    """``teleop.options`` of driver ``keyboard``.

    robot    which arm of the group; not needed where there is one
    hold_s   how long a key counts after it came; longer than the time between two repeats
    """

    robot: str = ""
    hold_s: float = within(0.05, 1.0, "s", default=0.15)
    motion: _KeyMotion = field(default_factory=_KeyMotion)


class Keyboard(CartesianTeleoperator):
    """See the module for what each key does. ``take`` gives keys that mean nothing here."""

    def __init__(self, config: KeyboardConfig, grasp: Grasp, fd: int | None = None) -> None:
        super().__init__(
            grasp,
            config.motion,
            Clutch("toggle"),
            invitation="press space to move (w a s d e q, i j k l u o, comma and dot), and again "
            "to let go",
        )
        self._hold_ns = round(config.hold_s * 1e9)
        self._terminal = Terminal(fd)
        self._until_ns: dict[str, int] = {}
        self._slow = False
        self._space_ns = 0
        self._others: deque[str] = deque(maxlen=OTHERS)

    @classmethod
    def from_config(cls, config: TeleopConfig, station: Station) -> Keyboard:
        options = parse(KeyboardConfig, config.options, "teleop.options")
        return cls(options, grasp(config, station, options.robot))

    def _open(self) -> None:
        self._terminal.open()

    def _close(self) -> None:
        self._terminal.close()

    def take(self, key: str) -> bool:
        """Whether ``key``, which moves nothing, has come since it was last asked for."""
        came = key in self._others
        self._others = deque((other for other in self._others if other != key), maxlen=OTHERS)
        return came

    def _poll(self, now_ns: int) -> Stick | None:
        pressed = False
        for key in self._terminal.read():
            if key == " ":
                # The bar has no release: it is down for the turn in which it comes.
                pressed = pressed or now_ns - self._space_ns > REPEAT_NS
                self._space_ns = now_ns
            else:
                self._press(key, now_ns)
        if self._terminal.gone:
            self.trouble = "the terminal was closed"
            return None
        values = [0.0] * (GRIPPER + 1)
        for key, until_ns in self._until_ns.items():
            if now_ns < until_ns:
                axis, direction = MOTIONS[key]
                values[axis] += direction
        return Stick(
            tuple(values[:GRIPPER]),
            pressed,
            gripper_rate=values[GRIPPER],
            speed=self.motion.fine if self._slow else 1.0,
        )

    def _press(self, key: str, now_ns: int) -> None:
        if key in MOTIONS:
            self._until_ns[key] = now_ns + self._hold_ns
        elif key == "f":
            self._slow = not self._slow
        else:
            self._others.append(key)
