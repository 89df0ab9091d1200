"""What the whole site shares: settings, database, key, limiter; `site_of(request)` finds it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.security.rate_limit import RateLimiter

__all__ = ["Site", "site_of"]


@dataclass(frozen=True)
class Site:
    """One of these a process, in ``app.state.site``."""

    config: CrowdConfig
    database: Database
    key: SiteKey
    limiter: RateLimiter


def site_of(connection: HTTPConnection) -> Site:
    """The site that a request or WebSocket came to."""
    site = connection.app.state.site
    assert isinstance(site, Site)
    return site
