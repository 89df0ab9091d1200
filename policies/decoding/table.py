"""Decoders by name: made of options, and checked against what a policy gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.hosted import Hosted
from policies.interfaces import Decoder
from robot_stack import registry
from robot_stack.config import Section, parse
from robot_stack.errors import ConfigError, PolicyError

__all__ = ["allowed", "check", "make_decoder"]


@dataclass(frozen=True)
class _Named:
    name: str
    options: Section = field(default_factory=lambda: Section({}, "", 0, {}))


def make_decoder(name: str, options: Mapping[str, Any] | None = None) -> Decoder:
    """The decoder of a registry name, its fields set from ``options``.

    ``of`` (of ``ema`` and ``temporal_ensemble``) is itself ``{"name": ..., "options": {...}}``.
    RegistryError names the nearest decoder, ConfigError an unknown or impossible option.
    """
    kind: type[Decoder] = registry.load("decoder", name)
    values, where = dict(options or {}), f"decoder {name}"
    if "of" in values:
        if not isinstance(values["of"], Mapping):
            raise ConfigError(
                f"{where}.of: expected a decoder as {{name: ..., options: {{...}}}}, got "
                f"{values['of']!r}"
            )
        inner = parse(_Named, values["of"], f"{where}.of")
        values["of"] = make_decoder(inner.name, inner.options)
    return parse(kind, values, where)


def allowed(hosted: Hosted) -> list[str]:
    """The decoders, with their default options, that the policy gives all they need."""
    made = ((name, make_decoder(name)) for name in registry.names("decoder"))
    return [name for name, decoder in made if decoder.needs <= hosted.gives]


def check(decoder: Decoder, hosted: Hosted) -> None:
    """PolicyError when the policy lacks what the decoder needs: which, and what it allows."""
    missing = sorted(decoder.needs - hosted.gives)
    if missing:
        raise PolicyError(
            f"decoder {decoder.name} needs {' and '.join(missing)}, which policy "
            f"{hosted.contract.name} does not give; it allows {', '.join(allowed(hosted))}",
            "decoder_refused",
        )
