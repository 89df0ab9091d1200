"""Doctor's checks of stop buttons and pedals: plugged in, readable, and with the named keys."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hardware.input.evdev import find_nodes
from hardware.input.keys import key_code
from robot_stack.config import Station
from robot_stack.doctor import Check, Status
from robot_stack.errors import ConfigError

__all__ = ["checks"]

LIST = "robot-stack stop-device --list"


def checks(station: Station | None) -> Iterator[Check]:
    """One row a device that the station file names."""
    if station is None:
        return
    for name, device in station.stop_devices.items():
        missing: Status = "fail" if device.required else "warn"
        yield _device(f"stop device {name}", device.device, device.keys, missing)
    pedal = station.recording.pedal
    if pedal is not None:
        yield _device("pedal", pedal.device, tuple(pedal.keys), "warn")
    if not station.stop_devices and station.world is None:
        yield Check(
            "stop devices",
            "warn",
            "the station file names none: only `robot-stack stop` and the power switch stop it",
            f"{LIST}; then stop_devices in the station file",
        )


def _device(name: str, device: str, keys: tuple[str, ...], missing: Status) -> Check:
    try:
        codes = frozenset(key_code(key) for key in keys)
    except ConfigError as error:
        return Check(name, "fail", str(error), LIST)
    nodes = find_nodes(device, codes)
    if not nodes:
        return Check(name, missing, f"{device} is not plugged in (or has none of its keys)", LIST)
    barred = [str(node) for node in nodes if not os.access(node, os.R_OK)]
    if barred:
        mend = "sudo usermod -aG input $USER; then log in again"
        return Check(name, missing, f"no right to read {', '.join(barred)}", mend)
    return Check(name, "ok", ", ".join(map(str, nodes)))
