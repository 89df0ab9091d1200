"""`robot-stack identify`: which serial port is which arm; writes a station file and udev rules."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hardware.aloha import moving, registers
from hardware.aloha.configuration import AlohaArmConfig
from hardware.aloha.rig import ARMS, BAUD
from hardware.dynamixel.bus import DynamixelBus, PingResult, check_usb_latency
from robot_stack.config import parse
from robot_stack.errors import BusError, ConfigError, DeviceError

__all__ = ["Found", "add_arguments", "run", "scan_port", "station_yaml", "udev_rules"]

BY_ID = Path("/dev/serial/by-id")
CAMERAS = Path("/dev/v4l/by-id")
# Fast ones first: the arms speak 1 Mbaud, a servo from the factory 57,600.
BAUDS = (1_000_000, 57_600, 4_000_000, 3_000_000, 2_000_000, 115_200)
SLACK_S = 0.05
ENOUGH = 5  # servos that fit an arm, of nine, for a port to be taken for that arm

NAMES = ("follower_left", "follower_right", "leader_left", "leader_right")
ROLES = {"vx300s": "follower", "wx250s": "leader"}


@dataclass(frozen=True, slots=True)
class Found:
    """One serial port: servos that answered by (baud, id), and the arm that they make up."""

    port: str
    servos: dict[tuple[int, int], PingResult]
    model: str | None
    complaints: tuple[str, ...]
    error: str = ""

    @property
    def replaced(self) -> dict[str, str]:
        """Servos of another model than the arm's own, as the option ``servo_models`` wants it."""
        if self.model is None:
            return {}
        here = {servo_id: result.model for (_, servo_id), result in self.servos.items()}
        return {
            servo.name: here[servo.id]
            for servo in ARMS[self.model].servos
            if servo.id in here and here[servo.id] != servo.model
        }

    def __str__(self) -> str:
        if self.error:
            return f"{self.port}: {self.error}"
        if not self.servos:
            return f"{self.port}: no servo answers at any baud rate (is the arm's power on?)"
        what = f"a {self.model} ({ROLES[self.model]})" if self.model else "no arm known here"
        bauds = ", ".join(str(baud) for baud in sorted({baud for baud, _ in self.servos}))
        text = f"{self.port}: {what}, {len(self.servos)} servos at {bauds} baud"
        return "; ".join((text, *self.complaints))


def scan_port(port: str, bauds: Sequence[int] = BAUDS) -> Found:
    """Ping all ids on a port at every baud rate, and say which arm they are. Changes nothing."""
    try:
        servos = DynamixelBus(port, [1], BAUD, slack_s=SLACK_S).scan(None, bauds)
    except BusError as error:
        return Found(port, {}, None, (), str(error))
    here = {servo_id: result.model for (_, servo_id), result in servos.items()}
    scores = {
        name: sum(here.get(servo.id) == servo.model for servo in arm.servos)
        for name, arm in ARMS.items()
    }
    best = max(scores, key=lambda name: scores[name])
    if scores[best] < ENOUGH:
        return Found(port, servos, None, ())
    complaints = []
    for servo in ARMS[best].servos:
        if servo.id not in here:
            complaints.append(f"{servo} is missing")
        elif here[servo.id] != servo.model:
            complaints.append(f"{servo} is {here[servo.id]} where the arm has {servo.model}")
    complaints += [
        f"servo {servo_id} speaks {baud} baud" for baud, servo_id in servos if baud != BAUD
    ]
    issue = check_usb_latency(port)
    if issue is not None:
        complaints.append(str(issue))
    return Found(port, servos, best, tuple(complaints))


