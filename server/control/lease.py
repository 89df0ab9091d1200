"""Leases: who may move a group, with a fencing token, an expiry and an order of takeover."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from robot_stack.errors import LeaseError
from robot_stack.records import LEASE, lease_path, mailbox_path
from robot_stack.shared_memory import RingWriter, runtime_dir
from robot_stack.types import Source

__all__ = ["PRIORITY", "Lease", "LeaseTable"]

# A holder yields only to a strictly higher priority. Stops need no lease at all.
PRIORITY: dict[Source, int] = {
    Source.POLICY: 1,
    Source.RESIDUAL: 1,
    Source.REPLAY: 1,
    Source.SCRIPTED: 1,
    Source.DEMO: 2,
    Source.HUMAN: 2,
    Source.SUPERVISOR: 3,
}
MAX_TTL_S = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """One grant; ``priority`` follows from its source."""

    group: str
    holder: str
    token: int
    priority: int
    ttl_s: float
    expires_t_ns: int


class LeaseTable:
    """The leases of a station's groups, published in one block a group that the arms read."""

    def __init__(self, station: str, groups: list[str]) -> None:
        self.station = station
        self._writers = {
            group: RingWriter(lease_path(station, group), LEASE, 4) for group in groups
        }
        self._leases: dict[str, Lease] = {}
        # Tokens grow across restarts of the supervisor because the monotonic clock does.
        self._last_token = time.monotonic_ns() // 1000
        for group in groups:
            self._publish(group)

    def holder(self, group: str) -> Lease | None:
        """The lease in force, None when free or expired."""
        lease = self._leases.get(group)
        if lease is not None and time.monotonic_ns() > lease.expires_t_ns:
            del self._leases[group]
            self._publish(group)
            return None
        return lease

    def acquire(self, group: str, holder: str, source: Source, ttl_s: float) -> Lease:
        """Grant ``group``; LeaseError when a holder of the same or a higher priority has it."""
        priority = PRIORITY.get(source)
        if priority is None:
            raise LeaseError(f"source {source.name} may not hold a lease")
        if not 0.1 <= ttl_s <= MAX_TTL_S:
            raise LeaseError(f"ttl_s {ttl_s} is out of range, allowed 0.1..{MAX_TTL_S:g}")
        current = self.holder(group)
        if current is not None and current.priority >= priority:
            left = (current.expires_t_ns - time.monotonic_ns()) / 1e9
            raise LeaseError(
                f"group {group!r} is held by {current.holder!r} (priority {current.priority}, "
                f"yours {priority}) for {left:.1f} s more unless renewed; end that program first"
            )
        self._last_token = max(self._last_token + 1, time.monotonic_ns() // 1000)
        for stale in runtime_dir(self.station).glob(f"mailbox.{group}.*"):
            stale.unlink(missing_ok=True)
        holder = holder.encode(errors="replace")[:64].decode(errors="ignore")
        lease = Lease(
            group,
            holder,
            self._last_token,
            priority,
            ttl_s,
            time.monotonic_ns() + int(ttl_s * 1e9),
        )
        self._leases[group] = lease
        self._publish(group)
        return lease

    def renew(self, group: str, token: int) -> None:
        """Extend a lease; LeaseError when the token is not (or no longer) the group's."""
        lease = self.holder(group)
        if lease is None or lease.token != token:
            raise LeaseError(self._lost(group, lease))
        expires = time.monotonic_ns() + int(lease.ttl_s * 1e9)
        self._leases[group] = Lease(
            group, lease.holder, token, lease.priority, lease.ttl_s, expires
        )
        self._publish(group)

    def release(self, group: str, token: int) -> None:
        """Give a lease back. Releasing one that is already lost is no error."""
        lease = self.holder(group)
        if lease is not None and lease.token == token:
            del self._leases[group]
            self._publish(group)
            mailbox_path(self.station, group, token).unlink(missing_ok=True)

    def _lost(self, group: str, lease: Lease | None) -> str:
        if lease is None:
            return f"the lease of group {group!r} has expired or was never granted; acquire it anew"
        return f"group {group!r} was taken over by {lease.holder!r}"

    def _publish(self, group: str) -> None:
        lease = self._leases.get(group)
        record = np.zeros((), LEASE)
        record["token"] = -1 if lease is None else lease.token
        if lease is not None:
            record["expires_t_ns"] = lease.expires_t_ns
            record["priority"] = lease.priority
            record["holder"] = lease.holder.encode()[:64]
        self._writers[group].publish(record)

    def close(self) -> None:
        """Free every group, so that the arms hold at once, and let go of the blocks."""
        self._leases.clear()
        for group in self._writers:
            self._publish(group)
        for writer in self._writers.values():
            writer.close()
