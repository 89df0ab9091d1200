"""A robot arm and its policy runner on a simulated clock, with a link between them that is late.

The arm is the real chunk buffer and SafetyFilter of an ALOHA arm, at 200 Hz; session, decoder and
policy are the real ones. The runner follows the rules of ``collect.rollout``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks._forks import reference
from hardware.aloha.rig import arm_model, build_spec
from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.hosted import Hosted
from policies.interfaces import Decoder
from robot_stack.safety.filter import SafetyFilter
from robot_stack.spec import RobotSpec
from robot_stack.types import ActionChunk, Difference, Source
from server.control.chunk_buffer import ChunkBuffer, Sample

__all__ = ["MS", "SPEC", "TICK_S", "Link", "Log", "roll_out"]

Array = NDArray[np.float64]

SPEC: RobotSpec = build_spec(arm_model("vx300s"))
MS = 1_000_000
TICK_NS = 5 * MS
TICK_S = 0.005
RECENT = 10  # counted delays, of which the largest is the forecast
MARGIN_ROWS = 1
GIVE_UP_NS = 500 * MS
SYNC_LEAD_NS = 20 * MS

Link = Callable[[int, int], int | None]
"""``link(number, now_ns)``: ns from that request to the arrival of its reply, None: it is lost."""


@dataclass(frozen=True, slots=True)
class Log:
    """Per tick: the target that was asked (n, D), NaN for none; what was sent (n, D); the chunk in
    force (n,), -1 for none; whether its rows had run out (n,)."""

    asked: Array
    sent: Array
    chunk: NDArray[np.int64]
    starved: NDArray[np.bool_]

    @property
    def times(self) -> Array:
        """s since the beginning, (n,)."""
        return np.asarray(np.arange(len(self.sent)) * TICK_S)


@dataclass(slots=True)
class _Chunk:
    chunk_id: int
    start_ns: int
    rows: int
    first_row: int = -1  # that the arm actuated, -1 until then


@dataclass(slots=True)
class _Runner:
    """When to ask for a chunk, what to count, what to send to the arm."""

    policy: Hosted
    session: Session
    buffer: ChunkBuffer
    link: Link
    sync: bool
    counts: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT))
    chunk: _Chunk | None = None
    consumed: int = 0
    starved: bool = False
    requests: int = 0
    asked_ns: int | None = None
    coming: tuple[int, ActionChunk] | None = None  # when it arrives, and what

    def turn(self, now_ns: int, sample: Sample, pose: Array) -> None:
        """After a tick of the arm that followed ``sample`` to ``pose`` (D,)."""
        self._count(sample)
        if self.coming is not None and self.coming[0] <= now_ns:
            self._take(self.coming[1], now_ns)
        if self.asked_ns is not None and now_ns - self.asked_ns > GIVE_UP_NS:
            self.asked_ns = self.coming = None
        if self.asked_ns is None and self._due(now_ns):
            self._ask(now_ns, pose)

    @property
    def _forecast(self) -> int:
        return max(self.counts, default=0)

    def _count(self, sample: Sample) -> None:
        chunk = self.chunk
        if chunk is None or sample.chunk_id != chunk.chunk_id:
            return
        self.consumed = sample.index
        self.starved = bool(sample.difference & Difference.STARVED)
        if chunk.first_row < 0:
            chunk.first_row = sample.index
            self.counts.append(sample.index)

    def _due(self, now_ns: int) -> bool:
        chunk, contract = self.chunk, self.policy.contract
        if chunk is None:
            return True
        if self.sync:
            return now_ns >= chunk.start_ns + contract.execute * contract.control_dt_ns
        if chunk.first_row < 0 and now_ns < chunk.start_ns + chunk.rows * contract.control_dt_ns:
            return False  # not in force yet: its own delay is not known
        return self.consumed >= max(1, contract.execute - self._forecast - MARGIN_ROWS)

    def _ask(self, now_ns: int, pose: Array) -> None:
        contract, chunk, consumed = self.policy.contract, self.chunk, 0
        if chunk is not None:
            passed = round((now_ns - chunk.start_ns) / contract.control_dt_ns)
            consumed = chunk.rows if self.starved else min(max(passed, 0), chunk.rows)
        step = self.session.begin(
            -1 if chunk is None else chunk.chunk_id, consumed, 0 if self.sync else self._forecast
        )
        observed = np.append(pose, now_ns * 1e-9).astype(np.float32)
        states = np.repeat(observed[None], contract.observations, axis=0)
        ((chunk_id, rows),) = decode(self.policy, [Request(self.session, step, states)])
        delay_ns = self.link(self.requests, now_ns)
        self.requests += 1
        self.asked_ns = now_ns
        if delay_ns is not None:
            dt_ns = contract.control_dt_ns
            answer = ActionChunk(now_ns, now_ns, dt_ns, rows, Source.POLICY, 1, chunk_id)
            self.coming = now_ns + delay_ns, answer

    def _take(self, chunk: ActionChunk, now_ns: int) -> None:
        self.asked_ns = self.coming = None
        if self.sync:
            rows = chunk.actions[: self.policy.contract.execute]
            chunk = replace(chunk, start_t_ns=now_ns + SYNC_LEAD_NS, actions=rows)
        self.buffer.put_chunk(chunk)
        self.chunk = _Chunk(chunk.chunk_id, chunk.start_t_ns, len(chunk.actions))
        self.consumed, self.starved = 0, False


def roll_out(
    policy: Hosted, decoder: Decoder, link: Link, *, seed: int, seconds: float, sync: bool = False
) -> Log:
    """One run of the arm from the reference's first pose. With ``sync`` it waits for each chunk."""
    safety = SafetyFilter(SPEC, TICK_S)
    safety.reset(reference(0.0))
    buffer = ChunkBuffer(SPEC.dof)
    runner = _Runner(policy, Session(decoder, policy, seed), buffer, link, sync)
    ticks = round(seconds / TICK_S)
    asked, sent = np.full((ticks, SPEC.dof), math.nan), np.empty((ticks, SPEC.dof))
    chunk, starved = np.empty(ticks, dtype=np.int64), np.empty(ticks, dtype=np.bool_)
    for i in range(ticks):
        sample = buffer.target(i * TICK_NS)
        if sample.target is not None:
            asked[i] = sample.target
        sent[i] = safety.step(sample.target, TICK_S).sent
        chunk[i] = sample.chunk_id
        starved[i] = bool(sample.difference & (Difference.STARVED | Difference.STALE))
        runner.turn(i * TICK_NS, sample, sent[i])
    return Log(asked, sent, chunk, starved)
