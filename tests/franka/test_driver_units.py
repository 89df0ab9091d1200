"""What of the driver needs no robot: options, limits, recovery policy, messages, ways."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hardware.franka.arm import FrankaArm
from hardware.franka.backend import connection_error
from hardware.franka.configuration import GripperConfig, RecoveryConfig
from hardware.franka.gripper import Gripper
from hardware.franka.limits_check import check_limits
from hardware.franka.recovery import RecoveryPolicy
from hardware.franka.virtual.urdf import fr3_urdf
from robot_stack.config import load_station, parse
from robot_stack.errors import ConfigError, DeviceError

STATION = """
schema: 1
station: lab
robots:
  arm:
    driver: franka
    falls: false
    options: {{address: 172.16.0.2, {options}}}
groups:
  arm: {{robots: [arm]}}
"""


def configured(tmp_path: Path, options: str) -> FrankaArm:
    file = tmp_path / "lab.yaml"
    file.write_text(STATION.format(options=options))
    station = load_station(file)
    return FrankaArm.from_config(station.robots["arm"], station)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("model: panda", "fr3, fer"),
        ("controler: torque", "did you mean 'controller'"),
        ("stiffness: [600, 600]", "2 numbers given, 7 are needed"),
        (
            "stiffness: [600, 600, 600, 600, 250, 150, 5000]",
            r"stiffness\[6\]: 5000 is out of range",
        ),
        ("controller: cartesian_impedance, stiffness: [1, 1, 1, 1, 1, 1, 1]", "6 are needed"),
        ("model: fer, controller: joint_position", "needs an FR3"),
        ("model: fer, controller: torque", "joint_impedance or cartesian_impedance"),
        ("controller: joint_position, damping: [1, 1, 1, 1, 1, 1, 1]", "damps by itself"),
        ("collision: {upper_torque: [1, 1, 1, 1, 1, 1, 1]}", r"lower_torque\[0\] 20 and upper"),
        ("load: {mass: 9}", "0.0..7.0 kg"),
        ("load: {inertia: [1, 5, 0, 0, 1, 0, 0, 0, 1]}", "symmetric"),
        ("load: {com: [0, 0, 50]}", "metres"),
        ("end_effector: [0, 0, 0.1, 0, 0, 0, 0]", "unit quaternion"),
        ("gripper: {force: 200}", "1.0..70.0 N"),
        ("recovery: {count: 50}", "0..20"),
        ("speed: 2.0", "0.01..1.0"),
        ("home: [0, 0, 0, 0, 0, 0, 0]", "home: joint4 0 rad is out of range"),
        ("realtime: maybe", "enforce, ignore"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(
    tmp_path: Path, options: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path, options)


def test_the_spec_of_an_arm_with_and_without_a_hand(tmp_path: Path) -> None:
    arm = configured(tmp_path, "speed: 0.5")
    assert arm.spec.names == (*(f"joint{i}" for i in range(1, 8)), "gripper")
    assert arm.spec.embodiment == "fr3" and arm.spec.tracks
    # FR3: 2.62 rad/s for the first four joints; the second brakes at 2.585 rad/s^2 near its ends.
    assert arm.spec.limits("velocity")[:4].tolist() == pytest.approx([1.31] * 4)
    assert arm.spec.joints[1].acceleration == pytest.approx(2.585)
    assert 1.6 < arm.spec.joints[1].upper < 1.8361
    panda = configured(tmp_path, "model: fer, gripper: null")
    assert panda.spec.dof == 7 and panda.spec.embodiment == "fer"


def test_the_way_home_keeps_to_the_limits_and_leaves_the_hand(tmp_path: Path) -> None:
    arm = configured(tmp_path, "speed: 0.3")
    start = np.array([1.5, 0.8, -1.0, -0.9, 1.2, 3.0, -2.0, 0.3])
    dt = 0.005
    path = np.vstack([start, arm.path("home", start, dt)])
    velocity = np.diff(path, axis=0) / dt
    acceleration = np.diff(velocity, axis=0) / dt
    assert (np.abs(velocity) <= arm.spec.limits("velocity")).all()
    assert (np.abs(acceleration) <= arm.spec.limits("acceleration")).all()
    assert np.abs(velocity[:, :7]).max() <= 0.8
    assert (path[:, 7] == 0.3).all()
    home = [0, -np.pi / 4, 0, -3 * np.pi / 4, 0, np.pi / 2, np.pi / 4]
    assert path[-1, :7].tolist() == pytest.approx(home)


# -- limits -------------------------------------------------------------------------------------


def test_the_robots_own_limits_agree_with_the_table() -> None:
    check_limits(fr3_urdf(), "fr3")


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("upper", "joint3 upper"),
        ("velocity", "joint3 velocity"),
        ("deceleration_limit", "joint3 deceleration_limit"),
    ],
)
def test_a_limit_that_differs_is_an_error_that_names_the_joint(attribute: str, name: str) -> None:
    before, joint, after = re.split(
        r'(<joint name="[^"]*joint3".*?</joint>)', fr3_urdf(), flags=re.S
    )
    changed = re.sub(rf'{attribute}="[^"]*"', f'{attribute}="1.25"', joint, count=1)
    assert changed != joint
    with pytest.raises(DeviceError, match=f"{name} is 1.25, expected"):
        check_limits(before + changed + after, "fr3")


def test_a_model_without_a_joint_or_without_sense_is_refused() -> None:
    with pytest.raises(DeviceError, match="lacks joint5"):
        check_limits(fr3_urdf().replace('joint5"', 'joint_five"'), "fr3")
    with pytest.raises(DeviceError, match="not readable"):
        check_limits("<robot", "fr3")


# -- recovery policy ----------------------------------------------------------------------------


def test_reflexes_are_recovered_from_after_a_pause_until_there_are_too_many() -> None:
    policy = RecoveryPolicy(RecoveryConfig(count=2, backoff_s=1.0, window_s=10.0))
    now = 100.0
    for number in (1, 2):
        assert not policy.stopped("reflex: joint_reflex", now)
        assert policy.recovering
        assert policy.notice(now) == f"reflex: joint_reflex; recovering ({number} of 2)"
        assert not policy.stopped("reflex: joint_reflex", now + 0.99)
        assert policy.stopped("reflex: joint_reflex", now + 1.0)
        policy.recovered(now + 1.0)
        assert not policy.recovering
        now += 2.0
    assert not policy.stopped("reflex: power_limit_violation", now)
    assert policy.latched is not None
    assert "power_limit_violation, after 2 automatic recoveries within 10 s" in policy.latched
    assert not policy.stopped("reflex: joint_reflex", now + 100.0), "latched stays latched"
    policy.clear()
    assert policy.latched is None
    assert not policy.stopped("reflex: joint_reflex", now + 200.0)
    assert policy.stopped("reflex: joint_reflex", now + 201.0)


def test_a_robot_that_somebody_else_frees_is_waited_for_no_longer() -> None:
    policy = RecoveryPolicy(RecoveryConfig(count=1, backoff_s=1.0))
    policy.freed(0.0)
    assert policy.notice(0.0) == "", "nothing was recovered from"
    policy.stopped("reflex: joint_reflex", 1.0)
    policy.freed(1.5)
    assert not policy.recovering
    policy.stopped("reflex: joint_reflex", 2.0)
    assert policy.latched is not None, "it counts all the same"


def test_old_recoveries_are_forgotten_and_a_count_of_zero_latches_at_once() -> None:
    policy = RecoveryPolicy(RecoveryConfig(count=1, backoff_s=0.1, window_s=10.0))
    for now in (0.0, 11.0, 22.0):
        policy.stopped("reflex", now)
        assert policy.stopped("reflex", now + 0.2)
        policy.recovered(now + 0.2)
    assert policy.latched is None
    strict = RecoveryPolicy(parse(RecoveryConfig, {"count": 0}))
    assert not strict.stopped("reflex: joint_reflex", 0.0)
    assert strict.latched == "reflex: joint_reflex"


# -- the hand -----------------------------------------------------------------------------------

# A hand that is wide open and aborts whatever it is told, as a worker process tells it. States,
# which end the notice of the last command, come only after a move.
STUBBORN = """
import json, socket, sys, time
link = socket.socket(fileno=int(sys.argv[-1]))
def state():
    t_ns = time.monotonic_ns()
    link.send(json.dumps({"t_ns": t_ns, "width": 0.08, "max_width": 0.08}).encode())