def station_yaml(name: str, arms: dict[str, Found], cameras: dict[str, str]) -> str:
    """A station file for arms by robot name; leaders and followers of one side become a pair."""
    robots: dict[str, Any] = {}
    for robot, found in sorted(arms.items()):
        assert found.model is not None
        role = robot.partition("_")[0]
        options: dict[str, Any] = {"role": role, "model": found.model, "port": found.port}
        if role == "follower":
            options["current_limit"] = 200
        if found.replaced:
            options["servo_models"] = found.replaced
        robots[robot] = {"driver": "aloha", "options": options}
        if role == "leader":
            robots[robot]["falls"] = False
    groups: dict[str, Any] = {}
    for group, role in (("followers", "follower"), ("leaders", "leader")):
        members = [robot for robot in robots if robot.startswith(role)]
        if members:
            groups[group] = {"robots": members}
    station: dict[str, Any] = {"schema": 1, "station": name, "robots": robots, "groups": groups}
    pairs = {
        leader: leader.replace("leader", "follower")
        for leader in robots
        if leader.startswith("leader") and leader.replace("leader", "follower") in robots
    }
    if pairs and len(pairs) == len(groups.get("followers", {}).get("robots", ())):
        station["teleop"] = {
            "driver": "leader_arms", "group": "followers", "options": {"pairs": pairs},
        }  # fmt: skip
    if cameras:
        station["cameras"] = {
            camera: {"driver": "opencv", "width": 640, "height": 480, "options": {"source": source}}
            for camera, source in cameras.items()
        }
    head = (
        "# Written by `robot-stack identify`. Next: robot-stack calibrate THIS_FILE --robot NAME\n"
    )
    return head + yaml.safe_dump(station, sort_keys=False)


def udev_rules(arms: dict[str, Found]) -> str:
    """Rules for /etc/udev/rules.d: a 1 ms latency timer and a name for each adapter by serial."""
    lines = ["# /etc/udev/rules.d/99-robot-stack.rules, then: sudo udevadm control --reload"]
    for robot, found in sorted(arms.items()):
        serial = _usb_serial(found.port)
        if serial is None:
            lines.append(f"# {robot}: {found.port} is no USB adapter with a serial number")
            continue
        lines.append(
            f'SUBSYSTEM=="tty", ATTRS{{serial}}=="{serial}", ENV{{ID_MM_DEVICE_IGNORE}}="1", '
            f'ATTR{{device/latency_timer}}="1", SYMLINK+="robot_stack_{robot}"'
        )
    return "\n".join(lines) + "\n"


