"""Small contracts, statistics and policies, built the way real ones are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from policies.batch import Batch
from policies.build import build
from policies.normalizer import Kind, Normalizer
from policies.trainable import TrainablePolicy
from robot_stack.contract import CameraInput, Feature, PolicyContract

MLP = {"name": "mlp", "width": 32, "blocks": 2, "condition_width": 16, "step_width": 16}
UNET = {"name": "unet1d", "down_dims": [8, 16], "groups": 4, "step_width": 16}
TRANSFORMER = {"name": "transformer", "layers": 2, "heads": 2, "width": 16}
ENCODER = {"name": "resnet18", "width": 16, "keypoints": 4, "features": 6, "crop": [40, 42]}
CAMERAS = (CameraInput("high", 44, 48), CameraInput("wrist", 44, 48))


def contract(cameras: tuple[CameraInput, ...] = (), **changes: Any) -> PolicyContract:
    """A planar task: four numbers of state, two of action, chunks of 8 under 2 observations."""
    values: dict[str, Any] = {
        "name": "small",
        "embodiment": "planar",
        "task": "reach",
        "state": tuple(Feature(f"env/{i}", "px") for i in range(4)),
        "action": (Feature("hand/x", "px"), Feature("hand/y", "px")),
        "cameras": cameras,
        "control_dt_ns": 100_000_000,
        "observations": 2,
        "horizon": 8,
        "first_action": 1,
        "execute": 4,
    }
    return PolicyContract(**{**values, **changes})


def normalizer(kind: Kind = "minmax") -> Normalizer:
    """Pixels of a 512 square."""
    rng = np.random.default_rng(7)
    return Normalizer.fit(rng.uniform(0, 512, (200, 4)), rng.uniform(20, 480, (200, 2)), kind)


def policy(architecture: Mapping[str, Any], **contract_changes: Any) -> TrainablePolicy:
    """In evaluation mode, the same weights every time."""
    torch.manual_seed(3)
    return build(architecture, contract(**contract_changes), normalizer()).eval()


def diffusion(network: Mapping[str, Any] = MLP, **changes: Any) -> dict[str, Any]:
    return {"policy": "diffusion", "network": dict(network), **changes}


def batch(count: int, of: PolicyContract, seed: int = 0) -> Batch:
    """Random windows that fit a contract; the last action of each is padding."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return 512 * torch.rand(*shape, generator=generator)

    mask = torch.ones(count, of.horizon, dtype=torch.bool)
    mask[:, -1] = False
    images = {
        camera.name: (
            uniform(count, of.observations, camera.height, camera.width, 3).to(torch.int32) % 256
        ).to(torch.uint8)
        for camera in of.cameras
    }
    return Batch(
        uniform(count, of.observations, len(of.state)),
        images,
        uniform(count, of.horizon, len(of.action)),
        mask,
    )


def noise(count: int, of: PolicyContract, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, of.horizon, len(of.action), generator=generator)
