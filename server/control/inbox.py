"""An arm process's view of the lease and of the mailbox that it names: commands in, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_stack.errors import SharedMemoryError
from robot_stack.records import command_record, lease_path, mailbox_path
from robot_stack.shared_memory import Ring
from robot_stack.types import ActionChunk, CommandMode, Difference, Source

from .chunk_buffer import ChunkBuffer
from .poses import are_poses

__all__ = ["Inbox"]

NEVER = -(2**62)
FUTURE_NS = 1_000_000_000  # a command from farther ahead than this is refused


class Inbox:
    """Follows the group's lease block and the holder's mailbox into a chunk buffer.

    ``poll`` costs two seqlock reads a tick when nothing is new. A command that carries another
    token than the lease's, a time in the future or before its predecessor's, a number that is not
    finite, or poses when the robot takes none (``poses``) is refused: it leaves the buffer as it
    was and its reason in ``refused``.
    """

    def __init__(
        self, station: str, group: str, columns: slice, buffer: ChunkBuffer, *, poses: bool = False
    ) -> None:
        self.station = station
        self.group = group
        self.columns = columns
        self.buffer = buffer
        self.poses = poses
        self.token = -1
        self.source = Source.NONE
        self.seq = -1
        self.command_t_ns = -1
        self.refused = Difference.NONE
        self._lease: Ring | None = None
        self._mailbox: Ring | None = None
        self._next = 0
        self._newest_t_ns = NEVER

    def poll(self, now_ns: int) -> bool:
        """Take up what is new; True when a lease is in force."""
        self.refused = Difference.NONE
        token = self._lease_token(now_ns)
        if token != self.token:
            self._follow(token)
        if token < 0:
            return False
        mailbox = self._open_mailbox()
        if mailbox is not None and mailbox.count > self._next:
            first, records = mailbox.since(self._next)
            self._next = first + len(records)
            for record in records:
                self._take(record, now_ns)
        return True

    def _lease_token(self, now_ns: int) -> int:
        try:
            if self._lease is None:
                self._lease = Ring(lease_path(self.station, self.group))
            elif self._lease.closed:
                self._lease.reopen()
            latest = self._lease.latest()
        except SharedMemoryError:  # no supervisor has run yet: nobody may command
            return -1
        if latest is None or now_ns > int(latest[1]["expires_t_ns"]):
            return -1
        return int(latest[1]["token"])

    def _follow(self, token: int) -> None:
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None
        self.token, self.seq, self.command_t_ns = token, -1, -1
        self.source = Source.NONE
        self._next, self._newest_t_ns = 0, NEVER
        self.buffer.clear()

    def _open_mailbox(self) -> Ring | None:
        if self._mailbox is None:
            path = mailbox_path(self.station, self.group, self.token)
            if not path.exists():
                return None
            try:
                mailbox = Ring(path)
            except (SharedMemoryError, ValueError):  # unlinked just now, or no ring at all
                self.refused |= Difference.INVALID
                return None
            if "target" not in (mailbox.dtype.names or ()) or mailbox.dtype != command_record(
                mailbox.dtype["target"].shape[-1]
            ):
                mailbox.close()
                self.refused |= Difference.INVALID
                return None
            self._mailbox = mailbox
        return self._mailbox

    def _take(self, record: Any, now_ns: int) -> None:
        t_ns, rows = int(record["t_ns"]), int(record["rows"])
        if int(record["token"]) != self.token:
            self.refused |= Difference.OUT_OF_LEASE
            return
        target = record["target"]
        if not 1 <= rows <= len(target):
            self.refused |= Difference.INVALID
            return
        actions = target[:rows, self.columns]
        if not np.isfinite(actions).all():
            self.refused |= Difference.INVALID
            return
        if t_ns > now_ns + FUTURE_NS or t_ns < self._newest_t_ns:
            self.refused |= Difference.STALE
            return
        try:
            source = Source(int(record["source"]))
            mode = CommandMode(int(record["mode"]))
        except ValueError:
            self.refused |= Difference.INVALID
            return
        if mode is CommandMode.EE_POSE and not (self.poses and are_poses(actions)):
            self.refused |= Difference.INVALID
            return
        self._newest_t_ns = t_ns
        self.seq, self.command_t_ns, self.source = int(record["seq"]), t_ns, source
        if rows == 1:
            self.buffer.put_target(t_ns, actions[0].copy(), mode)
            return
        self.buffer.put_chunk(
            ActionChunk(
                observation_t_ns=int(record["observation_t_ns"]),
                start_t_ns=int(record["start_t_ns"]),
                dt_ns=int(record["dt_ns"]),
                actions=actions.copy(),
                source=source,
                token=self.token,
                chunk_id=int(record["chunk_id"]),
                mode=mode,
            )
        )
