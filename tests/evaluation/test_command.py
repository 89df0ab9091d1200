"""`robot-stack eval` as a command: several processes, a kill in the midst, and the last line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from collect.evaluation.pusht import PushTWorld
from collect.evaluation.training import rollouts_of
from policies.build import build
from policies.checkpoint import save_checkpoint
from policies.normalizer import Normalizer
from robot_stack.cli import main
from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError

DECODERS = "receding_horizon,bid"


def small_policy(seed=0):
    """A tiny diffusion policy for Push-T that has learnt nothing, but not to move at one point."""
    names = ("agent/x", "agent/y", "env/0", "env/1")
    contract = PolicyContract(
        name="tiny",
        embodiment="pusht",
        task="pusht",
        state=tuple(f for f in PushTWorld.state if f.name in names),
        action=PushTWorld.action,
        cameras=(),
        control_dt_ns=100_000_000,
        observations=2,
        horizon=16,
        first_action=1,
        execute=8,
    )
    torch.manual_seed(seed)
    corners = np.array([[0.0] * 4, [512.0] * 4])
    network = {"name": "mlp", "width": 16, "blocks": 1}
    sampler = {"name": "ddim", "steps": 2}
    return build(
        {"policy": "diffusion", "network": network, "sampler": sampler},
        contract,
        Normalizer.fit(corners, corners[:, :2]),
    ).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("policy")
    for number, name in enumerate(("strong", "weak")):
        save_checkpoint(directory / name, small_policy(number), {"step": number})
    return directory


def arguments(checkpoint, out, *more):
    return [
        *("eval", "--world", "pusht", "--checkpoint", str(checkpoint / "strong")),
        *("--weak", str(checkpoint / "weak"), "--decoder", DECODERS, "--videos", "0"),
        *("--out", str(out), "--json", *more),
    ]


def told(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_two_workers_score_as_one_process_and_a_kill_loses_nothing(checkpoint, tmp_path, capsys):
    many = arguments(checkpoint, tmp_path / "two", "--episodes", "40", "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "robot_stack.cli", *many],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path = tmp_path / "two" / "episodes.jsonl"
    try:
        deadline = time.monotonic() + 150.0
        while not path.exists() or path.read_bytes().count(b"\n") < 4:
            assert process.poll() is None, "the evaluation ended before anything was kept"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    few = arguments(checkpoint, tmp_path / "two", "--episodes", "6", "--workers", "1")
    assert main(few) == 0
    resumed = told(capsys)  # of some episodes, what the workers had kept
    assert path.read_bytes().startswith(kept)
    assert main(arguments(checkpoint, tmp_path / "one", "--episodes", "6", "--workers", "1")) == 0
    alone = told(capsys)
    assert resumed["results"].keys() == alone["results"].keys() == {"receding_horizon", "bid"}
    for name in alone["results"]:
        assert resumed["results"][name]["episodes"] == 6
        assert resumed["results"][name]["mean_max_reward"] == pytest.approx(
            alone["results"][name]["mean_max_reward"], abs=1e-3
        )
        low, high = alone["results"][name]["ci80"]
        assert low <= alone["results"][name]["mean_max_reward"] <= high
    assert alone["paired_p"].keys() == {"bid"}
    assert 0.0 < alone["paired_p"]["bid"] <= 1.0
    assert (tmp_path / "one" / "scores.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "one" / "report.json").read_text()) == alone


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--world", "pushtt"], "did you mean 'pusht'"),
        (["--decoder", "bidd"], "did you mean 'bid'"),
        (["--execute", "40"], r"1\.\.15"),
        (["--world", "aloha-transfer"], "does not fit this world"),
        (["--checkpoint", "/nowhere"], "holds no checkpoint"),
        (["--episodes", "0"], "at least 1"),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(checkpoint, tmp_path, capsys, more, said):
    assert main([*arguments(checkpoint, tmp_path / "out"), *more]) == 1
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out" / "episodes.jsonl").exists()


def test_the_same_question_finds_its_results_again(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [*arguments(checkpoint, "unused", "--workers", "1"), "--decoder", "ema"]
    del given[given.index("--out") : given.index("--out") + 2]
    outs = []
    for more in (["--episodes", "1"], ["--episodes", "2"], ["--episodes", "1", "--noise", "1"]):
        assert main([*given, *more]) == 0
        outs.append(told(capsys)["out"])
    assert outs[0] == outs[1] != outs[2]
    lines = (tmp_path / outs[0] / "episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines[1:]] == [100_000, 100_001]


def test_a_decoder_without_what_it_needs_says_what_to_give(checkpoint, tmp_path, capsys):
    given = arguments(checkpoint, tmp_path / "out")
    del given[given.index("--weak") : given.index("--weak") + 2]
    assert main(given) == 1
    assert "--weak" in capsys.readouterr().err


def test_rollouts_of_a_training_run():
    roll_out, every = rollouts_of({"world": "pusht", "every": 500, "episodes": 2})
    assert every == 500
    policy = small_policy()
    found = roll_out(policy, 1)
    assert found.keys() == {"rollout/mean_max_reward", "rollout/success_rate"}
    assert 0.0 <= found["rollout/mean_max_reward"] <= 1.0
    assert roll_out(policy, 2) == found  # the same seeds each time
    with pytest.raises(ConfigError, match="episodes"):
        rollouts_of({"world": "pusht", "every": 500, "episode": 2})
