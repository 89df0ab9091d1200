"""Episodes in lockstep: many worlds, each with a session of its own, and one call to decode them.

Each episode is run as by a runner that waits for its policy: observe, decode, execute a fixed
number of rows, and name that chunk and that number with the next observation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collect.evaluation.disturbance import StochasticActions
from collect.evaluation.world import World, action_columns, check_fit, state_columns
from policies.decoding.batch import Request, decode
from policies.decoding.session import Session
from policies.decoding.table import check
from policies.hosted import Hosted
from policies.interfaces import Decoder
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError

__all__ = ["Score", "rollouts"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """What became of one episode: ``actions`` (n, D) are those that were executed."""

    seed: int
    max_reward: float
    success: bool
    chunks: int
    actions: Array

    @property
    def steps(self) -> int:
        return len(self.actions)


def rollouts(
    hosted: Hosted,
    decoder: Decoder,
    worlds: Sequence[World],
    seeds: Iterable[int],
    *,
    execute: int | None = None,
    noise: float = 0.0,
    progress: Callable[[int], None] = lambda steps: None,
) -> Iterator[Score]:
    """One score a seed, as the episodes end. As many run at a time as there are ``worlds``.

    ``execute`` (Ta) rows of each chunk, the contract's by default; ``noise`` is the sigma of
    ``StochasticActions``. ``progress`` is told after each round how many control steps were done
    or, by an early success, spared: in all ``world.steps`` an episode. A seed's episode does not
    depend on which others run (beyond rounding in the model), and decoders meet the same initial
    states and noise factors. PolicyError when decoder, policy and world do not fit, or the policy
    answers what is not finite.
    """
    contract = hosted.contract
    rows = contract.execute if execute is None else execute
    if not 1 <= rows <= contract.rows:
        raise PolicyError(
            f"execute is {rows} rows; chunks of policy {contract.name} have 1..{contract.rows}"
        )
    check(decoder, hosted)
    for world in worlds[:1]:
        check_fit(contract, world)
    waiting = iter(seeds)
    idle = list(worlds)
    running: list[_Episode] = []
    while True:
        while idle and (seed := next(waiting, None)) is not None:
            session = Session(decoder, hosted, seed)
            running.append(_Episode(idle.pop(), contract, session, seed, noise))
        if not running:
            return
        answers = decode(hosted, [episode.request() for episode in running])
        before = sum(episode.left for episode in running)
        for episode, (chunk_id, chunk) in zip(running, answers, strict=True):
            episode.execute(chunk_id, chunk, rows)
        progress(before - sum(episode.left for episode in running))
        ended = [episode for episode in running if not episode.left]
        running = [episode for episode in running if episode.left]
        for episode in ended:
            idle.append(episode.world)
            yield episode.score()


class _Episode:
    """One world from its reset to its end."""

    def __init__(
        self, world: World, contract: PolicyContract, session: Session, seed: int, noise: float
    ) -> None:
        self.world = world
        self._contract = contract
        self._session = session
        self._seed = seed
        # Not the session's generator: decoders draw from that one as many numbers as they like.
        rng = np.random.default_rng([seed, 1])
        self._disturbance = StochasticActions(noise, rng) if noise else None
        self._columns = state_columns(contract, world)
        self._order = action_columns(contract, world)
        self._states: deque[Array] = deque(maxlen=contract.observations)
        self._frames: dict[str, deque[NDArray[np.uint8]]] = {
            camera.name: deque(maxlen=contract.observations) for camera in contract.cameras
        }
        self._chunk, self._consumed = -1, 0
        self._chunks = 0
        self._actions: list[Array] = []
        self.left = world.steps
        world.reset(seed)
        self._max_reward = 0.0
        for _ in range(contract.observations):
            self._observe()

    def _observe(self) -> None:
        self._states.append(self.world.observe()[self._columns])
        for camera in self._contract.cameras:
            self._frames[camera.name].append(self.world.image(camera))

    def request(self) -> Request:
        """What to ask the policy now."""
        step = self._session.begin(self._chunk, self._consumed, 0)
        frames = {name: np.stack(frames) for name, frames in self._frames.items()}
        return Request(self._session, step, np.stack(self._states).astype(np.float32), frames)

    def execute(self, chunk_id: int, chunk: Array, rows: int) -> None:
        """Execute the first ``rows`` of a chunk (H, D), or as many as the episode has left."""
        if not np.isfinite(chunk).all():
            raise PolicyError(
                f"policy {self._contract.name} answered what is not finite in the episode of seed "
                f"{self._seed}, step {len(self._actions)}; look at how its training went"
            )
        self._chunk, self._consumed = chunk_id, rows
        self._chunks += 1
        if self._disturbance is not None:
            chunk = chunk + self._disturbance.of(self._steps_to(chunk_id, chunk))
        rows = min(rows, self.left)
        for row in range(rows):
            action = chunk[row][self._order]
            self.world.step(action)
            self._actions.append(action)
            self._max_reward = max(self._max_reward, self.world.reward)
            self.left -= 1
            if self.world.success:
                self.left = 0
                return
            if rows - row <= self._contract.observations:
                self._observe()

    def _steps_to(self, chunk_id: int, chunk: Array) -> Array:
        """The steps (H, D) that lead to each row. What the chosen chunk says of the moment before
        is the first one's origin; a policy that does not predict the past is taken to rest."""
        first = self._contract.first_action
        steps = np.diff(chunk, axis=0, prepend=chunk[:1])
        if first:
            chosen = self._session.begin(chunk_id, 0, 0).priors[0]
            steps[0] = chosen[first] - chosen[first - 1]
        return steps

    def score(self) -> Score:
        """What became of it."""
        actions = np.array(self._actions)
        return Score(self._seed, self._max_reward, self.world.success, self._chunks, actions)
