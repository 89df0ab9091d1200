"""Structured logs without personal data: one JSON object a line on stderr, of listed keys only.

What is not in `ALLOWED` is dropped, so that no later line of code logs a name, a card, an address
or a raw path by accident. Texts are cut.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict

__all__ = ["ALLOWED", "configure", "log", "where"]

ALLOWED = frozenset(
    {"event", "level", "timestamp", "method", "route", "status", "ms", "seconds", "request_id"}
    | {"station", "play", "error", "where", "worker", "count", "job", "revision", "url"}
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
        # stderr as it is then, not as it was now: tests replace it.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    # Access lines hold addresses and query strings; ours (see `observe`) hold neither.
    logging.getLogger("uvicorn.access").disabled = True
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


class _Forward(logging.Handler):
    """What libraries log: the logger, its fixed text without arguments, where an error was."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        event = f"{record.name}: {str(record.msg).splitlines()[0] if record.msg else ''}"
        at = where(error.__traceback__) if error is not None else None
        log.log(record.levelno, event, error=error, where=at)


def where(frames: TracebackType | None) -> str:
    """The places of a traceback, innermost first, without its message."""
    places = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(frames)]
    return " < ".join(reversed(places))


def _error_kind(_: Any, __: str, line: EventDict) -> EventDict:
    # An exception's text may quote what somebody typed (a database's does); its type may not.
    error = line.get("error")
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
    return line


def _only_allowed(_: Any, __: str, line: EventDict) -> EventDict:
    return {
        key: value[:MAX_TEXT] if isinstance(value, str) else value
        for key, value in line.items()
        if key in ALLOWED and isinstance(value, str | int | float | bool | None)
    }
