"""The driver on a virtual arm: motion, stalls, reflexes, stops, silence, versions, the hand."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hardware.franka.arm import FrankaArm
from hardware.franka.configuration import (
    Collision,
    FrankaConfig,
    GripperConfig,
    RecoveryConfig,
)
from hardware.franka.fci import Version
from hardware.franka.gripper import Gripper
from hardware.franka.kinematics import Kinematics
from hardware.franka.virtual.process import FrankaProcess
from robot_stack.errors import DeviceError
from tests.franka.conftest import StartArm
from tests.franka.driving import Driven, config_of

pytestmark = pytest.mark.slow

SPEED = 0.3  # rad/s of joint 1
GOAL = np.array([0.25, 0.15, -0.2, 0.25, 0.2, 0.2, 0.3])
ANY_JOINT = [True] * 7


@pytest.fixture
def virtual(arms: StartArm) -> StartArm:
    """A virtual arm in real time, as switched on; who ruins it takes `own_arm`."""
    return functools.partial(arms, lock_step=False)


def swing(driven: Driven) -> None:
    """Turn until joint 1 moves."""
    driven.until(lambda: driven.state.dq[0] > 0.5 * SPEED, "motion", SPEED)


# -- motion -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "controller", "within_rad"),
    [
        (10, "joint_impedance", 0.01),
        (10, "cartesian_impedance", 0.03),
        (10, "joint_position", 0.005),
        (10, "torque", 0.02),
        (5, "joint_impedance", 0.01),
        (5, "cartesian_impedance", 0.1),
    ],
)
def test_motion_arrives(
    virtual: StartArm, version: Version, controller: Any, within_rad: float
) -> None:
    process = virtual(version)
    model: Any = "fr3" if version == 10 else "fer"
    flange = (0.0, 0.0, 0.05, 1.0, 0.0, 0.0, 0.0)
    config = config_of(process.address, model=model, controller=controller, end_effector=flange)
    with Driven(config) as driven:
        goal = driven.target + GOAL
        assert driven.arm.torque().all()
        driven.go(goal)
        driven.until(lambda: np.abs(driven.state.q - goal).max() < within_rad, "arrival")
        state = driven.state
        assert state.applied is not None and state.ee_pose is not None
        assert np.abs(state.applied - goal).max() < 0.02
        assert state.target_age_s < 1.0 and state.success_rate > 0.0
        expected = Kinematics(config.F_T_EE).pose(state.q)
        assert np.abs(state.ee_pose[:3] - expected[:3]).max() < 1e-3
        assert np.abs(np.abs(state.ee_pose[3:] @ expected[3:]) - 1.0) < 1e-4
        assert driven.arm.faults() is None
    assert process.call("status")["errors"] == []


def test_a_robot_that_nobody_moves_is_left_to_itself(virtual: StartArm) -> None:
    process = virtual()
    with Driven(config_of(process.address)) as driven:
        driven.run(0.3)
        assert process.call("status")["moving"] is False
        assert np.isnan(driven.state.target_age_s) and np.isnan(driven.state.success_rate)
        driven.arm.set_torque(ANY_JOINT, False)
        driven.run(0.2, SPEED)
        assert not driven.arm.torque().any()
        assert process.call("status")["moving"] is False
        driven.arm.set_torque(ANY_JOINT, True)
        swing(driven)
        driven.arm.set_torque(ANY_JOINT, False)
        driven.until(lambda: not process.call("status")["moving"], "the end of the motion")
        driven.run(0.1)
        assert np.abs(driven.state.dq).max() < 0.05


# -- stalls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "controller"),
    [
        (10, "joint_impedance"),
        (10, "cartesian_impedance"),
        (10, "joint_position"),
        (10, "torque"),
        (5, "joint_impedance"),
        (5, "cartesian_impedance"),
    ],
)
def test_a_stalled_program_lets_the_arm_come_to_rest_and_begins_anew_without_a_jump(
    virtual: StartArm, version: Version, controller: Any
) -> None:
    process = virtual(version)
    model: Any = "fr3" if version == 10 else "fer"
    with Driven(config_of(process.address, model=model, controller=controller)) as driven:
        swing(driven)
        before = driven.state.q.copy()
        time.sleep(1.0)  # what a program does that was stopped: nothing
        stalled = process.call("status")
        assert np.abs(stalled["dq"]).max() < 0.15 * SPEED, "it still moves"
        if version == 10 and controller != "joint_position":  # those plan their end themselves
            assert not stalled["moving"], "the library's thread has not ended the motion"
        moved = np.array(stalled["q"]) - before
        # At 0.3 rad/s: 0.03 rad until the watchdog, 0.03 rad of ramp, and a lag of 2 / sqrt(K).
        assert -0.01 < moved[0] < 0.12
        driven.turn()
        assert not driven.arm.torque().any(), "the arm process must start anew from here"
        assert any("came to rest" in notice for notice in driven.notices)
        driven.until(lambda: bool(driven.arm.torque().all()), "torque")
        assert np.abs(driven.arm.held() - driven.state.q).max() < 0.01
        driven.states.clear()
        driven.run(1.0, SPEED)
        fastest = max(np.abs(state.dq[0]) for state in driven.states)
        assert fastest < 2.0 * SPEED, "it made up for the stall"
        assert driven.arm.faults() is None


# -- reflexes and stops -------------------------------------------------------------------------


@pytest.mark.parametrize("version", [10, 5])
def test_a_reflex_is_named_and_recovered_and_the_second_stays(
    virtual: StartArm, version: Version
) -> None:
    process = virtual(version)
    model: Any = "fr3" if version == 10 else "fer"
    recovery = RecoveryConfig(count=1, backoff_s=0.3)
    with Driven(config_of(process.address, model=model, recovery=recovery)) as driven:
        arm = driven.arm
        swing(driven)
        process.fault("reflex", name="joint_velocity_violation")
        driven.until(lambda: not arm.torque().any(), "the reflex", SPEED)
        assert "joint_velocity_violation" in driven.state.notice
        assert "recovering (1 of 1)" in driven.state.notice
        assert arm.faults() is None
        driven.until(lambda: bool(arm.torque().all()), "the recovery")
        swing(driven)
        process.fault("reflex", name="cartesian_reflex")
        driven.until(lambda: arm.faults() is not None, "the fault", SPEED)
        fault = arm.faults()
        assert fault is not None
        assert "cartesian_reflex" in fault and "after 1 automatic recoveries" in fault
        driven.run(0.5, SPEED)
        assert not arm.torque().any(), "a latched fault stays"
        arm.recover()
        assert arm.faults() is None
        swing(driven)


@pytest.mark.parametrize("version", [10, 5])
def test_a_user_stop_waits_for_its_release_and_a_reset(virtual: StartArm, version: Version) -> None:
    process = virtual(version)
    model: Any = "fr3" if version == 10 else "fer"
    with Driven(config_of(process.address, model=model)) as driven:
        arm = driven.arm
        swing(driven)
        process.fault("user_stop")
        driven.until(lambda: arm.faults() is not None, "the fault", SPEED)
        assert "user stop is pressed" in (arm.faults() or "")
        assert not arm.torque().any()
        with pytest.raises(DeviceError, match="release it"):
            arm.recover()
        process.fault("user_stop", active=False)
        driven.run(0.3, SPEED)
        assert not arm.torque().any(), "releasing a stop moves nothing"
        arm.recover()
        swing(driven)


def test_an_arm_guided_by_hand_is_followed(virtual: StartArm) -> None:
    process = virtual()
    with Driven(config_of(process.address)) as driven:
        driven.run(0.1)
        process.fault("guide")
        driven.until(lambda: not driven.arm.torque().any(), "guiding")
        assert driven.state.notice == "guided by hand"
        process.fault("push", wrench=(0.0, 20.0, 0.0, 0.0, 0.0, 0.0))
        start = driven.state.q
        driven.until(lambda: bool(np.abs(driven.state.q - start).max() > 0.05), "being pushed")
        process.fault("push", wrench=())
        process.fault("guide", active=False)
        driven.until(lambda: bool(driven.arm.torque().all()), "the end of guiding")
        assert np.abs(driven.arm.held() - driven.state.q).max() < 0.02
        assert driven.arm.faults() is None


def test_a_robot_found_in_a_reflex_is_connected_in_fault(virtual: StartArm) -> None:
    process = virtual()
    with Driven(config_of(process.address)) as driven:
        swing(driven)
        process.fault("reflex", name="power_limit_violation")
    with Driven(config_of(process.address)) as driven:
        fault = driven.arm.faults()
        assert fault is not None
        assert "power_limit_violation, from before it was connected" in fault
        driven.arm.recover()
        swing(driven)


@pytest.mark.parametrize(
    ("upper", "guided", "stops"),
    [(20.0, False, True), (150.0, False, False), (20.0, True, True), (150.0, True, False)],
)
def test_thresholds_of_the_station_file_decide_what_is_a_collision(
    virtual: StartArm, upper: float, guided: bool, stops: bool
) -> None:
    process = virtual()
    if guided:  # when it is connected: it takes settings only once it is let go of
        process.fault("guide")
    collision = Collision(
        lower_torque=(10.0,) * 7,
        upper_torque=(upper,) * 7,
        lower_force=(10.0,) * 6,
        upper_force=(upper,) * 6,
    )
    config = config_of(process.address, collision=collision, recovery=RecoveryConfig(count=0))
    with Driven(config) as driven:
        if guided:
            process.fault("guide", active=False)
            driven.until(lambda: bool(driven.arm.torque().all()), "the end of guiding")
        swing(driven)
        process.fault("push", wrench=(0.0, 30.0, 0.0, 0.0, 0.0, 0.0))
        if stops:
            driven.until(lambda: driven.arm.faults() is not None, "the reflex")
            assert "cartesian_reflex" in (driven.arm.faults() or "")
        else:
            driven.run(0.5)
            assert driven.arm.faults() is None


# -- the wire -----------------------------------------------------------------------------------


def test_a_short_silence_of_the_network_is_a_reflex_by_name(virtual: StartArm) -> None:
    process = virtual()
    recovery = RecoveryConfig(count=1, backoff_s=0.5)
    with Driven(config_of(process.address, recovery=recovery)) as driven:
        swing(driven)
        process.fault("stall", ms=100)
        driven.until(
            lambda: any("communication_constraints_violation" in n for n in driven.notices),
            "the reflex",
            SPEED,
        )
        driven.until(lambda: bool(driven.arm.torque().all()), "the recovery")
        swing(driven)


def test_a_long_silence_is_a_fault(virtual: StartArm) -> None:
    process = virtual()
    with Driven(config_of(process.address)) as driven:
        swing(driven)
        process.fault("stall", ms=600)
        driven.until(lambda: driven.arm.faults() is not None, "the fault", SPEED)
        assert "no state from the robot" in (driven.arm.faults() or "")
        driven.until(lambda: driven.state.age_s.max() < 0.05, "states")
        driven.arm.recover()
        swing(driven)


@pytest.mark.parametrize("version", [10, 5])
def test_a_robot_that_dies_is_noticed_and_named(own_arm: StartArm, version: Version) -> None:
    process = own_arm(version, lock_step=False)
    model: Any = "fr3" if version == 10 else "fer"
    with Driven(config_of(process.address, model=model)) as driven:
        swing(driven)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(DeviceError, match=process.address):
            driven.until(lambda: False, "the end", SPEED)
        driven.arm.disconnect()
        driven.arm.disconnect()


def test_a_robot_that_refuses_connections_is_named_with_what_to_check() -> None:
    arm = FrankaArm(config_of("127.201.1.1"))  # no virtual arm chooses such an address
    with pytest.raises(DeviceError, match="activate FCI in Desk"):
        arm.connect()


def test_a_robot_that_closes_its_half_of_the_connection_is_named_and_connected_again(
    own_arm: StartArm,
) -> None:
    process = own_arm(lock_step=False)
    with Driven(config_of(process.address)) as driven:
        swing(driven)
        process.fault("half_close")
        with pytest.raises(DeviceError, match="no state from the robot"):
            driven.until(lambda: False, "the end", SPEED)
        driven.arm.disconnect()
        driven.arm.connect()
        driven.state = driven.arm.read(0.1)
        assert driven.arm.faults() is not None
        driven.arm.recover()
        swing(driven)


@pytest.mark.parametrize(
    ("version", "claimed", "package"),
    [(10, 5, "panda-python==1.1.1"), (10, 9, "/9/"), (5, 10, "franky-control==2.0.0")],
)
def test_a_version_mismatch_names_the_package(
    virtual: StartArm, version: Version, claimed: int, package: str
) -> None:
    process = virtual(version)
    process.fault("version", number=claimed)
    arm = FrankaArm(config_of(process.address, model="fr3" if version == 10 else "fer"))
    with pytest.raises(DeviceError, match="pip install") as failure:
        arm.connect()
    assert package in str(failure.value)
    arm.disconnect()


def test_an_address_that_nobody_knows_is_an_error_of_the_station_file() -> None:
    arm = FrankaArm(config_of("no-such-robot.invalid"))
    with pytest.raises(DeviceError, match=r"options\.address"):
        arm.connect()


# -- the hand -----------------------------------------------------------------------------------


def handed(process: FrankaProcess, model: Any) -> FrankaConfig:
    return FrankaConfig(process.address, model=model, gripper=GripperConfig(deadline_s=0.5))


def fingers_stand(process: FrankaProcess) -> Callable[[], bool]:
    """Whether they have for 80 turns, longer than from one command of a hand to the next."""
    widths: list[float] = []

    def stand() -> bool:
        widths.append(process.call("status")["finger_width"])
        return len(widths) > 80 and np.ptp(widths[-80:]) < 2e-4

    return stand


@pytest.mark.parametrize("version", [10, 5])
def test_the_hand_opens_and_closes_and_its_newest_target_counts(
    virtual: StartArm, version: Version
) -> None:
    process = virtual(version)
    with Driven(handed(process, "fr3" if version == 10 else "fer")) as driven:
        assert driven.state.q[7] == pytest.approx(1.0, abs=0.02)
        assert driven.target[7] == pytest.approx(1.0, abs=0.02)
        for goals in ((0.0,), (0.9, 0.1, 0.5)):  # the first is under way when the others come
            for goal in goals:
                driven.target[7] = goal
                driven.run(0.05)
            driven.until(lambda g=goals[-1]: abs(driven.state.q[7] - g) < 0.03, "the hand")
        driven.until(fingers_stand(process), "the fingers standing")
        assert not process.call("status")["grasped"], "it met nothing, so it grasps nothing"
        driven.until(lambda: abs(driven.state.q[7] - 0.5) < 0.03, "the hand where it was asked")
        assert driven.state.age_s[7] < 1.0
        assert driven.state.applied is not None
        assert driven.state.applied[7] == pytest.approx(0.5, abs=0.01)


def test_a_hand_that_hangs_is_named_and_the_arm_goes_on(virtual: StartArm) -> None:
    process = virtual()
    with Driven(handed(process, "fr3")) as driven:
        process.fault("gripper_hang")
        driven.target[7] = 0.5
        driven.until(lambda: "gripper: hangs in a move" in driven.state.notice, "the hang", 0.1)
        moved = driven.state.q[0]
        driven.until(lambda: driven.state.q[0] > moved + 0.05, "the arm going on", 0.1)
        driven.until(lambda: "started again" in driven.state.notice, "another worker", 0.1)
        assert driven.arm.faults() is None
        assert driven.arm.torque().all()
        process.fault("gripper_hang", active=False)
        driven.target[7] = 0.5
        driven.until(lambda: abs(driven.state.q[7] - 0.5) < 0.03, "the hand")
        driven.until(lambda: not driven.state.notice, "the end of the notice")


@pytest.mark.parametrize("version", [10, 5])
def test_a_user_stop_stops_the_hand_too(virtual: StartArm, version: Version) -> None:
    process = virtual(version)
    model: Any = "fr3" if version == 10 else "fer"
    hand = GripperConfig(speed=0.02)  # 4 s for its stroke
    with Driven(FrankaConfig(process.address, model=model, gripper=hand)) as driven:
        driven.target[7] = 0.5
        driven.until(lambda: driven.state.q[7] < 0.97, "the hand closing")
        driven.target[7] = 0.0
        driven.run(0.05)
        process.fault("user_stop")
        driven.until(lambda: driven.arm.faults() is not None, "the fault")
        driven.until(
            lambda: abs(driven.arm.held()[7] - driven.state.q[7]) < 0.01, "what was asked forgotten"
        )
        driven.until(fingers_stand(process), "the fingers standing")
        width = process.call("status")["finger_width"]
        assert width > 0.042, "neither the move nor the squeeze after it went to its end"
        assert driven.state.notice == ""


def test_a_missing_hand_is_an_error_that_says_how_to_go_without() -> None:
    hand = Gripper(GripperConfig(), "127.201.1.1", "franky")
    with pytest.raises(DeviceError, match="gripper: null"):
        hand.start()
    hand.close()
