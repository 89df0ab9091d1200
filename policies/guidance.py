"""Guided denoising: pull a sample towards a chunk that is already being executed (RTC).

Real-time chunking (Black et al. 2025) treats the new chunk as the inpainting of the old one and
adds to the velocity of a flow model the gradient of Pseudoinverse Guidance (Song et al. 2023):

    v' = v + w(tau) J^T W (y - A),   A = x + (1 - tau) v,   J = dA / dx                 (eq. 2-4)
    w(tau) = min(beta, (1 - tau) / (tau r^2)),   r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2)

A is the estimate of the clean chunk, y the old chunk, W its weights, tau 0 at noise, 1 at data.

The same for a diffusion model that predicts noise. With x = alpha x0 + sigma e, the point
z = x / (alpha + sigma) lies on the straight path of flow at tau = alpha / (alpha + sigma), where
z = tau x0 + (1 - tau) e and v = x0 - e. DDIM, which moves on to alpha' x0 + sigma' e, is Euler's
step for that v from tau to tau'. So RTC's guidance carries over exactly:

    (1 - tau) / tau = sigma / alpha,   r^2 = sigma^2 / (alpha^2 + sigma^2) = sigma^2,
    w = min(beta, 1 / (alpha sigma)),   dA/dz = (alpha + sigma) dx0/dx,
    x0' = z + (1 - tau) v' = x0 + (1 - tau) (alpha + sigma) w (dx0/dx)^T W (y - x0)
        = x0 + sigma w (dx0/dx)^T W (y - x0),   e' = (x - alpha x0') / sigma.

Unlimited, sigma w is 1 / alpha: Pseudoinverse Guidance as published for diffusion. It is exact
for unit-variance white data, where the clean chunk given x has variance r^2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from policies.samplers import Denoise, clipped
from policies.schedules import Level

__all__ = ["Field", "flow_weight", "guide_denoise", "guide_flow", "ordinary", "pull"]

# A velocity field: x (M, Tp, D) and tau in [0, 1) -> v (M, Tp, D)
Field = Callable[[torch.Tensor, float], torch.Tensor]


def pull(
    estimate: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    target: torch.Tensor,
    weights: torch.Tensor,
    clip: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate of the clean chunk at x and J^T W (target - estimate), J = d estimate / d x.

    x and target (M, Tp, D), weights (M, Tp); the error alone is that of the clipped estimate.
    Gradients are switched on before the network runs; afterwards the Jacobian would silently be
    the identity.
    """
    with torch.inference_mode(False), torch.enable_grad():
        variable = ordinary(x).detach().requires_grad_(True)
        clean = estimate(variable)
        error = weights.unsqueeze(-1) * (target - clipped(clean.detach(), clip))
        (gradient,) = torch.autograd.grad(clean, variable, error)
    return clean.detach(), gradient


def ordinary(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor made under inference mode as one that may take part in a gradient."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor


def guide_denoise(
    denoise: Denoise,
    target: torch.Tensor,
    weights: torch.Tensor,
    limit: float,
    clip: float | None = None,
) -> Denoise:
    """``denoise`` that is pulled towards ``target`` (M, Tp, D), in the network's range.

    With ``clip`` the error is that of the clipped estimate and the pull ends at the clip, while
    the Jacobian is the network's own: a saturated estimate can be pulled back, an unsure one at
    high noise does not throw the sample out of range.
    """

    def guided(x: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
        plain, gradient = pull(lambda point: denoise(point, level)[0], x, target, weights, clip)
        weight = min(limit, 1 / (level.alpha * level.sigma))
        clean = clipped(clipped(plain, clip) + level.sigma * weight * gradient, clip)
        moved = clean - clipped(plain, clip)
        residue = (x - level.alpha * (plain + moved)) / level.sigma
        return clean, residue

    return guided


def flow_weight(tau: float, limit: float) -> float:
    """w(tau): how hard to pull at flow time tau in [0, 1)."""
    if tau == 0:
        return limit
    return min(limit, (tau**2 + (1 - tau) ** 2) / (tau * (1 - tau)))


def guide_flow(field: Field, target: torch.Tensor, weights: torch.Tensor, limit: float) -> Field:
    """A velocity field that is pulled towards ``target`` (M, Tp, D), in the network's range."""

    def guided(x: torch.Tensor, tau: float) -> torch.Tensor:
        clean, gradient = pull(
            lambda point: point + (1 - tau) * field(point, tau), x, target, weights
        )
        return (clean - x) / (1 - tau) + flow_weight(tau, limit) * gradient

    return guided
