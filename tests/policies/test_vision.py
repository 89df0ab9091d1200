"""Cameras: crops, keypoints, one encoder each, in every policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policies.checkpoint import load_checkpoint, save_checkpoint
from policies.conditioned import ConditionedPolicy
from policies.models.vision import Crop, ResNet18, SpatialSoftmax
from robot_stack.contract import CameraInput
from robot_stack.errors import ConfigError, PolicyError
from tests.policies import small

ACT = {
    "policy": "act",
    "width": 16,
    "feed_forward": 32,
    "heads": 2,
    "encoder_layers": 1,
    "latent": 4,
}
SEEING: list[dict[str, Any]] = [
    small.diffusion(encoder=small.ENCODER),
    {"policy": "flow", "network": small.UNET, "encoder": small.ENCODER},
    {"policy": "flow", "network": small.TRANSFORMER, "encoder": small.ENCODER},
    {**ACT, "encoder": {"width": 16, "crop": [40, 42]}},
]


def test_resnet18_has_its_published_size() -> None:
    """11,689,512 with batch norm and the classifier's 513,000; group norm has as many weights."""
    network = ResNet18()
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_resnet18_shrinks_by_32() -> None:
    assert ResNet18(16)(torch.zeros(1, 3, 76, 96)).shape == (1, 128, 3, 3)


def test_keypoints_are_where_the_feature_is() -> None:
    softmax = SpatialSoftmax(1, 2)
    with torch.no_grad():
        softmax.features.weight.copy_(torch.tensor([100.0, -100.0]).reshape(2, 1, 1, 1))
        softmax.features.bias.zero_()
        image = torch.zeros(1, 1, 5, 9)
        image[0, 0, 1, 6] = 1
        image[0, 0, 4, 0] = -1
        found = softmax(image)
    torch.testing.assert_close(found, torch.tensor([[[0.5, -0.5], [-1.0, 1.0]]]))


def test_crops_are_random_in_training_and_central_afterwards() -> None:
    camera = CameraInput("high", 12, 16)
    crop = Crop((8, 10), camera)
    row = torch.arange(12.0).reshape(1, 1, 12, 1).expand(64, 1, 12, 16)
    column = torch.arange(16.0).reshape(1, 1, 1, 16).expand(64, 1, 12, 16)
    images = torch.cat((row, column, row), dim=1)
    crop.eval()
    torch.testing.assert_close(crop(images), images[..., 2:10, 3:13])
    crop.train()
    torch.manual_seed(0)
    found = crop(images)
    assert found.shape == (64, 3, 8, 10)
    tops, lefts = found[:, 0, 0, 0], found[:, 1, 0, 0]
    assert set(tops.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    assert set(lefts.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    offsets = torch.arange(8.0).reshape(1, 8, 1) + tops.reshape(64, 1, 1)
    torch.testing.assert_close(found[:, 0], offsets.expand(64, 8, 10))
    torch.testing.assert_close(found[:, 2], found[:, 0])


@pytest.mark.parametrize("architecture", SEEING)
def test_every_camera_and_frame_reaches_the_chunk(architecture: dict[str, Any]) -> None:
    policy = small.policy(architecture, cameras=small.CAMERAS)
    batch, noise = small.batch(2, policy.contract), small.noise(2, policy.contract)
    plain = policy.encode(batch.state, batch.images)
    chunk = policy.sample(plain, noise)
    assert chunk.shape == (2, 8, 2)
    for name in batch.images:
        for i in range(2):
            frames = batch.images[name].clone()
            frames[0, i] = 255 - frames[0, i]
            seen = policy.encode(batch.state, {**batch.images, name: frames})
            other = policy.sample(seen, noise)
            assert not torch.equal(other[0], chunk[0])
            torch.testing.assert_close(other[1], chunk[1], rtol=1e-4, atol=1e-2)
    moved = policy.sample(policy.encode(batch.state + 50, batch.images), noise)
    assert not torch.equal(moved, chunk)


@pytest.mark.parametrize("architecture", SEEING)
def test_every_weight_learns(architecture: dict[str, Any]) -> None:
    policy = small.policy(architecture, cameras=small.CAMERAS).train()
    policy.loss(small.batch(4, policy.contract)).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("architecture", SEEING)
def test_there_and_back(architecture: dict[str, Any], tmp_path: Path) -> None:
    policy = small.policy(architecture, cameras=small.CAMERAS)
    save_checkpoint(tmp_path / "a", policy, {})
    again = load_checkpoint(tmp_path / "a", expected=policy.contract)
    batch, noise = small.batch(2, policy.contract), small.noise(2, policy.contract)
    torch.testing.assert_close(
        again.sample(again.encode(batch.state, batch.images), noise),
        policy.sample(policy.encode(batch.state, batch.images), noise),
        rtol=0,
        atol=0,
    )


def test_one_encoder_a_camera() -> None:
    policy = small.policy(small.diffusion(encoder=small.ENCODER), cameras=small.CAMERAS)
    assert isinstance(policy, ConditionedPolicy)
    batch = small.batch(1, policy.contract)
    same = dict.fromkeys(batch.images, batch.images["high"])
    condition = policy.encode(batch.state, same)
    assert condition.shape == (1, 2, 4 + 6 + 6)
    assert not torch.equal(condition[..., 4:10], condition[..., 10:])


@pytest.mark.parametrize("architecture", SEEING)
def test_wrong_frames_are_named(architecture: dict[str, Any]) -> None:
    policy = small.policy(architecture, cameras=small.CAMERAS)
    batch = small.batch(1, policy.contract)
    high = batch.images["high"]
    for wrong, said in (
        ({"high": high}, "wrist.*missing"),
        ({**batch.images, "wrist": high[..., :30, :]}, "wrist.*30"),
        ({**batch.images, "wrist": high.float()}, "wrist.*float32"),
    ):
        with pytest.raises(PolicyError, match=said) as caught:
            policy.encode(batch.state, wrong)
        assert caught.value.code == "bad_observation"


def test_wrong_encoders_are_named() -> None:
    for encoder, said in (
        ({**small.ENCODER, "name": "resnet50"}, "resnet18"),
        ({**small.ENCODER, "crop": [28]}, "crop"),
        ({**small.ENCODER, "width": 20}, "multiple of 16"),
    ):
        with pytest.raises(ConfigError, match=said):
            small.policy(small.diffusion(encoder=encoder), cameras=small.CAMERAS)
    with pytest.raises(PolicyError, match="larger than camera high"):
        small.policy(
            small.diffusion(encoder={**small.ENCODER, "crop": [50, 40]}), cameras=small.CAMERAS
        )
    with pytest.raises(PolicyError, match=r"32 x 40.*33"):
        small.policy(
            small.diffusion(encoder={**small.ENCODER, "crop": [32, 40]}), cameras=small.CAMERAS
        )
