"""What users' libraries make of what the virtual arm sends: names, exceptions, ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hardware.franka.fci import ERROR_NAMES, STATE_NUMBERS
from tests.franka.conftest import StartArm
from tests.franka.wire import Client

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 90.0


def start(client: str, address: str) -> subprocess.Popen[str]:
    """A client in a process of its own (see clients.py)."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.franka.clients", client, address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(client: str, address: str) -> Any:
    """What a client has seen."""
    process = start(client, address)
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "version", "unknown"), [("pylibfranka_errors", 10, 0), ("panda_errors", 5, 4)]
)
def test_every_flag_is_called_what_we_call_it(
    arms: StartArm, client: str, version: int, unknown: int
) -> None:
    called = ask(client, arms(version, lock_step=False).address)
    assert list(called) == list(ERROR_NAMES)
    different = {ours: theirs for ours, theirs in called.items() if ours != theirs}
    assert different == dict.fromkeys(ERROR_NAMES[len(ERROR_NAMES) - unknown :])


# What the libraries compute themselves, and what panda-python does not pass on.
COMPUTED = {"m_total", "I_total", "F_x_Ctotal", "control_command_success_rate"}
HIDDEN = {10: set(), 5: {"F_T_NE", "NE_T_EE", "O_ddP_O"}}


@pytest.mark.slow
@pytest.mark.parametrize(("client", "version"), [("pylibfranka_fields", 10), ("panda_fields", 5)])
def test_every_number_is_where_the_library_reads_it(client: str, version: int) -> None:
    arm = subprocess.Popen(
        [sys.executable, "-m", "tests.franka.numbered_arm", str(version)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert arm.stdout is not None
        fields = ask(client, arm.stdout.readline().strip())
    finally:
        arm.kill()
        arm.communicate()
    places, start = {}, 0
    for name, count in STATE_NUMBERS:
        places[name] = list(range(start, start + count)) if count > 1 else start
        start += count
    shown = {name: value for name, value in fields.items() if name not in COMPUTED}
    assert shown == {n: place for n, place in places.items() if n not in HIDDEN[version]}


@pytest.mark.slow
def test_a_library_of_another_version_says_both_versions(own_arm: StartArm) -> None:
    new, old = own_arm(10), own_arm(5)
    new.fault("version", number=9)
    refused = ask("franky_connect", new.address)
    assert refused["type"] == "IncompatibleVersionException"
    assert "9" in refused["text"]
    assert "10" in refused["text"]
    refused = ask("franky_connect", old.address)
    assert refused["type"] == "IncompatibleVersionException"
    refused = ask("panda_connect", new.address)
    assert "protocol version 9" in refused["text"]


@pytest.mark.slow
def test_a_reflex_is_raised_by_name_and_recovered_from(arms: StartArm) -> None:
    seen = ask("franky_reflex", arms(10).address)
    assert seen["raised"]["type"] == "ControlException"
    assert "cartesian_reflex" in seen["raised"]["text"]
    assert (seen["mode"], seen["after"]) == ("reflex", "idle")


@pytest.mark.slow
def test_a_killed_client_leaves_an_arm_that_the_next_one_recovers(own_arm: StartArm) -> None:
    arm = own_arm(10)
    for _ in range(2):
        client = start("franky_moves_on", arm.address)
        assert client.stdout is not None
        assert json.loads(client.stdout.readline()) == "moving"
        client.kill()
        client.wait()
        client.stdout.close()
        with Client(arm.address) as witness:  # it is served only when the other is gone
            assert witness.read()["robot_mode"] == 4
        assert arm.call("status")["errors"] == ["communication_constraints_violation"]


@pytest.mark.slow
def test_an_arm_that_dies_is_a_network_exception(own_arm: StartArm) -> None:
    arm = own_arm(10)
    client = start("franky_moves_on", arm.address)
    assert client.stdout is not None
    assert json.loads(client.stdout.readline()) == "moving"
    os.kill(arm.pid, signal.SIGKILL)
    output, _ = client.communicate(timeout=TIMEOUT_S)
    raised = json.loads(output.splitlines()[-1])
    assert raised["type"] == "NetworkException"


@pytest.mark.slow
def test_the_robot_interpolates_to_asynchronous_targets(arms: StartArm) -> None:
    seen = ask("pylibfranka_asynchronous", arms(10).address)
    assert seen["successful"]
    assert seen["off"] < 0.01
    assert seen["errors"] == []


@pytest.mark.slow
def test_libfranka_of_the_panda_controls_torques(arms: StartArm) -> None:
    seen = ask("panda_torque", arms(5).address)
    assert seen["turned"] > 0.005
    assert "kIdle" in seen["mode"]
