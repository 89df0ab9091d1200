"""What a run writes down: `log.jsonl` (one JSON object a line) and TensorBoard scalars."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["RunLog", "read_log"]

NAME = "log.jsonl"


class RunLog:
    """Appends to the log of a run. ``keep`` is how many bytes of an older log belong to the state
    that the run is resumed from: what a killed run wrote after it is dropped, and written again."""

    def __init__(self, directory: Path, keep: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / NAME).open("ab")
        self._file.truncate(keep)
        self._file.seek(keep)
        self._board = SummaryWriter(directory / "tensorboard", purge_step=step or None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars after ``step`` steps, under names such as ``train/loss``."""
        line = json.dumps({"step": step, **values})
        self._file.write(line.encode() + b"\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> int:
        """Hand everything to the kernel; how many bytes the log has."""
        self._file.flush()
        self._board.flush()
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's log; a line that a kill cut short is left out."""
    path = directory / NAME
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
