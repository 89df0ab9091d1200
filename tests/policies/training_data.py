"""Small data sets for tests of training: a Push-T source of random walks, and runs over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from collect.dataset.pusht import import_pusht

STATE = ["agent/x", "agent/y", "env/0", "env/1"]


def arrays(lengths: tuple[int, ...] = (30, 25, 20, 28), seed: int = 0) -> dict[str, Any]:
    """What the public layouts hold: a disc that goes where it is told, around a still block."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    state = np.zeros((rows, 5), np.float32)
    state[:, :2] = np.cumsum(rng.normal(0, 6, (rows, 2)), axis=0) + 256
    state[:, 2:4] = np.repeat(rng.uniform(100, 400, (len(lengths), 2)), lengths, axis=0)
    state[:, 4] = 1.5
    return {
        "state": state,
        "action": np.roll(state[:, :2], -1, axis=0) + 1,
        "keypoint": rng.uniform(50, 450, (rows, 9, 2)).astype(np.float32),
        "img": rng.integers(0, 255, (rows, 24, 24, 3)).astype(np.uint8),
        "episode_ends": np.cumsum(lengths),
    }


def source(path: Path, **changes: Any) -> Path:
    """The HDF5 layout; a change of None leaves an array out."""
    with h5py.File(path, "w") as file:
        for name, values in {**arrays(), **changes}.items():
            if values is not None:
                file[name] = values
    return path


def episodes(directory: Path, *, images: bool = False) -> Path:
    """Four imported episodes; the directory."""
    import_pusht(source(directory.parent / "source.hdf5"), directory, images=images)
    return directory


def settings(**changes: Any) -> dict[str, Any]:
    """A training file of a tiny policy."""
    return {
        "name": "tiny",
        "data": {"state": STATE},
        "observations": 2,
        "horizon": 8,
        "execute": 4,
        "architecture": {
            "policy": "diffusion",
            "network": {
                "name": "mlp",
                "width": 32,
                "blocks": 1,
                "condition_width": 16,
                "step_width": 16,
            },
            "schedule": {"steps": 10},
            "sampler": {"name": "ddim", "steps": 5},
        },
        "steps": 60,
        "batch": 16,
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 5},
        "validation": {"share": 0.25, "every": 20, "windows": 16},
        "checkpoints": {"at": [20], "save_s": 0},
        "log_every": 7,
        **changes,
    }


def training_file(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(settings(**changes)))
    return path
