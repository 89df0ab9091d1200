"""Schedule and samplers against the ones of `diffusers`, and what those don't have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from policies.flow import Euler
from policies.samplers import DDIM, DDPM, Denoise, Sampler, step_noise
from policies.schedules import Level, Schedule
from policies.solvers import DpmSolver, Heun
from robot_stack.errors import PolicyError

diffusers = pytest.importorskip("diffusers")

SCHEDULE = Schedule()
NAMED = {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}
NOISE = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
MIX = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))


def predict(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands for a network: smooth, not linear, different at each step."""
    return torch.tanh(x @ MIX + 0.01 * t) + 0.3 * x.roll(1, dims=1)


def denoise(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
    residue = predict(x, level.t)
    return (x - level.sigma * residue) / level.alpha, residue


def oracle(
    scheduler: object,
    x: torch.Tensor,
    scale: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> torch.Tensor:
    for t in scheduler.timesteps:  # type: ignore[attr-defined]
        given = scheduler.scale_model_input(x, t)  # type: ignore[attr-defined]
        x = scheduler.step(predict(given, float(t)), t, x).prev_sample  # type: ignore[attr-defined]
    return x


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_schedule() -> None:
    theirs = diffusers.DDPMScheduler(**NAMED)
    close(torch.tensor(SCHEDULE.betas), theirs.betas)
    np.testing.assert_allclose(
        SCHEDULE.alphas_cumprod, theirs.alphas_cumprod.double().numpy(), rtol=2e-5, atol=1e-9
    )


@pytest.mark.parametrize(
    ("steps", "clip"), [(1, 1.0), (7, 1.0), (10, 1.0), (100, 1.0), (1, None), (7, None), (50, None)]
)
def test_ddim(steps: int, clip: float | None) -> None:
    scheduler = diffusers.DDIMScheduler(**NAMED, clip_sample=clip is not None)
    scheduler.set_timesteps(steps)
    theirs = oracle(scheduler, NOISE)
    ours = DDIM(steps).sample(denoise, SCHEDULE, NOISE, clip=clip)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("steps", "clip"), [(5, 1.0), (100, 1.0), (5, None), (50, None)])
def test_ddpm(steps: int, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDPMScheduler(
        **NAMED, clip_sample=clip is not None, variance_type="fixed_small"
    )
    scheduler.set_timesteps(steps)
    fresh = iter(step_noise(NOISE, steps))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(fresh)
    )
    theirs = oracle(scheduler, NOISE)
    ours = DDPM(steps).sample(denoise, SCHEDULE, NOISE, clip=clip)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_dpm_solver(steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **NAMED, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(timesteps=[i * (100 // steps) for i in reversed(range(steps))])
    theirs = oracle(scheduler, NOISE)
    ours = DpmSolver(steps).sample(denoise, SCHEDULE, NOISE)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_heun(steps: int, clip: float | None) -> None:
    scheduler = diffusers.HeunDiscreteScheduler(
        **NAMED, use_karras_sigmas=True, clip_sample=clip is not None, timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    largest, smallest = float(scheduler.sigmas[0]), float(scheduler.sigmas[-2])
    theirs = oracle(scheduler, NOISE * (1 + largest**2) ** 0.5)
    sampler = Heun(steps, largest, smallest)
    torch.testing.assert_close(
        sampler.sample(denoise, SCHEDULE, NOISE, clip=clip), theirs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("sampler", [DDIM(100), DpmSolver(20), Heun(20), DDPM(100)])
def test_samples_have_the_distribution_of_the_data(sampler: Sampler) -> None:
    """With the exact denoiser of a Gaussian, samples have its mean and its spread."""
    mean, spread = 0.4, 0.3

    def exact(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        gain = level.alpha * spread**2 / (level.alpha**2 * spread**2 + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        return x0, (x - level.alpha * x0) / level.sigma

    noise = torch.randn(400, 4, 2, generator=torch.Generator().manual_seed(5))
    drawn = sampler.sample(exact, SCHEDULE, noise)
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.std().item() == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("sampler", [DDIM(10), DDPM(20), DpmSolver(10), Heun(10)])
def test_level_takes_the_last_part_of_the_steps_from_the_noised_start(sampler: Sampler) -> None:
    seen: list[tuple[Level, torch.Tensor]] = []

    def watched(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((level, x))
        return denoise(x, level)

    def run(**begin: object) -> list[tuple[Level, torch.Tensor]]:
        seen.clear()
        sampler.sample(watched, SCHEDULE, NOISE, **begin)  # type: ignore[arg-type]
        return list(seen)

    start = torch.full_like(NOISE, 0.5)
    whole = run()
    half = run(start=start, level=0.5)
    levels = sorted({level.t for level, _ in whole}, reverse=True)
    assert sorted({level.t for level, _ in half}, reverse=True) == levels[-sampler.steps // 2 :]
    first, x = half[0]
    torch.testing.assert_close(x, first.alpha * start + first.sigma * NOISE)
    assert len(run(start=start, level=1e-6)) == 1
    torch.testing.assert_close(run(start=start, level=1.0)[0][1], NOISE)


def test_level_needs_a_start_and_lies_in_its_range() -> None:
    with pytest.raises(PolicyError, match="start"):
        DDIM(10).sample(denoise, SCHEDULE, NOISE, level=0.5)
    for level in (0.0, 1.1, float("nan")):
        with pytest.raises(PolicyError, match=r"\(0, 1\]"):
            DDIM(10).sample(denoise, SCHEDULE, NOISE, start=NOISE, level=level)
    with pytest.raises(PolicyError, match="trained with 100"):
        DDIM(200).sample(denoise, SCHEDULE, NOISE)


def test_ddpm_depends_on_its_own_noise_alone() -> None:
    """A chunk is the same whoever shares its batch."""
    together = DDPM(20).sample(denoise, SCHEDULE, NOISE)
    alone = DDPM(20).sample(denoise, SCHEDULE, NOISE[1:2])
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(step_noise(NOISE, 3)[0], step_noise(NOISE, 3)[1])


def test_euler_is_exact_on_straight_paths() -> None:
    target = torch.linspace(-1, 1, 6).expand(3, 2, 6).transpose(1, 2)

    def field(x: torch.Tensor, tau: float) -> torch.Tensor:
        return (target - x) / (1 - tau)

    torch.testing.assert_close(Euler(5).sample(field, NOISE), target)
    taus: list[float] = []

    def watched(x: torch.Tensor, tau: float) -> torch.Tensor:
        if not taus:
            torch.testing.assert_close(x, 0.6 * target + 0.4 * NOISE)
        taus.append(tau)
        return field(x, tau)

    Euler(5).sample(watched, NOISE, start=target, level=0.4)
    assert taus == [0.6, 0.8]


def test_denoise_is_what_samplers_take() -> None:
    checked: Denoise = denoise
    assert checked(NOISE, SCHEDULE.level(50))[0].shape == NOISE.shape


@pytest.mark.parametrize("t", [0, 17, 99])
def test_levels_between_training_steps(t: int) -> None:
    here = SCHEDULE.level(t)
    found = SCHEDULE.at_ratio(here.sigma / here.alpha)
    assert found.t == pytest.approx(t, abs=1e-6)
    assert (found.alpha, found.sigma) == pytest.approx((here.alpha, here.sigma))
    assert here.alpha**2 + here.sigma**2 == pytest.approx(1)
