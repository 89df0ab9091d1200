"""Parts of an architecture: the class that a ``name`` means, and what JSON can hold of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from robot_stack.config import parse
from robot_stack.errors import ConfigError

__all__ = ["parse_named", "plain"]

T = TypeVar("T")


def parse_named(table: Mapping[str, type[T]], values: Mapping[str, Any], where: str) -> T:
    """The dataclass that ``values["name"]`` names in ``table``, of the other keys.

    ConfigError for a missing or unknown name, and as ``robot_stack.config.parse``.
    """
    name = values.get("name")
    allowed = ", ".join(table)
    if name is None:
        raise ConfigError(f"{where}.name: missing, and required (allowed: {allowed})")
    if name not in table:
        close = difflib.get_close_matches(str(name), table, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{where}.name: {name!r} is unknown{hint} (allowed: {allowed})")
    return parse(table[name], {k: v for k, v in values.items() if k != "name"}, where)


def plain(value: Any) -> Any:
    """A configuration as the dicts and lists of JSON; numbers that JSON lacks become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
