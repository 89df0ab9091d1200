"""Debian's chromium on a filled site that is served as `robot-stack crowd serve` serves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import sync_playwright

from collect.crowd.demo_site import make_site, toured
from collect.crowd.tour import Tour


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def filled_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Tour]]:
    """A site after its simulated fortnight, with the tour's cast: its URL and the tour."""
    folder: Path = tmp_path_factory.mktemp("filled")
    with toured(make_site(folder / "site", filled=True)) as served:
        yield served
