"""Checkpoints: whole or not at all, refused with the reason, never pickled."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from policies.checkpoint import (
    load_checkpoint,
    load_hosted,
    read_header,
    read_manifest,
    save_checkpoint,
)
from policies.interfaces import Need
from policies.trainable import TrainablePolicy
from robot_stack.config import Section
from robot_stack.contract import Feature
from robot_stack.errors import PolicyError
from tests.policies import small

ROOT = Path(__file__).parents[2]


def chunk(policy: TrainablePolicy) -> torch.Tensor:
    state = torch.linspace(0, 512, 16).reshape(2, 2, 4)
    return policy.sample(policy.encode(state, {}), small.noise(2, policy.contract))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step_1", small.policy(small.diffusion()), {"step": 1})
    return tmp_path / "step_1"


def weights_of(checkpoint: Path) -> Path:
    return checkpoint / read_manifest(checkpoint).weights


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("network", [small.MLP, small.UNET, small.TRANSFORMER])
def test_there_and_back(kind: str, network: dict[str, Any], tmp_path: Path) -> None:
    policy = small.policy({"policy": kind, "network": network})
    provenance = {"commit": "abc", "step": 20, "validation": {"action_mse": 0.25}}
    save_checkpoint(tmp_path / "a", policy, provenance)
    again = load_checkpoint(tmp_path / "a")
    assert not again.training
    assert again.contract == policy.contract
    assert again.contract.normalizer == policy.normalizer.sha256
    assert again.architecture == policy.architecture
    torch.testing.assert_close(chunk(again), chunk(policy), rtol=0, atol=0)
    assert dict(read_manifest(tmp_path / "a").training) == provenance
    save_checkpoint(tmp_path / "b", again, {})
    assert weights_of(tmp_path / "b").read_bytes() == weights_of(tmp_path / "a").read_bytes()


def test_what_a_yaml_file_brought_is_kept(tmp_path: Path) -> None:
    """Sections of a configuration, and a validation that came to nothing."""

    def section(values: dict[str, Any]) -> Section:
        inner = {k: section(v) if isinstance(v, dict) else v for k, v in values.items()}
        return Section(inner, "train.yaml", 1, {})

    architecture = small.diffusion(sampler={"name": "ddim", "steps": 4})
    policy = small.policy(section(architecture))
    provenance = {"config": section({"data": {"path": "x"}}), "validation": float("nan")}
    save_checkpoint(tmp_path, policy, provenance)
    assert load_checkpoint(tmp_path).architecture == architecture
    found = read_manifest(tmp_path).training
    assert found["config"]["data"]["path"] == "x" and found["validation"] is None


def test_a_checkpoint_is_replaced_whole(saved: Path) -> None:
    policy = load_checkpoint(saved)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    (saved / "weights-0123456789ab.safetensors.part").write_bytes(b"of a save that was killed")
    save_checkpoint(saved, policy, {"step": 2})
    torch.testing.assert_close(chunk(load_checkpoint(saved)), chunk(policy), rtol=0, atol=0)
    assert {path.name for path in saved.iterdir()} == {"policy.json", weights_of(saved).name}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_killed_save_leaves_the_old_one_whole(
    renames: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL between writing and renaming the weights, and the same for the manifest."""
    policy = load_checkpoint(saved)
    before = chunk(policy)
    left = renames
    replace = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return replace(self, target)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(Path, "replace", replace_or_die)
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.add_(1)
            save_checkpoint(saved, policy, {"step": 2})
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert list(saved.glob("*.part"))
    assert read_manifest(saved).training["step"] == 1
    torch.testing.assert_close(chunk(load_checkpoint(saved)), before, rtol=0, atol=0)


def test_another_contract_is_refused_with_words(saved: Path) -> None:
    contract = small.contract()
    load_checkpoint(saved, expected=contract)
    state = (*contract.state[:3], Feature("left/gripper", "fraction"))
    other = dataclasses.replace(contract, state=state, control_dt_ns=20_000_000)
    with pytest.raises(PolicyError) as caught:
        load_checkpoint(saved, expected=other)
    assert caught.value.code == "contract_mismatch"
    for word in ("env/3", "left/gripper", "control_dt_ns", "100000000", "20000000"):
        assert word in str(caught.value)


