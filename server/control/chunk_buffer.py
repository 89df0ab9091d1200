"""The chunk buffer: immediate targets and action chunks in, the target of this very moment out.

One plan of timed rows. A chunk replaces the plan from its first row on; what has passed is dropped.
An immediate target replaces it all. Between rows the target follows a monotone cubic (tangents of
Fritsch and Butland 1984), so it never leaves the range of the two rows beside it. Through the
SafetyFilter, 25 Hz rows of a smooth motion come out at 500 Hz with a fifth of the jerk that
straight lines leave, and meet the acceleration limit a third as often. Poses go the same way, their
quaternions the short way round and at length one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from robot_stack.types import ActionChunk, CommandMode, Difference

from .poses import aligned, are_poses, normalize

__all__ = ["ChunkBuffer", "Sample"]

Array = NDArray[np.float64]

# A stream of at least this many of the loop's periods is interpolated; a faster one passes through.
PASS_THROUGH = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The target (D,) of a moment, None to decelerate and hold; where it came from.

    ``chunk_id`` and ``index`` name the chunk's row that is in force, -1 for immediate targets;
    ``observation_t_ns`` is when what the chunk answers was captured, -1 when unknown; ``mode`` is
    what the target's numbers are.
    """

    target: Array | None
    chunk_id: int
    index: int
    difference: Difference
    observation_t_ns: int = -1
    mode: CommandMode = CommandMode.JOINT_POSITION


@dataclass(frozen=True, slots=True)
class _Row:
    t_ns: int
    target: Array
    chunk_id: int = -1
    index: int = -1
    observation_t_ns: int = -1
    mode: CommandMode = CommandMode.JOINT_POSITION

    def sample(self, target: Array, difference: Difference) -> Sample:
        return Sample(
            target, self.chunk_id, self.index, difference, self.observation_t_ns, self.mode
        )


NOTHING_YET = Sample(None, -1, -1, Difference.NONE)
STALE = Sample(None, -1, -1, Difference.STALE)


