"""`robot-stack crowd demo`: the whole site with a virtual ALOHA to drive, on this computer.

Everything runs as it would in a cafe: the site, the virtual robot's world and control server, the
station's agent, each a program of its own. Beside the kiosk a page of the virtual world moves the
leader arms, which in a cafe people do with their hands.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes.util
import importlib.util
import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyotp
from rich.console import Console
from sqlalchemy import select as query

from collect.crowd import pairing, tables
from collect.crowd.database import Database
from collect.crowd.demo_site import ADMIN, DemoSite, empty_pages, make_site, serving, toured
from collect.crowd.keys import load_key
from collect.crowd.leases import online
from collect.crowd.tasks import TaskFile, Texts, put_task
from collect.demo_programs import Ending, last_words, programs, runtime
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import (
    ConfigError,
    ControlPlaneError,
    MissingDependencyError,
    RobotStackError,
)
from robot_stack.shared_memory import runtime_dir

__all__ = ["add_arguments", "run"]

STATION = Path(__file__).parents[2] / "configs" / "aloha_virtual.yaml"
NAME = "cafe"
# The station itself sees whether this one is done; its id is the station file's `task`.
CUBE = TaskFile(
    id="transfer-cube",
    difficulty="hard",
    seconds=180,
    par_s=60.0,
    checked=True,
    texts={
        "en": Texts(
            "Hand the cube over",
            "Take the red cube with the right arm and hand it over to the left one.",
        ),
        "de": Texts(
            "Den Würfel übergeben",
            "Nimm den roten Würfel mit dem rechten Arm und gib ihn an den linken weiter.",
        ),
    },
)
ARM_HZ = 100
UP_S = 60.0
CARE_S = 2.0
POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The public site on this computer, with a virtual ALOHA that its visitors drive: prints "
        "what to open in a browser, and stays until Ctrl-C. --fill lets a simulated fortnight go "
        "by first (231 participants, 817 episodes), so that every page has something on it."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd demo                  site, robot, kiosk and staff, to try it all\n"
        "  robot-stack crowd demo --fill           the same after a busy fortnight\n"
        "  robot-stack crowd demo --fill --no-robot   the site alone: needs no simulation\n"
        "  robot-stack crowd demo --fill --json    looks at every page, prints a summary and ends\n"
        "  robot-stack crowd demo --directory cafe keeps the site"
    )
    parser.add_argument("--fill", action="store_true", help="simulate a fortnight first")
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="a new directory for the site (temporary)"
    )
    parser.add_argument("--no-robot", action="store_true", help="the site without a station")
    parser.add_argument("--bind", default="127.0.0.1:0", metavar="HOST:PORT", help="of the site")
    parser.add_argument("--seconds", type=float, metavar="S", help="end by itself after this time")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object only: with --fill after looking at all pages, then end "
        "(unless --seconds); else as soon as all is up",
    )


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=True)
    ending = Ending()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ending)  # what was started is ended first
    look_only = args.fill and args.json and args.seconds is None
    if not (look_only or args.no_robot):
        _check_simulation()

    def say(text: str) -> None:
        console.print(text, highlight=False)

    try:
        with _folder(args.directory) as folder:
            site = make_site(folder, filled=args.fill, say=say)
            if look_only:
                return _look(site)
            with serving(site.file, folder / "site.log", args.bind) as url:
                if args.no_robot:
                    return _stay(args, ending, site, url, {})
                with _robot(site, url, say) as robot:
                    return _stay(args, ending, site, url, robot)
    except KeyboardInterrupt:
        return 0


def _check_simulation() -> None:
    """MissingDependencyError or ConfigError with the command that brings what is missing."""
    missing = [name for name in ("mujoco", "gym_aloha") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"the virtual robot needs {' and '.join(missing)}: `pip install 'robot-stack[sim]'`, "
            "or add --no-robot for the site alone"
        )
    if not (ctypes.util.find_library("EGL") or ctypes.util.find_library("OSMesa")):
        raise ConfigError(
            "the virtual robot's camera needs EGL or OSMesa to draw: `apt install libegl1`, or add "
            "--no-robot for the site alone"
        )


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="robot-stack-crowd-") as folder:
        yield Path(folder)


def _look(site: DemoSite) -> int:
    """Look at every page of a filled site; its JSON object is the answer."""
    assert site.filled is not None
    with toured(site) as (url, tour):
        empty = [
            {
                "page": item.page.path,
                "as": item.page.role,
                "language": item.language,
                "why": item.why,
            }
            for item in empty_pages(url, tour)
        ]
    answer: dict[str, Any] = {
        "participants": site.filled.participants,
        "episodes": site.filled.episodes,
        "url": url,
        "pages": len(tour.pages),
        "empty": empty,
        "ok": not empty,
    }
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


# -- the robot ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _robot(site: DemoSite, url: str, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """The virtual station with its agent, paired; what of it a visitor has to open."""
    with contextlib.closing(Database(site.config.database)) as database, database.begin() as tx:
        put_task(tx, CUBE)
    station = _station(site.folder)
    with runtime() as environment, programs(station, environment, say) as start:
        say("starting the station's agent")
        logs = runtime_dir(station.station)
        agent = start(
            "agent",
            [
                *("crowd", "station", str(station.path), "--site", url),
                *("--pair", _code(site, "agent"), "--outbox", str(site.folder / "outbox")),
                *("--shared", str(site.config.episodes)),
            ],
        )
        with _caretaker(station, say), _world_page(station, logs) as page:
            _await_agent(site, agent, logs)
            yield {"handles": page, "runtime": environment["ROBOT_STACK_RUNTIME"]}


def _station(folder: Path) -> Station:
    """The virtual station: its task is the site's, its arms leave the browsers some room, and no
    fault keeps pictures of its visitors."""
    text = STATION.read_text()
    for here, there in (
        ("\ntask: transfer_cube\n", f"\ntask: {CUBE.id}\n"),
        ("\n    rate_hz: 200", f"\n    rate_hz: {ARM_HZ}"),
        ("\nrecording:\n", "\nrecording:\n  flight_cameras: false\n"),
    ):
        assert here in text, f"{STATION} has no {here!r}"
        text = text.replace(here, there)
    path = folder / STATION.name
    path.write_text(text)
    return load_station(path)


@contextlib.contextmanager
def _caretaker(station: Station, say: Callable[[str], None]) -> Iterator[None]:
    """Somebody who resets faults, which staff do in a cafe: a virtual arm has one when this
    computer had no time for it. What a person has stopped stays stopped."""
    ended = threading.Event()

    def care() -> None:
        with StationClient(station.station) as client:
            while not ended.wait(CARE_S):
                with contextlib.suppress(RobotStackError):
                    robots = client.request("status", timeout_s=5.0)["robots"]
                    faults = [robot["fault"] for robot in robots.values() if robot["fault"]]
                    if faults:
                        say(f"resetting a fault: {faults[0]}")
                        client.request("reset", {"automatic": True}, timeout_s=30.0)

    thread = threading.Thread(target=care, name="caretaker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(40.0)


@contextlib.contextmanager
def _world_page(station: Station, logs: Path) -> Iterator[str]:
    """The page on which the leader arms are moved; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "hardware.worlds.page", station.path, "--port", str(port)]
    with (logs / "page.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + UP_S
        url = f"http://127.0.0.1:{port}/"
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url).is_success:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise ControlPlaneError(
                    f"the page of the leaders did not start: {last_words(logs, 'page')}"
                )
            time.sleep(POLL_S)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_agent(site: DemoSite, agent: subprocess.Popen[bytes], logs: Path) -> None:
    """Until the site has heard that the station is ready."""
    deadline = time.monotonic() + UP_S
    with contextlib.closing(Database(site.config.database)) as database:
        while True:
            with database.read() as tx:
                station = tx.scalar(query(tables.Station).where(tables.Station.name == NAME))
            if station is not None and online(station) and station.state.get("phase") == "idle":
                return
            if agent.poll() is not None or time.monotonic() > deadline:
                raise ControlPlaneError(f"the agent is not up: {last_words(logs, 'agent')}")
            time.sleep(POLL_S)


