"""One door: nothing but the drivers tells a servo or a robot where to go, or takes torque away.

Read from the source itself, so that a set-up command, a benchmark or a tool that opens a bus of its
own and moves a joint past lease, guard and SafetyFilter is found before anybody runs it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("robot_stack", "hardware", "policies", "server", "collect", "benchmarks", "examples",
            "scripts")  # fmt: skip

# What moves a servo, and what lets it drop.
GOALS = ("goal_position", "goal_velocity", "goal_current", "goal_pwm", "torque_enable")
WRITERS = ("write", "write_verified", "sync_write")
GROUP_WRITERS = ("write_goals", "write_goal_currents", "set_torque")
RECOVERIES = ("recover", "begin_recovery")
# Whoever imports one can move a robot by it.
LIBRARIES = ("dynamixel_sdk", "franky", "panda_py", "pylibfranka")
DRIVER = "hardware/aloha/arm.py"

# Beside the driver, and why each of them may.
ALLOWED = {
    DRIVER: "the driver, which only an arm process runs",
    "hardware/aloha/mending.py": "of the driver: a servo that comes back holds where it stands",
    "hardware/aloha/registers.py": "of the driver: registers of the rig, by name; current limit",
    "server/control/arm_process.py": "the one path: writes what the SafetyFilter lets through",
    "server/control/orders.py": "of the arm process: torque and recovery, where they are ordered",
    "hardware/dynamixel/registers.py": "the bus: registers by name",
    "hardware/dynamixel/recovery.py": "the bus: a servo that restarts holds where it stands",
    "hardware/franka/backend_franky.py": "of the Franka driver: its client library",
    "hardware/franka/backend_panda.py": "of the Franka driver: its client library",
    "hardware/franka/gripper_worker.py": "of the Franka driver: the hand",
    "benchmarks/teleop.py": "ALOHA's own loop, for comparison, on virtual buses only",
    "benchmarks/_franka_driver.py": "the driver alone, measured on a virtual arm",
    "benchmarks/_franka_loop.py": "another client, for comparison, on a virtual arm",
    "benchmarks/_franka_traces.py": "what a robot must refuse, on a virtual arm",
    "benchmarks/conformance/franky_client.py": "the library alone, on a virtual arm",
    "benchmarks/conformance/panda_client.py": "the library alone, on a virtual arm",
    "benchmarks/conformance/pylibfranka_client.py": "the library alone, on a virtual arm",
}
# Who may open a bus: those above, and these, which write no goal.
OPENERS = {
    "hardware/dynamixel/bus.py": "is the bus",
    "hardware/franka/arm.py": "is the driver",
    "hardware/aloha/calibrate.py": "reads, and mends EEPROM without torque",
    "hardware/aloha/doctor.py": "reads",
    "hardware/aloha/identify.py": "pings and reads",
    "hardware/aloha/measuring.py": "reads",
    "hardware/aloha/faults.py": "of the driver: reads",
    "hardware/teleop/gello.py": "reads a leader that has no torque",
    "hardware/teleop/gello_calibrate.py": "reads",
}
# The servos themselves, on the far side of the wire.
VIRTUAL = {
    f"hardware/dynamixel/{name}.py"
    for name in ("virtual", "servo", "rules", "dynamics", "plans", "chain", "process", "control")
}


def called(node: ast.AST) -> str:
    """The last name of what a call calls: ``write`` of ``self._bus.write(...)``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def of_a_device(node: ast.expr) -> bool:
    """Whether a method is one of something that is called a bus, a robot or an arm."""
    if not isinstance(node, ast.Attribute):
        return False
    return re.search(r"(^|[._])(bus|robot|arm)$", ast.unparse(node.value).lower()) is not None


def doors(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in ``source`` that could write a goal or a torque register."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [alias.name for alias in node.names]
            roots = [name.split(".")[0] for name in (module, *names)]
            if library := next((name for name in roots if name in LIBRARIES), None):
                yield node.lineno, f"imports {library}"
        if not isinstance(node, ast.Call):
            continue
        name = called(node.func)
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [
            v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)
        ]
        if name in WRITERS and any(text in GOALS for text in texts):
            yield node.lineno, f"{name}({', '.join(texts)})"
        elif name in WRITERS and of_a_device(node.func) and not texts:
            yield node.lineno, f"{name} of something that is not named here"
        elif name in GROUP_WRITERS:
            yield node.lineno, name
        elif name in RECOVERIES and of_a_device(node.func):
            yield node.lineno, f"{name} of a device"
        elif name == "torque" and of_a_device(node.func) and values:
            yield node.lineno, "torque of a bus"


def opens_a_bus(source: str) -> bool:
    """Whether a module can open a servo bus, or the driver, by itself."""
    devices = {"DynamixelBus", "AlohaArm", "RegisterAccess"}
    devices |= {"FrankaArm", "FrankyBackend", "PandaBackend"}
    if not any(device in source for device in devices):
        return False
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("hardware.")
        and bool(devices & {alias.name for alias in node.names})
        for node in ast.walk(ast.parse(source))
    )


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        found += [str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")]
    return sorted(found)


def test_only_the_driver_writes_goals_and_torque() -> None:
    sdk = {f"hardware/dynamixel/{name}.py" for name in ("port", "group", "packet", "transport")}
    found = []
    seen = set()
    for name in modules():
        if name in VIRTUAL:
            continue
        for line, what in doors((ROOT / name).read_text()):
            seen.add(name)
            if name not in ALLOWED and not (name in sdk and "imports" in what):
                found.append(f"{name}:{line}: {what}")
    assert found == [], "a second door: move joints through an arm process (robot_stack.one_robot)"
    assert set(ALLOWED) <= seen, "no longer needed in ALLOWED"


def test_only_the_driver_and_readers_open_a_bus() -> None:
    openers = {name for name in modules() if opens_a_bus((ROOT / name).read_text())}
    assert openers - set(ALLOWED) - set(OPENERS) == set()
    assert set(OPENERS) <= openers, "no longer needed in OPENERS"


@pytest.mark.parametrize(
    "line",
    [
        'bus.write(9, "goal_position", 2048)',
        'self._bus.write_verified(servo.id, "goal_current", 60)',
        'bus.write(servo.id, "torque_enable", 0)',
        'bus.sync_write("goal_position", {1: 2})',
        'bus.sync_write(name="torque_enable", values={})',
        "self.bus.write(1, register, 3)",
        "arm._bus.write_goals(ticks)",
        "arm.write(safety.step(target, dt).sent)",
        "self.robot.set_torque(joints, False)",
        "robot.recover()",
        "anything.write_goal_currents(counts)",
        "bus.torque((1, 2), False)",
        "import dynamixel_sdk",
        "from dynamixel_sdk import GroupSyncWrite",
        "import franky",
        "from panda_py import controllers, libfranka",
        "import pylibfranka as library",
    ],
)
def test_a_second_door_is_found(line: str) -> None:
    assert len(list(doors(f"def sneak(bus, servo, ticks):\n    {line}\n"))) == 1


@pytest.mark.parametrize(
    "line",
    [
        'bus.read(9, "goal_position")',
        'bus.write(9, "baud_rate", 3)',
        'path.write(b"x")',
        "log.write(text)",
        "robot.torque()",
        "lease.send(target)",
        "client.torque(robot, joints, True)",
    ],
)
def test_what_moves_nothing_is_none(line: str) -> None:
    assert list(doors(f"{line}\n")) == []
