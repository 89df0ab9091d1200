"""Windows over episodes: To observations and Tp actions around each moment, padded at both ends.

As published (Chi et al. 2023, ``SequenceSampler``): a window may begin To - 1 rows before an
episode and reach past its end; the first and last rows are repeated there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from policies.batch import Batch
from policies.training.demonstrations import Demonstration
from robot_stack.errors import EpisodeError

__all__ = ["Windows", "stream"]

# Rows (N,) of all episodes, one after the other -> uint8 (N, H, W, 3).
Pixels = Callable[[NDArray[np.int64]], torch.Tensor]


class Windows:
    """Every window of some episodes, in memory but for the frames, which come through ``images``:
    for each camera a function from rows of the episodes, put one after the other, to pixels."""

    def __init__(
        self,
        episodes: Sequence[Demonstration],
        *,
        observations: int,
        horizon: int,
        first_action: int,
        pad_after: int,
        images: Mapping[str, Pixels] | None = None,
    ) -> None:
        if not episodes:
            raise EpisodeError("windows need at least one episode")
        self.state = torch.from_numpy(np.concatenate([one.state for one in episodes]))
        self.action = torch.from_numpy(np.concatenate([one.action for one in episodes]))
        self.images = dict(images or {})
        lengths = np.array([len(one) for one in episodes])
        begins = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        moments, low, high = [], [], []
        for begin, length in zip(begins, lengths, strict=True):
            # The newest observation of a window; its last action is at most pad_after past the end.
            last = min(length - 1, length - 1 + pad_after - (horizon - 1 - first_action))
            count = max(int(last) + 1, 1)
            moments.append(begin + np.arange(count))
            low.append(np.full(count, begin))
            high.append(np.full(count, begin + length - 1))
        self._moment = torch.from_numpy(np.concatenate(moments))
        self._low = torch.from_numpy(np.concatenate(low))
        self._high = torch.from_numpy(np.concatenate(high))
        self._past = torch.arange(1 - observations, 1)
        self._chunk = torch.arange(horizon) - first_action

    def __len__(self) -> int:
        return len(self._moment)

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The windows ``index`` (B,)."""
        which = torch.from_numpy(index)
        low, high = self._low[which, None], self._high[which, None]
        moment = self._moment[which, None]
        seen = (moment + self._past).clamp(low, high)
        asked = moment + self._chunk
        return Batch(
            state=self.state[seen],
            images={
                name: _shaped(pixels(seen.flatten().numpy()), seen.shape)
                for name, pixels in self.images.items()
            },
            action=self.action[asked.clamp(low, high)],
            mask=(asked >= low) & (asked <= high),
        )


def _shaped(frames: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return frames.reshape(*shape, *frames.shape[1:])


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def stream(count: int, batch: int, step: int, seed: int) -> NDArray[np.int64]:
    """Which of ``count`` windows are in the batch of ``step`` (from 0).

    Endless shuffled epochs, one after the other; a batch may span two. A pure function, so that a
    resumed run goes on where it was without keeping a sampler's state.
    """
    position = np.arange(step * batch, (step + 1) * batch)
    epochs = position // count
    found = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        order = _shuffled(count, seed, int(epoch))
        inside = epochs == epoch
        found[inside] = order[position[inside] % count]
    return found