def _usb_serial(port: str) -> str | None:
    from serial.tools.list_ports import comports

    device = str(Path(port).resolve())
    return next((info.serial_number for info in comports() if info.device == device), None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find out which serial port is which arm. Pings every port at every baud rate and tells "
        "arms by the models of their servos (vx300s: follower, wx250s: leader). With --wiggle each "
        "arm in turn swings its wrist by 3 degrees and you say which one it was; hold the arms or "
        "let them lie. Only the wrist gets torque for it, from a station of its own that is called "
        "identify: Ctrl-C, `robot-stack stop identify` and --stop-device end the motion at once. "
        "Can then write the station file and udev rules. No station may be served meanwhile."
    )
    parser.epilog = """examples:
  robot-stack identify                                  look only, nothing moves
  robot-stack identify --wiggle --write lab.yaml --udev rules.txt
  robot-stack identify --wiggle --stop-device /dev/input/by-id/BUTTON
  robot-stack identify --snapshots /tmp/cameras         one picture a camera
  robot-stack identify --port /dev/ttyUSB0 --name /dev/ttyUSB0=leader_left --write lab.yaml
"""
    parser.add_argument("--port", action="append", help="only this port (may be repeated)")
    parser.add_argument("--wiggle", action="store_true", help="move each arm's wrist, ask for it")
    parser.add_argument(
        "--stop-device",
        metavar="DEVICE",
        help="a button or pedal that stops the wiggle (`robot-stack stop-device --list`)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="PORT=ROBOT",
        help=f"say which arm a port is, instead of being asked ({', '.join(NAMES)})",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a station file")
    parser.add_argument("--station", default="aloha", help="its name (default: aloha)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument("--udev", type=Path, metavar="FILE", help="write udev rules")
    parser.add_argument("--snapshots", type=Path, metavar="DIR", help="a picture of every camera")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def _ask_operator(text: str) -> str:
    print(f"{text} ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise ConfigError("no terminal to ask on: run it in one, or say --name PORT=ROBOT")
    return line.strip()


def _names(pairs: list[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in pairs:
        port, equals, robot = pair.rpartition("=")
        if not equals or not robot.startswith(("follower", "leader")):
            raise ConfigError(f"--name {pair}: expected PORT=ROBOT, ROBOT one of {NAMES} or alike")
        names[port] = robot
    return names


def run(args: argparse.Namespace, ask: Callable[[str], str] = _ask_operator) -> int:
    """``ask`` shows a question to the operator and returns the answer."""
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    if args.write and args.write.exists() and not args.force:
        raise ConfigError(f"{args.write} exists: choose another name, or overwrite with --force")
    names = _names(args.name)
    ports = args.port or [str(path) for path in sorted(BY_ID.glob("*"))]
    if not ports:
        say(f"no serial adapter is plugged in ({BY_ID} is empty); name one with --port")
    found = [scan_port(port) for port in ports]
    arms: dict[str, Found] = {}
    for one in found:
        say(str(one))
        if one.model is None:
            continue
        robot = names.get(one.port, "")
        if args.wiggle:
            _wiggle(one, args.stop_device, say, ask)
            robot = robot or _ask_name(one, arms, ask)
        if robot:
            if robot in arms:
                raise ConfigError(f"{robot} is named twice: {arms[robot].port} and {one.port}")
            arms[robot] = one
    pictures = _snapshots(args.snapshots, say) if args.snapshots else {}
    if args.write:
        _write_station(args, arms, pictures, say)
    if args.udev:
        args.udev.write_text(udev_rules(arms))
        say(f"wrote {args.udev}")
    summary = {
        "ok": bool(found) and all(one.model for one in found),
        "ports": [
            {
                "port": one.port, "model": one.model, "servos": len(one.servos),
                "complaints": [*one.complaints, *([one.error] if one.error else [])],
            }
            for one in found
        ],
        "arms": {robot: one.port for robot, one in arms.items()},
        "cameras": pictures,
        "file": str(args.write) if args.write else None,
    }  # fmt: skip
    if args.json:
        print(json.dumps(summary))
    return 0 if summary["ok"] else 1


def _wiggle(
    found: Found,
    stop_device: str | None,
    say: Callable[[str], None],
    ask: Callable[[str], str],
) -> None:
    assert found.model is not None
    options = {
        "role": ROLES[found.model],
        "model": found.model,
        "port": found.port,
        "servo_models": found.replaced,
    }
    config = parse(AlohaArmConfig, options, found.port)
    ids = [servo.id for servo in config.arm.servos]
    with DynamixelBus(config.port, ids, config.baud, slack_s=SLACK_S) as bus:
        falls = any(registers.read_all(bus, "torque_enable").values())
    devices = {} if stop_device is None else {"stop": {"device": stop_device}}
    say(f"{found.port}: starting its arm process")
    with moving.wiggle_station(
        config, falls=falls, confirm=lambda text: ask(f"{text} [Enter]"), stop_devices=devices
    ) as robot:
        say(
            f"{found.port}: this arm now swings its wrist (Ctrl-C or, in another terminal, "
            "`robot-stack stop identify` stops it)"
        )
        moving.wiggle(robot)


def _ask_name(found: Found, taken: dict[str, Found], ask: Callable[[str], str]) -> str:
    assert found.model is not None
    free = [n for n in NAMES if n.startswith(ROLES[found.model]) and n not in taken]
    while True:
        answer = ask(f"which arm moved? ({', '.join(free)}; empty: leave it out)")
        if not answer or (answer.startswith(("follower", "leader")) and answer not in taken):
            return answer


def _write_station(
    args: argparse.Namespace,
    arms: dict[str, Found],
    pictures: dict[str, str],
    say: Callable[[str], None],
) -> None:
    if not arms:
        raise ConfigError(
            "no arm has a name yet, so there is no station to write: use --wiggle, or --name "
            "PORT=ROBOT"
        )
    cameras = {f"camera_{n}": source for n, source in enumerate(sorted(pictures), 1)}
    args.write.write_text(station_yaml(args.station, arms, cameras))
    say(f"wrote {args.write}")


def _snapshots(directory: Path, say: Callable[[str], None]) -> dict[str, str]:
    """One picture of every V4L2 camera, {device: file}; those that stay silent are told."""
    import cv2

    from hardware.cameras.opencv import OpenCVCamera, OpenCVOptions
    from robot_stack.spec import CameraSpec

    directory.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}
    for device in sorted(CAMERAS.glob("*-video-index0")):
        spec = CameraSpec(device.name, 640, 480, 30.0)
        try:
            with OpenCVCamera(spec, OpenCVOptions(source=str(device))) as camera:
                frames = [camera.read(1.0) for _ in range(5)]  # exposure needs a few
        except DeviceError as error:
            say(str(error))
            continue
        if frames[-1] is None:
            say(f"{device}: no picture within a second")
            continue
        path = directory / f"{device.name}.png"
        cv2.imwrite(str(path), frames[-1].image[..., ::-1])
        pictures[str(device)] = str(path)
        say(f"{device}: {path}")
    return pictures
