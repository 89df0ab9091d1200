"""panda-python (libfranka 0.9, server version 5) through the steps; argument: ADDRESS."""

from __future__ import annotations

import sys
import time

import numpy as np
import panda_py
from panda_py import controllers, libfranka

from benchmarks.conformance.steps import (
    CARTESIAN_STEP_M,
    JOINT_STEP_RAD,
    REACHED_M,
    REACHED_RAD,
    report,
)

__all__ = ["PandaClient"]


class PandaClient:
    """One connection; each method is a step."""

    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> str:
        self.panda = panda_py.Panda(self.address)
        self.robot = self.panda.get_robot()
        return f"server version {self.robot.server_version()}"

    def read(self) -> str:
        stamps = [self.robot.read_once().time.to_msec() for _ in range(1000)]
        assert np.all(np.diff(stamps) > 0), "states out of order"
        return f"1000 states over {stamps[-1] - stamps[0]} ms"

    def joint_motion(self) -> str:
        goal = np.array(self.robot.read_once().q)
        goal[3] -= JOINT_STEP_RAD
        assert self.panda.move_to_joint_position(goal), "the motion said no"
        off = float(np.abs(np.array(self.robot.read_once().q) - goal).max())
        assert off < REACHED_RAD, f"{off:.4f} rad away"
        return f"{off:.4f} rad away"

    def cartesian_motion(self) -> str:
        self.robot.read_once()
        start = self.panda.get_pose()
        goal = start.copy()
        goal[2, 3] += CARTESIAN_STEP_M
        assert self.panda.move_to_pose([goal]), "the motion said no"
        self.robot.read_once()
        off = float(np.abs(self.panda.get_pose()[:3, 3] - goal[:3, 3]).max())
        # An impedance controller without an integrator: friction leaves a little.
        assert off < 2 * REACHED_M, f"{off:.4f} m away"
        return f"{off:.4f} m away"

    def torque_control(self) -> str:
        controller = controllers.AppliedTorque()
        self.panda.start_controller(controller)
        began, rates = time.monotonic(), []
        while (passed := time.monotonic() - began) < 1.0:
            torque = np.zeros(7)
            torque[6] = 0.5 * np.sin(2.0 * np.pi * passed)
            controller.set_control(torque)
            rates.append(self.panda.get_state().control_command_success_rate)
            time.sleep(0.005)
        self.panda.stop_controller()
        return f"success rate {min(rates[len(rates) // 2 :]):.3f}"

    def gripper_move(self) -> str:
        self.gripper = libfranka.Gripper(self.address)
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
        def jump(state: libfranka.RobotState, step: libfranka.Duration) -> libfranka.JointPositions:
            q = list(state.q_d)
            q[0] += 0.1
            return libfranka.JointPositions(q)

        try:
            self.robot.control_joint_position(jump, limit_rate=False)
        except RuntimeError as error:
            assert "joint_motion_generator_velocity_discontinuity" in str(error), str(error)
            return str(error)
        raise AssertionError("no reflex")

    def recover(self) -> str:
        self.robot.automatic_error_recovery()
        mode = self.robot.read_once().robot_mode
        assert mode == libfranka.RobotMode.kIdle, str(mode)
        self.joint_motion()
        return "moves again"


def main(address: str) -> int:
    client = PandaClient(address)
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
