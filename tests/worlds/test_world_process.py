"""The world as a process: real serial ports, real socket, and the ways in which it may end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from hardware.worlds.world_process import world_config
from robot_stack.config import load_station
from robot_stack.errors import ConfigError, ControlPlaneError
from robot_stack.records import world_path
from robot_stack.shared_memory import Ring
from tests.worlds.conftest import ROOT, STATION, Chain, RunningWorld, until

ROBOTS = ("follower_left", "follower_right", "leader_left", "leader_right")
TICKS_PER_RAD = 4096 / (2 * np.pi)


def ask(world: RunningWorld, body: bytes) -> dict[str, Any]:
    """Raw bytes to the world's socket, and its answer."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{world.directory / world.station / 'world.ipc'}")
        socket.send_multipart([b"", body])
        assert socket.poll(20_000), "no answer"
        answer: dict[str, Any] = json.loads(socket.recv_multipart()[-1])
        return answer


def test_every_arm_has_its_port_and_its_servos(shared_world: RunningWorld) -> None:
    for robot in ROBOTS:
        chain = Chain(shared_world.tty(robot))
        try:
            models = [
                until(lambda c=chain, s=servo: c.packets.ping(c.port, s)[0], f"ping {servo}")
                for servo in range(1, 10)
            ]
        finally:
            chain.close()
        leader = robot.startswith("leader")
        # XM540-W270 1120, XM430-W350 1020, XL430-W250 1060, XC430-W150 1070
        expected = [1020] * 7 + [1060, 1070] if leader else [1120] * 7 + [1020] * 2
        assert models == expected, robot


def test_goals_over_the_wire_move_the_physics(shared_world: RunningWorld) -> None:
    chain = Chain(shared_world.tty("follower_left"))
    try:
        at = chain.positions()
        assert at[1] == at[2], "the shadow reads as its master"
        for servo in range(1, 10):
            chain.write(servo, 116, 4, at[servo - 1])
            chain.write(servo, 64, 1, 1)
        goal = at[0] + 300
        chain.write(1, 116, 4, goal)
        until(lambda: abs(chain.positions()[0] - goal) < 15, "the waist gets there")
    finally:
        chain.close()
    with Ring(world_path("cell"), timeout_s=10.0) as ring:
        newest = ring.latest()
        assert newest is not None
        qpos = newest[1]["qpos"]
        assert qpos[0] == pytest.approx((goal - 2048) / TICKS_PER_RAD, abs=0.05)
        assert abs(qpos[8]) < 0.05  # the other arm stays
        np.testing.assert_allclose(newest[1]["env_state"], qpos[16:], atol=1e-9)
    log = shared_world.client.call("goal_log", robot="follower_left")
    assert [goal, 1] in [list(row) for row in zip(log["value"], log["servo_id"], strict=True)]
    assert log["next"] == len(log["seq"])
    assert (
        shared_world.client.call("goal_log", robot="follower_left", since=log["next"])["seq"] == []
    )


def test_a_hand_on_a_limp_leader_is_read_over_the_wire(shared_world: RunningWorld) -> None:
    joints = [0.3, -1.2, 1.0, 0.2, 0.1, -0.4]
    shared_world.client.call("hand", robot="leader_right", joints=joints, gripper=1.0)
    chain = Chain(shared_world.tty("leader_right"))
    try:
        expected = [round(2048 + q * TICKS_PER_RAD) for q in joints]

        def there() -> bool:
            at = chain.positions()
            arm = [at[row] for row in (0, 1, 3, 5, 6, 7)]
            return max(abs(a - e) for a, e in zip(arm, expected, strict=True)) <= 2

        until(there, "the leader is where the hand is")
        assert chain.positions()[8] == pytest.approx(2048 + 0.3083 * TICKS_PER_RAD, abs=2)
        assert chain.positions()[1] == chain.positions()[2]
    finally:
        chain.close()
    assert shared_world.status("leader_right")["held"]
    shared_world.client.call("release")
    assert not shared_world.status("leader_right")["held"]


