"""The arms as data: numbers restated by hand, poses inside limits, stations that only tighten."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hardware.aloha.rig import ARMS, JointLimits, arm_model, build_spec
from robot_stack.errors import ConfigError

NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
# Radians, from the URDFs of the arms.
LIMITS = {
    "vx300s": [(-3.1416, 3.1401), (-1.851, 1.257), (-1.765, 1.606), (-3.1416, 3.1401),
               (-1.868, 2.234), (-3.1416, 3.1401), (-0.1, 1.1)],
    "wx250s": [(-3.1416, 3.1401), (-1.886, 1.990), (-2.148, 1.606), (-3.1416, 3.1401),
               (-1.745, 2.147), (-3.1416, 3.1401), (-0.1, 1.1)],
}  # fmt: skip


@pytest.mark.parametrize("name", ["vx300s", "wx250s"])
def test_spec(name: str) -> None:
    spec = build_spec(ARMS[name])
    assert spec.names == NAMES
    assert [j.unit for j in spec.joints] == ["rad"] * 6 + ["fraction"]
    for joint, (lower, upper) in zip(spec.joints, LIMITS[name], strict=True):
        assert joint.lower == pytest.approx(lower, abs=2e-3), joint.name
        assert joint.upper == pytest.approx(upper, abs=2e-3), joint.name
    assert spec.limits("velocity").tolist() == [3.14] * 6 + [2.0]
    assert spec.limits("acceleration").tolist() == [80.0] * 6 + [8.0]
    assert spec.limits("max_step").tolist() == [0.5] * 6 + [1.2]
    assert spec.home[:6] == (0, -0.96, 1.16, 0, -0.3, 0)
    assert spec.sleep[1] == {"vx300s": -1.85, "wx250s": -1.80}[name]


@pytest.mark.parametrize(
    ("name", "reverse", "models"),
    [
        ("vx300s", {2, 4, 7}, ["XM540-W270"] * 7 + ["XM430-W350"] * 2),
        ("wx250s", {3, 5, 7}, ["XM430-W350"] * 7 + ["XL430-W250", "XC430-W150"]),
    ],
)
def test_servos(name: str, reverse: set[int], models: list[str]) -> None:
    arm = ARMS[name]
    assert [s.id for s in arm.servos] == list(range(1, 10))
    assert {s.id for s in arm.servos if s.reverse} == reverse
    assert [s.model for s in arm.servos] == models
    assert {s.id: s.shadow_of for s in arm.servos if s.shadow_of is not None} == {3: 2, 5: 4}
    assert [s.id for s in arm.masters] == [1, 2, 4, 6, 7, 8, 9]
    assert [s.id for s in arm.of_joint(1)] == [2, 3]


def test_a_station_tightens() -> None:
    spec = build_spec(
        ARMS["vx300s"], limits={"waist": JointLimits(lower=-1.0, upper=1.0, velocity=1.5)}
    )
    waist = spec.joints[0]
    assert (waist.lower, waist.upper, waist.velocity, waist.acceleration) == (-1, 1, 1.5, 80)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"waist": JointLimits(velocity=3.2)}, "waist.velocity: 3.2 is looser"),
        ({"elbow": JointLimits(upper=1.7)}, "elbow.upper: 1.7 is looser"),
        ({"elbow": JointLimits(lower=-1.8)}, "elbow.lower: -1.8 is looser"),
        ({"gripper": JointLimits(max_step=1.3)}, "gripper.max_step"),
        ({"wrist": JointLimits()}, "no joint 'wrist'"),
        ({"elbow": JointLimits(upper=1.2)}, "sleep pose needs elbow at 1.55"),
    ],
)
def test_a_station_may_not_loosen(limits: dict[str, JointLimits], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_spec(ARMS["vx300s"], limits=limits)


def test_an_offset_moves_what_the_servo_leaves() -> None:
    # The forearm's horn sits 256 ticks (pi/8) too far: the servo's own end at 4095 ticks now
    # stands at 4095 - 2048 - 256 ticks.
    plus = build_spec(ARMS["vx300s"], {"forearm_roll": 256}).joints[3]
    assert plus.lower == pytest.approx(-math.pi)
    assert plus.upper == pytest.approx((4095 - 2048 - 256) * 2 * math.pi / 4096)
    minus = build_spec(ARMS["vx300s"], {"forearm_roll": -256}).joints[3]
    assert minus.lower == pytest.approx((-2048 + 256) * 2 * math.pi / 4096)
    assert minus.upper == pytest.approx(math.pi, abs=2e-3)


def test_unknown_arm() -> None:
    with pytest.raises(ConfigError, match="vx300s, wx250s"):
        arm_model("vx250")


def test_poses_are_inside_the_limits() -> None:
    for arm in ARMS.values():
        spec = build_spec(arm)
        for pose in (spec.home, spec.sleep):
            assert (np.array(pose) >= spec.limits("lower")).all()
            assert (np.array(pose) <= spec.limits("upper")).all()
