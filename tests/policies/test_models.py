"""Networks: sizes as published, what depends on what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from policies.batch import Batch
from policies.conditioned import ConditionedPolicy
from policies.models.mlp import FilmMlpOptions
from policies.models.network import ChunkShape
from policies.models.transformer import TransformerOptions
from policies.models.unet import ResidualBlock, UnetOptions
from robot_stack.errors import ConfigError, PolicyError, RegistryError
from tests.policies import small

PUSHT = ChunkShape(horizon=16, action=2, observations=2, features=20)
NETWORKS = [small.MLP, small.UNET, small.TRANSFORMER]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_unet_of_the_paper() -> None:
    """Layer by layer, from the paper's description, for low-dimensional Push-T."""

    def linear(i: int, o: int) -> int:
        return i * o + o

    def conv(i: int, o: int, kernel: int) -> int:
        return i * o * kernel + o

    def residual(i: int, o: int) -> int:
        condition = 256 + 2 * 20  # the step's embedding and two observations of 20
        norms = 2 * 2 * o
        shortcut = conv(i, o, 1) if i != o else 0
        return conv(i, o, 5) + conv(o, o, 5) + norms + linear(condition, 2 * o) + shortcut

    step = linear(256, 1024) + linear(1024, 256)
    down = residual(2, 256) + residual(256, 256) + conv(256, 256, 3)
    down += residual(256, 512) + residual(512, 512) + conv(512, 512, 3)
    down += residual(512, 1024) + residual(1024, 1024)
    middle = 2 * residual(1024, 1024)
    up = residual(2048, 512) + residual(512, 512) + conv(512, 512, 4)
    up += residual(1024, 256) + residual(256, 256) + conv(256, 256, 4)
    leave = conv(256, 256, 5) + 2 * 256 + conv(256, 2, 1)
    assert step + down + middle + up + leave == 65_783_298
    assert count(UnetOptions().make(PUSHT)) == 65_783_298


def test_residual_block_of_the_paper() -> None:
    """Scale times the first block's output plus bias, not one plus scale: as published."""
    torch.manual_seed(0)
    block = ResidualBlock(4, 8, 5, UnetOptions((8,), groups=4))
    x, film = torch.randn(2, 4, 6), torch.randn(2, 16)

    def conv_block(values: torch.Tensor, convolution: nn.Module, norm: nn.Module) -> torch.Tensor:
        hidden = functional.conv1d(values, convolution.weight, convolution.bias, padding=2)
        return functional.mish(functional.group_norm(hidden, 4, norm.weight, norm.bias))

    with torch.no_grad():
        hidden = conv_block(x, block.first[0], block.first[1])
        hidden = film[:, :8, None] * hidden + film[:, 8:, None]
        expected = conv_block(hidden, block.second[0], block.second[1])
        expected += functional.conv1d(x, block.shortcut.weight, block.shortcut.bias)
        torch.testing.assert_close(block(x, film), expected)


def test_transformer_of_the_paper() -> None:
    attention = 4 * 256 * 256 + 4 * 256
    feed_forward = 256 * 1024 + 1024 + 1024 * 256 + 256
    layers = 8 * (2 * attention + feed_forward + 3 * 2 * 256)
    tokens = (2 * 256 + 256) + 16 * 256 + (20 * 256 + 256) + 3 * 256
    leave = 2 * 256 + 256 * 2 + 2
    assert layers + tokens + feed_forward + leave == 8_965_122
    assert count(TransformerOptions().make(PUSHT)) == 8_965_122


def test_smaller_networks() -> None:
    shape = ChunkShape(16, 2, 2, 12)
    assert 3.3e6 < count(FilmMlpOptions().make(shape)) < 3.6e6
    assert 5e6 < count(UnetOptions((64, 128, 256)).make(shape)) < 5.5e6


