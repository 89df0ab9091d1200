"""The limits that a robot tells in its own URDF, compared with our table of its model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from hardware.franka.limits import Limits, limits_of
from robot_stack.errors import DeviceError

__all__ = ["check_limits"]

TOLERANCE = 1e-3  # rad, rad/s, rad/s^2: URDFs are rounded to four digits

# Where a URDF says what our table says. The torque in it is the motor's, not the interface's.
ATTRIBUTES = (
    ("limit", "lower", "q_lower"),
    ("limit", "upper", "q_upper"),
    ("limit", "velocity", "velocity"),
    ("position_based_velocity_limits", "velocity_offset", "velocity_offset"),
    ("position_based_velocity_limits", "deceleration_limit", "deceleration"),
)


def check_limits(urdf: str, model: str) -> None:
    """DeviceError names every joint whose limits in ``urdf`` are not those of ``model``.

    Our limits are what targets are kept to, so a robot with others must not be moved by them.
    """
    try:
        root = ElementTree.fromstring(urdf)
    except ElementTree.ParseError as error:
        raise DeviceError(f"the robot's own model (URDF) is not readable: {error}") from error
    found = {}
    for joint in root.iter("joint"):
        number = re.search(r"joint([1-7])$", joint.get("name", ""))
        if number is not None:
            found[int(number[1])] = joint
    missing = [f"joint{i}" for i in range(1, 8) if i not in found]
    if missing:
        raise DeviceError(f"the robot's own model (URDF) lacks {', '.join(missing)}")
    table = limits_of(model)
    wrong = [text for i in range(7) for text in _differences(found[i + 1], i, table)]
    if wrong:
        raise DeviceError(
            f"this robot's limits are not those of a {model}: {'; '.join(wrong)}. Is it another "
            "model, or a system older than 5.9? Its limits are not known here, so it is not moved"
        )


def _differences(joint: ElementTree.Element, index: int, table: Limits) -> Iterator[str]:
    for element, attribute, field in ATTRIBUTES:
        expected = getattr(table, field)
        if expected is None:
            continue
        found = joint.find(f".//{element}")
        text = None if found is None else found.get(attribute)
        name = f"joint{index + 1} {attribute}"
        if text is None:
            yield f"{name} is missing (expected {expected[index]:g})"
            continue
        try:
            told = float(text)
        except ValueError:
            yield f"{name} is {text!r}"
            continue
        if not abs(told - expected[index]) <= TOLERANCE:
            yield f"{name} is {told:g}, expected {expected[index]:g}"
