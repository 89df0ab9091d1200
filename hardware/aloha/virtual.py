"""Virtual ALOHA arms without physics: the nine servos of an arm as a virtual bus's description.

For tests and benchmarks of driver and control server. The world process puts MuJoCo behind the
same servos.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.aloha.rig import BAUD, RETURN_DELAY, VELOCITY_LIMIT, ArmModel

__all__ = ["bus_description"]


def bus_description(
    name: str,
    model: ArmModel,
    *,
    link: Path | None = None,
    pose: Sequence[float] | None = None,
    gripper_rad: float = 0.0,
    baud: int = BAUD,
    usb_latency_s: float = 0.001,
    external: bool = False,
) -> dict[str, Any]:
    """The arm as ``hardware.dynamixel.process.build`` wants it, its EEPROM as a technician leaves
    it. ``pose`` (6,) in rad is where the joints stand, the sleep pose by default."""
    joints = [*(model.sleep if pose is None else pose), gripper_rad]
    servos = []
    for servo in model.servos:
        registers = {
            "return_delay_time": RETURN_DELAY,
            "drive_mode": int(servo.reverse),
            "velocity_limit": VELOCITY_LIMIT,
            "min_position_limit": servo.min_ticks,
            "max_position_limit": servo.max_ticks,
        }
        if servo.shadow_of is not None:
            registers["secondary_id"] = servo.shadow_of
        servos.append(
            {
                "id": servo.id,
                "model": servo.model,
                "position_rad": joints[servo.joint],
                "registers": registers,
                "external": external,
            }
        )
    description: dict[str, Any] = {
        "name": name,
        "servos": servos,
        "baud": baud,
        "usb_latency_s": usb_latency_s,
    }
    if link is not None:
        description["link"] = str(link)
    return description
