"""`robot-stack policy ...` from end to end: checkpoints, a server, a client, a reload, the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from policies.checkpoint import save_checkpoint
from robot_stack.errors import PolicyError
from robot_stack.policy_client import PolicyClient, PolicyObservation
from tests.policies import small
from tests.policy_server.served import HANG_S

COMMAND = [sys.executable, "-m", "robot_stack.cli", "policy"]


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "run"))
    return dict(os.environ)


@pytest.fixture
def command(environment):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    return run


@pytest.fixture
def checkpoints(tmp_path) -> list[str]:
    """Strong, weak and another strong one: of one architecture, with weights of their own."""
    directories = []
    for seed in range(3):
        torch.manual_seed(seed)
        policy = small.policy(small.diffusion())
        for values in policy.parameters():
            values.data += 0.01 * torch.randn_like(values)
        save_checkpoint(tmp_path / f"step_{seed}", policy, {"step": seed})
        directories.append(str(tmp_path / f"step_{seed}"))
    return directories


@pytest.fixture
def served(environment, checkpoints) -> Iterator[subprocess.Popen[str]]:
    strong, weak, _ = checkpoints
    arguments = ["serve", f"reach={strong}", "--weak", weak, "--name", "lab", "--threads", "1"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--bind", "tcp://127.0.0.1:*"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def observation() -> PolicyObservation:
    state = np.random.default_rng(1).uniform(0, 512, (2, 4)).astype(np.float32)
    return PolicyObservation(np.array([1, 2]), state)


@pytest.mark.slow
def test_serve_use_reload_and_end(served, command, checkpoints):
    client = PolicyClient("lab", decoder="bid", offered=small.contract(), timeout_s=HANG_S)
    client.wait_ready(HANG_S)
    with client:
        assert client.policy in ("", "reach")
        assert "bid" in client.decoders
        first = client.infer(observation())
        assert first.actions.shape == (client.contract.rows, 2)
        assert np.isfinite(first.actions).all()
        second = client.infer(observation(), previous_chunk=first.chunk_id, consumed=4, delay=1)
        assert second.chunk_id != first.chunk_id

        health = command("health", "lab", "--json")
        assert health.returncode == 0, health.stderr
        state = json.loads(health.stdout)
        assert state["policies"]["reach"]["generation"] == 1
        assert state["sessions"] == 1

        missing = command("reload", "lab", "--checkpoint", "/nowhere")
        assert missing.returncode == 1
        assert "/nowhere holds no checkpoint" in missing.stderr
        again = command("reload", "lab", "--checkpoint", checkpoints[2], "--weak", checkpoints[1])
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout.splitlines()[-1]) == {"generation": 2}
        assert client.infer(observation(), previous_chunk=second.chunk_id).generation == 2

        # Without its weak companion, bid is not to be had: the session's end has a reason.
        assert command("reload", "lab", "--checkpoint", checkpoints[0]).returncode == 0
        with pytest.raises(PolicyError) as error:
            client.infer(observation())
        assert error.value.code in ("decoder_refused", "unknown_session")
    served.terminate()
    output, _ = served.communicate(timeout=HANG_S)
    assert served.returncode == 0
    assert "ready: reach" in output
    assert "tcp://127.0.0.1:" in output
    gone = command("health", "lab", "--timeout", "0.5")
    assert gone.returncode == 1
    assert "policy serve" in gone.stderr


@pytest.mark.slow
def test_what_cannot_be_served_is_said_at_once(command):
    for arguments, words in (
        (["/nowhere"], "/nowhere holds no checkpoint"),
        (["a=x", "--bind", "tcp://0.0.0.0:5555"], "policy keygen --to DIR"),
        (["a=x", "b=y", "--weak", "z"], "of which"),
    ):
        done = command("serve", *arguments)
        assert done.returncode == 1
        assert words in done.stderr


def test_keygen_says_what_to_do_with_the_keys(command, tmp_path):
    done = command("keygen", "--to", tmp_path / "keys", "--client", "lab2")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout.splitlines()[-1])["written"]
    assert str(tmp_path / "keys" / "clients" / "lab2.json") in written
    assert "carry" in done.stdout
    again = command("keygen", "--to", tmp_path / "keys", "--client", "lab2", "--json")
    assert again.returncode == 1
    assert "lab2" in again.stderr
