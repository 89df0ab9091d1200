"""A file of one JSON object a line that survives being killed; its first line says what of."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robot_stack.errors import EpisodeError

__all__ = ["JsonLines"]


class JsonLines:
    """Open to append, by one writer at a time; ``lines`` are those that were there after the first.

    A last line that was being written when the writer was killed is taken off. EpisodeError when
    the file begins with another ``header`` (in what they differ), is none of ours, or is being
    written by somebody else.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.lines = self._read(header)
        except BlockingIOError as error:
            self._file.close()
            raise EpisodeError(
                f"another evaluation writes into {path.parent}; wait for it or give another --out"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def _read(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.ftruncate(self._file.fileno(), len(whole))
        if not whole:
            self.append(header)
            return []
        try:
            found, *lines = [dict(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            raise EpisodeError(
                f"{self.path} is no evaluation's ({error}); give another directory with --out"
            ) from error
        differing = [
            f"{key} was {found.get(key)!r}, is now {header.get(key)!r}"
            for key in sorted({*found, *header})
            if found.get(key) != header.get(key)
        ]
        if differing:
            raise EpisodeError(
                f"{self.path} holds results of another evaluation: {'; '.join(differing)}; give "
                "another directory with --out, or delete it"
            )
        return lines

    def append(self, values: Mapping[str, Any]) -> None:
        """Write one line, out of this process's hands when it returns."""
        self._file.write(json.dumps(values, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Let another writer have it."""
        self._file.close()
