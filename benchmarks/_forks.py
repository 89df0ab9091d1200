"""A task with two ways past every obstacle, and the ideal policies for it, in closed form.

A smooth reference motion meets an obstacle every ``PERIOD_S`` and passes it left or right. Its
demonstrations are a mixture of Gaussians over chunks: one mode for each combination of ways, as
likely as the observed pose makes it; a smooth return from where the robot is; smooth deviations.
The noise that diffusion or flow would learn to predict for such data is known exactly, so a policy
that needs no training runs through the real samplers, normaliser and guidance. At a fork both ways
are as likely; what is observed before the fork does not say which way the robot goes meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from policies.build import build
from policies.flow import TIME_SCALE, FlowPolicy
from policies.hosted import Hosted
from policies.models.network import ChunkNetwork
from policies.normalizer import Normalizer, Scale
from policies.schedules import Schedule
from policies.trainable import TrainablePolicy
from robot_stack.contract import Feature, PolicyContract
from robot_stack.spec import RobotSpec

__all__ = ["ForkNetwork", "contract", "distance_to_ways", "hosted", "reference"]

Array = NDArray[np.float64]

PERIOD_S = 1.6
DETOUR_S = 1.2
DETOUR = (0.25, 0.0, 0.15, 0.0, 0.0, 0.1, 0.0)
SWING = (0.3, 0.25, 0.25, 0.2, 0.3, 0.3, 0.2)
SWING_HZ = (0.2, 0.17, 0.23, 0.3, 0.19, 0.25, 0.21)
CENTER = (0.0, -0.9, 1.1, 0.0, -0.3, 0.0, 0.5)
RETURN_S = 0.15
SMOOTH_S = 0.25
COMMITTED = 0.05  # how far from another way's pose the robot must be to be past the choice
DEVIATION = 0.01
GRAIN = 0.0003
# The weak policy: an early checkpoint, that spreads wide, commits late and cuts its detours.
WEAK_SPREAD = 3.0
WEAK_DETOUR = 0.6

DEMONSTRATED_S = 100.0  # what the normaliser is fitted to, in rows of both ways

HORIZON = 41
FIRST_ACTION = 1
EXECUTE = 20
DT_NS = 20_000_000


def contract(spec: RobotSpec) -> PolicyContract:
    """The robot's joints and the task's time in, a chunk of 0.8 s out."""
    joints = tuple(Feature(f"arm/{joint.name}", joint.unit) for joint in spec.joints)
    return PolicyContract(
        name="forks",
        embodiment=spec.embodiment,
        task="pass every obstacle, on either side",
        state=(*joints, Feature("env/0", "1")),
        action=joints,
        cameras=(),
        control_dt_ns=DT_NS,
        observations=2,
        horizon=HORIZON,
        first_action=FIRST_ACTION,
        execute=EXECUTE,
    )


def _reference(times: torch.Tensor) -> torch.Tensor:
    """Poses (..., D) between the two ways, at times (...) in s."""
    phase = 2.0 * math.pi * times[..., None] * torch.tensor(SWING_HZ, dtype=times.dtype)
    offset = torch.arange(len(SWING), dtype=times.dtype)
    swing = torch.tensor(SWING, dtype=times.dtype) * torch.sin(phase + offset)
    return torch.tensor(CENTER, dtype=times.dtype) + swing


def _detour(times: torch.Tensor, obstacle: torch.Tensor) -> torch.Tensor:
    """What passing on one side of obstacle number (...) adds, (..., D); the other side: minus."""
    part = (times - obstacle * PERIOD_S) / DETOUR_S
    height = 0.5 * (1.0 - torch.cos(2.0 * math.pi * part.clamp(0.0, 1.0)))
    return height[..., None] * torch.tensor(DETOUR, dtype=times.dtype)


def reference(t_s: float) -> Array:
    """The pose (D,) between the two ways."""
    return np.asarray(_reference(torch.tensor(t_s, dtype=torch.float64)).numpy())


def _ways(times: Array) -> list[Array]:
    """The poses (n, D) of both ways at times (n,)."""
    moments = torch.from_numpy(times)
    detour = _detour(moments, torch.floor(moments / PERIOD_S))
    return [np.asarray((_reference(moments) + side * detour).numpy()) for side in (-1.0, 1.0)]


def _demonstrated() -> Array:
    """Actions of demonstrations (n, D): both ways, with deviations to either side."""
    ways = np.concatenate(_ways(np.arange(0.0, DEMONSTRATED_S, DT_NS * 1e-9)))
    return np.concatenate([ways - 3.0 * DEVIATION, ways + 3.0 * DEVIATION])


def distance_to_ways(times: Array, poses: Array) -> Array:
    """How far (n,) each pose (n, D) is from the nearer of its moment's two ways."""
    left, right = (np.linalg.norm(poses - way, axis=1) for way in _ways(times))
    return np.asarray(np.minimum(left, right))


