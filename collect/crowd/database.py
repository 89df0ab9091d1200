"""One database, two kinds of transaction: `read()` and `begin()`.

Writers come one after the other, on SQLite (BEGIN IMMEDIATE) and on PostgreSQL (an advisory lock
of the transaction) alike. So what a writer has read is still true when it writes: check-then-act
needs no further lock, on either database, and a test on one says something of the other. A write
takes well under a millisecond and the site's whole load is hundreds a second; keep files, network
and video out of `begin()`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from robot_stack.errors import RobotStackError

__all__ = ["Database", "DatabaseBusyError"]

T = TypeVar("T")
WAIT_S = 10.0
WRITE_LOCK = 0x726F626F  # any number; all writers of the site lock the same one
RETRIED = frozenset({"40001", "40P01", "55P03"})  # serialisation, deadlock, lock not available

SQLITE_AWAY = ("locked", "busy", "unable to open", "disk I/O", "disk is full")


class DatabaseBusyError(RobotStackError):
    """The database is away or has too many writers; the site answers 503 and the client retries."""


class Database:
    """``url`` as in the settings. Nothing is opened until the first transaction."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        if self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.sqlite = self.url.get_backend_name() == "sqlite"
        self._nested = threading.local()
        self.writes = 0  # of this process, committed; two at once may count as one
        if self.sqlite:
            # One connection writes: its pool is the queue of this process' writers.
            self.engine = self._sqlite_engine(pool_size=1, writes=True)
            self._reader = self._sqlite_engine(pool_size=16, writes=False)
        else:
            self.engine = create_engine(
                self.url,
                hide_parameters=True,  # nothing of anybody in an error's text
                pool_size=16,
                max_overflow=16,
                pool_timeout=WAIT_S,
                pool_pre_ping=True,
                connect_args={"connect_timeout": 5},
            )
            self._reader = self.engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """One consistent look. What is loaded stays readable afterwards; writing is refused."""
        with self._available(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A write: committed when the block ends, undone when it raises.

        No other writer runs meanwhile. Not to be nested: pass the session on. DatabaseBusyError
        when the turn doesn't come within ``WAIT_S``.
        """
        if getattr(self._nested, "inside", False):
            raise RuntimeError("begin() inside begin(): pass the session of the outer one on")
        self._nested.inside = True
        try:
            with (
                self._available(),
                Session(self.engine, expire_on_commit=False) as session,
                session.begin(),
            ):
                session.connection()  # the turn is taken now, not at the first statement
                if not self.sqlite:
                    session.execute(text(f"SET LOCAL lock_timeout = '{int(WAIT_S * 1000)}ms'"))
                    session.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": WRITE_LOCK})
                yield session
            self.writes += 1
        finally:
            self._nested.inside = False

    def run(self, work: Callable[[Session], T], *, wait_s: float = 0.0) -> T:
        """``work(session)`` in a write of its own; tried again for ``wait_s`` while the database
        is busy or away. ``work`` may run several times, so it has no effect but in the session."""
        deadline = time.monotonic() + wait_s
        pause = 0.05
        while True:
            try:
                with self.begin() as session:
                    return work(session)
            except DatabaseBusyError:
                if time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def close(self) -> None:
        self.engine.dispose()
        self._reader.dispose()

    def _sqlite_engine(self, *, pool_size: int, writes: bool) -> Engine:
        engine = create_engine(
            self.url,
            hide_parameters=True,
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0 if writes else 32,
            pool_timeout=WAIT_S,
            connect_args={"timeout": WAIT_S, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # we say BEGIN, not the module sqlite3
            for pragma in (
                "journal_mode = wal",
                # FULL: a withdrawal that was answered outlives the power; 3-7 ms on an SSD.
                "synchronous = full",
                "foreign_keys = on",
                "cache_size = -65536",
                f"query_only = {'off' if writes else 'on'}",
            ):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        return engine

    @contextlib.contextmanager
    def _available(self) -> Iterator[None]:
        """Turns what a busy or absent database raises into DatabaseBusyError."""
        try:
            yield
        except PoolTimeout as error:
            raise DatabaseBusyError("the database has too many users at once") from error
        except (OperationalError, InterfaceError) as error:
            if self.sqlite and not any(word in str(error.orig) for word in SQLITE_AWAY):
                raise
            raise DatabaseBusyError(f"the database is busy or away: {error.orig}") from error
        except DBAPIError as error:
            if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in RETRIED:
                raise DatabaseBusyError(f"the database is busy or away: {error.orig}") from error
            raise