state()
do = ""
while True:
    link.settimeout(0.05 if do == "move" else None)
    try:
        order = link.recv(4096)
    except TimeoutError:
        state()
        continue
    if not order:
        break
    order = json.loads(order)
    do = order["do"]
    seq, width = order["seq"], order["width"]
    text = f"aborted {seq} to {1e3 * width:.0f} mm"
    link.send(json.dumps({"done": seq, "ok": False, "text": text}).encode())
"""


def test_a_hand_that_aborts_is_asked_once_for_each_target_and_never_in_a_stop() -> None:
    hand = Gripper(GripperConfig(), "nowhere", "franky")
    hand._command = [sys.executable, "-c", STUBBORN]
    notices: list[str] = []

    def ask(fraction: float, until: str) -> None:
        deadline = time.monotonic() + 30.0
        while not any(until in notice for notice in notices):
            assert time.monotonic() < deadline, notices
            hand.poll(time.monotonic())
            hand.ask(fraction, time.monotonic())
            notices.append(hand.notice(time.monotonic()))

    hand.start()
    try:
        ask(0.0, "aborted 1 to 0 mm")
        for _ in range(100):  # a window in which it would be asked again
            hand.poll(time.monotonic())
            hand.ask(0.0, time.monotonic())
            time.sleep(0.001)
        hand.halt(time.monotonic())
        hand.poll(time.monotonic())
        assert hand.held == 1.0, "what was asked is forgotten"
        ask(0.5, "aborted 3 to 40 mm")  # a close that ends short becomes a grasp there
        ask(0.0, "aborted 4 to 0 mm")
    finally:
        hand.close()
    assert not any("aborted 5" in notice for notice in notices)


# -- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "libfranka: Incompatible library version (server version: 5, library version: 10).",
            "pip install panda-python==1.1.1, and set model: fer",
        ),
        (
            "The robot speaks protocol version 10, but this panda-py was built with a libfranka "
            "that speaks version 5.",
            "pip install franky-control==2.0.0, and set model: fr3",
        ),
        (
            "libfranka: Incompatible library version (server version: 9, library version: 10).",
            "by-robot-server-version/9/",
        ),
        ("(server version: 11, library version: 10)", "no released package"),
        ("libfranka: Connection to FCI refused.", "activate FCI in Desk"),
        ("timed out", "check the network cable"),
        ("[Errno 113] No route to host", "check the network cable"),
        ("libfranka: Running kernel does not have realtime capabilities.", "realtime: ignore"),
        ("something else", "robot at 10.0.0.1: something else"),
    ],
)
def test_a_failed_connection_says_what_to_do(text: str, words: str) -> None:
    assert words in str(connection_error("10.0.0.1", RuntimeError(text)))
