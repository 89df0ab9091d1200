"""What can go wrong between a computer and its Franka, by order and repeatable from a seed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

__all__ = ["Faults"]


class Faults:
    """Faults of one arm's wire. Times count the robot's milliseconds.

    `lost_commands` and `lost_states` are probabilities per datagram (0..1); `delay_ms` and up to
    `jitter_ms` more hold every state back; `stall(ms)` takes the network away in both directions
    for that long. `version` is what the server claims to be when a client connects (None: the
    truth). `gripper_hangs`: the gripper takes commands and answers none.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._held: deque[tuple[int, int, bytes]] = deque()
        self._silent_until = 0
        self.calm()

    def calm(self) -> None:
        """No more faults; what is on its way still arrives."""
        self.lost_commands = 0.0
        self.lost_states = 0.0
        self.lose_next = 0
        self.delay_ms = 0
        self.jitter_ms = 0
        self.version: int | None = None
        self.gripper_hangs = False
        self._silent_until = 0

    def reseed(self, seed: int) -> None:
        """Start the same sequence of faults again."""
        self._random.seed(seed)

    def stall(self, now: int, ms: int) -> None:
        """Nothing passes, either way, until millisecond `now + ms`."""
        self._silent_until = now + ms

    def command_passes(self, now: int) -> bool:
        """Whether the network brings a client's command to the robot."""
        if now < self._silent_until:
            return False
        if self.lose_next > 0:
            self.lose_next -= 1
            return False
        return not (self.lost_commands and self._random.random() < self.lost_commands)

    def states(
        self, now: int, message_id: int, state: bytearray
    ) -> Iterator[tuple[int, bytes | bytearray]]:
        """The datagrams, with their ids, that reach the client in millisecond `now`, after the
        robot has sent `state`.

        Delayed ones keep their order, as on a wire.
        """
        if now >= self._silent_until and not (
            self.lost_states and self._random.random() < self.lost_states
        ):
            jitter = self._random.randint(0, self.jitter_ms) if self.jitter_ms else 0
            wait = self.delay_ms + jitter
            if not wait and not self._held:
                yield message_id, state
                return
            self._held.append((now + wait, message_id, bytes(state)))
        while self._held and self._held[0][0] <= now:
            _, number, held = self._held.popleft()
            yield number, held
