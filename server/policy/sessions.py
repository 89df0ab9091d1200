"""Sessions: who opened which, their epoch, their number, and their end."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robot_stack.errors import PolicyError

__all__ = ["Owner", "Session", "Sessions"]


@dataclass(frozen=True, slots=True)
class Owner:
    """Where requests come from: a socket of the server, a connection's routing id, and the
    client's CURVE key (empty without CURVE)."""

    socket: int
    identity: bytes
    key: str


@dataclass(slots=True, eq=False)
class Session:
    """One robot's conversation with one policy. ``epoch`` grows with every reset; what was asked
    in an older one is not answered any more."""

    id: str
    owner: Owner
    policy: str
    decoder: str
    options: Mapping[str, Any]
    used_ns: int
    epoch: int = 0


class Sessions:
    """All sessions of a server: at most ``limit``, each at most ``idle_s`` without a request."""

    def __init__(self, limit: int, idle_s: float) -> None:
        self.limit = limit
        self.idle_s = idle_s
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(
        self, owner: Owner, policy: str, decoder: str, options: Mapping[str, Any], now_ns: int
    ) -> Session:
        """PolicyError ``overloaded`` when there are too many."""
        if len(self._sessions) >= self.limit:
            raise PolicyError(
                f"{self.limit} sessions are open, and no more are allowed: close one, or serve "
                "with a larger --sessions",
                "overloaded",
            )
        session = Session(secrets.token_hex(16), owner, policy, decoder, options, now_ns)
        self._sessions[session.id] = session
        return session

    def get(self, session_id: object, owner: Owner, now_ns: int) -> Session:
        """The session, used now. PolicyError ``unknown_session``, in the same words whether it
        does not exist or belongs to somebody else."""
        session = self._sessions.get(session_id) if isinstance(session_id, str) else None
        if session is None or session.owner != owner:
            raise PolicyError(
                "no such session of this client: it was closed, was idle for "
                f"{self.idle_s:g} s, or the server was started again; open another",
                "unknown_session",
            )
        session.used_ns = now_ns
        return session

    def alive(self, session: Session, epoch: int) -> bool:
        """Whether what was asked in ``epoch`` may still be answered."""
        return self._sessions.get(session.id) is session and session.epoch == epoch

    def close(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    def of(self, policy: str) -> list[Session]:
        return [s for s in self._sessions.values() if s.policy == policy]

    def idle(self, now_ns: int) -> list[Session]:
        """Those whose time is up."""
        before = now_ns - self.idle_s * 1e9
        return [s for s in self._sessions.values() if s.used_ns < before]
