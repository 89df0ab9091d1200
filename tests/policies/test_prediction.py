"""A diffusion policy whose network answers the clean chunk, against diffusers' scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from policies.diffusion import DiffusionPolicy
from tests.policies import small

SAMPLE = small.diffusion(
    prediction="sample", schedule={"steps": 50}, sampler={"name": "ddim", "steps": 10}
)


def test_sampling_equals_diffusers() -> None:
    policy = small.policy(SAMPLE)
    assert isinstance(policy, DiffusionPolicy)
    batch = small.batch(3, policy.contract)
    condition = policy.encode(batch.state, {})
    noise = torch.randn(3, 8, 2, generator=torch.Generator().manual_seed(1))
    scheduler = DDIMScheduler(
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=True,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(10)
    x = noise
    with torch.no_grad():
        for t in scheduler.timesteps:
            answer = policy.network(x, torch.full((3,), int(t)), condition)
            x = scheduler.step(answer, t, x).prev_sample
    torch.testing.assert_close(
        policy.normalize_action(policy.sample(condition, noise)), x, atol=1e-5, rtol=1e-5
    )


def test_the_loss_is_of_the_chunk() -> None:
    policy = small.policy(SAMPLE)
    assert isinstance(policy, DiffusionPolicy)
    batch = small.batch(5, policy.contract)
    clean = policy.normalize_action(batch.action)
    torch.manual_seed(4)
    t = torch.randint(50, (5,))
    noise = torch.randn_like(clean)
    x = policy.alphas[t, None, None] * clean + policy.sigmas[t, None, None] * noise
    with torch.no_grad():
        answer = policy.network(x, t, policy.condition(batch.state, {}))
    torch.manual_seed(4)
    assert policy.loss(batch).item() == pytest.approx(((answer - clean) ** 2).mean().item())
    torch.manual_seed(4)
    other = small.policy(small.diffusion(schedule={"steps": 50}))
    assert other.loss(batch).item() != pytest.approx(((answer - clean) ** 2).mean().item())
