"""Structured logs without personal data: one JSON object a line on stderr, of listed keys only.

What is not in `ALLOWED` is dropped, so that no later line of code logs a name, a card, an address
or a raw path by accident. Texts are cut.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

__all__ = ["ALLOWED", "configure", "log"]

ALLOWED = frozenset(
    [
        "event",
        "level",
        "timestamp",
        "method",
        "route",
        "status",
        "ms",
        "request_id",
        "station",
        "play",
        "error",
        "worker",
        "count",
        "job",
        "revision",
        "database",
        "url",
        "seconds",
    ]
)
MAX_TEXT = 200

log = structlog.get_logger("crowd")


def configure() -> None:
    """Send all logs, uvicorn's too, through the filter; call once a process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _error_kind,
            _only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Access lines hold addresses and query strings; ours (see `observe`) hold neither.
    logging.getLogger("uvicorn.access").disabled = True


def _error_kind(_: Any, __: str, line: dict[str, Any]) -> dict[str, Any]:
    # An exception's text may quote what somebody typed (a database's does); its type may not.
    error = line.get("error")
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
    return line


def _only_allowed(_: Any, __: str, line: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value[:MAX_TEXT] if isinstance(value, str) else value
        for key, value in line.items()
        if key in ALLOWED and isinstance(value, str | int | float | bool | None)
    }
