"""Doctor's checks of the devices that operators hold: plugged in, readable, calibrated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hardware.input.evdev import find_nodes
from hardware.input.hidraw import list_hid
from hardware.teleop.gamepad import GAMEPAD_KEYS
from hardware.teleop.spacemouse import MEND, is_spacemouse
from robot_stack import registry
from robot_stack.config import Station, TeleopConfig
from robot_stack.doctor import Check, Status
from robot_stack.errors import RobotStackError
from robot_stack.shared_memory import runtime_dir

__all__ = ["checks"]

INPUT_MEND = "sudo usermod -aG input $USER; then log in again"


def checks(station: Station | None) -> Iterator[Check]:
    """One row a device that the station file names (its own ``teleop`` must be there, the others
    may be missing), and one for a SpaceMouse that is plugged in and cannot be read."""
    named: dict[str, tuple[TeleopConfig, Status]] = {}
    if station is not None:
        named = {n: (config, "warn") for n, config in station.other_teleop.items()}
        if station.teleop is not None:
            named["teleop"] = (station.teleop, "fail")
        for name, (config, missing) in named.items():
            yield _device(f"device {name}", config, station, missing)
    if not any(config.driver == "spacemouse" for config, _ in named.values()):
        barred = _barred([n.path for n in list_hid() if is_spacemouse(n)])
        if barred:
            yield Check("SpaceMouse", "warn", f"no right to read {barred}", MEND)


def _device(name: str, config: TeleopConfig, station: Station, missing: Status) -> Check:
    try:
        registry.load("teleop", config.driver).from_config(config, station)
    except RobotStackError as error:
        return Check(name, "fail", str(error), "mend the station file; see `teleop --help`")
    look = LOOKS.get(config.driver)
    if look is None:
        return Check(name, "ok", f"{config.driver}: nothing to plug in")
    return look(name, config, station, missing)


def _spacemouse(name: str, config: TeleopConfig, station: Station, missing: Status) -> Check:
    device = str(config.options.get("device", ""))
    paths = [n.path for n in list_hid() if is_spacemouse(n)] if not device else [Path(device)]
    return _node(name, "spacemouse", [path for path in paths if path.exists()], missing, MEND)


def _gamepad(name: str, config: TeleopConfig, station: Station, missing: Status) -> Check:
    paths = find_nodes(str(config.options.get("device", "")), GAMEPAD_KEYS)
    return _node(name, "gamepad", paths, missing, INPUT_MEND)


def _gello(name: str, config: TeleopConfig, station: Station, missing: Status) -> Check:
    port = str(config.options.get("port", ""))
    if port.startswith("virtual:"):
        path = runtime_dir(station.station) / "tty" / port.removeprefix("virtual:")
        if not path.exists():
            return Check(name, "ok", f"gello: {port} is there once the world runs")
    else:
        path = Path(port)
    mend = "sudo usermod -aG dialout $USER; then log in again"
    return _node(name, "gello", [path] if path.exists() else [], missing, mend)


def _node(name: str, driver: str, paths: list[Path], missing: Status, mend: str) -> Check:
    if not paths:
        return Check(name, missing, f"{driver}: not plugged in", "plug it in")
    if barred := _barred(paths):
        return Check(name, missing, f"{driver}: no right to read {barred}", mend)
    return Check(name, "ok", f"{driver}: {', '.join(map(str, paths))}")


def _barred(paths: list[Path]) -> str:
    return ", ".join(str(path) for path in paths if not os.access(path, os.R_OK))


LOOKS: dict[str, Callable[[str, TeleopConfig, Station, Status], Check]] = {
    "spacemouse": _spacemouse,
    "gamepad": _gamepad,
    "gello": _gello,
}
