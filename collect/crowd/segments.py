"""Segments of an episode: who says of which rows what they are and how well they were done.

Labels are RoboCrowd's (arXiv 2411.01915): `play`, `tutorial` and `task`, and `task:<name>` for a
subtask of the play's task. Play is always of quality 0, the tutorial 1 or 2, a task 1 to 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import RobotStackError

__all__ = [
    "LABELS",
    "QUALITIES",
    "Labels",
    "Segment",
    "SegmentError",
    "canonical",
    "lines",
    "parse",
    "per_row",
]

LABELS = ("play", "tutorial", "task")
QUALITIES = {"play": (0,), "tutorial": (1, 2), "task": (1, 2, 3)}
UNLABELLED = -1
MAX_SEGMENTS = 500  # of one review; a person sets tens
NUMBER = re.compile("[0-9]{1,9}")
MAX_ROWS = 10_000_000  # more than two days at 50 Hz


class SegmentError(RobotStackError):
    """A segment that can't be: outside the episode, of a label or quality that there isn't."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``first_row`` to ``last_row``, both included."""

    first_row: int
    last_row: int
    label: str
    quality: int


@dataclass(frozen=True, slots=True)
class Labels:
    """What each of T rows is: ``label`` (T,) text, empty where nobody has said; ``quality`` (T,)
    int8, -1 there."""

    label: NDArray[np.str_]
    quality: NDArray[np.int8]


def canonical(
    segments: Iterable[Segment], rows: int, subtasks: Sequence[str] = ()
) -> list[Segment]:
    """The same labels by segments in order that don't overlap or touch with equal content.

    A later segment of the list covers the earlier. SegmentError says what can't be.
    """
    given = list(segments)
    if not 0 <= rows <= MAX_ROWS:
        raise SegmentError(f"{rows} rows; an episode has 0 to {MAX_ROWS}")
    if len(given) > MAX_SEGMENTS:
        raise SegmentError(f"{len(given)} segments; {MAX_SEGMENTS} are the most")
    allowed = (*LABELS, *(f"task:{name}" for name in subtasks))
    kinds: list[tuple[str, int]] = []
    painted = np.full(rows, UNLABELLED, np.int32)
    for segment in given:
        if not 0 <= segment.first_row <= segment.last_row < rows:
            raise SegmentError(
                f"rows {segment.first_row} to {segment.last_row} are not within the episode's "
                f"0 to {rows - 1}"
            )
        if segment.label not in allowed:
            raise SegmentError(f"label {segment.label!r}; there are {', '.join(allowed)}")
        possible = QUALITIES[segment.label.partition(":")[0]]
        if segment.quality not in possible:
            raise SegmentError(
                f"quality {segment.quality} of {segment.label}; it is one of "
                f"{', '.join(map(str, possible))}"
            )
        kind = (segment.label, segment.quality)
        if kind not in kinds:
            kinds.append(kind)
        painted[segment.first_row : segment.last_row + 1] = kinds.index(kind)
    starts = np.flatnonzero(np.diff(painted, prepend=UNLABELLED - 1)).tolist()
    ends = [start - 1 for start in starts[1:]] + [rows - 1] * bool(starts)
    return [
        Segment(start, end, *kinds[painted[start]])
        for start, end in zip(starts, ends, strict=True)
        if painted[start] != UNLABELLED
    ]


def per_row(segments: Iterable[Segment], rows: int) -> Labels:
    """What each row is; of segments that overlap the later one counts."""
    label = np.full(rows, "", np.dtype("<U32"))
    quality = np.full(rows, UNLABELLED, np.int8)
    for segment in segments:
        label[segment.first_row : segment.last_row + 1] = segment.label
        quality[segment.first_row : segment.last_row + 1] = segment.quality
    return Labels(label, quality)


def parse(text: str) -> list[Segment]:
    """Segments of a form: a line each, ``FIRST LAST LABEL QUALITY``. SegmentError."""
    found: list[Segment] = []
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if len(found) >= MAX_SEGMENTS:
            raise SegmentError(f"more than {MAX_SEGMENTS} segments")
        numbers = [word for word in (words[:2] + words[3:]) if NUMBER.fullmatch(word)]
        if len(words) != 4 or len(numbers) != 3:
            raise SegmentError(f"{line[:80]!r}; a line is FIRST LAST LABEL QUALITY: 0 120 play 0")
        found.append(Segment(int(words[0]), int(words[1]), words[2], int(words[3])))
    return found


def lines(segments: Iterable[Segment]) -> str:
    """What ``parse`` reads."""
    return "\n".join(f"{s.first_row} {s.last_row} {s.label} {s.quality}" for s in segments)