def test_reset_places_the_cube(shared_world: RunningWorld) -> None:
    assert shared_world.client.call("status")["seed"] == 3
    before = shared_world.client.call("status")["env_state"]
    after = shared_world.client.call("reset", seed=8)["env_state"]
    assert shared_world.client.call("status")["seed"] == 8
    assert np.hypot(after[0] - before[0], after[1] - before[1]) > 0.01
    until(lambda: abs(shared_world.client.call("status")["env_state"][2] - 0.02) < 1e-3, "it lands")


def test_the_script_holds_the_leaders_until_it_is_told_to_let_go(
    shared_world: RunningWorld,
) -> None:
    call = shared_world.client.call
    assert call("script", seed=1, ritual=False)["phase"] == "planning"
    until(lambda: call("script_status")["phase"] == "moving", "the operator begins")
    with pytest.raises(ControlPlaneError, match="scripted operator"):
        call("hand", robot="leader_left", gripper=0.5)
    call("release")
    status = call("script_status")
    assert status["done"]
    assert status["phase"] == "interrupted"
    assert not status["success"]
    call("hand", robot="leader_left", gripper=0.5)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b"{", "BadMessage", "JSON"),
        (b"[1]", "BadMessage", '"op"'),
        (b'{"op": 3}', "BadMessage", '"op"'),
        (b"\xff\x00", "BadMessage", "JSON"),
        (b"[" * 60_000, "BadMessage", "JSON"),
        (b'{"op": "explode"}', "UnknownOp", "reset"),
        (b'{"op": "reset"}', "BadArgument", "seed"),
        (b'{"op": "reset", "seed": -1}', "BadArgument", "seed"),
        (b'{"op": "reset", "seed": 1, "sed": 2}', "BadArgument", "'seed'"),
        (b'{"op": "reset", "seed": true}', "BadArgument", "whole number"),
        (b'{"op": "hand", "robot": "follower_left"}', "BadArgument", "leader_left"),
        (b'{"op": "hand", "robot": "leader_left", "joints": [1, 2]}', "BadArgument", "6"),
        (b'{"op": "hand", "robot": "leader_left", "joints": [0,0,0,0,0,NaN]}', "BadArgument", ""),
        (b'{"op": "hand", "robot": "leader_left", "gripper": 1.5}', "BadArgument", "gripper"),
        (b'{"op": "script", "name": "dance"}', "BadArgument", "transfer_cube"),
        (b'{"op": "script", "noise": 1e9}', "BadArgument", "noise"),
        (b'{"op": "fault", "robot": "follower_left"}', "BadArgument", "kind"),
        (b'{"op": "fault", "robot": "nobody", "kind": "drop"}', "BadArgument", "leader_left"),
        (b'{"op": "fault", "robot": "leader_left", "kind": "fire"}', "BadArgument", "unplug"),
        (b'{"op": "fault", "robot": "leader_left", "kind": "drop"}', "BadArgument", "rate"),
        (
            b'{"op": "fault", "robot": "leader_left", "kind": "drop", "rate": "x"}',
            "BadArgument",
            "number",
        ),
        (
            b'{"op": "fault", "robot": "leader_left", "kind": "overload", "servo_id": 77}',
            "Device",
            "77",
        ),
        (b'{"op": "goal_log", "robot": "leader_left", "since": -4}', "BadArgument", "since"),
    ],
)
def test_bad_requests_get_named_errors(
    shared_world: RunningWorld, body: bytes, error: str, says: str
) -> None:
    answer = ask(shared_world, body)
    assert answer["ok"] is False
    assert answer["error"] == error, answer
    assert says in answer["message"]
    assert shared_world.client.call("status")["station"] == "cell"


def test_an_oversized_request_is_not_even_read(shared_world: RunningWorld) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{shared_world.directory / 'cell' / 'world.ipc'}")
        socket.send_multipart([b"", b" " * (1 << 20)])
        assert not socket.poll(300)
    assert shared_world.client.call("status")["station"] == "cell"