def header(length: int | None = None, text: bytes = b"{}") -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", len(text) if length is None else length) + text


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "no safetensors file"),
    "short": (lambda data: data[:5], "no safetensors file"),
    "huge header": (header(1 << 40), "no safetensors file"),
    "header past the end": (lambda data: header(len(data))(data) + data[8:], "safetensors"),
    "header of zero": (header(0), "no safetensors file"),
    "no json": (header(text=b"\x00\xff{{{{"), "damaged header"),
    "no mapping": (header(text=b"[1, 2]  "), "damaged header"),
    "wrong entries": (header(text=b'{"a": 1}'), "damaged header"),
    "negative": (
        header(text=b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'),
        "does not fit its architecture",
    ),
    "no tensors": (header(), "missing"),
    "cut off": (lambda data: data[:-4], "bytes"),
    "one bit": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "SHA-256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_named(damage: str, saved: Path) -> None:
    change, said = DAMAGE[damage]
    path = weights_of(saved)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(PolicyError, match=said) as caught:
        load_checkpoint(saved)
    assert path.name in str(caught.value)


def test_weights_of_another_network_are_named(saved: Path, tmp_path: Path) -> None:
    wider = small.policy(small.diffusion({**small.MLP, "width": 40}))
    save_checkpoint(tmp_path / "other", wider, {})
    weights_of(saved).write_bytes(weights_of(tmp_path / "other").read_bytes())
    with pytest.raises(
        PolicyError, match=r"network\.\S+ is \('F32', \(80,\)\), needed is \('F32', \(64,\)\)"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"weights": "../policy.safetensors"}, "outside"),
        ({"weights": "weights-0.safetensors"}, "No such file"),
        ({"architecture": {"policy": "diffusion"}}, "network"),
        ({"surprise": 1}, "surprise"),
        ({"contract": None}, "contract"),
    ],
)
def test_a_wrong_manifest_is_named(change: dict[str, Any], said: str, saved: Path) -> None:
    path = saved / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(PolicyError, match=said):
        load_checkpoint(saved)


def test_statistics_that_were_changed_are_named(saved: Path) -> None:
    path = saved / "policy.json"
    values = json.loads(path.read_text())
    values["normalizer"]["action"]["width"][0] *= 2
    path.write_text(json.dumps(values))
    with pytest.raises(PolicyError, match="names normalizer"):
        load_checkpoint(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_manifest_that_is_none_is_named(text: str, saved: Path) -> None:
    (saved / "policy.json").write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.json"):
        load_checkpoint(saved)


def test_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)


def test_header_names_every_tensor(saved: Path) -> None:
    found = read_header(weights_of(saved))
    state = load_checkpoint(saved).state_dict()
    assert found == {name: ("F32", tuple(tensor.shape)) for name, tensor in state.items()}


def test_strong_and_weak_are_one_policy(saved: Path, tmp_path: Path) -> None:
    alone = load_hosted(saved)
    assert alone.weak is None and Need.CONTRAST not in alone.gives
    both = load_hosted(saved, saved)
    assert both.gives == {Need.SAMPLES, Need.NOISE, Need.GRADIENTS, Need.CONTRAST}
    assert both.contract == alone.contract
    longer = small.policy(small.diffusion(), horizon=16)
    save_checkpoint(tmp_path / "longer", longer, {})
    with pytest.raises(PolicyError, match="horizon: 8 and 16"):
        load_hosted(saved, tmp_path / "longer")


PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_nothing_here_unpickles() -> None:
    """`torch.load`, `numpy.load` with pickles and pickle's relatives run what a file says."""
    files = [*(ROOT / "policies").rglob("*.py"), *(ROOT / "server" / "policy").rglob("*.py")]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for name in node.names:
                    assert name.name.partition(".")[0] not in PICKLES, where
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in PICKLES, where
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}, (
                    where
                )
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", where
