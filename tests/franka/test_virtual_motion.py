"""The motion state machine by itself: what becomes of commands that come, and of those that do
not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hardware.franka.fci import (
    COMMAND,
    REQUESTS,
    Command,
    MotionCommand,
    RobotMode,
    Status,
    Version,
    errors_named,
)
from hardware.franka.virtual.body import Body
from hardware.franka.virtual.motion import Motion
from hardware.franka.virtual.settings import Settings

JOINT, VELOCITY, POSE, TWIST, TORQUE = range(5)
COMMUNICATION = "communication_constraints_violation"


class Arm:
    """A Motion with its body; `step` is one millisecond."""

    def __init__(self, version: Version = 10) -> None:
        model = "fr3" if version == 10 else "fer"
        self.version = version
        self.body = Body.alone(model)
        self.settings = Settings()
        self.settings.torque[:] = self.settings.force[:] = 80.0
        self.motion = Motion(self.body, version, model, self.settings)
        self.state = self.motion.state

    def start(self, generator: int, controller: int = 0, **fields: Any) -> Status:
        request = np.zeros((), REQUESTS[self.version][Command.MOVE])
        request["generator"], request["controller"] = generator, controller
        request["deviations"] = 10.0
        for name, value in fields.items():
            request[name] = value
        return self.motion.start(request[()])

    def step(self, **fields: Any) -> None:
        """One millisecond with a command of these fields; of none at all, without a command."""
        command = None
        if fields:
            record = np.zeros((), COMMAND[self.version])
            for name, value in fields.items():
                record[name] = value
            command = MotionCommand(self.version, record.tobytes())
        self.body.step(self.motion.step(command))
        self.motion.measured()

    def settle(self, steps: int = 300) -> None:
        for _ in range(steps):
            self.step()


@pytest.fixture
def arm() -> Arm:
    return Arm()


def ramp(step: int, of: int) -> float:
    """0 to 1 within `of` steps, smooth up to its third derivative."""
    s = min(step / of, 1.0)
    return float(s**4 * (35 - 84 * s + 70 * s**2 - 20 * s**3))


def only(joint: int, value: float) -> NDArray[np.float64]:
    vector = np.zeros(7)
    vector[joint] = value
    return vector


@pytest.mark.parametrize("version", [10, 5])
@pytest.mark.parametrize("controller", [0, 1])
def test_joint_positions_are_tracked(version: Version, controller: int) -> None:
    arm = Arm(version)
    q = arm.motion.setpoint.q.copy()
    assert arm.start(JOINT, controller) == Status.MOTION_STARTED
    for step in range(1, 501):
        arm.step(q_c=q + only(3, 0.1 * ramp(step, 500)), motion_finished=step == 500)
    assert arm.motion.take_outcome() == Status.SUCCESS
    arm.settle()
    np.testing.assert_allclose(arm.state["q_d"], q + only(3, 0.1), atol=1e-9)
    np.testing.assert_allclose(arm.body.q, q + only(3, 0.1), atol=0.02 if controller else 2e-3)


def test_joint_velocities_are_integrated(arm: Arm) -> None:
    q = arm.motion.setpoint.q.copy()
    assert arm.start(VELOCITY) == Status.MOTION_STARTED
    for step in range(1, 401):
        shape = ramp(step, 200) - ramp(step - 200, 200) if step > 200 else ramp(step, 200)
        arm.step(dq_c=only(1, 0.3 * shape), motion_finished=step == 400)
    assert arm.motion.take_outcome() == Status.SUCCESS
    assert arm.state["q_d"][1] - q[1] == pytest.approx(0.3 * 0.2, rel=0.01)


@pytest.mark.parametrize("generator", [POSE, TWIST])
def test_the_end_effector_goes_where_it_is_sent(arm: Arm, generator: int) -> None:
    start = arm.state["O_T_EE_d"].reshape(4, 4).T.copy()
    assert arm.start(generator, controller=0) == Status.MOTION_STARTED
    last = 0.0
    for step in range(1, 601):
        z = -0.08 * ramp(step, 600)
        pose = start.copy()
        pose[2, 3] += z
        command = {"O_T_EE_c": pose.T.ravel(), "O_dP_EE_c": (0, 0, (z - last) * 1000.0, 0, 0, 0)}
        last = z
        arm.step(**command, motion_finished=step == 600)
    assert arm.motion.take_outcome() == Status.SUCCESS
    arm.settle()
    moved = arm.state["O_T_EE"].reshape(4, 4).T
    np.testing.assert_allclose(moved[:3, 3] - start[:3, 3], (0.0, 0.0, -0.08), atol=3e-3)
    np.testing.assert_allclose(moved[:3, :3], start[:3, :3], atol=0.01)


def test_a_commanded_elbow_turns_with_the_hand_in_place(arm: Arm) -> None:
    start = arm.state["O_T_EE_d"].reshape(4, 4).T.copy()
    q = arm.motion.setpoint.q.copy()
    assert arm.start(POSE) == Status.MOTION_STARTED
    for step in range(1, 801):
        elbow = (q[2] + 0.2 * ramp(step, 800), -1.0)
        arm.step(O_T_EE_c=start.T.ravel(), elbow_c=elbow, valid_elbow=True)
    assert arm.motion.mode == RobotMode.MOVE, arm.motion.errors
    assert arm.state["q_d"][2] - q[2] == pytest.approx(0.2, abs=1e-3)
    moved = arm.state["O_T_EE_d"].reshape(4, 4).T
    np.testing.assert_allclose(moved[:3, 3], start[:3, 3], atol=1e-4)


def test_poses_cannot_start_where_the_arm_is_singular(arm: Arm) -> None:
    arm.body.place((0.0, 0.0, np.pi / 2, -1.5, 0.0, np.pi / 2, 0.0))
    arm.motion.reset()
    assert arm.start(POSE) == Status.SINGULAR
    assert arm.start(TWIST) == Status.SINGULAR
    assert arm.start(JOINT) == Status.MOTION_STARTED


def test_an_arm_that_gets_no_commands_goes_on_at_constant_acceleration(arm: Arm) -> None:
    q = arm.motion.setpoint.q.copy()
    arm.start(JOINT)
    path = [q + only(0, 0.1 * ramp(step, 400)) for step in range(1, 101)]
    for target in path:
        arm.step(q_c=target)
    velocity = (path[-1] - path[-2]) * 1000.0
    acceleration = (path[-1] - 2 * path[-2] + path[-3]) * 1e6
    for lost in range(1, 4):
        arm.step()
        velocity_then = velocity + acceleration * 0.001 * lost
        np.testing.assert_allclose(arm.state["dq_d"], velocity_then, atol=1e-9)
        np.testing.assert_allclose(arm.state["ddq_d"], acceleration, atol=1e-6)
    assert arm.motion.mode == RobotMode.MOVE
    assert arm.motion.lost == 3


def test_twenty_losses_in_a_row_are_a_reflex_and_nineteen_are_not(arm: Arm) -> None:
    q = arm.motion.setpoint.q.copy()
    arm.start(JOINT)
    arm.step(q_c=q)
    for _ in range(19):
        arm.step()
    assert arm.motion.mode == RobotMode.MOVE
    arm.step(q_c=q)  # counts from anew
    for _ in range(19):
        arm.step()
    assert arm.motion.mode == RobotMode.MOVE
    arm.step()
    assert arm.motion.mode == RobotMode.REFLEX
    assert arm.motion.errors == (COMMUNICATION,)
    assert arm.motion.take_outcome() == Status.REFLEX_ABORTED
    assert errors_named(arm.state.errors) == (COMMUNICATION,)
    assert errors_named(arm.state.reflex_reason) == (COMMUNICATION,)


def test_a_reflex_in_motion_brakes_no_harder_than_the_robot_can(arm: Arm) -> None:
    arm.start(VELOCITY)
    for step in range(1, 301):
        arm.step(dq_c=only(0, 0.5 * ramp(step, 300)))
    arm.motion.reflex(("cartesian_reflex",))
    speeds = [0.5]
    while arm.state["dq_d"].any():
        arm.step()
        speeds.append(float(arm.state["dq_d"][0]))
        assert len(speeds) < 200
    assert len(speeds) in (51, 52)
    np.testing.assert_allclose(np.diff(speeds)[:49], -0.010, atol=1e-9)  # 10 rad/s^2
    arm.settle()
    assert np.abs(arm.body.dq).max() < 1e-3


def test_the_success_rate_is_that_of_the_last_hundred_commands(arm: Arm) -> None:
    arm.start(VELOCITY)
    assert arm.state.success_rate == 0.0
    arm.step(dq_c=np.zeros(7))
    assert arm.state.success_rate == 1.0
    for step in range(1, 100):
        if step % 4:
            arm.step(dq_c=np.zeros(7))
        else:
            arm.step()
    assert arm.state.success_rate == pytest.approx(0.76)  # of 100, 24 were lost
    for _ in range(100):
        arm.step(dq_c=np.zeros(7))
    assert arm.state.success_rate == 1.0
    arm.step(dq_c=np.zeros(7), motion_finished=True)
    assert arm.state.success_rate == 0.0  # nobody sends anything now


def test_a_motion_that_never_begins_ends_by_itself(arm: Arm) -> None:
    arm.start(JOINT)
    for _ in range(999):
        arm.step()
    assert arm.motion.mode == RobotMode.MOVE
    assert arm.motion.lost == 0
    arm.step()
    assert arm.motion.errors == (COMMUNICATION,)


def test_torques_are_held_when_a_command_is_lost(arm: Arm) -> None:
    arm.start(TORQUE, controller=2)
    for step in range(1, 21):
        arm.step(tau_J_d=only(6, 0.02 * step))
    arm.step()
    arm.step()
    np.testing.assert_allclose(arm.state["tau_J_d"], only(6, 0.4))
    arm.step(tau_J_d=only(6, 0.4), torque_finished=True)
    assert arm.motion.take_outcome() == Status.SUCCESS
    arm.settle()
    assert np.abs(arm.body.dq).max() < 1e-3


@pytest.mark.parametrize(
    ("tau", "name"),
    [
        (only(0, 2.0), "controller_torque_discontinuity"),
        (only(0, np.nan), "tau_j_range_violation"),
    ],
)
def test_torques_that_jump_or_are_none_are_a_reflex(
    arm: Arm, tau: Sequence[float], name: str
) -> None:
    arm.start(TORQUE, controller=2)
    arm.step(tau_J_d=np.zeros(7))
    arm.step(tau_J_d=tau)
    assert name in arm.motion.errors
    assert arm.motion.mode == RobotMode.REFLEX
    arm.settle()
    assert np.isfinite(arm.body.q).all()


def test_asynchronous_targets_are_approached_within_their_speed(arm: Arm) -> None:
    q = arm.motion.setpoint.q.copy()
    speed = np.full(7, 0.5)
    assert arm.start(JOINT, asynchronous=True, max_velocity=speed) == Status.MOTION_STARTED
    for _ in range(3000):  # a target may be long in coming
        arm.step()
    assert arm.motion.mode == RobotMode.MOVE
    arm.step(q_c=q + only(0, 0.4))
    fastest, last = 0.0, 0.0
    for _ in range(1500):
        arm.step()
        rate = float(arm.state["dq_d"][0])
        assert abs(rate - last) <= 0.010 + 1e-9
        fastest, last = max(fastest, abs(rate)), rate
    assert fastest == pytest.approx(0.5)
    np.testing.assert_allclose(arm.state["q_d"], q + only(0, 0.4), atol=1e-6)
    arm.step(q_c=q)  # under way to another target it is stopped
    for _ in range(200):
        arm.step()
    assert arm.motion.lost == 0
    arm.step(q_c=np.zeros(7), motion_finished=True)
    for _ in range(100):
        arm.step()
    assert arm.motion.take_outcome() == Status.SUCCESS
    assert arm.motion.mode == RobotMode.IDLE
    assert q[0] < arm.state["q_d"][0] < q[0] + 0.4


def test_an_asynchronous_target_beyond_the_limits_is_a_reflex(arm: Arm) -> None:
    arm.start(JOINT, asynchronous=True, max_velocity=np.full(7, 0.5))
    arm.step(q_c=np.full(7, 4.0))
    assert arm.motion.errors == ("joint_motion_generator_position_limits_violation",)


def test_a_push_beyond_the_thresholds_is_a_reflex(arm: Arm) -> None:
    arm.settings.force[:] = 20.0
    arm.body.push((15.0, 0, 0, 0, 0, 0))
    arm.settle()
    assert arm.motion.mode == RobotMode.IDLE
    assert arm.state["cartesian_contact"][0] == 0.0
    arm.body.push((30.0, 0, 0, 0, 0, 0))
    arm.settle()
    assert arm.motion.mode == RobotMode.REFLEX
    assert "cartesian_reflex" in arm.motion.errors
    assert arm.state["cartesian_collision"][0] == 1.0
    arm.body.push(None)
    arm.settle()
    assert arm.motion.recover() is None
    arm.settle(100)
    assert arm.motion.take_recovery() == Status.SUCCESS
    assert arm.motion.mode == RobotMode.IDLE


def test_an_arm_beyond_its_limits_cannot_recover_by_itself(arm: Arm) -> None:
    q = np.array([0.0, -0.785, 0.0, -2.356, 0.0, 1.57, 3.07])  # joint 7 ends at 3.0508
    arm.body.place(q)
    arm.motion.reset()
    arm.settle(2)
    assert arm.motion.errors == ("joint_position_limits_violation",)
    assert arm.motion.recover() == Status.MANUAL_RECOVERY


def test_a_client_that_leaves_in_a_motion_leaves_a_reflex(arm: Arm) -> None:
    arm.motion.abandon()
    assert arm.motion.mode == RobotMode.IDLE
    arm.start(JOINT)
    arm.step(q_c=arm.motion.setpoint.q)
    arm.motion.abandon()
    assert arm.motion.mode == RobotMode.REFLEX
    assert arm.motion.errors == (COMMUNICATION,)
    assert arm.motion.take_outcome() is None  # nobody is there to be told


def test_an_arm_that_leaves_its_path_is_a_reflex(arm: Arm) -> None:
    assert arm.start(JOINT, deviations=(0.005, 1.0, 1.0) * 2) == Status.MOTION_STARTED
    q = arm.motion.setpoint.q.copy()
    arm.step(q_c=q)
    arm.body.push((0.0, 0.0, -70.0, 0, 0, 0))
    arm.settings.joint_stiffness[:] = 100.0
    for _ in range(500):
        arm.step(q_c=q)
        if arm.motion.mode != RobotMode.MOVE:
            break
    assert "max_path_pose_deviation_violation" in arm.motion.errors