def test_faults_reach_the_bus(world: RunningWorld) -> None:
    call = world.client.call
    chain = Chain(world.tty("follower_right"))
    try:
        chain.positions()
        call("fault", robot="follower_right", kind="missing", servo_id=4)
        assert chain.packets.ping(chain.port, 4)[1] != 0
        call("fault", robot="follower_right", kind="missing", servo_id=4, gone=False)
        until(lambda: chain.packets.ping(chain.port, 4)[1] == 0, "servo 4 is back")
        call("fault", robot="follower_right", kind="drop", rate=1.0)
        assert chain.packets.ping(chain.port, 1)[1] != 0
        assert world.status("follower_right")["dropped"] > 0
        call("fault", robot="follower_right", kind="calm")
        chain.write(9, 64, 1, 1)
        call("fault", robot="follower_right", kind="overload", servo_id=9)
        assert world.status("follower_right")["torque"][6] is False
    finally:
        chain.close()
    call("fault", robot="follower_right", kind="unplug")
    assert not os.path.lexists(world.tty("follower_right"))
    assert world.status("follower_right")["port"] is None
    call("fault", robot="follower_right", kind="plug")
    chain = Chain(world.tty("follower_right"))
    try:
        assert len(chain.positions()) == 9
    finally:
        chain.close()


def test_a_second_world_is_refused_and_leaves_the_first_its_ports(world: RunningWorld) -> None:
    ports = [world.tty(robot).readlink() for robot in ROBOTS]
    second = subprocess.run(
        [sys.executable, "-m", "hardware.worlds.world_process", str(world.file)],
        cwd=ROOT,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode != 0
    assert "writer" in second.stderr
    assert "Traceback" not in second.stderr
    assert [world.tty(robot).readlink() for robot in ROBOTS] == ports
    assert world.client.call("status")["pid"] == world.process.pid


def test_killing_the_world_hangs_up_the_ports_and_a_new_one_takes_over(
    world: RunningWorld,
) -> None:
    tty = world.tty("leader_left")
    fd = os.open(tty, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        world.process.kill()
        world.process.wait(20)

        def hung_up() -> bool:
            try:
                return os.read(fd, 1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        until(hung_up, "the port hangs up")
    finally:
        os.close(fd)
    with pytest.raises(ControlPlaneError, match="robot-stack virtual"):
        type(world.client)("cell", timeout_s=0.2).call("status")
    assert world.process.stdin is not None
    world.process.stdin.close()
    world.process = world.start()
    until(world.answers, "a new world answers")
    chain = Chain(tty)
    try:
        assert len(chain.positions()) == 9
    finally:
        chain.close()


@pytest.mark.parametrize("how", ["signal", "shutdown", "stdin"])
def test_the_world_cleans_up_behind_itself(world: RunningWorld, how: str) -> None:
    if how == "signal":
        world.process.send_signal(signal.SIGTERM)
    elif how == "stdin":
        assert world.process.stdin is not None
        world.process.stdin.close()
    else:
        world.client.call("shutdown")
    assert world.process.wait(30) == 0
    for robot in ROBOTS:
        assert not os.path.lexists(world.tty(robot))
    assert not world_path("cell").exists()
    assert not (world.directory / "cell" / "world.ipc").exists()


def test_a_virtual_port_needs_a_side(tmp_path: Path) -> None:
    file = tmp_path / "station.yaml"
    file.write_text(STATION)
    assert len(world_config(load_station(file)).robots) == 4
    file.write_text(STATION.replace('"virtual:leader_left"', '"virtual:leader"'))
    with pytest.raises(ConfigError, match=r"robots\.leader_left.*left or right"):
        world_config(load_station(file))
    file.write_text(STATION.replace("world:", "# world:"))
    with pytest.raises(ConfigError, match="no `world` section"):
        world_config(load_station(file))
