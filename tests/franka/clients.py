"""Client libraries as users have them, each in a process of its own: `python -m
tests.franka.clients NAME ADDRESS` prints what it saw as JSON.

Not in the tests' process: libfranka makes its thread real-time, and hangs when a server does.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from typing import Any

from hardware.franka.fci import ERROR_NAMES
from hardware.franka.virtual.address import control_name
from hardware.worlds.control import WorldClient


def _world(address: str) -> WorldClient:
    return WorldClient(control_name(address), timeout_s=20.0)


def _until(condition: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.002)


def _named(errors: Any) -> set[str]:
    return {name for name in dir(errors) if not name.startswith("_") and getattr(errors, name)}


def _errors(robot: Any, field: str, address: str) -> dict[str, Any]:
    """Raise the errors of a state one after the other; what the library calls each."""
    seen: set[str] = set()
    called: dict[str, str | None] = {}
    with _world(address) as world:
        for name in ERROR_NAMES:
            world.call("fault", kind="reflex", name=name)
            for _ in range(100):  # states; one that is not shown by then is not known
                now = _named(getattr(robot.read_once(), field))
                if now != seen:
                    break
            called[name] = next(iter(now - seen), None)
            seen = now
    return called


def pylibfranka_errors(address: str) -> Any:
    """Names of the 41 flags in libfranka 0.21."""
    import pylibfranka

    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    return _errors(robot, "current_errors", address)


def panda_errors(address: str) -> Any:
    """Names of the 41 flags in libfranka 0.9."""
    from panda_py import libfranka

    robot = libfranka.Robot(address, libfranka.RealtimeConfig.kIgnore)
    return _errors(robot, "current_errors", address)


def _fields(robot: Any) -> dict[str, Any]:
    """Every number of a state, by the library's names."""
    state = robot.read_once()
    names = [name for name in dir(state) if not name.startswith("_")]
    values = {name: getattr(state, name) for name in names}
    return {
        name: value if isinstance(value, float) else list(value)
        for name, value in values.items()
        if isinstance(value, float) or (isinstance(value, list) and value)
    }


def pylibfranka_fields(address: str) -> Any:
    """The numbers of a state as libfranka 0.21 reads them."""
    import pylibfranka

    return _fields(pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore))


def panda_fields(address: str) -> Any:
    """The numbers of a state as libfranka 0.9 reads them."""
    from panda_py import libfranka

    return _fields(libfranka.Robot(address, libfranka.RealtimeConfig.kIgnore))


def _refused(connect: Any) -> Any:
    try:
        connect()
    except Exception as error:  # noqa: BLE001 (the type is what is asked for)
        return {"type": type(error).__name__, "text": str(error)}
    return None


def franky_connect(address: str) -> Any:
    """How franky takes a server of another version."""
    import franky

    return _refused(lambda: franky.Robot(address, realtime_config=franky.RealtimeConfig.Ignore))


def panda_connect(address: str) -> Any:
    """How panda-python takes a server of another version."""
    from panda_py import libfranka

    return _refused(lambda: libfranka.Robot(address, libfranka.RealtimeConfig.kIgnore))


def franky_reflex(address: str) -> Any:
    """A reflex in the middle of a motion, the recovery, and a motion after it."""
    import franky

    robot = franky.Robot(address, realtime_config=franky.RealtimeConfig.Ignore)
    robot.relative_dynamics_factor = 0.2
    there = [*robot.state.q[:6], robot.state.q[6] + 0.6]
    back = list(robot.state.q)
    with _world(address) as world:
        robot.move(franky.JointMotion(there), asynchronous=True)
        _until(lambda: world.call("status")["dq"][6] > 0.05)
        world.call("fault", kind="reflex", name="cartesian_reflex")
        raised = _refused(robot.join_motion)
        mode = world.call("status")["mode"]
        robot.recover_from_errors()
        robot.move(franky.JointMotion(back))
        return {"raised": raised, "mode": mode, "after": world.call("status")["mode"]}


def franky_moves_on(address: str) -> Any:
    """Says when it moves, and moves until it is killed."""
    import franky

    robot = franky.Robot(address, realtime_config=franky.RealtimeConfig.Ignore)
    robot.recover_from_errors()
    robot.relative_dynamics_factor = 0.05
    here = list(robot.state.q)
    robot.move(franky.JointMotion([*here[:6], here[6] + 1.2]), asynchronous=True)
    with _world(address) as world:
        _until(lambda: world.call("status")["moving"])
    print(json.dumps("moving"), flush=True)
    return _refused(robot.join_motion)


def pylibfranka_asynchronous(address: str) -> Any:
    """Targets at any rate, the robot interpolates; a second one under way."""
    import pylibfranka

    handler = pylibfranka.AsyncPositionControlHandler
    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    q = list(robot.read_once().q_d)
    configured = handler.configure(robot, handler.Configuration([0.8] * 7, 0.005))
    control = configured.handler
    for angle in (q[6] + 0.5, q[6] - 0.3):
        target = handler.JointPositionTarget([*q[:6], angle])
        result = control.set_joint_position_target(target)
        if angle > q[6]:
            time.sleep(0.05)
    reached = pylibfranka._pylibfranka.TargetStatus.kTargetReached
    _until(lambda: control.get_target_feedback().status == reached)
    control.stop_control()
    with _world(address) as world:
        _until(lambda: not world.call("status")["moving"])
        status = world.call("status")
    return {
        "successful": bool(result.was_successful),
        "off": abs(status["q"][6] - (q[6] - 0.3)),
        "errors": status["errors"],
    }


def panda_torque(address: str) -> Any:
    """Half a second of torques on the last joint, through libfranka 0.9."""
    from panda_py import libfranka

    robot = libfranka.Robot(address, libfranka.RealtimeConfig.kIgnore)
    before = robot.read_once().q[6]
    passed = 0.0

    def torques(_: Any, period: Any) -> Any:
        nonlocal passed
        passed += period.to_sec()
        command = libfranka.Torques([0.0] * 6 + [0.3 * math.sin(math.pi * min(1.0, 2 * passed))])
        command.motion_finished = passed >= 0.5
        return command

    robot.control(torques)
    state = robot.read_once()
    return {"turned": state.q[6] - before, "mode": str(state.robot_mode)}


def main() -> None:
    name, address = sys.argv[1:3]
    with contextlib.redirect_stderr(sys.stdout):
        answer = globals()[name](address)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
