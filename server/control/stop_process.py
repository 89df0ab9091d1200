"""`robot-stack stop-device`: an emergency-stop button, a foot pedal or a key sets the stop.

A press raises the stop flag of every group in shared memory, before anything else is done; no
supervisor and no lease are needed. The flag latches: releasing the button changes nothing until
`robot-stack reset`. The process publishes a heartbeat, by which the supervisor tells a required
device that is missing, silent or still pressed.

A stop button behind USB and an operating system is no safety-rated emergency stop: the one that
cuts the power of the robot stays where it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

import numpy as np

from hardware.input.evdev import InputDevice, list_nodes
from hardware.input.keys import key_code, key_name
from robot_stack.config import Station, StopDeviceConfig, load_station
from robot_stack.errors import ConfigError
from robot_stack.realtime import setup
from robot_stack.records import STOP_DEVICE, ring_path
from robot_stack.shared_memory import Flag, RingWriter
from robot_stack.types import StopCategory

from .child_output import print_or_go_on

__all__ = ["StopProcess", "Stops", "add_arguments", "run"]

HEARTBEAT_S = 0.1
PRIORITY = 70  # above the arms: it runs for microseconds, and when it runs it matters


class Stops:
    """The stop flags of all groups of a station."""

    def __init__(self, station: Station) -> None:
        self._flags = [Flag(ring_path(station.station, "stop", name)) for name in station.groups]

    def set(self, category: int, reason: str) -> None:
        for flag in self._flags:
            flag.set(category + 1, reason, asked=True)

    def hold(self, category: int, reason: str) -> None:
        """Set only what somebody has cleared meanwhile."""
        for flag in self._flags:
            if not flag.value:
                flag.set(category + 1, reason, asked=True)

    def close(self) -> None:
        for flag in self._flags:
            flag.close()


class StopProcess:
    """Listens to one stop device of a station. ``turn`` is one heartbeat, or one press."""

    def __init__(self, station: Station, config: StopDeviceConfig) -> None:
        self.config = config
        self.device = InputDevice(config.device, frozenset(key_code(key) for key in config.keys))
        self.stops = Stops(station)
        self._ring = RingWriter(
            ring_path(station.station, "stopdevice", config.name),
            STOP_DEVICE,
            16,
            meta={"device": config.device, "required": config.required},
        )
        self._record = np.zeros((), STOP_DEVICE)
        self._presses = 0
        self._connected = False
        self._trouble = ""

    def turn(self) -> None:
        """Wait for a press, at most one heartbeat; act on it and publish."""
        if self.device.connected:
            self.device.wait(HEARTBEAT_S)
        else:
            time.sleep(HEARTBEAT_S)
        name, category = self.config.name, self.config.category
        for event in self.device.read():
            if event.down:
                self.stops.set(category, f"{name}: {key_name(event.code)} pressed")
                self._presses += 1
                print(f"{name}: {key_name(event.code)} pressed: stopped", flush=True)
        pressed = bool(self.device.down)
        if pressed:
            self.stops.hold(category, f"{name}: still pressed")
        self._notice_plug()
        self._record["t_ns"] = time.monotonic_ns()
        self._record["connected"] = self.device.connected
        self._record["pressed"] = pressed
        self._record["presses"] = self._presses
        self._ring.publish(self._record)

    def _notice_plug(self) -> None:
        connected = self.device.connected
        if self._connected and not connected and self.config.required:
            self.stops.set(self.config.category, f"{self.config.name}: {self.device.trouble}")
        if connected != self._connected:
            state = "listening" if connected else self.device.trouble
            print(f"{self.config.name}: {state}", flush=True)
        elif not connected and self.device.trouble != self._trouble:
            print(f"{self.config.name}: {self.device.trouble}", flush=True)
        self._connected, self._trouble = connected, self.device.trouble

    def close(self) -> None:
        self.device.close()
        self._ring.close()
        self.stops.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Listen to a stop button, a foot pedal or this terminal's keyboard, and stop every group "
        "of a station at a press. The stop latches; `robot-stack reset STATION` clears it once "
        "the button is released. `robot-stack serve` runs one such process for each of the "
        "station file's stop_devices; without --device this terminal becomes one more: every "
        "key but q stops."
    )
    parser.epilog = """examples:
  robot-stack stop-device --list                                what is plugged in, and its keys
  robot-stack stop-device configs/aloha.yaml                    any key in this terminal stops
  robot-stack stop-device configs/aloha.yaml --device button    as `serve` does

