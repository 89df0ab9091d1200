"""Commands that a Franka must refuse, each by its own reflex, sent by unmodified pylibfranka.

``python -m benchmarks._franka_traces ADDRESS NAME...`` sends some of them to an arm; ``--judge``
lets PyPI's franka-sim judge the same numbers, in an environment that has it. One JSON line each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["EXPECTED", "TIMED", "TRACES", "Trace"]

DT = 0.001
JOINT = 6  # alone: 5.26 rad/s, 10 rad/s2, 5000 rad/s3
START = (0.0, -0.7854, 0.0, -2.3562, 0.0, 1.5708, 0.7854)
LATE_S = 0.04
LOST = 25  # a robot stops after 20


@dataclass(frozen=True, slots=True)
class Trace:
    """What one joint is told, relative to where it stands: rad a millisecond, or Nm."""

    signal: str  # "position" or "torque"
    values: tuple[float, ...]
    reflex: str  # "" for none


def _integrated(acceleration: Sequence[float]) -> tuple[float, ...]:
    """Positions of a joint at rest that gets these accelerations, one a millisecond."""
    position = velocity = 0.0
    path = []
    for value in acceleration:
        velocity += value * DT
        position += velocity * DT
        path.append(position)
    return tuple(path)


def _minimum_jerk(way: float, seconds: float) -> tuple[float, ...]:
    steps = round(seconds / DT)
    return tuple(
        way * u**3 * (10.0 - 15.0 * u + 6.0 * u * u)
        for u in ((i + 1) / steps for i in range(steps))
    )


def _ramp(highest: float, jerk: float, steps: int) -> list[float]:
    """Accelerations that grow at ``jerk`` to ``highest`` and stay."""
    return [min(highest, jerk * DT * (i + 1)) for i in range(steps)]


REST = (0.0,) * 20
TRACES = {
    "smooth": Trace("position", REST + _minimum_jerk(0.3, 1.5), ""),
    "jump": Trace(
        "position", (*REST, *(0.05,) * 20), "joint_motion_generator_velocity_discontinuity"
    ),
    "velocity": Trace(  # past 5.26 rad/s, away from the near end of the joint
        "position",
        REST + tuple(-value for value in _integrated(_ramp(9.0, 4000.0, 700))),
        "joint_motion_generator_velocity_limits_violation",
    ),
    "acceleration": Trace(
        "position",
        REST + _integrated(_ramp(20.0, 4000.0, 40)),
        "joint_motion_generator_velocity_discontinuity",
    ),
    "jerk": Trace(
        "position",
        REST + _integrated([8.0] * 20),
        "joint_motion_generator_acceleration_discontinuity",
    ),
    "torque_rate": Trace("torque", (*REST, *(3.0,) * 20), "controller_torque_discontinuity"),
    "late": Trace("position", (0.0,) * 100, "communication_constraints_violation"),
    "lost": Trace("position", (0.0,) * 100, "communication_constraints_violation"),
}
TIMED = ("late", "lost")
"""These are about time; the others are numbers, and the same on a machine that is busy."""
EXPECTED = {name: trace.reflex for name, trace in TRACES.items()}


def _send(robot: Any, name: str, trace: Trace, lose: Callable[[], object]) -> str:
    """The arm's words on a trace, empty when it took it; ``lose`` makes it lose commands."""
    import pylibfranka

    torque = trace.signal == "torque"
    kind = pylibfranka.Torques if torque else pylibfranka.JointPositions
    try:
        if torque:
            control = robot.start_torque_control()
        else:
            control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)
        state, _ = control.readOnce()
        start = [0.0] * 7 if torque else list(state.q_d)
        for index, value in enumerate(trace.values):
            if index == len(REST) and name == "late":
                time.sleep(LATE_S)
            if index == len(REST) and name == "lost":
                lose()
            row = list(start)
            row[JOINT] += value
            command = kind(row)
            command.motion_finished = index == len(trace.values) - 1
            control.writeOnce(command)
            if not command.motion_finished:
                control.readOnce()
    except pylibfranka.ControlException as error:
        return str(error)
    return ""


def _send_all(address: str, names: Sequence[str]) -> None:
    import pylibfranka

    from hardware.franka.virtual.process import control_name
    from hardware.worlds.control import WorldClient

    robot = pylibfranka.Robot(address, pylibfranka.RealtimeConfig.kIgnore)
    with WorldClient(control_name(address)) as arm:
        for name in names:
            said = _send(
                robot, name, TRACES[name], lambda: arm.call("fault", kind="lose_next", count=LOST)
            )
            if said:
                robot.automatic_error_recovery()
            print(json.dumps({"trace": name, "said": said}), flush=True)


def _judge() -> None:
    """franka-sim's verdict on the traces that are numbers alone."""
    from franka_sim.control_modes import ControlMode
    from franka_sim.limits.checker import MotionLimitChecker

    for name, trace in TRACES.items():
        if name in TIMED:
            continue
        torque = trace.signal == "torque"
        checker = MotionLimitChecker(enforce=True)
        mode = ControlMode.TORQUE if torque else ControlMode.POSITION
        rest = {"q": list(START), "q_d": list(START), "dq_d": [0.0] * 7, "ddq_d": [0.0] * 7}
        checker.start_motion(mode, {**rest, "tau_J_d": [0.0] * 7}, 1)
        found = ""
        for index, value in enumerate(trace.values):
            row = [0.0] * 7 if torque else list(START)
            row[JOINT] += value
            checker.note_published(index + 1)
            command = {"message_id": index + 1, "tau_J_d" if torque else "q_c": row}
            violation = checker.check(command, None if torque else row)
            if violation is not None:
                found = violation.describe()
                break
            checker.record(command)
        print(json.dumps({"trace": name, "said": found}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--judge"]:
        _judge()
    else:
        _send_all(sys.argv[1], sys.argv[2:])
