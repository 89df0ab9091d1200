"""Runs virtual buses: the event loop, a child process of them, and its JSON description."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hardware.dynamixel.control import ControlClient, ControlServer
from hardware.dynamixel.servo import VirtualServo
from hardware.dynamixel.virtual import VirtualBus
from robot_stack.errors import ConfigError, DeviceError
from robot_stack.realtime import setup

__all__ = ["BusProcess", "build", "main", "run", "spawn"]

SPIN_NS = 100_000
_NS = 1_000_000_000
_LONGEST_STEP_S = 0.05
PRIORITY = 60


def build(description: Mapping[str, Any]) -> VirtualBus:
    """A bus from its JSON object: `name`, `link` (path of the port), `servos` (each `id`,
    `model`, and any other argument of VirtualServo), and any other argument of VirtualBus.

    Raises ConfigError for a key that does not exist.
    """
    options = dict(description)
    link = options.pop("link", None)
    try:
        servos = []
        for row in options.pop("servos"):
            arguments = dict(row)
            servos.append(VirtualServo(arguments.pop("id"), **arguments))
        bus = VirtualBus(servos, **options)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"virtual bus {description.get('name', '')!r}: {error}") from error
    if link is not None:
        bus.link(link)
    return bus


def run(
    buses: Sequence[VirtualBus],
    step_hz: float = 500.0,
    stop: Callable[[], bool] = lambda: False,
    *,
    control: ControlServer | None = None,
    on_step: Callable[[float], None] | None = None,
    spin_ns: int = SPIN_NS,
    watch_fd: int | None = None,
) -> None:
    """Serve `buses` until `stop()` is true, or `watch_fd` becomes readable (its writer has gone).

    `on_step(dt)` is called before each physics step: a world reads targets and sets measurements
    there. The loop sleeps until `spin_ns` before an answer is due and polls from there on: a timer
    alone wakes too late for a wire whose bytes take 10 us. Physics steps are not polled for.
    """
    period_ns = round(_NS / step_hz)
    last_step = time.monotonic_ns()
    next_step = last_step + period_ns
    while not stop():
        deadlines = [due for bus in buses if (due := bus.next_deadline_ns()) is not None]
        answer = min(deadlines, default=None)
        now = time.monotonic_ns()
        until = next_step if answer is None else min(next_step, answer - spin_ns)
        wait_s = max(0.0, (until - now) / _NS)
        inputs: list[Any] = [bus for bus in buses if bus.fileno() >= 0]
        if control is not None:
            inputs += control.filenos()
        if watch_fd is not None:
            inputs.append(watch_fd)
        ready = select.select(inputs, (), (), wait_s)[0]
        now = time.monotonic_ns()
        for source in ready:
            if isinstance(source, VirtualBus):
                source.on_readable(now)
            elif source == watch_fd:
                return
            elif control is not None:
                control.on_readable(source)
        for bus in buses:
            due = bus.next_deadline_ns()
            if due is not None and due <= now:
                bus.on_deadline(now)
        if now >= next_step:
            dt = min((now - last_step) / _NS, _LONGEST_STEP_S)
            last_step = now
            next_step = max(next_step + period_ns, now)
            if on_step is not None:
                on_step(dt)
            for bus in buses:
                bus.step(dt)


class BusProcess:
    """Virtual buses in a child process; ends with the `with` block, or with this process.

    `ports` maps bus names to serial ports; `control` talks to the child (see ControlClient).
    """

    def __init__(self, process: subprocess.Popen[bytes], ready: Mapping[str, Any]) -> None:
        self._process = process
        self.ports: dict[str, str] = dict(ready["ports"])
        self.pid = process.pid
        self.control = ControlClient(ready["control"])

    @property
    def port(self) -> str:
        """The port of the only bus, or of the first."""
        return next(iter(self.ports.values()))

    def close(self) -> None:
        """End the child and wait for it."""
        self.control.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> BusProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def spawn(
    buses: Sequence[Mapping[str, Any]],
    directory: str | os.PathLike[str],
    *,
    step_hz: float = 500.0,
    timeout_s: float = 60.0,
) -> BusProcess:
    """Start a child that serves `buses` (descriptions as for `build`).

    Ports are linked in `directory` under the buses' names, beside the control socket.
    Raises DeviceError with the child's complaint if it does not come up in `timeout_s`.
    """
    directory = Path(directory)
    descriptions = []
    for n, bus in enumerate(buses):
        name = bus.get("name", f"bus{n}")
        descriptions.append({"name": name, "link": str(directory / name), **bus})
    socket_path = directory / "control"
    description = {"step_hz": step_hz, "control": str(socket_path), "buses": descriptions}
    root = Path(__file__).resolve().parents[2]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hardware.dynamixel.virtual", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    line = b""
    try:
        process.stdin.write(json.dumps(description).encode() + b"\n")
        process.stdin.flush()
        if select.select([process.stdout], [], [], timeout_s)[0]:
            line = process.stdout.readline()
        return BusProcess(process, json.loads(line))
    except (OSError, ValueError) as error:
        process.kill()
        process.wait()
        raise DeviceError(
            f"the virtual bus did not start within {timeout_s} s (its messages are on stderr)"
        ) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m hardware.dynamixel.virtual FILE`, or `-` for one line on standard input.

    The description: `{"buses": [...], "step_hz": 500, "control": "path of a unix socket"}`.
    Prints one line with the ports when ready; ends on SIGTERM, SIGINT or, with `-`, when standard
    input closes.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        raise SystemExit("usage: python -m hardware.dynamixel.virtual FILE|-")
    piped = arguments[0] == "-"
    text = sys.stdin.readline() if piped else Path(arguments[0]).read_text(encoding="utf-8")
    description = json.loads(text)
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    buses = [build(bus) for bus in description["buses"]]
    control = None
    if description.get("control"):
        control = ControlServer(description["control"], {bus.name: bus for bus in buses})
    ready = {
        "ports": {bus["name"]: bus.get("link") or b.port
                  for bus, b in zip(description["buses"], buses, strict=True)},
        "control": description.get("control"),
    }  # fmt: skip
    # Hardware does not wait for the host's other programs: above the drivers' priority.
    setup(PRIORITY)
    print(json.dumps(ready), flush=True)
    try:
        run(
            buses,
            description.get("step_hz", 500.0),
            lambda: ended,
            control=control,
            watch_fd=sys.stdin.fileno() if piped else None,
        )
    finally:
        for bus in buses:
            bus.close()
        if control is not None:
            control.close()