def _code(site: DemoSite, kind: str) -> str:
    """A fresh one-time code of the station's agent or kiosk."""
    key = load_key(site.config.key_file)
    with contextlib.closing(Database(site.config.database)) as database, database.begin() as tx:
        return pairing.new_code(tx, key, NAME, kind)


# -- what it says ------------------------------------------------------------------------------


def _stay(
    args: argparse.Namespace, ending: Ending, site: DemoSite, url: str, robot: dict[str, str]
) -> int:
    """Say what there is, and wait for the end. Enter asks for fresh codes."""
    answer: dict[str, Any] = {
        "ok": True,
        "url": url,
        "kiosk": {"url": f"{url}/pair", "code": _code(site, "kiosk")},
        **robot,
        "staff": {
            "url": f"{url}/staff/signin",
            "name": ADMIN,
            "password": site.password,
            "totp_secret": site.totp_secret,
            "totp_uri": site.totp_uri,
        },
        "directory": str(site.folder),
    }
    if site.filled is not None:
        answer |= {
            "participants": site.filled.participants,
            "episodes": site.filled.episodes,
            "card": site.filled.card,
        }
    if not args.json:
        print(_text(site, url, answer))
    print(json.dumps(answer), flush=True)
    deadline = None if args.seconds is None else time.monotonic() + args.seconds
    asks = sys.stdin.isatty() and not args.json
    while deadline is None or time.monotonic() < deadline:
        ending.heed()
        if asks and select.select([sys.stdin], [], [], POLL_S)[0]:
            if not sys.stdin.readline():
                asks = False
                continue
            code = pyotp.TOTP(site.totp_secret).now()
            print(f"one-time code of {ADMIN}: {code}   pairing code: {_code(site, 'kiosk')}")
        elif not asks:
            time.sleep(POLL_S)
    return 0


def _text(site: DemoSite, url: str, answer: dict[str, Any]) -> str:
    kiosk, staff = answer["kiosk"], answer["staff"]
    code = pyotp.TOTP(site.totp_secret).now()
    lines = [
        "",
        "The robot cafe is open. In a browser on this computer:",
        "",
        f"  1 the kiosk       {kiosk['url']}   code {kiosk['code']}",
        "                    makes this browser the screen beside the robot; then take part",
    ]
    if "handles" in answer:
        lines += [
            f"  2 the handles     {answer['handles']}",
            "                    in a window beside it: moves the leader arms by mouse and keys",
        ]
    lines += [
        f"  3 the leaderboard {url}/board",
        f"  4 the staff       {staff['url']}",
        f"                    {ADMIN}, password {staff['password']}, one-time code {code}",
        f"                    (a code works once; the second factor: {staff['totp_uri']})",
    ]
    if "card" in answer:
        lines += [
            f"  5 a regular       type {answer['card']} where a card is tapped",
        ]
    lines += [
        "",
        "Enter gives fresh codes (a pairing code is good for ten minutes), Ctrl-C ends it",
    ]
    return "\n".join(lines)
