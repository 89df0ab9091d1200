"""Export to one robomimic HDF5 file (ARISE-Initiative/robomimic, ``SequenceDataset``).

``/data/demo_<i>`` holds ``actions`` (T, D), ``rewards``, ``dones`` (T,), ``obs/<key>`` (T, ...) and
the attribute ``num_samples``; ``/data`` the attributes ``total`` and ``env_args`` (JSON);
``/mask/train`` and ``/mask/valid`` name demonstrations. Observations are called ``qpos``, ``qvel``
(if known) and ``<camera>_image``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from collect.dataset.export.source import Advance, Selection, Source, appearing, images
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["export"]

GYM = 2  # robomimic.envs.env_base.EnvType.GYM_TYPE: the one that needs no simulator's state


def export(
    selection: Selection,
    out: Path,
    advance: Advance,
    *,
    valid: float = 0.1,
    seed: int = 0,
    next_obs: bool = False,
    scale_actions: bool = False,
) -> dict[str, Any]:
    """Write the file ``out``; what was written, as plain JSON.

    ``valid`` is the share of demonstrations behind ``mask/valid``, drawn with ``seed``; at least
    one when there are two, none when 0. ``next_obs`` adds the observations one row later (the last
    repeated), which offline RL reads. ``scale_actions`` maps actions to [-1, 1] by the smallest and
    largest value of each column, as robomimic's networks expect, and keeps those as attributes
    ``action_min`` and ``action_max`` of ``/data``. Rewards are the recorded ones where known, else
    1 in the last row of a success and 0 before; NaN where nobody has judged.
    """
    if not 0 <= valid < 1:
        raise EpisodeError(f"--valid is a share from 0 to below 1, not {valid}")
    low, high = _action_range(selection)
    with appearing(out, directory=False) as part, h5py.File(part, "w") as file:
        data = file.create_group("data")
        for i, source in enumerate(selection.sources):
            with Episode.open(source.path) as episode:
                actions = episode.action[source.rows]
                if scale_actions:
                    span = np.where(high > low, high - low, 1.0)
                    actions = np.where(high > low, 2 * (actions - low) / span - 1, 0.0)
                demo = data.create_group(f"demo_{i}")
                demo["actions"] = actions.astype(np.float32)
                _write(demo, episode, source, next_obs, advance)
        data.attrs["total"] = selection.rows
        data.attrs["env_args"] = json.dumps(
            {
                "env_name": selection.station or "robot_stack",
                "type": GYM,
                "env_kwargs": {
                    "embodiment": selection.embodiment,
                    "joints": list(selection.joints),
                    "control_hz": selection.rate_hz,
                },
            }
        )
        if scale_actions:
            data.attrs["action_min"], data.attrs["action_max"] = low, high
        held = _held_back(len(selection.sources), valid, seed)
        demos = range(len(selection.sources))
        file["mask/train"] = _names(i for i in demos if i not in held)
        if held:
            file["mask/valid"] = _names(i for i in demos if i in held)
    return {
        "train": len(selection.sources) - len(held),
        "valid": len(held),
        "actions_within_1": bool(scale_actions or (np.abs([low, high]) <= 1).all()),
    }


def _action_range(selection: Selection) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.full(len(selection.joints), np.inf)
    high = np.full(len(selection.joints), -np.inf)
    for source in selection.sources:
        with Episode.open(source.path) as episode:
            actions = episode.action[source.rows]
        low, high = np.minimum(low, actions.min(axis=0)), np.maximum(high, actions.max(axis=0))
    return low, high


def _held_back(count: int, share: float, seed: int) -> set[int]:
    if not share or count < 2:
        return set()
    number = min(max(1, round(count * share)), count - 1)
    return {int(i) for i in np.random.default_rng(seed).permutation(count)[:number]}


def _names(numbers: Iterable[int]) -> NDArray[np.bytes_]:
    return np.array([f"demo_{i}" for i in numbers], dtype="S32")


def _write(
    demo: h5py.Group, episode: Episode, source: Source, next_obs: bool, advance: Advance
) -> None:
    rows = len(source)
    demo.attrs["num_samples"] = rows
    demo.attrs["source_uuid"] = source.uuid
    dones = np.zeros(rows, np.int64)
    dones[-1] = 1
    demo["dones"] = dones
    demo["rewards"] = _rewards(episode, source)
    after = np.minimum(np.arange(rows) + 1, rows - 1)
    columns = {"qpos": episode.qpos[source.rows]}
    qvel = episode.qvel[source.rows]
    if np.isfinite(qvel).all():
        columns["qvel"] = qvel
    for key, values in columns.items():
        demo[f"obs/{key}"] = values
        if next_obs:
            demo[f"next_obs/{key}"] = values[after]
    for camera in episode.cameras:
        layout = episode.schema.cameras[camera]
        shape = (layout.height, layout.width, 3)
        sets = [
            demo.create_dataset(f"{group}/{camera}_image", (rows, *shape), "u1", chunks=(1, *shape))
            for group in (["obs", "next_obs"] if next_obs else ["obs"])
        ]
        for row, image in enumerate(images(episode, source, camera)):
            sets[0][row] = image
            if next_obs and row:
                sets[1][row - 1] = image
        if next_obs:
            sets[1][rows - 1] = sets[0][rows - 1]
    for _ in range(rows):
        advance()


def _rewards(episode: Episode, source: Source) -> NDArray[np.float32]:
    rewards = episode.reward[source.rows]
    if np.isfinite(rewards).any() or source.success is None:
        return rewards
    sparse = np.zeros(len(source), np.float32)
    sparse[-1] = float(source.success)
    return sparse
