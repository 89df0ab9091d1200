"""Foot pedals as commands: each key of a pedal stands for one word, such as ``start``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robot_stack.errors import ConfigError

from .evdev import InputDevice
from .keys import key_code

__all__ = ["PedalEvent", "PedalEvents"]


@dataclass(frozen=True, slots=True)
class PedalEvent:
    """One press of a pedal: when (monotonic ns, the kernel's) and what it stands for."""

    t_ns: int
    action: str


class PedalEvents:
    """Presses of a pedal's keys, as the words of ``actions`` (key name to word).

    ``poll`` never blocks, and looks for an unplugged pedal by itself. A key that is held down
    counts once.
    """

    def __init__(self, device: str, actions: Mapping[str, str]) -> None:
        if not actions:
            raise ConfigError(f"pedal {device!r} has no keys: name at least one, as KEY_B: start")
        self._actions = {key_code(name): action for name, action in actions.items()}
        self._device = InputDevice(device, frozenset(self._actions))

    @property
    def connected(self) -> bool:
        return self._device.connected

    @property
    def trouble(self) -> str:
        """Why the pedal is not connected, in words; empty when it is."""
        return self._device.trouble

    def poll(self) -> list[PedalEvent]:
        """Presses since the last call, oldest first."""
        return [
            PedalEvent(event.t_ns, self._actions[event.code])
            for event in self._device.read()
            if event.down
        ]

    def close(self) -> None:
        self._device.close()

    def __enter__(self) -> PedalEvents:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
