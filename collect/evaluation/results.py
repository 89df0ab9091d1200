"""What an evaluation has found so far, on disk: one JSON line an episode, kept as it ends.

An evaluation that was killed goes on where it was. What it was asked stands in the first line;
results of something else are not mixed in.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

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
    """``episodes.jsonl`` of a directory, with the executed actions beside it; one writer at a time.

    ``header`` is plain JSON: what was evaluated, and how. EpisodeError when the directory holds
    results of another evaluation (in what they differ), or another one writes there.
    """

    def __init__(self, directory: Path, header: Mapping[str, Any]) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, dict[int, Result]] = {}
        self._file = (directory / NAME).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read({"version": VERSION, **header})
        except BlockingIOError as error:
            self._file.close()
            raise EpisodeError(
                f"another evaluation writes into {directory}; wait for it or give another --out"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: Mapping[str, Any]) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # the line that was being written when it was killed
            os.ftruncate(self._file.fileno(), len(whole))
        lines = whole.splitlines()
        if not lines:
            self._write(header)
            return
        path = self.directory / NAME
        try:
            found = json.loads(lines[0])
            kept = [Result(**json.loads(line)) for line in lines[1:]]
        except (ValueError, TypeError) as error:
            raise EpisodeError(
                f"{path} is no evaluation's ({error}); give another directory with --out"
            ) from error
        differing = [
            f"{key} was {found.get(key)!r}, is now {header.get(key)!r}"
            for key in sorted({*found, *header})
            if found.get(key) != header.get(key)
        ]
        if differing:
            raise EpisodeError(
                f"{path} holds results of another evaluation: {'; '.join(differing)}; give another "
                "directory with --out, or delete it"
            )
        for result in kept:
            self.results.setdefault(result.decoder, {})[result.seed] = result

    def _write(self, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def keep(self, decoder: str, score: Score) -> None:
        """Write one episode down: its actions first, so that a line that is there is complete."""
        path = self._actions_path(decoder, score.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, score.actions)
        result = Result(
            decoder, score.seed, score.max_reward, score.success, score.steps, score.chunks
        )
        self._write(dataclasses.asdict(result))
        self.results.setdefault(decoder, {})[score.seed] = result

    def actions(self, result: Result) -> NDArray[np.float64]:
        """What was executed (n, D) in an episode."""
        actions: NDArray[np.float64] = np.load(self._actions_path(result.decoder, result.seed))
        return actions

    def _actions_path(self, decoder: str, seed: int) -> Path:
        return self.directory / "actions" / decoder / f"{seed}.npy"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