class ForkNetwork(ChunkNetwork):
    """What a network trained to perfection on the task's demonstrations would predict.

    ``level`` maps the t that the policy tells its network to (alpha, sigma) of
    x = alpha x0 + sigma noise; the answer is the noise, or the ``velocity`` x0 - noise.
    """

    def __init__(
        self,
        level: Callable[[float], tuple[float, float]],
        scale: Scale,
        *,
        velocity: bool,
        weak: bool,
    ) -> None:
        super().__init__()
        self._level = level
        self._velocity = velocity
        spread = WEAK_SPREAD if weak else 1.0
        self._detour = WEAK_DETOUR if weak else 1.0
        self._committed = COMMITTED * spread
        rows = torch.arange(HORIZON, dtype=torch.float64)
        self._ahead_s = (rows - FIRST_ACTION) * DT_NS * 1e-9
        apart = (self._ahead_s[:, None] - self._ahead_s[None]) / SMOOTH_S
        smooth = (spread * DEVIATION) ** 2 * torch.exp(-0.5 * apart**2)
        grain = GRAIN**2 * torch.eye(HORIZON, dtype=torch.float64)
        variances, self._axes = torch.linalg.eigh(smooth + grain)
        self._center = torch.tensor(scale.center, dtype=torch.float64)
        self._width = torch.tensor(scale.width, dtype=torch.float64)
        self._variances = variances[:, None] / self._width**2

    def _modes(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean chunks (M, 4, Tp, D), normalised, and their log weights (M, 4)."""
        pose, now = condition[:, -1, :-1].double(), condition[:, -1, -1].double()
        obstacle = torch.floor(now / PERIOD_S)
        moments = torch.cat((now[:, None], now[:, None] + self._ahead_s), dim=1)
        middle = _reference(moments)
        this, coming = (
            self._detour * _detour(moments, obstacle[:, None] + number) for number in (0.0, 1.0)
        )
        ways = torch.stack(
            [middle + a * this + b * coming for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dim=1
        )
        off = pose[:, None] - ways[:, :, 0]
        weights = -0.5 * (off**2).sum(dim=-1) / self._committed**2
        fading = torch.exp(-self._ahead_s.clamp(min=0.0) / RETURN_S)
        chunks = ways[:, :, 1:] + off[:, :, None] * fading[:, None]
        return (chunks - self._center) / self._width, weights

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self._level(float(t.reshape(-1)[0]))
        means, weights = self._modes(condition)
        variance = alpha**2 * self._variances + sigma**2
        away = torch.einsum("rp,mkrd->mkpd", self._axes, alpha * means - x.double()[:, None])
        share = torch.softmax(weights - 0.5 * (away**2 / variance).sum(dim=(-2, -1)), dim=1)
        kept = alpha * self._variances / variance
        clean = (
            share[:, :, None, None]
            * (torch.einsum("rp,mkrd->mkpd", self._axes, means) - kept * away)
        ).sum(dim=1)
        clean = torch.einsum("rp,mpd->mrd", self._axes, clean)
        noise = (x.double() - alpha * clean) / sigma
        return (clean - noise if self._velocity else noise).float()


def _policy(kind: str, shape: PolicyContract, *, weak: bool) -> TrainablePolicy:
    whole = (1.0,) * len(shape.state)  # the network wants the state in its own units
    normalizer = Normalizer(
        state=Scale("minmax", (0.0,) * len(whole), whole), action=Scale.fit(_demonstrated())
    )
    network = {"name": "mlp", "width": 8, "blocks": 1}
    policy = build({"policy": kind, "network": network}, shape, normalizer)
    schedule = Schedule()

    def diffused(t: float) -> tuple[float, float]:
        level = schedule.level(round(t))
        return level.alpha, level.sigma

    def flowed(t: float) -> tuple[float, float]:
        return t / TIME_SCALE, 1.0 - t / TIME_SCALE

    level, velocity = (flowed, True) if isinstance(policy, FlowPolicy) else (diffused, False)
    policy.network = ForkNetwork(level, normalizer.action, velocity=velocity, weak=weak)
    return policy.eval()


def hosted(kind: str, spec: RobotSpec) -> Hosted:
    """The strong and the weak policy of the task; ``kind`` is ``diffusion`` or ``flow``."""
    shape = contract(spec)
    return Hosted(_policy(kind, shape, weak=False), _policy(kind, shape, weak=True))
