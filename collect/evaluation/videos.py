"""Videos of the worst episodes: their executed actions once more, this time drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collect.dataset.video import MAX_FPS, encode
from collect.evaluation.results import Result, ResultFile
from collect.evaluation.world import World

__all__ = ["worst", "write_worst"]


def worst(results: Sequence[Result], count: int) -> list[Result]:
    """The ``count`` episodes with the lowest reward, failures before successes."""
    return sorted(results, key=lambda r: (r.success, r.max_reward, r.seed))[:count]


def write_worst(
    world: World, file: ResultFile, results: Mapping[str, Mapping[int, Result]], count: int
) -> list[Path]:
    """Draw the ``count`` worst episodes of each decoder into ``worst/``; earlier videos there go.
    ``file`` knows their actions."""
    directory = file.directory / "worst"
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.mp4"):
        old.unlink()
    written = []
    for decoder, episodes in results.items():
        for result in worst(list(episodes.values()), count):
            path = directory / f"{decoder}-{result.seed}-{result.max_reward:.2f}.mp4"
            every = max(1, round(1e9 / world.control_dt_ns / MAX_FPS))
            rate = Fraction(1_000_000_000, world.control_dt_ns * every)
            encode(_pictures(world, result.seed, file.actions(result), every), path, rate)
            written.append(path)
    return written


def _pictures(
    world: World, seed: int, actions: NDArray[np.float64], every: int
) -> Iterator[NDArray[np.uint8]]:
    world.reset(seed)
    yield world.picture()
    for number, action in enumerate(actions, 1):
        world.step(action)
        if number % every == 0 or number == len(actions):
            yield world.picture()
