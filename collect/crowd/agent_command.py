"""`robot-stack crowd station`: the agent that lets a site's public drive this robot."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from collect.crowd.agent import StationAgent
from collect.crowd.agent_link import SiteLink, pair
from collect.crowd.outbox import Outbox, Pairing
from collect.recorder import prioritise
from robot_stack.config import load_station
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run beside a robot whose station is served (`robot-stack serve`): asks the public site "
        "twice a second what is wanted, records plays with the ordinary recorder while people move "
        "the leader arms, and brings the episodes to the site. The site can only ask to begin and "
        "to end a play: nothing that comes from the web says how anything moves. When the site is "
        "away, recordings go to their end and wait in the outbox; nothing is lost when this "
        "program is killed. While the disk is full nothing is begun. What the site does not know, "
        "as its database came back from a backup, goes after 30 days. Ctrl-C ends it: what is "
        "being recorded is kept."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd pair cafe agent                     at the site: makes a code\n"
        "  robot-stack crowd station configs/aloha_virtual.yaml \\\n"
        "      --site https://robots.example.org --pair 7K3M-Q2XD    once; then without them:\n"
        "  robot-stack crowd station configs/aloha_virtual.yaml\n"
        "  robot-stack crowd station cell.yaml --shared /srv/crowd/episodes   same disk, no upload"
    )
    parser.add_argument("station", help="station file (YAML); its teleop device is leader_arms")
    parser.add_argument("--site", metavar="URL", help="the site's address; kept once paired")
    parser.add_argument("--pair", metavar="CODE", help="pair with the site by this code first")
    parser.add_argument(
        "--outbox",
        type=Path,
        metavar="DIR",
        help="where recordings wait and the token is kept, mode 0700 "
        "(~/.local/share/robot-stack/crowd/STATION)",
    )
    parser.add_argument(
        "--shared",
        type=Path,
        metavar="DIR",
        help="the site's `episodes` directory, where it is mounted here too: episodes are put "
        "there instead of being sent",
    )
    parser.add_argument(
        "--ca", type=Path, metavar="FILE", help="trust these certificates (PEM) of the site"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    station = load_station(args.station)
    out = sys.stderr if args.json else sys.stdout

    def say(text: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk ends nothing
            print(f"station: {time.strftime('%H:%M:%S')} {text}", file=out, flush=True)

    ended: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ended.append(number))
    if station.cameras and station.recording.flight_cameras:
        say(
            "a fault dumps pictures of whoever is there, which nobody has agreed to and no erasure "
            "finds: set `recording: {flight_cameras: false}` and start `robot-stack serve` again"
        )
    outbox = Outbox(args.outbox or _default(station.station))
    with outbox.owned():
        pairing = _pairing(args, outbox)
        prioritise()  # before there is a recorder: its threads go by it, no others do
        agent = StationAgent(station, outbox, pairing, shared=args.shared, ca=args.ca, say=say)
        say(f"{pairing.station} at {pairing.site}; outbox {outbox.directory}")
        agent.run(lambda: bool(ended))
    waiting = len(outbox.entries("begun", "ended"))
    if not args.json:
        say(f"ended after {agent.plays} plays; {waiting} wait for the site")
    print(json.dumps({"ok": True, "plays": agent.plays, "waiting": waiting}))
    return 0


def _default(station: str) -> Path:
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "robot-stack" / "crowd" / station


def _pairing(args: argparse.Namespace, outbox: Outbox) -> Pairing:
    """The pairing that is kept, or a new one by ``--pair``."""
    known = outbox.pairing()
    if args.pair is None:
        if known is None:
            raise ConfigError(
                "this station is not paired yet: make a code at the site (`robot-stack crowd pair "
                "NAME agent`, or staff's stations page) and give --site URL --pair CODE"
            )
        if args.site is not None and SiteLink(args.site).site != known.site:
            raise ConfigError(
                f"{outbox.directory} is paired with {known.site}; give --pair CODE of {args.site}, "
                "or another --outbox"
            )
        return known
    site = args.site or (known.site if known is not None else None)
    if site is None:
        raise ConfigError("--pair needs --site URL: the code is of one site")
    if known is not None and SiteLink(site).site != known.site and outbox.entries("begun", "ended"):
        raise ConfigError(
            f"{outbox.directory} has episodes for {known.site}: let them be told first, or give "
            "another --outbox"
        )
    try:
        outbox.probe()
    except OSError as error:
        raise ConfigError(
            f"{outbox.directory} takes no token ({error.strerror}): make room, then pair; the code "
            "is good once"
        ) from error
    pairing = pair(SiteLink(site, ca=args.ca), args.pair)
    outbox.pair(pairing)
    return pairing
