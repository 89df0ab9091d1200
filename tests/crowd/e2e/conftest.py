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


@pytest.fixture(scope="module")  # while it lives, no other test of the process has an event loop
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """Drawn by software its many threads would keep the kernel's own from handing bytes from one
    end of a virtual serial port to the other: it gives way to all others."""
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    gives_way = tmp_path_factory.mktemp("browser") / "chromium"
    gives_way.write_text(f'#!/bin/sh\nexec chrt --idle 0 {executable} "$@"\n')
    gives_way.chmod(0o755)
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=gives_way,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def filled_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Tour]]:
    """A site after its simulated fortnight, with the tour's cast: its URL and the tour."""
    folder: Path = tmp_path_factory.mktemp("filled")
    with toured(make_site(folder / "site", filled=True)) as served:
        yield served