@pytest.mark.parametrize("network", NETWORKS)
def test_rows_of_a_batch_do_not_meet(network: dict[str, Any]) -> None:
    """Sessions share batches, so a chunk may depend on its own row alone."""
    policy = small.policy(small.diffusion(network))
    state = torch.rand(3, 2, 4) * 512
    noise = small.noise(3, policy.contract)
    together = policy.sample(policy.encode(state, {}), noise)
    alone = policy.sample(policy.encode(state[1:2], {}), noise[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("network", NETWORKS)
def test_everything_counts(network: dict[str, Any]) -> None:
    """Noise, step and every observation reach the output."""
    policy = small.policy(small.diffusion(network))
    assert isinstance(policy, ConditionedPolicy)
    x, t = small.noise(1, policy.contract), torch.tensor([30.0])
    condition = policy.encode(torch.rand(1, 2, 4) * 512, {})
    with torch.no_grad():
        plain = policy.network(x, t, condition)
        assert not torch.equal(policy.network(x + 0.1, t, condition), plain)
        assert not torch.equal(policy.network(x, t + 1, condition), plain)
        for i in range(2):
            other = condition.clone()
            other[:, i] += 1
            assert not torch.equal(policy.network(x, t, other), plain)


@pytest.mark.parametrize("network", [small.MLP, small.UNET])
def test_films_may_be_computed_ahead(network: dict[str, Any]) -> None:
    policy = small.policy(small.diffusion(network))
    assert isinstance(policy, ConditionedPolicy)
    x, t = small.noise(2, policy.contract), torch.tensor([5.0, 70.0])
    condition = policy.encode(torch.rand(2, 2, 4) * 512, {})
    whole: Any = policy.network
    with torch.no_grad():
        ahead = whole.apply_films(x, whole.films(t, condition))
        torch.testing.assert_close(ahead, whole(x, t, condition))


def test_transformer_is_causal() -> None:
    """Action i sees actions up to i, and observations up to i."""
    network = TransformerOptions(2, 2, 16).make(ChunkShape(8, 2, 3, 4)).eval()
    x = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0))
    condition = torch.ones(1, 3, 4)
    t = torch.tensor([3.0])
    with torch.no_grad():
        plain = network(x, t, condition)
        later = x.clone()
        later[:, 5:] += 1
        moved = network(later, t, condition)
        assert torch.equal(moved[:, :5], plain[:, :5])
        assert not torch.equal(moved[:, 5], plain[:, 5])
        seen = condition.clone()
        seen[:, 2] += 1
        observed = network(x, t, seen)
        torch.testing.assert_close(observed[:, :2], plain[:, :2], rtol=0, atol=0)
        assert not torch.equal(observed[:, 2], plain[:, 2])
        free = TransformerOptions(2, 2, 16, causal=False).make(ChunkShape(8, 2, 3, 4)).eval()
        assert not torch.equal(free(later, t, condition)[:, 0], free(x, t, condition)[:, 0])


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_weight_learns(kind: str, network: dict[str, Any]) -> None:
    policy = small.policy({"policy": kind, "network": network}).train()
    policy.loss(small.batch(16, policy.contract)).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("network", NETWORKS)
def test_half_precision_trains_and_samples(kind: str, network: dict[str, Any]) -> None:
    """Under autocast, as training on a GPU runs; the loss stays float32."""
    policy = small.policy({"policy": kind, "network": network}, cameras=small.CAMERAS)
    batch = small.batch(2, policy.contract)
    with torch.autocast("cpu", torch.bfloat16):
        loss = policy.loss(batch)
        chunk = policy.sample(
            policy.encode(batch.state, batch.images), small.noise(2, policy.contract)
        )
    assert loss.dtype == chunk.dtype == torch.float32
    assert loss.isfinite() and chunk.isfinite().all()


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_padding_counts_as_published_or_is_left_out(kind: str) -> None:
    for masked in (False, True):
        policy = small.policy({"policy": kind, "network": small.MLP, "mask_padding": masked})
        padded = small.batch(4, policy.contract)
        whole = Batch(padded.state, {}, padded.action, torch.ones_like(padded.mask))
        losses = []
        for batch in (whole, padded):
            torch.manual_seed(0)
            losses.append(policy.loss(batch).item())
        assert (losses[0] != losses[1]) == masked
    error = torch.tensor([[[1.0, 3.0], [50.0, 50.0]]])
    assert ConditionedPolicy.mean(error, torch.tensor([[True, False]])) == 2
    assert ConditionedPolicy.mean(error, None) == 26


def test_samples_are_in_the_units_of_the_action() -> None:
    policy = small.policy(small.diffusion())
    condition = policy.encode(torch.rand(4, 2, 4) * 512, {})
    drawn = policy.sample(condition, small.noise(4, policy.contract))
    scale = policy.normalizer.action
    low = torch.tensor(scale.center) - torch.tensor(scale.width)
    high = torch.tensor(scale.center) + torch.tensor(scale.width)
    assert (drawn >= low - 1e-3).all() and (drawn <= high + 1e-3).all()
    assert drawn.std() > 10
    again = policy.sample(condition, small.noise(4, policy.contract))
    torch.testing.assert_close(again, drawn, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({}, "architecture.policy"),
        ({"policy": "diffusoin"}, "diffusion"),
        ({"policy": "diffusion"}, "network"),
        (small.diffusion({"name": "unet"}), "unet1d"),
        (small.diffusion({"name": "mlp", "widht": 8}), "width"),
        (small.diffusion({"name": "mlp", "width": 10**9}), "8192"),
        (small.diffusion({"name": "unet1d", "down_dims": [12]}), "multiple of groups"),
        (small.diffusion({"name": "unet1d", "kernel": 4}), "odd"),
        (small.diffusion({"name": "transformer", "width": 20, "heads": 4}), "multiple"),
        (small.diffusion(sampler={"name": "ddmi"}), "ddim"),
        (small.diffusion(sampler={"name": "heun", "sigma_min": 0.5, "sigma_max": 0.2}), "below"),
        (small.diffusion(schedule={"steps": 1}), "2..10000"),
        ({"policy": "flow", "network": small.MLP, "sampler": {"name": "ddim"}}, "euler"),
    ],
)
def test_wrong_architectures_are_named(architecture: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, RegistryError), match=said):
        small.policy(architecture)


def test_what_does_not_fit_the_contract_is_named() -> None:
    with pytest.raises(PolicyError, match="multiple of 4"):
        small.policy(small.diffusion({"name": "unet1d", "down_dims": [8, 16, 32]}), horizon=10)
    with pytest.raises(PolicyError, match="action features"):
        small.policy(small.diffusion(), action=())
    with pytest.raises(PolicyError, match="names normalizer 0123"):
        small.policy(small.diffusion(), normalizer="0123")
    with pytest.raises(PolicyError, match="no cameras"):
        small.policy(small.diffusion(encoder=small.ENCODER))
