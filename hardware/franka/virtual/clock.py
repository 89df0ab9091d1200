"""When a virtual arm's next millisecond may begin.

A real robot's clock never stops; this one belongs to a process that the kernel may leave asleep.
Such an oversleep is never billed to the client: a command is missed only after a whole millisecond
since its state was really sent. An answered state needs no such wait, so that lost time is made up
at the client's own speed, up to BEHIND_MAX_NS; what is beyond that is gone, and the robot's time
(which is what the client measures by) has run slower for a moment.

In lock-step the next millisecond comes when the client has answered, however long that takes up to
PATIENCE_NS: what a test then sees does not depend on how busy the machine is.
"""

from __future__ import annotations

__all__ = ["PERIOD_NS", "Clock"]

PERIOD_NS = 1_000_000
BEHIND_MAX_NS = 20 * PERIOD_NS
PATIENCE_NS = 2000 * PERIOD_NS


class Clock:
    """Deadlines of the milliseconds. All times are time.monotonic_ns()."""

    def __init__(self, now_ns: int, *, lock_step: bool = False) -> None:
        self.lock_step = lock_step
        self.skipped_ns = 0  # lost for good
        self.longest_gap_ns = 0  # between two states
        self._deadline_ns = now_ns
        self._sent_ns = now_ns

    def due_ns(self, *, awaiting: bool) -> int:
        """When the next millisecond begins, if the client still owes an answer (`awaiting`) and
        does not send it before; no earlier than its own deadline."""
        if not awaiting:
            return self._deadline_ns
        patience = PATIENCE_NS if self.lock_step else PERIOD_NS
        return max(self._deadline_ns, self._sent_ns + patience)

    def restart(self, now_ns: int) -> None:
        """The robot's time stood still; from now on it runs."""
        self._deadline_ns = self._sent_ns = now_ns

    def sent(self, now_ns: int) -> None:
        """The state of this millisecond left at `now_ns`; the next one is due a period later."""
        self.longest_gap_ns = max(self.longest_gap_ns, now_ns - self._sent_ns)
        self._sent_ns = now_ns
        self._deadline_ns += PERIOD_NS
        behind = now_ns - self._deadline_ns
        if behind > BEHIND_MAX_NS or (self.lock_step and behind > 0):
            self.skipped_ns += behind
            self._deadline_ns = now_ns
