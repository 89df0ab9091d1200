"""Doctor's checks of Franka arms: the client library, the kernel, and the way to the control box.

Nothing is asked of the robot but whether it listens: a second client would disturb a first one, so
a robot whose arm process runs is left alone.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hardware.franka.backend import TESTED, connection_error
from hardware.franka.configuration import FrankaConfig
from hardware.franka.fci import GRIPPER_PORT, ROBOT_PORT
from robot_stack.config import RobotConfig, Station
from robot_stack.doctor import Check
from robot_stack.errors import SharedMemoryError
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
from robot_stack.types import Lifecycle

__all__ = ["checks"]

ALIVE_NS = 1_000_000_000
LIBRARIES = {"fr3": (10, "franky", "franky-control"), "fer": (5, "panda_py", "panda-python")}
DESK_PORT = 443  # its web server: asking it disturbs no control connection
PROBES = 20
ANSWER_S = 2.0
# Of the millisecond of a control cycle, the robot leaves a client 0.2 to 0.5 ms.
SLOW_MS = 0.5


def checks(station: Station | None) -> Iterator[Check]:
    """One row a finding; nothing without a station, whose file tells where the robots are."""
    if station is None:
        return
    for name, robot in station.robots.items():
        if robot.driver == "franka":
            yield from _arm(name, robot, station)


def _arm(name: str, robot: RobotConfig, station: Station) -> Iterator[Check]:
    config = FrankaConfig.from_station(robot, station)
    yield _library(name, config)
    yield _kernel(name, config)
    running = _running(name, station.station)
    if running is not None:
        yield running
        return
    reachable = _round_trip(name, config)
    yield reachable
    if reachable.status == "fail":
        return
    yield _listens(name, config, "FCI", ROBOT_PORT)
    if config.gripper is not None:
        yield _listens(name, config, "hand", GRIPPER_PORT)


def _library(name: str, config: FrankaConfig) -> Check:
    version, module, package = LIBRARIES[config.model]
    if importlib.util.find_spec(module) is None:
        return Check(
            f"{name} library",
            "fail",
            f"{package} is not installed (a {config.model} needs it)",
            f"pip install {TESTED[version]}",
        )
    found = f"{package} {metadata.version(package)}, robot server version {version}"
    if f"{package}=={metadata.version(package)}" != TESTED[version]:
        return Check(
            f"{name} library", "warn", f"{found}; tested: {TESTED[version]}",
            f"pip install {TESTED[version]}",
        )  # fmt: skip
    return Check(f"{name} library", "ok", found)


def _kernel(name: str, config: FrankaConfig) -> Check:
    """libfranka looks for this file, whatever the kernel's version says."""
    if Path("/sys/kernel/realtime").exists():
        return Check(f"{name} kernel", "ok", f"{platform.release()}, PREEMPT_RT")
    found = f"{platform.release()} is no PREEMPT_RT kernel"
    mend = "sudo apt-get install -y linux-image-rt-amd64, and start that kernel"
    if config.realtime == "enforce":
        return Check(
            f"{name} kernel", "fail", f"{found}, and realtime: enforce needs one",
            f"{mend}; or realtime: ignore",
        )  # fmt: skip
    if config.address.startswith("127."):
        return Check(f"{name} kernel", "ok", f"{found}; a virtual arm does not mind")
    return Check(
        f"{name} kernel",
        "warn",
        f"{found}: the robot may stop in communication_constraints_violation",
        mend,
    )


def _running(name: str, station: str) -> Check | None:
    """What the arm process says, when there is one."""
    try:
        with Ring(ring_path(station, "arm", name)) as ring:
            latest = ring.latest()
            closed = ring.closed
    except SharedMemoryError:
        return None
    if closed or latest is None or time.monotonic_ns() - int(latest[1]["t_ns"]) > ALIVE_NS:
        return None
    tick = latest[1]
    state = Lifecycle(int(tick["lifecycle"]))
    rate = float(tick["success_rate"])
    found = f"its arm process runs ({state.name.lower()}"
    found += ")" if math.isnan(rate) else f", {rate:.0%} of commands in time)"
    if state is Lifecycle.FAULT:
        fault = tick["fault"].decode(errors="replace")
        return Check(f"{name} robot", "fail", f"{found}: {fault}", f"robot-stack reset {station}")
    return Check(f"{name} robot", "ok", f"{found}; end the station to check its connection")


def _round_trip(name: str, config: FrankaConfig) -> Check:
    """How long a packet takes there and back: a connection that is refused tells it as well."""
    took = []
    for _ in range(PROBES):
        began = time.perf_counter()
        try:
            with socket.socket() as link:
                link.settimeout(ANSWER_S)
                link.connect((config.address, DESK_PORT))
        except ConnectionRefusedError:
            pass
        except OSError as error:
            wrong = connection_error(config.address, error)
            mend = f"ping {config.address}; set robots.{name}.options.address"
            return Check(f"{name} network", "fail", str(wrong), mend)
        took.append((time.perf_counter() - began) * 1e3)
    took.sort()
    median, worst = took[len(took) // 2], took[-1]
    found = f"{config.address}: {median:.2f} ms there and back, {worst:.2f} ms the longest"
    if median > SLOW_MS:
        return Check(
            f"{name} network", "warn", f"{found}; a control cycle leaves 0.2 to 0.5 ms",
            "connect this computer to the control box by one cable, without switch or Wi-Fi",
        )  # fmt: skip
    return Check(f"{name} network", "ok", found)


def _listens(name: str, config: FrankaConfig, what: str, port: int) -> Check:
    try:
        socket.create_connection((config.address, port), timeout=ANSWER_S).close()
    except OSError as error:
        detail = os.strerror(error.errno) if error.errno else str(error)
        mend = "activate FCI in Desk (unlock the joints first)"
        if port == GRIPPER_PORT:
            mend = "mount and home the hand in Desk (end effector), or gripper: null"
        return Check(f"{name} {what}", "fail", f"{config.address} port {port}: {detail}", mend)
    return Check(f"{name} {what}", "ok", f"{config.address} port {port} listens")
