"""The virtual arm over TCP and UDP, as libfranka would see it, one request at a time."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import numpy as np
import pytest

from hardware.franka.fci import (
    GRIPPER_HEADER,
    GRIPPER_REQUESTS,
    GRIPPER_STATE,
    VERSIONS,
    Command,
    GripperCommand,
    Status,
    Version,
    errors_named,
)
from tests.franka.conftest import StartArm
from tests.franka.wire import CALM, Client, garbage_header

IDLE, MOVE, REFLEX, USER_STOPPED = 1, 2, 4, 5
JOINT, VELOCITY, POSE, TWIST, TORQUE = range(5)
EXTERNAL = 2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_of_the_same_version_gets_states(arms: StartArm, version: Version) -> None:
    with Client(arms(version).address, version) as client:
        assert client.hello == bytes([0, version, 0])
        first = client.one()
        for step in range(1, 20):
            assert client.one()["message_id"] == first["message_id"] + step
        state = client.state
        assert (state["generator"], state["controller"], state["robot_mode"]) == (0, 3, IDLE)
        np.testing.assert_allclose(state["O_ddP_O"], (0.0, 0.0, -9.81), atol=1e-6)
        np.testing.assert_allclose(state["q"], state["q_d"], atol=2e-3)
        # Flange to fingertips of the hand, column-major, turned back by 45 degrees.
        c = np.sqrt(0.5)
        expected = [c, -c, 0, 0, c, c, 0, 0, 0, 0, 1, 0, 0, 0, 0.1034, 1]
        np.testing.assert_allclose(state["F_T_EE"], expected, atol=1e-6)
        np.testing.assert_allclose(state["elbow"], (state["q"][2], -1.0))
        assert not state["errors"].any()


@pytest.mark.parametrize(("version", "claim"), [(10, 9), (10, 5), (5, 10)])
def test_another_version_is_refused_and_told_ours(
    arms: StartArm, version: Version, claim: int
) -> None:
    with Client(arms(version).address, version, claim=claim) as client:
        assert client.hello == bytes([1, version, 0])


def test_the_arm_can_claim_to_be_of_another_version(own_arm: StartArm) -> None:
    arm = own_arm()
    arm.fault("version", number=9)
    with Client(arm.address) as client:
        assert client.hello == bytes([1, 9, 0])


GOOD = {
    Command.SET_COLLISION_BEHAVIOR: {"torque": np.full((4, 7), 20.0), "force": np.full((4, 6), 30)},
    Command.SET_JOINT_IMPEDANCE: {"stiffness": (3000, 3000, 3000, 2500, 2500, 2000, 2000)},
    Command.SET_CARTESIAN_IMPEDANCE: {"stiffness": (2000, 2000, 2000, 100, 100, 100)},
    Command.SET_GUIDING_MODE: {"axes": (True,) * 6, "nullspace": False},
    Command.SET_EE_TO_K: {"transform": np.eye(4).ravel()},
    Command.SET_NE_TO_EE: {"transform": np.eye(4).ravel()},
    Command.SET_LOAD: {"mass": 0.0},
    Command.SET_FILTERS: {"frequencies": (100, 100, 100, 100, 1000)},
}
BAD: list[tuple[Command, dict[str, Any]]] = [
    (Command.SET_COLLISION_BEHAVIOR, {"torque": np.zeros((4, 7)), "force": np.full((4, 6), 30)}),
    (
        Command.SET_COLLISION_BEHAVIOR,  # lower above upper
        {
            "torque": np.full((4, 7), 20.0),
            "force": np.array([[40.0], [30], [20], [30]]) * np.ones(6),
        },
    ),
    (Command.SET_JOINT_IMPEDANCE, {"stiffness": (14251,) * 7}),
    (Command.SET_JOINT_IMPEDANCE, {"stiffness": (-1,) * 7}),
    (Command.SET_JOINT_IMPEDANCE, {"stiffness": (np.nan,) * 7}),
    (Command.SET_CARTESIAN_IMPEDANCE, {"stiffness": (3001, 100, 100, 10, 10, 10)}),
    (Command.SET_CARTESIAN_IMPEDANCE, {"stiffness": (100, 100, 100, 0.5, 10, 10)}),
    (Command.SET_EE_TO_K, {"transform": np.zeros(16)}),
    (Command.SET_NE_TO_EE, {"transform": np.diag([1.0, 1, -1, 1]).ravel()}),
    # Row-major: the translation stands where the last row belongs.
    (Command.SET_NE_TO_EE, {"transform": (1, 0, 0, 0.1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)}),
    (Command.SET_LOAD, {"mass": -0.1}),
    (Command.SET_LOAD, {"mass": 3.0}),  # with the hand that is more than it carries
    (Command.SET_LOAD, {"mass": 0.5, "inertia": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}),
    (Command.SET_LOAD, {"mass": 0.5, "com": (np.nan, 0, 0)}),
    (Command.SET_FILTERS, {"frequencies": (0, 100, 100, 100, 100)}),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_setters_take_what_is_valid(arms: StartArm, version: Version) -> None:
    with Client(arms(version).address, version) as client:
        for command, fields in GOOD.items():
            if command == Command.SET_FILTERS and version == 10:
                continue
            assert client.status(command, **fields) == Status.SUCCESS, command


@pytest.mark.parametrize("version", VERSIONS)
def test_setters_refuse_what_is_not(arms: StartArm, version: Version) -> None:
    with Client(arms(version).address, version) as client:
        for command, fields in BAD:
            if command == Command.SET_FILTERS and version == 10:
                continue
            assert client.status(command, **fields) == Status.INVALID_ARGUMENT, (command, fields)


def test_what_is_set_stands_in_the_state_that_comes_with_the_answer(arms: StartArm) -> None:
    with Client(arms().address) as client:
        before = client.newest()["O_T_EE"].reshape(4, 4).T
        shift = np.eye(4)
        shift[:3, 3] = 0.0, 0.0, 0.05
        client.status(Command.SET_NE_TO_EE, transform=shift.T.ravel())
        state = client.arrived()
        np.testing.assert_allclose(state["F_T_EE"][14], 0.1034 + 0.05, atol=1e-6)
        np.testing.assert_allclose(state["O_T_EE"].reshape(4, 4).T, before @ shift, atol=1e-4)
        client.status(Command.SET_LOAD, mass=0.5, com=(0.0, 0.0, 0.05), inertia=np.eye(3).ravel())
        state = client.arrived()
        assert state["m_load"] == 0.5
        np.testing.assert_allclose(state["F_x_Cload"], (0.0, 0.0, 0.05))
        # There is no such load: the joints carry less than the robot expects, by its weight.
        for _ in range(500):
            client.read()
        assert client.state["O_F_ext_hat_K"][2] == pytest.approx(-0.5 * 9.81, rel=0.1)


def test_nothing_is_set_while_the_arm_moves(arms: StartArm) -> None:
    with Client(arms().address) as client:
        move = client.start(JOINT)
        q = client.state["q_d"]
        load = client.post(Command.SET_LOAD, mass=0.1)
        assert client.meaning(Command.SET_LOAD, client.reply(load)) == Status.NOT_POSSIBLE
        again = client.post(Command.MOVE, generator=JOINT, deviations=(1.0,) * 6)
        assert client.meaning(Command.MOVE, client.reply(again)) == Status.NOT_POSSIBLE
        end = {"q_c": q, "motion_finished": True}
        assert client.move(move, lambda *_: end, 1) == Status.SUCCESS


@pytest.mark.parametrize(
    "fields",
    [
        {"controller": 3, "generator": JOINT},
        {"controller": 0, "generator": 5},
        {"controller": 0, "generator": TORQUE},
        {"controller": 0, "generator": JOINT, "deviations": (-1.0,) * 6},
        {"controller": 0, "generator": JOINT, "deviations": (np.nan,) * 6},
        {"controller": 0, "generator": VELOCITY, "asynchronous": True, "max_velocity": (1.0,) * 7},
        {"controller": 0, "generator": JOINT, "asynchronous": True, "max_velocity": (0.0,) * 7},
        {"controller": 0, "generator": JOINT, "asynchronous": True, "max_velocity": (9.0,) * 7},
    ],
)
def test_motions_that_do_not_exist_are_refused(arms: StartArm, fields: dict[str, Any]) -> None:
    with Client(arms().address) as client:
        assert client.status(Command.MOVE, **fields) == Status.INVALID_ARGUMENT
        assert client.newest()["robot_mode"] == IDLE


@pytest.mark.parametrize("version", VERSIONS)
def test_a_motion_shows_its_modes_and_ends_with_a_second_reply(
    arms: StartArm, version: Version
) -> None:
    with Client(arms(version).address, version) as client:
        move = client.start(VELOCITY, controller=1)
        state = client.state
        assert (state["generator"], state["controller"], state["robot_mode"]) == (2, 1, MOVE)
        for _ in range(30):
            client.send()
            assert client.read()["robot_mode"] == MOVE
        assert client.state["success_rate"] == 1.0
        client.send(motion_finished=True)
        state = client.read()
        assert (state["generator"], state["controller"], state["robot_mode"]) == (0, 3, IDLE)
        assert client.outcome(move) == Status.SUCCESS


def test_torque_control_alone_is_a_generator_of_its_own(arms: StartArm) -> None:
    with Client(arms().address) as client:
        move = client.start(TORQUE, controller=EXTERNAL)
        assert (client.state["generator"], client.state["controller"]) == (5, EXTERNAL)
        # 0.4 Nm on the last joint for 0.1 s turn it; 1 Nm a step would be too steep.
        outcome = client.move(
            move,
            lambda _, step: {"tau_J_d": (0,) * 6 + (0.4,), "torque_finished": step == 99},
            100,
        )
        assert outcome == Status.SUCCESS
        assert client.state["robot_mode"] == IDLE


def test_version_5_ends_torque_control_by_the_motion_flag(arms: StartArm) -> None:
    with Client(arms(5).address, 5) as client:
        move = client.start(VELOCITY, controller=EXTERNAL)
        assert (client.state["generator"], client.state["controller"]) == (2, EXTERNAL)
        outcome = client.move(move, lambda _, step: {"motion_finished": step == 9}, 10)
        assert outcome == Status.SUCCESS


def test_a_stop_is_answered_before_the_motion_that_it_stops(arms: StartArm) -> None:
    with Client(arms().address) as client:
        client.status(Command.SET_COLLISION_BEHAVIOR, **CALM)
        move = client.start(VELOCITY)
        for step in range(200):
            client.send(dq_c=(min(step, 100) * 0.002, 0, 0, 0, 0, 0, 0))
            client.read()
        assert client.state["dq_d"][0] == pytest.approx(0.2)
        stop = client.post(Command.STOP_MOVE)
        speeds = []
        while client.one()["robot_mode"] == MOVE:
            speeds.append(client.state["dq_d"][0])
        # It brakes at the FR3's 10 rad/s^2, in 20 ms, whatever the client sends.
        steps = np.diff(speeds)
        assert np.abs(steps).max() <= 0.010 + 1e-6
        assert client.state["dq_d"][0] == 0.0
        assert client.meaning(Command.STOP_MOVE, client.reply(stop)) == Status.SUCCESS
        assert client.outcome(move) == Status.PREEMPTED
        assert client.status(Command.STOP_MOVE) == Status.SUCCESS  # nothing to stop


def test_a_reflex_comes_by_state_before_it_comes_by_tcp(arms: StartArm) -> None:
    with Client(arms().address) as client:
        move = client.start(JOINT)
        q = client.state["q_d"].copy()
        client.send(q_c=q)
        client.read()
        client.send(q_c=q + 0.01)  # 10 rad/s
        state = client.read()
        assert state["robot_mode"] == REFLEX
        assert "joint_motion_generator_velocity_discontinuity" in errors_named(state["errors"])
        np.testing.assert_array_equal(state["errors"], state["reflex_reason"])
        client.tcp.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.tcp.recv(1)
        client.tcp.settimeout(20.0)
        assert client.outcome(move) == Status.REFLEX_ABORTED
        assert client.status(Command.MOVE, generator=JOINT) == Status.NOT_POSSIBLE
        assert client.status(Command.AUTOMATIC_ERROR_RECOVERY) == Status.SUCCESS
        state = client.newest()
        assert state["robot_mode"] == IDLE
        assert not state["errors"].any()
        assert state["reflex_reason"].any()  # the last motion's, until the next one begins
        move = client.start(JOINT)
        assert not client.state["reflex_reason"].any()
        end = {"q_c": client.state["q_d"], "motion_finished": True}
        assert client.move(move, lambda *_: end, 1) == Status.SUCCESS


def test_a_finished_motion_that_still_moves_is_a_reflex(arms: StartArm) -> None:
    with Client(arms().address) as client:
        move = client.start(VELOCITY)
        ramp = lambda _, step: {  # noqa: E731
            "dq_c": (0.005 * step, 0, 0, 0, 0, 0, 0), "motion_finished": step == 50
        }  # fmt: skip
        assert client.move(move, ramp, 51) == Status.REFLEX_ABORTED
        assert "joint_motion_generator_velocity_discontinuity" in errors_named(
            client.state["errors"]
        )
        assert client.status(Command.AUTOMATIC_ERROR_RECOVERY) == Status.SUCCESS


def test_the_user_stop_aborts_and_nothing_goes_on_until_it_is_released(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        move = client.start(JOINT)
        q = client.state["q_d"].copy()
        client.send(q_c=q)
        client.read()
        arm.fault("user_stop")
        client.send(q_c=q)
        while client.state["robot_mode"] == MOVE:
            client.read()
        assert client.state["robot_mode"] == USER_STOPPED
        assert client.outcome(move) == Status.EMERGENCY_ABORTED
        assert client.status(Command.AUTOMATIC_ERROR_RECOVERY) == Status.NOT_POSSIBLE
        assert client.status(Command.MOVE, generator=JOINT) == Status.NOT_POSSIBLE
        arm.fault("user_stop", active=False)
        assert client.newest()["robot_mode"] == IDLE


def test_guiding_is_a_mode_in_which_the_arm_yields(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        before = client.newest()["q"][6]
        arm.fault("guide")
        assert client.newest()["robot_mode"] == 3
        arm.fault("push", wrench=[0, 0, 0, 0, 0, 2.0])
        for _ in range(300):
            client.read()
        arm.fault("push")
        arm.fault("guide", active=False)
        state = client.newest()
        assert abs(state["q"][6] - before) > 0.01
        np.testing.assert_allclose(state["q"], state["q_d"], atol=0.02)
        assert state["robot_mode"] == IDLE
        client.status(Command.AUTOMATIC_ERROR_RECOVERY)


def test_version_5_has_no_walls_and_says_so(arms: StartArm) -> None:
    with Client(arms(5).address, 5) as client:
        reply = client.ask(Command.GET_CARTESIAN_LIMIT, id=0)
        assert len(reply) == 178
        assert reply[0] == 0
        assert reply[-1] == 0


def test_models_come_behind_their_status(arms: StartArm) -> None:
    with Client(arms(10).address, 10) as client:
        reply = client.ask(Command.GET_ROBOT_MODEL)
        assert reply[0] == 0
        assert b"<robot" in reply[:400]
        assert b"position_based_velocity_limits" in reply
    with Client(arms(5).address, 5) as client:
        assert client.ask(Command.LOAD_MODEL_LIBRARY, architecture=2, system=0) == b"\x01"
        reply = client.ask(Command.LOAD_MODEL_LIBRARY, architecture=0, system=0)
        assert reply[:5] == b"\x00\x7fELF"


def test_a_second_client_waits_for_the_first_to_go(arms: StartArm) -> None:
    address = arms().address
    with Client(address) as first:
        second = socket.create_connection((address, 1337), timeout=20.0)
        second.sendall(garbage_header(0, 16) + (10).to_bytes(2, "little") + b"\x01\x02")
        for _ in range(20):
            first.read()
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.recv(1)
        second.settimeout(20.0)
    assert second.recv(64)[12] == 0
    second.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: robot\r\n\r\n",
        garbage_header(99, 12),
        garbage_header(1, 13) + b"x",
        garbage_header(0, 4_000_000_000),
        garbage_header(0, 0),
        b"\xff" * 400,
    ],
)
def test_other_protocols_are_hung_up_on(arms: StartArm, junk: bytes) -> None:
    address = arms().address
    with socket.create_connection((address, 1337), timeout=20.0) as stranger:
        stranger.sendall(junk)
        with contextlib.suppress(ConnectionResetError):  # hung up with our bytes unread
            assert stranger.recv(64) == b""
    with Client(address) as client:
        assert client.hello[0] == 0
        client.read()


def test_commands_of_strangers_and_of_other_sizes_are_not_listened_to(arms: StartArm) -> None:
    arm = arms()
    with Client(arm.address) as client:
        move = client.start(VELOCITY)
        client.send()
        client.read()
        assert client.robot is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            client.send(by=stranger, motion_finished=True)
            assert [arm.call("status")["moving"] for _ in range(3)] == [True] * 3
        client.udp.sendto(b"\x00" * 100, client.robot)
        for _ in range(20):
            client.send()
            assert client.read()["robot_mode"] == MOVE
        client.send(motion_finished=True)
        assert client.outcome(move) == Status.SUCCESS


class _Hand:
    """A gripper client."""

    def __init__(self, address: str) -> None:
        self.tcp = socket.create_connection((address, 1338), timeout=20.0)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("", 0))
        self.udp.settimeout(20.0)
        self.number = 0
        self.hello = self.ask(GripperCommand.CONNECT, 3, self.udp.getsockname()[1])

    def post(self, command: GripperCommand, *values: float) -> None:
        payload = GRIPPER_REQUESTS[command].pack(*values)
        self.number += 1
        self.tcp.sendall(GRIPPER_HEADER.pack(command, self.number, 10 + len(payload)) + payload)

    def reply(self) -> tuple[int, int]:
        """Request id and status of the next reply."""
        _, number, size = GRIPPER_HEADER.unpack(self.tcp.recv(10, socket.MSG_WAITALL))
        payload = self.tcp.recv(size - 10, socket.MSG_WAITALL)
        return number, int.from_bytes(payload[:2], "little")

    def ask(self, command: GripperCommand, *values: float) -> int:
        self.post(command, *values)
        return self.reply()[1]

    def state(self) -> tuple[Any, ...]:
        return GRIPPER_STATE.unpack(self.udp.recv(64))

    def newest(self) -> tuple[Any, ...]:
        """A state that was sent after now."""
        self.udp.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.udp.recv(64)
        self.udp.settimeout(20.0)
        return self.state()

    def __enter__(self) -> _Hand:
        return self

    def __exit__(self, *_: object) -> None:
        self.tcp.close()
        self.udp.close()


def test_the_hand_moves_grasps_nothing_and_stops(arms: StartArm) -> None:
    with _Hand(arms().address) as hand:
        assert hand.hello == 0
        assert hand.state()[2] == pytest.approx(0.08)
        assert hand.ask(GripperCommand.MOVE, 0.03, 0.1) == 0
        assert hand.newest()[1] == pytest.approx(0.03, abs=0.002)
        # Nothing there: closed, and not within 2 cm +- 5 mm.
        assert hand.ask(GripperCommand.GRASP, 0.02, 0.005, 0.005, 0.1, 20.0) == 2
        assert not hand.newest()[3]
        assert hand.ask(GripperCommand.MOVE, 0.09, 0.1) == 1
        hand.post(GripperCommand.MOVE, 0.08, 0.01)  # 8 s
        moving = hand.number
        hand.post(GripperCommand.MOVE, 0.0, 0.1)
        assert hand.reply() == (hand.number, 1)  # busy
        hand.post(GripperCommand.STOP)
        assert hand.reply() == (moving, 3)
        assert hand.reply() == (hand.number, 0)
        assert hand.ask(GripperCommand.HOMING) == 0
        assert hand.newest()[1] == pytest.approx(0.08, abs=0.002)


def test_a_hand_that_hangs_answers_nothing_and_still_tells_its_width(own_arm: StartArm) -> None:
    arm = own_arm()
    with _Hand(arm.address) as hand:
        arm.fault("gripper_hang")
        hand.post(GripperCommand.MOVE, 0.07, 0.1)
        for _ in range(5):
            hand.state()
        assert hand.state()[1] == pytest.approx(0.07, abs=0.002)
        hand.tcp.setblocking(False)
        with pytest.raises(BlockingIOError):
            hand.tcp.recv(1)
