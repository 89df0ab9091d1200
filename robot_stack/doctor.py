"""`robot-stack doctor`: what is wrong with this machine and station, and the command that mends it.

The checks of the machine stand here. Those of devices come from the modules that the registry
names under ``doctor``: each offers ``checks(station) -> Iterator[Check]`` and only reads.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from robot_stack import registry
from robot_stack.config import Station, load_station
from robot_stack.errors import MissingDependencyError, RobotStackError
from robot_stack.realtime import LIMITS_FILE, Rate

__all__ = ["Check", "add_arguments", "device_checks", "machine_checks", "run", "run_checks"]

Status = Literal["ok", "warn", "fail"]

PRIORITY = 50
SHM_FREE = 512e6
PROBE_BLOCK, PROBE_BYTES, PROBE_S = 8 << 20, 128 << 20, 1.5
JPEG_RATIO = (
    10  # of the size of a raw frame; camera images at quality 90 are 10 to 15 times smaller
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``mend`` is what to do about it, a shell command where there is one."""

    name: str
    status: Status
    found: str
    mend: str = ""


def machine_checks(station: Station | None) -> Iterator[Check]:
    """This computer: Python, packages, scheduling, memory, disk, graphics."""
    yield _python()
    yield from _extras()
    yield _scheduler()
    yield _throttle()
    yield _preemption()
    yield _governor()
    yield _wake_up()
    yield _shared_memory()
    yield _disk(station)
    yield _graphics(station)


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _extras() -> Iterator[Check]:
    """Which optional packages are missing, by the extra that brings them."""
    distributions = metadata.packages_distributions()
    wanted: dict[str, list[str]] = {}
    for package, extra in registry.EXTRAS.items():
        wanted.setdefault(extra, []).append(package)
    for extra, packages in sorted(wanted.items()):
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            yield Check(
                f"extra {extra}",
                "warn",
                f"not installed: {', '.join(missing)}",
                f"pip install 'robot-stack[{extra}]'",
            )
        else:
            names = sorted({name for package in packages for name in distributions[package]})
            found = ", ".join(f"{name} {metadata.version(name)}" for name in names)
            yield Check(f"extra {extra}", "ok", found)


@contextlib.contextmanager
def _fifo() -> Iterator[None]:
    """SCHED_FIFO for a while; OSError where it is not permitted."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _scheduler() -> Check:
    try:
        with _fifo():
            return Check("scheduler", "ok", f"SCHED_FIFO at priority {PRIORITY} is permitted")
    except OSError as error:
        return Check(
            "scheduler",
            "warn",
            f"no SCHED_FIFO ({error.strerror}): loops run, but wake up late beside other programs",
            f'echo "$USER - rtprio 90" | sudo tee -a {LIMITS_FILE}; '
            f'echo "$USER - memlock unlimited" | sudo tee -a {LIMITS_FILE}; then log in again',
        )


def _throttle() -> Check:
    kernel = Path("/proc/sys/kernel")
    try:
        runtime = int((kernel / "sched_rt_runtime_us").read_text())
        period = int((kernel / "sched_rt_period_us").read_text())
    except OSError:
        return Check("rt throttle", "ok", "this kernel has none")
    if runtime < 0:
        return Check("rt throttle", "ok", "off: a real-time loop that spins can freeze its core")
    share = runtime / period
    found = (
        f"real-time threads get {share:.0%} of a core, then pause {(period - runtime) / 1e3:g} ms"
    )
    if share < 0.9:
        mend = "sudo sysctl kernel.sched_rt_period_us=1000000 kernel.sched_rt_runtime_us=950000"
        return Check("rt throttle", "fail", found, mend)
    return Check("rt throttle", "ok", found)


def _preemption() -> Check:
    version = platform.version()
    if Path("/sys/kernel/realtime").exists() or "PREEMPT_RT" in version:
        return Check("kernel", "ok", f"{platform.release()}, PREEMPT_RT")
    match = re.search(r"PREEMPT\w*", version)
    if match:
        return Check("kernel", "ok", f"{platform.release()}, {match[0]}")
    return Check(
        "kernel",
        "warn",
        f"{platform.release()} without preemption: a system call of another program delays loops",
        "sudo apt-get install -y linux-image-rt-amd64, and start that kernel",
    )


def _governor() -> Check:
    files = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    governors = {file.read_text().strip() for file in files}
    if not governors:
        return Check(
            "cpu governor", "ok", "this machine does not scale its clock (virtual machine)"
        )
    found = ", ".join(sorted(governors))
    if governors <= {"performance"}:
        return Check("cpu governor", "ok", found)
    return Check(
        "cpu governor",
        "warn",
        f"{found}: a core that has slowed down wakes up late",
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def _wake_up() -> Check:
    """How late a 500 Hz loop wakes up here and now, with and without real-time rights."""
    with contextlib.suppress(OSError), _fifo():
        return _lateness("SCHED_FIFO")
    return _lateness("SCHED_OTHER")


def _lateness(scheduler: str) -> Check:
    rate = Rate(500)
    late = sorted(rate.wait() / 1e3 for _ in range(250))
    found = f"{scheduler}, 500 Hz: {late[125]:.0f} us median, {late[247]:.0f} us p99"
    if late[247] < 1000:
        return Check("wake-up", "ok", found)
    return Check(
        "wake-up",
        "warn",
        found,
        "mend scheduler, kernel and cpu governor above, and end what else runs on this machine",
    )


def _shared_memory() -> Check:
    root = Path(os.environ.get("ROBOT_STACK_RUNTIME") or "/dev/shm")
    while not root.exists():
        root = root.parent
    usage = shutil.disk_usage(root)
    found = f"{root}: {usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
    if usage.free < SHM_FREE:
        mend = "sudo mount -o remount,size=2G /dev/shm (in a container: --shm-size=2g)"
        return Check("shared memory", "fail", found, mend)
    return Check("shared memory", "ok", found)


def _disk(station: Station | None) -> Check:
    """Free space and write speed where episodes go, against what the station's cameras make."""
    wanted = Path(station.recording.directory if station else "episodes").absolute()
    directory = wanted
    while not directory.exists():
        directory = directory.parent
    free = shutil.disk_usage(directory).free
    try:
        speed = _write_speed(directory)
    except OSError as error:
        return Check(
            "disk",
            "fail",
            f"cannot write in {directory}: {error.strerror}",
            f"sudo install -d -o $USER {wanted}, or another recording.directory",
        )
    found = f"{directory}: {free / 1e9:.0f} GB free, {speed / 1e6:.0f} MB/s written"
    floor = station.recording.free_space_floor_gb * 1e9 if station else 2e9
    if free < 2 * floor:
        return Check("disk", "fail", found, f"free space in {directory}: recording ends at "
                     f"{floor / 1e9:g} GB, or name another recording.directory")  # fmt: skip
    need = _recording_rate(station) if station else 0.0
    if speed < 2 * need:
        return Check(
            "disk",
            "warn",
            f"{found}; the cameras make {need / 1e6:.0f} MB/s",
            "record on an SSD (recording.directory), or with recording.encoding: jpeg",
        )
    return Check("disk", "ok", found)


