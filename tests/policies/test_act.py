"""ACT: one chunk an observation, trained through a style that use does not know."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from policies.act import ActPolicy
from policies.batch import Batch
from policies.models.positions import image_positions, sequence_positions
from robot_stack.errors import ConfigError, PolicyError
from tests.policies import small

ACT = {
    "policy": "act",
    "width": 16,
    "feed_forward": 32,
    "heads": 2,
    "encoder_layers": 1,
    "latent": 4,
    "dropout": 0.0,
}


def test_one_chunk_whatever_the_noise() -> None:
    policy = small.policy(ACT)
    assert policy.gives == frozenset()
    condition = policy.encode(torch.rand(2, 2, 4) * 512, {})
    one = policy.sample(condition, small.noise(2, policy.contract, seed=1))
    two = policy.sample(condition, small.noise(2, policy.contract, seed=2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    repeated = policy.sample(condition.repeat_interleave(3, dim=0), small.noise(6, policy.contract))
    torch.testing.assert_close(repeated[3], one[1], rtol=1e-4, atol=1e-2)


def test_what_it_cannot_do_is_refused() -> None:
    policy = small.policy(ACT)
    condition = policy.encode(torch.rand(1, 2, 4), {})
    noise = small.noise(1, policy.contract)
    for asked in ({"start": noise, "level": 0.5}, {"guide": (noise, noise[..., 0], 5.0)}):
        with pytest.raises(PolicyError, match="receding_horizon"):
            policy.sample(condition, noise, **asked)  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="no cameras"):
        small.policy({**ACT, "encoder": {}})
    with pytest.raises(ConfigError, match="multiple of heads"):
        small.policy({**ACT, "heads": 3})


def test_padding_is_not_learned() -> None:
    """Neither the error nor the style sees padded actions."""
    policy = small.policy({**ACT, "kl_weight": 0.01})
    batch = small.batch(4, policy.contract)
    changed = batch.action.clone()
    changed[:, -1] += 300
    losses = []
    for action in (batch.action, changed):
        torch.manual_seed(0)
        losses.append(policy.loss(Batch(batch.state, {}, action, batch.mask)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.manual_seed(0)
    whole = torch.ones_like(batch.mask)
    assert policy.loss(Batch(batch.state, {}, changed, whole)).item() > 1.1 * losses[0]


def test_the_divergence_is_of_a_standard_normal() -> None:
    """With the error out of the way: 0 for a standard style, and as Kingma & Welling otherwise."""

    def divergence(mean: float, log_variance: float) -> float:
        losses = []
        for weight in (0.0, 1.0):
            policy: Any = small.policy({**ACT, "kl_weight": weight})
            with torch.no_grad():
                policy.style_leave.weight.zero_()
                policy.style_leave.bias[:4] = mean
                policy.style_leave.bias[4:] = log_variance
            torch.manual_seed(0)
            losses.append(policy.loss(small.batch(2, policy.contract)).item())
        return losses[1] - losses[0]

    assert divergence(0, 0) == pytest.approx(0, abs=1e-5)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.5, 2.0), torch.distributions.Normal(0.0, 1.0)
    )
    log_variance = 2 * torch.log(torch.tensor(2.0)).item()
    assert divergence(0.5, log_variance) == pytest.approx(4 * exact.item(), rel=1e-4)


def test_chunks_are_learned_from_the_state() -> None:
    """What the style encoder reads off the chunk must not replace what the state says."""
    policy = small.policy(ACT).train()
    assert isinstance(policy, ActPolicy)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    whole = torch.ones(32, 8, dtype=torch.bool)

    def windows() -> Batch:
        state = 512 * torch.rand(32, 2, 4, generator=generator)
        action = state[:, 1:, :2].expand(32, 8, 2) * 0.8 + 50
        return Batch(state, {}, action, whole)

    for _ in range(100):
        loss = policy.loss(windows())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    test = windows()
    found = policy.sample(policy.encode(test.state, {}), torch.zeros(32, 8, 2))
    assert (found - test.action).abs().mean() < 30  # it is 103 off for a constant guess


def test_positions_differ() -> None:
    for positions in (sequence_positions(40, 16), image_positions(5, 7, 16)):
        distance = torch.cdist(positions, positions) + 9 * torch.eye(len(positions))
        assert distance.min() > 0.05
    assert image_positions(5, 7, 16).shape == (35, 16)
