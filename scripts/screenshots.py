"""Pictures of every page of the crowd site, at phone, tablet and desktop size: `make screenshots`.

Makes a site, fills it with the simulated fortnight, serves it, and photographs whole pages with
Debian's chromium into a directory that git ignores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from collect.crowd.demo_site import make_site, toured
from collect.crowd.tour import Tour

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1366, 900)}

VIDEOS_S = 60.0
VIDEOS = """
  [...document.querySelectorAll("video")].every((video) => video.readyState >= 2)
  && !document.querySelector("[data-video-note]:not([hidden])")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("screenshots"))
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these pages")
    parser.add_argument("--sizes", nargs="*", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--language", default="en")
    parser.add_argument("--dark", action="store_true", help="in the dark colours")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="crowd-screenshots-") as folder,
        toured(make_site(Path(folder) / "site", filled=True, say=print)) as (url, tour),
        sync_playwright() as play,
    ):
        tour.speak(args.language)
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
        )
        count = 0
        for size in args.sizes:
            count += _photograph(browser, url, tour, size, args)
        browser.close()
    print(f"{count} pictures in {args.out}")


def _photograph(browser: Browser, url: str, tour: Tour, size: str, args: argparse.Namespace) -> int:
    """Every page at one size; how many."""
    width, height = SIZES[size]
    folder = args.out / (f"{size}-dark" if args.dark else size)
    folder.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(
        viewport={"width": width, "height": height},
        locale=args.language,
        color_scheme="dark" if args.dark else "light",
        reduced_motion="reduce",
    )
    tab = context.new_page()
    pages = [page for page in tour.pages if not args.only or page.name in args.only]
    for page in pages:
        context.clear_cookies()
        context.add_cookies(
            [
                {"name": name, "value": value, "url": url}
                for name, value in tour.cookies[page.role].items()
            ]
        )
        tab.goto(url + page.path, wait_until="load")
        # A page's own scripts have a moment to draw what they were sent; of videos the first
        # picture is waited for, and made where there is none yet.
        tab.wait_for_timeout(150)
        deadline = time.monotonic() + VIDEOS_S
        while not tab.evaluate(VIDEOS) and time.monotonic() < deadline:
            tab.wait_for_timeout(200)
        # As tall as the page, so that what is fixed to the bottom of the screen lies there.
        whole = tab.evaluate("document.documentElement.scrollHeight")
        tab.set_viewport_size({"width": width, "height": max(height, whole)})
        tab.screenshot(path=folder / f"{page.name}.png")
        tab.set_viewport_size({"width": width, "height": height})
    context.close()
    return len(pages)


if __name__ == "__main__":
    main()
