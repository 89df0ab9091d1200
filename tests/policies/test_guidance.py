"""Real-time chunking's guidance: gradients against finite differences and exact Gaussians."""

from __future__ import annotations

import pytest
import torch

from policies.batch import Batch
from policies.flow import Euler
from policies.guidance import flow_weight, guide_denoise, guide_flow, pull
from policies.samplers import DDIM
from policies.schedules import Level, Schedule
from policies.trainable import TrainablePolicy
from tests.policies import small

SCHEDULE = Schedule()
WEIGHTS = torch.tensor([[1.0, 0.5, 0.0], [0.25, 1.0, 0.75]])


def randn(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("network", [small.MLP, small.UNET, small.TRANSFORMER])
def test_pull_is_the_product_with_the_jacobian(network: dict[str, object]) -> None:
    """Against central differences of the whole estimate, network included."""
    policy = small.policy(small.diffusion(network)).double()
    condition = policy.encode(randn(2, 2, 4, seed=0), {})
    level = SCHEDULE.level(40)
    x, target = randn(2, 8, 2, seed=1), randn(2, 8, 2, seed=2)
    weights = randn(2, 8, seed=3).abs()

    def estimate(point: torch.Tensor) -> torch.Tensor:
        t = torch.full((len(point),), level.t)
        residue = policy.network(point, t, condition)  # type: ignore[operator]
        result: torch.Tensor = (point - level.sigma * residue) / level.alpha
        return result

    clean, gradient = pull(estimate, x, target, weights)
    with torch.no_grad():
        torch.testing.assert_close(clean, estimate(x))
        error = weights.unsqueeze(-1) * (target - clean)
        direction = randn(2, 8, 2, seed=4)
        ahead, behind = estimate(x + 1e-5 * direction), estimate(x - 1e-5 * direction)
        moved = (ahead - behind) / 2e-5
    along = (direction * gradient).sum()
    torch.testing.assert_close((moved * error).sum(), along, rtol=1e-6, atol=0)
    # The mistake to guard against: a Jacobian that is the identity, up to 1 / alpha.
    assert not torch.allclose(gradient, error / level.alpha, rtol=0.05, atol=0.05)


class Gaussian:
    """Chunks of three actions of one number each, mean ``mu``, covariance ``cov``."""

    def __init__(self, mu: torch.Tensor, cov: torch.Tensor) -> None:
        self.mu, self.cov = mu, cov

    def gain(self, alpha: float, sigma: float) -> torch.Tensor:
        """d E[x0 | x] / d x."""
        eye = torch.eye(len(self.mu), dtype=self.mu.dtype)
        return alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * eye)

    def clean(self, x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        return self.mu + (x - alpha * self.mu) @ self.gain(alpha, sigma).T

    def denoise(self, x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        x0 = self.clean(x.squeeze(-1), level.alpha, level.sigma).unsqueeze(-1)
        return x0, (x - level.alpha * x0) / level.sigma

    def field(self, x: torch.Tensor, tau: float) -> torch.Tensor:
        clean = self.clean(x.squeeze(-1), tau, 1 - tau).unsqueeze(-1)
        return (clean - x) / (1 - tau)


CORRELATED = Gaussian(
    torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64),
    torch.tensor([[1.0, 0.9, 0.6], [0.9, 1.0, 0.8], [0.6, 0.8, 1.0]], dtype=torch.float64),
)
WHITE = Gaussian(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("t", [5, 50, 90])
def test_denoising_is_guided_as_derived(t: int) -> None:
    level = SCHEDULE.level(t)
    x, target = randn(2, 3, 1, seed=5), randn(2, 3, 1, seed=6)
    weights = WEIGHTS.double()
    plain, _ = CORRELATED.denoise(x, level)
    for limit in (0.5, 1e6):
        found, residue = guide_denoise(CORRELATED.denoise, target, weights, limit)(x, level)
        error = weights * (target - plain).squeeze(-1)
        weight = min(limit, 1 / (level.alpha * level.sigma))
        shift = level.sigma * weight * error @ CORRELATED.gain(level.alpha, level.sigma)
        torch.testing.assert_close(found, plain + shift.unsqueeze(-1))
        torch.testing.assert_close(level.alpha * found + level.sigma * residue, x)


def test_a_clipped_estimate_keeps_in_range_and_can_be_pulled_back() -> None:
    """An estimate far out of range is met with the error of its clipped self."""
    level = SCHEDULE.level(90)
    x = torch.full((1, 3, 1), 4.0, dtype=torch.float64)
    plain, plain_residue = CORRELATED.denoise(x, level)
    far = guide_denoise(lambda x, at: (9 * CORRELATED.denoise(x, at)[0], x), x, x[..., 0], 5.0, 1.0)
    assert far(x, level)[0].abs().max() <= 1
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    idle = guide_denoise(CORRELATED.denoise, -x, nothing, 5.0, 1.0)(x, level)
    torch.testing.assert_close(idle, (plain.clamp(-1, 1), plain_residue))
    middle = SCHEDULE.level(50)
    plain, _ = CORRELATED.denoise(x, middle)
    assert (plain > 1).all()
    inside = torch.full_like(x, 0.5)
    back = guide_denoise(CORRELATED.denoise, inside, nothing + 1, 5.0, 1.0)(x, middle)[0]
    gain = CORRELATED.gain(middle.alpha, middle.sigma)
    error = torch.full((1, 3), 0.5 - 1, dtype=torch.float64)
    expected = 1 + error @ gain / middle.alpha  # the limit of 5 is not met here
    torch.testing.assert_close(back.squeeze(-1), expected)


@pytest.mark.parametrize("t", [5, 50, 90])
@pytest.mark.parametrize("limit", [0.5, 5.0, 1e6])
def test_guided_denoising_is_guided_flow(t: int, limit: float) -> None:
    """The same Gaussian as noise prediction and as flow, at the flow time of that noise level."""
    level = SCHEDULE.level(t)
    tau = level.alpha / (level.alpha + level.sigma)
    x, target = randn(2, 3, 1, seed=5), randn(2, 3, 1, seed=6)
    weights = WEIGHTS.double()
    denoised, residue = guide_denoise(CORRELATED.denoise, target, weights, limit)(x, level)
    on_path = x / (level.alpha + level.sigma)
    velocity = guide_flow(CORRELATED.field, target, weights, limit)(on_path, tau)
    torch.testing.assert_close(velocity, denoised - residue)


def test_weight_of_flow() -> None:
    for tau in (0.1, 0.5, 0.9):
        squared = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        assert flow_weight(tau, 1e9) == pytest.approx((1 - tau) / (tau * squared))
    assert flow_weight(0.0, 5.0) == 5.0
    assert flow_weight(0.01, 5.0) == 5.0


def test_white_data_is_conditioned_exactly() -> None:
    """Where guidance is exact: observed actions are met, the others stay as they were."""
    noise, target = randn(4, 3, 1, seed=7), randn(4, 3, 1, seed=8)
    weights = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(4, 3)
    guided = guide_denoise(WHITE.denoise, target, weights, 1e9)
    drawn = DDIM(20).sample(guided, SCHEDULE, noise)
    free = DDIM(20).sample(WHITE.denoise, SCHEDULE, noise)
    torch.testing.assert_close(drawn[:, 0], target[:, 0])
    torch.testing.assert_close(drawn[:, 1:], free[:, 1:])


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
def test_correlated_data_follows_what_is_observed(kind: str) -> None:
    """Of the first action alone being given, the others move to their conditional mean; an
    identity Jacobian would leave them where they were."""
    noise = randn(4000, 3, 1, seed=9)
    target = torch.full((4000, 3, 1), 1.5, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(4000, 3)
    if kind == "flow":
        field = guide_flow(CORRELATED.field, target, weights, 5.0)
        drawn = Euler(50).sample(field, noise)
    else:
        guided = guide_denoise(CORRELATED.denoise, target, weights, 5.0)
        drawn = DDIM(50).sample(guided, SCHEDULE, noise)
    mean = drawn.squeeze(-1).mean(dim=0)
    mu, cov = CORRELATED.mu, CORRELATED.cov
    exact = mu + cov[:, 0] * (1.5 - mu[0])
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.2)


@pytest.fixture(scope="module", params=["diffusion", "flow"])
def forked(request: pytest.FixtureRequest) -> TrainablePolicy:
    """Trained on chunks that go straight to the right or to the left, each as often."""
    policy = small.policy({"policy": request.param, "network": small.MLP})
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        side = torch.randint(2, (64, 1), generator=generator) * 2.0 - 1
        across = 256 + side * torch.linspace(90, 180, 8)
        action = torch.stack((across, torch.full_like(across, 256.0)), dim=-1)
        state = torch.full((64, 2, 4), 256.0)
        loss = policy.loss(Batch(state, {}, action, torch.ones(64, 8, dtype=torch.bool)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.eval()


def test_the_beginning_decides_the_rest(forked: TrainablePolicy) -> None:
    """RTC's purpose: what is fixed by the chunk being executed makes the free end go along."""
    with torch.inference_mode():
        condition = forked.encode(torch.full((40, 2, 4), 256.0), {})
    noise = small.noise(40, forked.contract)
    free = forked.sample(condition, noise)
    right = free[:, -1, 0] > 256
    assert 8 < right.sum() < 32, "the policy did not learn both sides"
    across = 256 + torch.linspace(90, 180, 8)
    target = torch.stack((across, torch.full_like(across, 256.0)), dim=-1).expand(40, 8, 2)
    nothing = torch.zeros(40, 8)
    unguided = forked.sample(condition, noise, guide=(target, nothing, 5.0))
    torch.testing.assert_close(unguided, free, rtol=1e-4, atol=0.1)
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]).expand(40, 8)
    guided = forked.sample(condition, noise, guide=(target, weights, 5.0))
    assert (guided[:, -1, 0] > 256).sum() >= 38
    assert (guided[:, :4] - target[:, :4]).abs().mean() < 12


def test_a_condition_of_inference_mode_can_be_guided() -> None:
    """Servers encode under inference mode; such tensors cannot take part in a gradient as is."""
    for network in (small.MLP, small.UNET, small.TRANSFORMER):
        for kind in ("diffusion", "flow"):
            policy = small.policy({"policy": kind, "network": network})
            with torch.inference_mode():
                condition = policy.encode(torch.rand(2, 2, 4) * 512, {})
                noise = small.noise(2, policy.contract)
                target = torch.full((2, 8, 2), 256.0)
                drawn = policy.sample(condition, noise, guide=(target, torch.ones(2, 8), 5.0))
            assert drawn.isfinite().all()
