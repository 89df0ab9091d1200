"""What an evaluation has found so far, on disk: one line an episode, kept as it ends.

An evaluation that was killed goes on where it was; results of something else are not mixed in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from collect.evaluation.json_lines import JsonLines
from collect.evaluation.rollouts import Score
from robot_stack.errors import EpisodeError

__all__ = ["Result", "ResultFile"]

VERSION = 1
NAME = "episodes.jsonl"


@dataclass(frozen=True, slots=True)
class Result:
    """One episode of one decoder."""

    decoder: str
    seed: int
    max_reward: float
    success: bool
    steps: int
    chunks: int


class ResultFile:
    """``episodes.jsonl`` of a directory, and the executed actions beside it.

    ``header`` is plain JSON: what is evaluated, and how. EpisodeError as of ``JsonLines``.
    """

    def __init__(self, directory: Path, header: Mapping[str, Any]) -> None:
        self.directory = directory
        self.results: dict[str, dict[int, Result]] = {}
        self._lines = JsonLines(directory / NAME, {"version": VERSION, **header})
        try:
            for line in self._lines.lines:
                self._remember(Result(**line))
        except TypeError as error:
            self._lines.close()
            raise EpisodeError(
                f"{directory / NAME} has a line that is no result ({error}); delete that line"
            ) from error

    def _remember(self, result: Result) -> None:
        self.results.setdefault(result.decoder, {})[result.seed] = result

    def keep(self, decoder: str, score: Score) -> None:
        """Write one episode down: its actions first, so that a line that is there is complete."""
        path = self._actions_path(decoder, score.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, score.actions)
        result = Result(
            decoder, score.seed, score.max_reward, score.success, score.steps, score.chunks
        )
        self._lines.append(dataclasses.asdict(result))
        self._remember(result)

    def actions(self, result: Result) -> NDArray[np.float64]:
        """What was executed (n, D) in an episode."""
        actions: NDArray[np.float64] = np.load(self._actions_path(result.decoder, result.seed))
        return actions

    def _actions_path(self, decoder: str, seed: int) -> Path:
        return self.directory / "actions" / decoder / f"{seed}.npy"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
