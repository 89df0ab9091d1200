"""`robot-stack train` as people use it: run, kill, resume, look at what it left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from collect.train import train
from policies.checkpoint import load_checkpoint, read_manifest
from policies.training.log import read_log
from robot_stack.errors import ConfigError, PolicyError
from tests.policies.training_data import episodes, training_file

STEPS = 300
LONG: dict[str, Any] = {
    "steps": STEPS,
    "validation": {"share": 0.25, "every": 50, "windows": 16},
}
LOAD_S = 120.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Episodes, a training file, and a run over them that nothing disturbed."""
    root = tmp_path_factory.mktemp("train")
    found = {"data": episodes(root / "data"), "run": root / "run"}
    found["config"] = training_file(root / "tiny.yaml", **LONG, checkpoints={"at": [20]})
    torch.set_num_threads(1)
    train([found["data"]], found["config"], found["run"])
    return found


def begin(made: dict[str, Path], run: Path) -> subprocess.Popen[str]:
    """The same run as `made`, in a process of its own that saves after every step."""
    config = training_file(run.parent / "often.yaml", **LONG, checkpoints={"at": [20], "save_s": 0})
    command = [sys.executable, "-m", "robot_stack.cli", "train", "--episodes", str(made["data"])]
    command += ["--config", str(config), "--out", str(run), "--threads", "1"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def wait_for_log(run: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LOAD_S
    while len(read_log(run)) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints" / f"step_{step:07d}").glob("weights-*.safetensors")
    return load_file(path)


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_as_if_it_had_not(
    made: dict[str, Path], tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    with ended(begin(made, run)) as process:
        wait_for_log(run, 6, process)
        process.send_signal(number)
        out, _ = process.communicate(timeout=LOAD_S)
    log = read_log(run)
    assert log[-1]["step"] < STEPS, "it ended too late to be resumed"
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        *said, last = out.splitlines()
        assert json.loads(last)["ok"] is False
        assert "--resume" in said[-1] and str(run) in said[-1]
    result, report = train([made["data"]], made["config"], run, resume=True)
    assert result.finished and report["steps"] == STEPS
    assert read_log(run) == read_log(made["run"])
    assert len(read_log(run)) > STEPS // 7
    for step in (20, STEPS):
        ours, other = weights(run, step), weights(made["run"], step)
        assert ours.keys() == other.keys()
        assert all(torch.equal(ours[name], other[name]) for name in ours)


def test_what_a_run_leaves(made: dict[str, Path]) -> None:
    run = made["run"]
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step_0000020", f"step_{STEPS:07d}"]
    manifest = read_manifest(run / "checkpoints" / names[1])
    assert manifest.contract.task == "pusht"
    assert [feature.name for feature in manifest.contract.state][:2] == ["agent/x", "agent/y"]
    assert manifest.contract.first_action == 1
    assert len(manifest.contract.start) == 2
    said = manifest.training
    assert said["step"] == STEPS and said["config"]["batch"] == 16
    assert said["data"]["episodes"] == 4 and len(said["held_out"]) == 1
    log = read_log(run)
    mse = [line["validation/action_mse"] for line in log if "validation/action_mse" in line]
    assert len(mse) == STEPS // 50
    assert said["values"]["validation/action_mse"] == mse[-1] < mse[0]
    assert list((run / "tensorboard").glob("events.*"))
    policy = load_checkpoint(run / "checkpoints" / names[1])
    assert policy.contract == manifest.contract


def test_runs_are_not_mixed_up(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a training run already.*--resume"):
        train([made["data"]], made["config"], made["run"])
    other = training_file(tmp_path / "other.yaml", **LONG, batch=8)
    with pytest.raises(PolicyError, match="begun with another batch; resume it with"):
        train([made["data"]], other, made["run"], resume=True)
    file = made["data"] / "episode_1.hdf5"
    with pytest.raises(PolicyError, match="begun with another the episodes"):
        train([file, made["data"] / "episode_0.hdf5"], made["config"], made["run"], resume=True)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.tex").write_text("")
    with pytest.raises(ConfigError, match="is not empty and holds no training run"):
        train([made["data"]], made["config"], tmp_path / "thesis")


def test_resuming_a_finished_run_changes_nothing(made: dict[str, Path]) -> None:
    before = (made["run"] / "log.jsonl").read_bytes()
    result, report = train([made["data"]], made["config"], made["run"], resume=True)
    assert result.finished and report["ok"]
    assert report["checkpoint"] == str(made["run"] / "checkpoints" / f"step_{STEPS:07d}")
    assert (made["run"] / "log.jsonl").read_bytes() == before


def test_images_are_learnt_from(tmp_path: Path) -> None:
    data = episodes(tmp_path / "data", images=True)
    architecture: dict[str, Any] = {
        "policy": "diffusion",
        "network": {"name": "mlp", "width": 16, "blocks": 1},
        "encoder": {"name": "resnet18", "width": 16, "keypoints": 4, "crop": [34, 34]},
        "schedule": {"steps": 10},
        "sampler": {"name": "ddim", "steps": 2},
    }
    config = training_file(
        tmp_path / "image.yaml",
        architecture=architecture,
        data={"state": ["agent/x"], "cameras": {"image": {"height": 40, "width": 40}}},
        steps=6,
        batch=4,
        log_every=2,
        validation={"share": 0.25, "every": 3, "windows": 4},
        checkpoints={"at": [3]},
    )
    result, report = train([data], config, tmp_path / "run")
    assert result.finished and report["val_action_mse"] > 0
    policy = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_0000006")
    (camera,) = policy.contract.cameras
    assert (camera.name, camera.height, camera.width) == ("image", 40, 40)
    # The frames are there already; a kill between two steps would leave this.
    again, _ = train([data], config, tmp_path / "run", resume=True)
    assert again.steps == 6


@pytest.mark.slow
def test_rollouts_while_training(tmp_path: Path) -> None:
    config = training_file(
        tmp_path / "rollout.yaml",
        steps=4,
        data={"state": ["agent/x", "agent/y", "env/0", "env/1"]},
        validation={"share": 0.0},
        checkpoints={},
        log_every=2,
        rollout={"world": "pusht", "every": 2, "episodes": 2},
    )
    result, report = train([episodes(tmp_path / "data")], config, tmp_path / "run")
    assert 0 <= report["rollout/mean_max_reward"] <= 1
    rolled = [x["step"] for x in read_log(tmp_path / "run") if "rollout/success_rate" in x]
    assert rolled == [2, 4]
    assert result.values["rollout/success_rate"] == report["rollout/success_rate"]
