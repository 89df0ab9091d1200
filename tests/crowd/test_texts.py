"""Texts: every language has the same keys with the same places to fill in."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml

from collect.crowd import i18n

LANGUAGES = sorted(folder.name for folder in i18n.LOCALES.iterdir() if folder.is_dir())


def texts(area: Path) -> dict[str, set[str | None]]:
    """Key -> names of the values that its text takes."""
    found: dict[str, set[str | None]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{prefix}.{key}", below)
        else:
            found[prefix] = {field for _, field, _, _ in string.Formatter().parse(str(value))}

    walk(area.stem, yaml.safe_load(area.read_text()))
    return found


def test_there_are_two_languages() -> None:
    assert {"de", "en"} <= set(LANGUAGES)


@pytest.mark.parametrize("area", sorted(path.stem for path in (i18n.LOCALES / "en").iterdir()))
@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "en"])
def test_every_language_says_the_same(language: str, area: str) -> None:
    english = texts(i18n.LOCALES / "en" / f"{area}.yaml")
    other = texts(i18n.LOCALES / language / f"{area}.yaml")
    assert {key: names - {None} for key, names in other.items()} == {
        key: names - {None} for key, names in english.items()
    }
