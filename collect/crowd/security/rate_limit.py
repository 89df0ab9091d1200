"""How often somebody may try: by account, station and address, counted for all workers together.

Limits that guard something (sign-in, pairing, help) are counted in the database, so that several
workers don't multiply them. The coarse limit on writes from one address is each worker's own.
"""

from __future__ import annotations

import datetime as dt
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage, Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import delete, select

from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.tables import RateCount, utc_now
from robot_stack.errors import RobotStackError

__all__ = ["RateLimiter", "TooManyError"]


class TooManyError(RobotStackError):
    """A limit is used up; ``retry_s`` until it is not. The site answers 429."""

    def __init__(self, retry_s: int) -> None:
        super().__init__(f"too many attempts; try again in {retry_s} s")
        self.retry_s = retry_s


class _DatabaseStorage(Storage):
    """Counters of `limits` as rows; a key is a keyed hash, so that no name or address is kept."""

    STORAGE_SCHEME = None  # found by nobody's URL

    def __init__(self, database: Database, key: SiteKey) -> None:
        super().__init__()
        self._database = database
        self._key = key

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        now = utc_now()
        with self._database.begin() as tx:
            row = tx.get(RateCount, self._hash(key))
            if row is None:
                tx.execute(delete(RateCount).where(RateCount.expires_at < now))
                row = RateCount(key=self._hash(key), count=0, expires_at=now)
                tx.add(row)
            if row.expires_at <= now:
                row.count = 0
                row.expires_at = now + dt.timedelta(seconds=expiry)
            row.count += amount
            return row.count

    def get(self, key: str) -> int:
        row = self._row(key)
        return 0 if row is None or row.expires_at <= utc_now() else row.count

    def get_expiry(self, key: str) -> float:
        row = self._row(key)
        return time.time() if row is None else row.expires_at.timestamp()

    def check(self) -> bool:
        with self._database.read() as tx:
            tx.execute(select(RateCount.key).limit(1))
        return True

    def reset(self) -> int | None:
        with self._database.begin() as tx:
            tx.execute(delete(RateCount))
        return None

    def clear(self, key: str) -> None:
        with self._database.begin() as tx:
            tx.execute(delete(RateCount).where(RateCount.key == self._hash(key)))

    def _row(self, key: str) -> RateCount | None:
        with self._database.read() as tx:
            return tx.get(RateCount, self._hash(key))

    def _hash(self, key: str) -> str:
        return self._key.mac("rate limit", key)


class RateLimiter:
    """``hit("sign-in", "10 per 15 minutes", "account:" + name)``; rules as `limits` reads them."""

    def __init__(self, database: Database, key: SiteKey, writes_per_minute: int) -> None:
        self._shared = FixedWindowRateLimiter(_DatabaseStorage(database, key))
        self._local = FixedWindowRateLimiter(MemoryStorage())
        self._writes = parse(f"{writes_per_minute} per minute")

    def hit(self, what: str, rule: str, who: str) -> None:
        """Count one attempt; TooManyError when the rule's are used up. Not inside ``begin()``."""
        self._hit(self._shared, parse(rule), what, who)

    def forgive(self, what: str, rule: str, who: str) -> None:
        """Forget the attempts, as after a sign-in that went well."""
        self._shared.storage.clear(parse(rule).key_for(what, who))

    def write(self, address: str) -> None:
        """Count a form or JSON write from an address."""
        self._hit(self._local, self._writes, "write", address)

    def _hit(
        self, limiter: FixedWindowRateLimiter, rule: RateLimitItem, what: str, who: str
    ) -> None:
        if not limiter.hit(rule, what, who):
            reset = limiter.get_window_stats(rule, what, who).reset_time
            raise TooManyError(max(1, round(reset - time.time())))
