"""A session: the chunks one robot has been sent, and how they line up with the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.hosted import Hosted
from policies.interfaces import Array, Decoder, Step

__all__ = ["Session"]


@dataclass(frozen=True, slots=True)
class _Remembered:
    chunk: Array
    previous: int
    consumed: int


class Session:
    """Decodes for one robot. Not thread-safe: begin, finish and reset from one thread.

    A chunk may be finished and never executed (its reply was lost or superseded). So the client
    says which chunk it executes, and the priors of a step are that one and those it followed.
    """

    def __init__(self, decoder: Decoder, hosted: Hosted, seed: int) -> None:
        self.decoder = decoder
        self._contract = hosted.contract
        self._rng = np.random.default_rng(seed)
        self._history: dict[int, _Remembered] = {}
        self._next_id = 0

    def begin(self, previous_chunk: int, consumed: int, delay: int) -> Step:
        """What is known when a chunk is requested.

        ``previous_chunk`` is the id of the chunk that is being executed; with -1 or an id that is
        unknown (from before a reset, or too old) there are no priors. ``consumed`` is how many of
        its rows, counted from its first emitted one, had passed when the new observation was
        captured; ``delay`` is how many more will have passed when the reply arrives: the forecast.
        Neither is trusted to be small.
        """
        if consumed < 0 or delay < 0:
            raise ValueError(f"consumed is {consumed} and delay {delay}; rows are counted from 0")
        if previous_chunk not in self._history:
            return Step((), delay, self._rng)
        priors: list[Array] = []
        shift, chunk_id = consumed, previous_chunk
        # As long as a row remains for the newest observation's moment or later.
        while shift < self._contract.rows and chunk_id in self._history:
            remembered = self._history[chunk_id]
            priors.append(remembered.chunk[shift:])
            shift += remembered.consumed
            chunk_id = remembered.previous
        return Step(tuple(priors), delay, self._rng, previous_chunk, consumed)

    def finish(self, step: Step, strong: Array, weak: Array) -> tuple[int, NDArray[np.float64]]:
        """The id and rows (H, D) to send, of strong (n, Tp, D) and weak (m, Tp, D) samples."""
        contract = self._contract
        chosen = np.array(
            self.decoder.choose(step, strong, weak, contract), dtype=np.float32, order="C"
        )
        chosen.flags.writeable = False
        rows = np.array(self.decoder.emit(step, chosen, contract), dtype=np.float64)
        chunk_id, self._next_id = self._next_id, self._next_id + 1
        self._history[chunk_id] = _Remembered(chosen, step.previous, step.consumed)
        # Twice what can overlap if each request consumes a row, for those never executed.
        while len(self._history) > 2 * contract.horizon:
            del self._history[next(iter(self._history))]
        return chunk_id, rows

    def reset(self) -> None:
        """Forget all chunks, as after an episode's end or a takeover. Ids go on."""
        self._history.clear()
