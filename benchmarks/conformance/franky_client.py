"""franky-control (libfranka 0.21, server version 10) through the steps; argument: ADDRESS."""

from __future__ import annotations

import sys
import time

import franky
import numpy as np

from benchmarks.conformance.steps import (
    CARTESIAN_STEP_M,
    JOINT_STEP_RAD,
    REACHED_M,
    REACHED_RAD,
    report,
)

__all__ = ["FrankyClient"]


class FrankyClient:
    """One connection; each method is a step."""

    def __init__(self, address: str) -> None:
        self.address = address

    def connect(self) -> str:
        self.robot = franky.Robot(
            self.address,
            relative_dynamics_factor=0.2,
            realtime_config=franky.RealtimeConfig.Ignore,
        )
        return f"{len(self.robot.model_urdf)} characters of robot model"

    def read(self) -> str:
        stamps: set[int] = set()
        while len(stamps) < 1000:
            stamps.add(self.robot.state.time.to_msec())
        return f"1000 states over {max(stamps) - min(stamps)} ms"

    def joint_motion(self) -> str:
        start = np.array(self.robot.state.q)
        goal = start.copy()
        goal[3] -= JOINT_STEP_RAD
        self.robot.move(franky.JointMotion(goal))
        off = np.abs(np.array(self.robot.state.q) - goal).max()
        assert off < REACHED_RAD, f"{off:.4f} rad away"
        return f"{off:.4f} rad away"

    def cartesian_motion(self) -> str:
        start = np.array(self.robot.state.O_T_EE.translation)
        step = np.array([0.0, 0.0, CARTESIAN_STEP_M])
        self.robot.move(franky.CartesianMotion(franky.Affine(-step), franky.ReferenceType.Relative))
        moved = np.array(self.robot.state.O_T_EE.translation) - start
        off = abs(np.linalg.norm(moved) - CARTESIAN_STEP_M)
        assert off < REACHED_M, f"moved {moved}"
        return f"moved {np.round(moved, 4).tolist()} m"

    def torque_control(self) -> str:
        motion = franky.SimpleTorqueMotion(compensate_coriolis=True)
        self.robot.move(motion, asynchronous=True)
        began, rates = time.monotonic(), []
        while (passed := time.monotonic() - began) < 1.0:
            torque = np.zeros(7)
            torque[6] = 0.5 * np.sin(2.0 * np.pi * passed)
            motion.set_torque(torque)
            rates.append(self.robot.state.control_command_success_rate)
            time.sleep(0.005)
        self.robot.move(franky.TorqueStopMotion())
        return f"success rate {min(rates[len(rates) // 2 :]):.3f}"

    def gripper_move(self) -> str:
        self.gripper = franky.Gripper(self.address)
        assert self.gripper.move(0.05, 0.1), "move said no"
        width = self.gripper.width
        assert abs(width - 0.05) < 0.003, f"{width:.4f} m wide"
        return f"{width:.4f} m wide"

    def gripper_grasp(self) -> str:
        assert not self.gripper.grasp(0.04, 0.1, 20.0), "grasped what is not there"
        assert self.gripper.grasp(0.0, 0.1, 20.0), "did not close"
        return f"{self.gripper.width:.4f} m wide, grasped {self.gripper.is_grasped}"

    def reflex(self) -> str:
        motion = franky.SimpleTorqueMotion()
        try:
            self.robot.move(motion, asynchronous=True)
            for _ in range(400):  # a push that makes the wrist too fast
                motion.set_torque(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 6.0]))
                time.sleep(0.005)
                if self.robot.poll_motion():
                    break
            self.robot.join_motion(2.0)
        except franky.ControlException as error:
            assert "joint_velocity_violation" in str(error), str(error)
            return str(error)
        raise AssertionError("no reflex")

    def recover(self) -> str:
        self.robot.recover_from_errors()
        deadline = time.monotonic() + 5.0
        while self.robot.has_errors and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self.robot.has_errors, "errors stay"
        here = np.array(self.robot.state.q)
        here[0] += JOINT_STEP_RAD
        self.robot.move(franky.JointMotion(here))
        assert abs(self.robot.state.q[0] - here[0]) < REACHED_RAD
        return "moves again"


def main(address: str) -> int:
    client = FrankyClient(address)
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
