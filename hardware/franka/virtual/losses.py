"""How many of a client's commands came in time."""

from __future__ import annotations

__all__ = ["LOSSES_MAX", "Losses"]

LOSSES_MAX = 20
"""As many in a row stop a motion."""
WINDOW = 100  # commands that the success rate looks back on


class Losses:
    """Counts of one motion. `total` is the arm's, over all motions."""

    def __init__(self) -> None:
        self.total = 0
        self.begin()

    def begin(self) -> None:
        """A motion begins: nothing has been expected yet."""
        self._received = bytearray(WINDOW)
        self._counted = self._successes = self._in_a_row = 0

    def count(self, received: bool) -> None:
        """One millisecond in which a command was due."""
        slot = self._counted % WINDOW
        self._successes += received - self._received[slot]
        self._received[slot] = received
        self._counted += 1
        self.total += not received
        self._in_a_row = 0 if received else self._in_a_row + 1

    @property
    def too_many(self) -> bool:
        """Whether the last LOSSES_MAX were all lost."""
        return self._in_a_row >= LOSSES_MAX

    @property
    def success_rate(self) -> float:
        """Share of the last hundred (or of all so far) that came in time; 0 before the first."""
        counted = min(self._counted, WINDOW)
        return self._successes / counted if counted else 0.0
