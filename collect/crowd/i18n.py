"""The site's languages: texts by key from `locales/<language>/<area>.yaml`, and which to use."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request

from collect.crowd.security.sessions import cookie_name
from collect.crowd.site import site_of
from collect.crowd.tables import Participant

__all__ = ["COOKIE", "choose_language", "translator"]

COOKIE = "language"  # what somebody who isn't signed in has chosen

LOCALES = Path(__file__).parent / "locales"


@functools.cache
def translator(language: str) -> Callable[..., str]:
    """``t("board.my_points", total=10)``: the text of a key; KeyError names one that is missing.

    The first part of a key is the name of the area's file.
    """
    texts = {
        file.stem: yaml.safe_load(file.read_text())
        for file in sorted((LOCALES / language).glob("*.yaml"))
    }

    def t(key: str, **values: Any) -> str:
        found: Any = texts
        for part in key.split("."):
            found = found[part]
        return str(found).format(**values)

    return t


def choose_language(request: Request, participant: Participant | None) -> str:
    """The participant's own language, or the one that was chosen at this browser, or the first of
    the site's that the browser asks for."""
    config = site_of(request).config
    languages = config.languages
    wanted = [participant.language] if participant is not None else []
    wanted.append(request.cookies.get(cookie_name(config, COOKIE), "")[:8])
    wanted += [
        part.split(";")[0].strip()[:2]
        for part in request.headers.get("accept-language", "")[:200].split(",")
    ]
    return next((language for language in wanted if language in languages), languages[0])