class ChunkBuffer:
    """What one robot of ``dof`` joints is asked to do, over time (monotonic ns).

    Immediate targets: a stream as fast as the loop passes unchanged. A slower one is followed on
    a straight line from the present output to the newest target, over the stream's own period (the
    shorter of the last two intervals); the line begins in the tick that sees the target.

    Late commands: from one row's time after a chunk's last row on, that row is held (STARVED);
    ``stale_s`` later, or ``stale_s`` after the newest immediate target was made, there is no target
    (STALE). A chunk that comes when all of it has passed is ignored. A malformed command changes
    nothing and marks the next sample INVALID. Nothing lies between a row of joints and a pose: the
    first is held until the other's time.
    """

    def __init__(self, dof: int, *, stale_s: float = 0.1) -> None:
        if not stale_s > 0:
            raise ValueError(f"stale_s is {stale_s}; it must be a positive time in seconds")
        self._dof = dof
        self._stale_ns = round(stale_s * 1e9)
        self._last_ns: int | None = None
        self.clear()

    def clear(self) -> None:
        """Forget every command."""
        self._new: list[_Row | ActionChunk] = []
        self._invalid = False
        self._rows: list[_Row] = []
        self._expires_ns = 0  # of the rows: STALE after this
        self._starves_ns: int | None = None  # None while streaming
        self._made_ns: list[int] = []  # of the last three immediate targets
        self._cubic: tuple[_Row, float, Array, Array, Array] | None = None

    def put_target(
        self, t_ns: int, target: Array, mode: CommandMode = CommandMode.JOINT_POSITION
    ) -> None:
        """One immediate target (D,), made at ``t_ns``: it replaces all that was planned."""
        if target.shape != (self._dof,) or not _sound(target[None], mode):
            self._invalid = True
            return
        self._new.append(_Row(t_ns, target, mode=mode))

    def put_chunk(self, chunk: ActionChunk) -> None:
        """Rows for ``start_t_ns + i * dt_ns``: they replace what was planned from the first on."""
        rows = chunk.actions
        if (
            rows.ndim != 2
            or not len(rows)
            or rows.shape[1] != self._dof
            or chunk.dt_ns <= 0
            or not _sound(rows, chunk.mode)
        ):
            self._invalid = True
            return
        self._new.append(chunk)

    def target(self, now_ns: int) -> Sample:
        """The target of this tick; ``now_ns`` grows from call to call."""
        tick_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        self._last_ns = now_ns
        for command in self._new:
            if isinstance(command, _Row):
                self._take_target(command, now_ns, tick_ns)
            else:
                self._take_chunk(command, now_ns)
        self._new.clear()
        sample = self._sample(now_ns)
        if self._invalid:
            self._invalid = False
            return replace(sample, difference=sample.difference | Difference.INVALID)
        return sample

    # -- commands ----------------------------------------------------------------------------

    def _take_target(self, row: _Row, now_ns: int, tick_ns: int) -> None:
        last = self._sample(now_ns - tick_ns)  # the last output, unless a plan intervened
        before = last.target if last.mode is row.mode else None
        made_ns = min(row.t_ns, now_ns)  # a clock that runs ahead must not put off staleness
        self._made_ns = [*self._made_ns[-2:], made_ns] if self._starves_ns is None else [made_ns]
        period_ns = min(np.diff(self._made_ns).tolist(), default=0)
        self._starves_ns = None
        self._expires_ns = made_ns + self._stale_ns
        if before is None or not PASS_THROUGH * tick_ns <= period_ns <= self._stale_ns:
            self._plan([replace(row, t_ns=now_ns)])
            return
        begin_ns = now_ns - tick_ns  # so that this tick's output moves already
        self._plan(
            [replace(row, t_ns=begin_ns, target=before), replace(row, t_ns=begin_ns + period_ns)]
        )

    def _take_chunk(self, chunk: ActionChunk, now_ns: int) -> None:
        start_ns, dt_ns, count = chunk.start_t_ns, chunk.dt_ns, len(chunk.actions)
        if now_ns >= start_ns + count * dt_ns:
            return
        before = self._before(start_ns, start_ns - dt_ns, now_ns) if start_ns > now_ns else []
        first = max(0, (now_ns - start_ns) // dt_ns - 1)  # one more, for the tangent
        rows = [
            _Row(
                start_ns + i * dt_ns,
                chunk.actions[i],
                chunk.chunk_id,
                i,
                chunk.observation_t_ns,
                chunk.mode,
            )
            for i in range(first, count)
        ]
        self._plan(before + rows)
        self._made_ns = []
        self._starves_ns = start_ns + count * dt_ns
        self._expires_ns = self._starves_ns + self._stale_ns

    def _before(self, start_ns: int, meet_ns: int, now_ns: int) -> list[_Row]:
        """What remains of the plan until a chunk starts. Where it ends before, its last target is
        held until ``meet_ns``, to meet the chunk within one row's time."""
        rows = self._rows[: bisect_left(self._rows, start_ns, key=_time)]
        ahead = bisect_right(rows, now_ns, key=_time)
        now = self._sample(now_ns)
        if now.target is None:
            rows = rows[ahead:]
        elif ahead == len(rows):
            rows = [
                _Row(now_ns, now.target, now.chunk_id, now.index, now.observation_t_ns, now.mode)
            ]
        if rows and rows[-1].t_ns < meet_ns:
            rows.append(replace(rows[-1], t_ns=meet_ns))
        return rows

    def _plan(self, rows: list[_Row]) -> None:
        if any(row.mode is CommandMode.EE_POSE for row in rows):
            rows = _smooth(rows)
        self._rows = rows
        self._cubic = None

    # -- sampling ----------------------------------------------------------------------------

    def _sample(self, now_ns: int) -> Sample:
        if not self._rows or now_ns > self._expires_ns:
            return STALE
        following = bisect_right(self._rows, now_ns, key=_time)
        if following == 0:
            early_ns = self._rows[0].t_ns - now_ns
            return NOTHING_YET if early_ns <= self._stale_ns else STALE
        row = self._rows[following - 1]
        if following == len(self._rows):
            starved = self._starves_ns is not None and now_ns >= self._starves_ns
            difference = Difference.STARVED if starved else Difference.NONE
            return row.sample(row.target, difference)
        if row.mode is not self._rows[following].mode:
            return row.sample(row.target, Difference.NONE)
        between = self._between(following, now_ns)
        if row.mode is CommandMode.EE_POSE:
            normalize(between)
        return row.sample(between, Difference.NONE)

    def _between(self, following: int, now_ns: int) -> Array:
        """The cubic between row ``following - 1`` and ``following``."""
        row = self._rows[following - 1]
        if self._cubic is None or self._cubic[0] is not row:
            self._cubic = self._cubic_after(following)
        _, span_ns, linear, square, cube = self._cubic
        s = (now_ns - row.t_ns) / span_ns
        return np.asarray(row.target + s * (linear + s * (square + s * cube)))

    def _cubic_after(self, following: int) -> tuple[_Row, float, Array, Array, Array]:
        row, upcoming = self._rows[following - 1], self._rows[following]
        span_ns = float(upcoming.t_ns - row.t_ns)
        rise = upcoming.target - row.target
        tangents = []
        for at in (following - 1, following):
            around = self._rows[max(at - 1, 0) : at + 2]
            if len(around) < 3 or any(beside.mode is not row.mode for beside in around):
                tangents.append(rise)
                continue
            left, middle, right = around
            before = (middle.target - left.target) / (middle.t_ns - left.t_ns)
            after = (right.target - middle.target) / (right.t_ns - middle.t_ns)
            same = before * after > 0.0
            mean = np.divide(2.0 * before * after, before + after, np.zeros(self._dof), where=same)
            tangents.append(mean * span_ns)
        begin, end = tangents
        return row, span_ns, begin, 3.0 * rise - 2.0 * begin - end, begin + end - 2.0 * rise


def _sound(rows: Array, mode: CommandMode) -> bool:
    """Whether rows (H, D) are what ``mode`` says."""
    return bool(np.isfinite(rows).all()) and (mode is not CommandMode.EE_POSE or are_poses(rows))


def _smooth(rows: list[_Row]) -> list[_Row]:
    """Rows whose poses have quaternions of length one, each with the sign of its predecessor."""
    smooth: list[_Row] = []
    for row in rows:
        if row.mode is not CommandMode.EE_POSE:
            smooth.append(row)
            continue
        before = smooth[-1].target if smooth and smooth[-1].mode is row.mode else None
        smooth.append(replace(row, target=aligned(row.target, before)))
    return smooth


def _time(row: _Row) -> int:
    return row.t_ns
