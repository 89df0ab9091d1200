"""A closed-form policy and sessions of it: every number of a chunk can be told in advance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.interfaces import Array, Draw, Guide, Need, Step
from robot_stack.contract import CameraInput, Feature, PolicyContract

DT_NS = 20_000_000
ALL = frozenset({Need.SAMPLES, Need.NOISE, Need.GRADIENTS})


def contract(
    *, horizon: int = 8, first_action: int = 1, dof: int = 2, cameras: tuple[str, ...] = ()
) -> PolicyContract:
    joints = tuple(Feature(f"arm/joint_{i}", "rad") for i in range(dof))
    return PolicyContract(
        name="closed_form",
        embodiment="planar",
        task="follow",
        state=joints,
        action=joints,
        cameras=tuple(CameraInput(name, 4, 4) for name in cameras),
        control_dt_ns=DT_NS,
        observations=2,
        horizon=horizon,
        first_action=first_action,
        execute=horizon - first_action,
    )


class Affine:
    """chunk = newest state + mean of all pixels + width * noise, in float64 per row.

    ``start`` and ``guide`` leave their trace as linear terms, so a test sees what arrived where.
    """

    device = torch.device("cpu")

    def __init__(
        self, contract: PolicyContract, width: float = 0.1, gives: frozenset[Need] = ALL
    ) -> None:
        self.contract = contract
        self.gives = gives
        self.width = width
        self.encoded: list[int] = []
        self.sampled: list[int] = []
        self.noises: list[bytes] = []

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.encoded.append(len(state))
        bright = [frames.float().mean(dim=(1, 2, 3, 4)) for frames in images.values()]
        return state[:, -1] + sum(bright, torch.zeros(len(state)))[:, None]

    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        self.sampled.append(len(noise))
        self.noises += [row.numpy().tobytes() for row in noise]
        chunk = condition[:, None] + self.width * noise
        if start is not None:
            chunk = level * chunk + (1.0 - level) * start
        if guide is not None:
            target, weights, limit = guide
            chunk = chunk + min(1.0, limit) * weights[..., None] * (target - chunk)
        return chunk

    def normalized(self, actions: Array) -> Array:
        return actions / 4.0


def step(
    *priors: Any, delay: int = 0, seed: int = 0, previous: int = -1, consumed: int = 0
) -> Step:
    chunks = tuple(np.asarray(prior, dtype=np.float32) for prior in priors)
    return Step(chunks, delay, np.random.default_rng(seed), previous, consumed)


def draw_of(name: str, at: Step, policy: Affine, **options: Any) -> Draw:
    return make_decoder(name, options).plan(at, policy)


def guide_of(draw: Draw) -> Guide:
    assert draw.guide is not None
    return draw.guide


def session(name: str, hosted: Hosted, seed: int = 0, **options: Any) -> Session:
    return Session(make_decoder(name, options), hosted, seed)


def ask(
    hosted: Hosted,
    robot: Session,
    previous: int = -1,
    consumed: int = 0,
    *,
    delay: int = 0,
    value: float = 0.0,
) -> tuple[int, Any]:
    """One chunk of one session, whose state is ``value`` in every joint."""
    at = robot.begin(previous, consumed, delay)
    state = np.full((2, len(hosted.contract.state)), value, dtype=np.float32)
    images = {
        camera.name: np.zeros((2, camera.height, camera.width, 3), dtype=np.uint8)
        for camera in hosted.contract.cameras
    }
    return decode(hosted, [Request(robot, at, state, images)])[0]