in the station file:
  stop_devices:
    button:
      device: /dev/input/by-id/usb-Vendor_Button-event-kbd      # or the device's own name
      keys: [KEY_SPACE]                                         # left out: any key
      category: 2                                               # stop and hold (arms fall in 1)
      required: true                                            # a missing button is a fault
"""
    parser.add_argument("station", nargs="?", help="station file (YAML)")
    parser.add_argument("--device", metavar="NAME", help="one of the station's stop_devices")
    parser.add_argument("--list", action="store_true", help="list input devices that have keys")
    parser.add_argument("--json", action="store_true", help="with --list: one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list(as_json=args.json)
    if args.station is None:
        raise ConfigError("name a station file, or use --list to see what is plugged in")
    station = load_station(args.station)
    if args.device is None:
        return _listen_to_terminal(station)
    if args.device not in station.stop_devices:
        known = ", ".join(station.stop_devices) or "none"
        raise ConfigError(
            f"{station.path} has no stop device {args.device!r} (stop_devices: {known})"
        )
    return _listen_to_device(station, station.stop_devices[args.device])


def _list(*, as_json: bool) -> int:
    links: dict[str, list[str]] = {}
    for link in _by_id():
        links.setdefault(os.path.realpath(link), []).append(link)
    rows: list[dict[str, Any]] = [
        {
            "name": node.name,
            "path": str(node.path),
            "by_id": links.get(str(node.path), []),
            "keys": [key_name(code) for code in sorted(node.keys)],
            "readable": os.access(node.path, os.R_OK),
        }
        for node in list_nodes()
    ]
    if as_json:
        print(json.dumps({"devices": rows}))
        return 0
    for row in rows:
        print(
            f"{row['name']!r}: {row['path']}" + ("" if row["readable"] else " (no right to read)")
        )
        for link in row["by_id"]:
            print(f"    device: {link}")
        shown = ", ".join(row["keys"][:8])
        more = f" and {len(row['keys']) - 8} more" if len(row["keys"]) > 8 else ""
        print(f"    keys: {shown}{more}")
    if not rows:
        print("no input device with keys is plugged in")
    return 0


def _by_id() -> list[str]:
    try:
        return sorted(entry.path for entry in os.scandir("/dev/input/by-id"))
    except OSError:  # the directory exists while something is plugged in
        return []


class _Ended:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.ended = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)

    def _end(self, *_: object) -> None:
        self.ended = True


def _listen_to_device(station: Station, config: StopDeviceConfig) -> int:
    print_or_go_on()
    process = StopProcess(station, config)
    print(f"{config.name}: {setup(PRIORITY)}", flush=True)
    signals = _Ended()
    try:
        while not signals.ended:
            process.turn()
    finally:
        process.close()
    return 0


@contextlib.contextmanager
def _single_keys(fd: int) -> Iterator[None]:
    saved = termios.tcgetattr(fd)
    tty.setcbreak(fd, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _listen_to_terminal(station: Station) -> int:
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        raise ConfigError(
            "standard input is no terminal: run this in one, or name a button with --device"
        )
    stops = Stops(station)
    signals = _Ended()
    with contextlib.closing(stops), _single_keys(fd):
        setup(PRIORITY)
        print(f"any key stops station {station.station}; q leaves", flush=True)
        while not signals.ended:
            if not select.select([fd], [], [], HEARTBEAT_S)[0]:
                continue
            keys = os.read(fd, 256)
            if not keys:  # the terminal has gone
                return 0
            if keys in (b"q", b"Q"):
                return 0
            stops.set(int(StopCategory.HOLD), "key pressed in the stop terminal")
            print(f"stopped; when it is safe: robot-stack reset {station.station}", flush=True)
    return 0