def _recording_rate(station: Station) -> float:
    raw = sum(c.width * c.height * 3 * c.fps for c in station.cameras.values())
    return raw / (JPEG_RATIO if station.recording.encoding == "jpeg" else 1)


def _write_speed(directory: Path) -> float:
    """Bytes per second to the disk itself, of incompressible data; measured for up to 1.5 s."""
    block = os.urandom(PROBE_BLOCK)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        began = time.monotonic()
        elapsed, written = 0.0, 0
        while elapsed < PROBE_S and written < PROBE_BYTES:
            written += file.write(block)
            os.fdatasync(file.fileno())
            elapsed = time.monotonic() - began
    return written / elapsed


def _graphics(station: Station | None) -> Check:
    """EGL, by which simulated cameras and virtual worlds render without a screen."""
    needed = station is None or station.world is not None
    missing = []
    for library, package in (("libEGL.so.1", "libegl1"), ("libGL.so.1", "libgl1")):
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    if not missing:
        return Check("egl", "ok", "libEGL and libGL load")
    mend = f"sudo apt-get update && sudo apt-get install -y {' '.join(missing)}"
    return Check("egl", "warn" if needed else "ok", "no EGL: nothing can be rendered", mend)


def device_checks(station: Station | None) -> Iterator[Check]:
    """What is plugged in, or with a station the devices that it names."""
    for name in registry.names("doctor"):
        try:
            yield from registry.load("doctor", name)(station)
        except MissingDependencyError as error:
            text, _, mend = str(error).rpartition(": ")
            yield Check(name, "warn" if station is None else "fail", text, mend)
        except RobotStackError as error:
            yield Check(name, "fail", str(error), "mend the station file")


def run_checks(file: str | None) -> Iterator[Check]:
    """All checks; with a station file those of its devices too."""
    station: Station | None = None
    if file is not None:
        try:
            station = load_station(file)
            yield Check("station file", "ok", station.path)
        except RobotStackError as error:
            yield Check("station file", "fail", str(error), f"mend {file}")
    yield from machine_checks(station)
    yield from device_checks(station)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check this machine, and with a station file its devices: what is wrong and the command "
        "that mends it. Nothing is changed and nothing moves. Run it before `serve`: the buses of "
        "a running station are left alone. Exit status 1 when something must be mended."
    )
    parser.epilog = (
        "examples:\n  robot-stack doctor\n  robot-stack doctor configs/aloha.yaml --json"
    )
    parser.add_argument("station", nargs="?", help="station file (YAML)")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    checks = []
    for check in run_checks(args.station):
        checks.append(check)
        if not args.json:
            print(f"{check.status:4}  {check.name:22} {check.found}", flush=True)
            if check.mend and check.status != "ok":
                print(f"{'':4}  {'':22} -> {check.mend}", flush=True)
    failed = [check.name for check in checks if check.status == "fail"]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    elif failed:
        print(f"\n{len(failed)} to mend: {', '.join(failed)}")
    return 1 if failed else 0
