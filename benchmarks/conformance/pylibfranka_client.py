"""pylibfranka (libfranka 0.21, server version 10) through the steps; argument: ADDRESS."""

from __future__ import annotations

import sys

import numpy as np
import pylibfranka

from benchmarks.conformance.steps import (
    CARTESIAN_STEP_M,
    JOINT_STEP_RAD,
    REACHED_M,
    REACHED_RAD,
    report,
)

__all__ = ["PylibfrankaClient"]

MOTION_S = 2.0
CONTROLLER = pylibfranka.ControllerMode.JointImpedance


def smooth(passed_s: float) -> float:
    """Minimum jerk from 0 to 1 over ``MOTION_S``."""
    u = min(passed_s / MOTION_S, 1.0)
    return u * u * u * (10.0 - 15.0 * u + 6.0 * u * u)


class PylibfrankaClient:
    """One connection; each method is a step."""

    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> str:
        self.robot = pylibfranka.Robot(self.address, pylibfranka.RealtimeConfig.kIgnore)
        threshold = [40.0] * 7
        self.robot.set_collision_behavior(threshold, threshold, [60.0] * 6, [60.0] * 6)
        return "collision behaviour set"

    def read(self) -> str:
        stamps = [self.robot.read_once().time.to_sec() for _ in range(1000)]
        assert np.all(np.diff(stamps) > 0), "states out of order"
        return f"1000 states over {stamps[-1] - stamps[0]:.3f} s"

    def joint_motion(self) -> str:
        control = self.robot.start_joint_position_control(CONTROLLER)
        state, _ = control.readOnce()
        start, passed = list(state.q_d), 0.0
        goal = list(start)
        goal[3] -= JOINT_STEP_RAD
        while passed < MOTION_S:
            q = list(start)
            q[3] -= JOINT_STEP_RAD * smooth(passed)
            control.writeOnce(pylibfranka.JointPositions(q))
            _, step = control.readOnce()
            passed += step.to_sec()
        last = pylibfranka.JointPositions(goal)
        last.motion_finished = True
        control.writeOnce(last)
        off = float(np.abs(np.array(self.robot.read_once().q) - goal).max())
        assert off < REACHED_RAD, f"{off:.4f} rad away"
        return f"{off:.4f} rad away"

    def cartesian_motion(self) -> str:
        control = self.robot.start_cartesian_pose_control(CONTROLLER)
        state, _ = control.readOnce()
        start, passed = list(state.O_T_EE_d), 0.0
        pose = list(start)
        while passed < MOTION_S:
            pose = list(start)
            pose[14] += CARTESIAN_STEP_M * smooth(passed)  # z, column-major
            control.writeOnce(pylibfranka.CartesianPose(pose))
            _, step = control.readOnce()
            passed += step.to_sec()
        last = pylibfranka.CartesianPose(pose)
        last.motion_finished = True
        control.writeOnce(last)
        moved = np.array(self.robot.read_once().O_T_EE)[12:15] - start[12:15]
        off = float(np.abs(moved - [0.0, 0.0, CARTESIAN_STEP_M]).max())
        assert off < REACHED_M, f"moved {moved}"
        return f"moved {np.round(moved, 4).tolist()} m"

    def torque_control(self) -> str:
        control = self.robot.start_torque_control()
        passed, rate = 0.0, 0.0
        while passed < 1.0:
            state, step = control.readOnce()
            passed += step.to_sec()
            torque = [0.0] * 7
            torque[6] = 0.5 * float(np.sin(2.0 * np.pi * passed))
            command = pylibfranka.Torques(torque)
            command.motion_finished = passed >= 1.0
            control.writeOnce(command)
            rate = state.control_command_success_rate
        return f"success rate {rate:.3f}"

    def gripper_move(self) -> str:
        self.gripper = pylibfranka.Gripper(self.address)
        assert self.gripper.move(0.05, 0.1), "move said no"
        width = self.gripper.read_once().width
        assert abs(width - 0.05) < 0.003, f"{width:.4f} m wide"
        return f"{width:.4f} m wide"

    def gripper_grasp(self) -> str:
        assert not self.gripper.grasp(0.04, 0.1, 20.0), "grasped what is not there"
        assert self.gripper.grasp(0.0, 0.1, 20.0), "did not close"
        state = self.gripper.read_once()
        return f"{state.width:.4f} m wide, grasped {state.is_grasped}"

    def reflex(self) -> str:
        control = self.robot.start_joint_position_control(CONTROLLER)
        state, _ = control.readOnce()
        q = list(state.q_d)
        try:
            for cycle in range(100):
                q[0] += 0.1 * (cycle == 20)
                control.writeOnce(pylibfranka.JointPositions(q))
                control.readOnce()
        except pylibfranka.ControlException as error:
            assert "joint_motion_generator_velocity_discontinuity" in str(error), str(error)
            return str(error)
        raise AssertionError("no reflex")

    def recover(self) -> str:
        self.robot.automatic_error_recovery()
        mode = self.robot.read_once().robot_mode
        assert mode == pylibfranka.RobotMode.Idle, str(mode)
        self.joint_motion()
        return "moves again"


def main(address: str) -> int:
    client = PylibfrankaClient(address)
    return report(
        {
            "connect": client.connect,
            "read_1000_states": client.read,
            "joint_motion": client.joint_motion,
            "cartesian_motion": client.cartesian_motion,
            "torque_control_1s": client.torque_control,
            "gripper_move": client.gripper_move,
            "gripper_grasp": client.gripper_grasp,
            "reflex": client.reflex,
            "recover": client.recover,
        }
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
