"""The crowd site's leaderboard: queries, awards, boards over HTTP, live streams, at full size.

10,000 participants with 500,000 ledger entries of a fortnight. The queries and awards run in this
process; the site is one worker process of its own, as `robot-stack crowd serve` runs it. Boards
are read over HTTP, 100 a second (`leaderboard_p99_ms`) and then as many as there can be
(`leaderboard_rps`), while 20 awards a second are written, each of which makes the board anew. Live
streams: the time from an award's commit until each viewer has a whole frame that holds it, with
the worker's coalescing in it; `lost_final` counts viewers without the last state after a burst.
Clients, worker and database share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import random
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from sqlalchemy import create_engine, insert, make_url, select, text

from benchmarks._crowd_viewers import Viewer, open_viewers, read_boards
from benchmarks.private_postgresql import postgresql_server
from collect.crowd import ledger, standings
from collect.crowd.boards import open_board
from collect.crowd.config import CONFIG_VARIABLE
from collect.crowd.database import Database
from collect.crowd.keys import write_key
from collect.crowd.migrate import migrate
from collect.crowd.tables import LedgerEntry, Participant, Standing, Task, new_id, utc_now

__all__ = ["add_arguments", "run"]

BARS = {"top50_ms": 5.0, "leaderboard_p99_ms": 25.0}  # p99
SSE_BARS_S = {1000: 1.0, 5000: 5.0}  # p99
TASKS = 3
DAYS = 14
BATCH = 10_000
QUERIES = 300
READERS = 4
READ_HZ = 100.0  # for the latency; how many there can be is asked apart
AWARD_HZ = 20.0  # while boards are read: each makes the board anew
ROUND_S = 2.0  # between awards while streams are measured: longer than the coalescing
ROUNDS = 8
BURST = 20
FINAL_S = 30.0
START_S = 180.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.add_argument("--db", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument(
        "--url", help="an empty database of a PostgreSQL server of yours (default: a private one)"
    )
    parser.add_argument("--participants", type=int, default=10_000)
    parser.add_argument("--entries", type=int, default=500_000)
    parser.add_argument(
        "--viewers", type=int, nargs="*", default=[1000, 5000], help="live streams (1000 5000)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of awards, and of reading")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.epilog = "example:\n  robot-stack bench crowd --db postgresql --viewers 1000"


def run(args: argparse.Namespace) -> int:
    say = (lambda *_: None) if args.json else print
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with (
        tempfile.TemporaryDirectory(prefix="bench-crowd-") as folder,
        _database(args.db, args.url, Path(folder)) as (database, url),
    ):
        began = time.monotonic()
        people = _fill(database, args.participants, args.entries)
        filled = time.monotonic()
        with database.begin() as tx:
            standings.rebuild(tx)
        say(f"filled in {filled - began:.1f} s, rebuilt in {time.monotonic() - filled:.1f} s")
        _vacuum(database)
        result: dict[str, Any] = {"db": args.db, **_queries(database, people)}
        result["awards_per_s"] = round(_awards(database, people, args.seconds), 1)
        say(f"queries and awards: {result}")
        with _server(url, Path(folder)) as port:
            result |= _boards(database, url, people, port, args.seconds)
            say(f"boards over HTTP: {result['leaderboard_p99_ms']} ms p99")
            result["sse"] = {}
            for number in args.viewers:
                figures = asyncio.run(_streams(database, port, number))
                result["sse"][str(number)] = figures
                say(f"{number} viewers: {figures}")
        with database.read() as tx:
            result["standings_differ"] = len(standings.differences(tx))
    result["ok"] = _ok(result)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


def _ok(result: dict[str, Any]) -> bool:
    return (
        result["top50_ms"]["p99"] <= BARS["top50_ms"]
        and result["leaderboard_p99_ms"] <= BARS["leaderboard_p99_ms"]
        and result["standings_differ"] == 0
        and all(
            figures["lost_final"] == 0
            and figures["p99_s"] < SSE_BARS_S.get(int(number), SSE_BARS_S[5000])
            for number, figures in result["sse"].items()
        )
    )


# -- the database ------------------------------------------------------------------------------


@contextlib.contextmanager
def _database(kind: str, url: str | None, folder: Path) -> Iterator[tuple[Database, str]]:
    """A migrated, empty database that is as durable as a site's, and its URL."""
    with contextlib.ExitStack() as stack:
        if kind == "sqlite":
            url = f"sqlite:///{folder / 'crowd.db'}"
        elif url is None:
            server = stack.enter_context(postgresql_server(durable=True))
            engine = create_engine(server, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text("CREATE DATABASE crowd"))
            engine.dispose()
            url = make_url(server).set(database="crowd").render_as_string(False)
        database = stack.enter_context(contextlib.closing(Database(url)))
        migrate(database)
        yield database, url


def _fill(database: Database, participants: int, entries: int) -> list[str]:
    """Participants, tasks and a fortnight's ledger; the participants' ids."""
    stream = random.Random(0)
    now = utc_now()
    start = now - dt.timedelta(days=DAYS)
    people: list[dict[str, Any]] = [
        {
            "id": new_id(),
            "created_at": start + stream.random() * (now - start),
            "kind": "guest",
            "nickname": f"Player {n:05}",
            "skeleton": f"player{n:05}",
            "nickname_state": "approved",
            "pseudonym": f"Otter {n:05}",
            "language": "en",
            "on_board": stream.random() > 0.02,
            "hidden": stream.random() < 0.01,
        }
        for n in range(participants)
    ]
    tasks = [
        {
            "id": f"task-{n}",
            "difficulty": "easy",
            "seconds": 120,
            "par_s": 40.0,
            "position": n,
            "active": True,
            "checked": False,
        }
        for n in range(TASKS)
    ]
    with database.begin() as tx:
        connection = tx.connection()
        connection.execute(insert(Participant), people)
        connection.execute(insert(Task), tasks)
        for first in range(0, entries, BATCH):
            rows = []
            for number in range(first, min(first + BATCH, entries)):
                who = people[int(len(people) * stream.random() ** 1.5)]
                at = who["created_at"] + stream.random() * (now - who["created_at"])
                rows.append(
                    {
                        "key": f"fill:{number}",
                        "participant_id": who["id"],
                        "task_id": f"task-{number % TASKS}",
                        "kind": "staff",
                        "points": stream.choice((10, 10, 13, 20, 26)),
                        "quality": stream.randint(0, 3),
                        "created_at": at,
                        "counts_at": at,
                        "note": "",
                    }
                )
            connection.execute(insert(LedgerEntry), rows)
    return [str(who["id"]) for who in people]


def _vacuum(database: Database) -> None:
    """What autovacuum does on a server after so many writes; the private one has it off. SQLite
    goes without."""
    if not database.sqlite:
        with database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("VACUUM (ANALYZE)"))


def _award(database: Database, who: str) -> int:
    """An award; the version that it made."""
    with database.begin() as tx:
        ledger.award(
            tx,
            key=f"bench:{new_id()}",
            participant_id=who,
            play_id=None,
            task_id="task-0",
            kind="staff",
            points=10,
            quality=1,
        )
        return standings.site_version(tx)[0]


def _leaders(database: Database) -> list[str]:
    with database.read() as tx:
        return [place.participant_id for place in open_board(tx, "all", "all").top(tx)]


# -- queries and awards ------------------------------------------------------------------------


def _queries(database: Database, people: list[str]) -> dict[str, Any]:
    stream = random.Random(1)
    top, rank = [], []
    with database.read() as tx:
        listed = set(
            tx.scalars(select(Standing.participant_id).where(Standing.scope == "all")).all()
        )
    ranked = [who for who in people if who in listed]
    for _ in range(QUERIES):
        with database.read() as tx:
            board = open_board(tx, "all", "all")
            began = time.perf_counter()
            board.top(tx)
            top.append(time.perf_counter() - began)
        with database.read() as tx:
            began = time.perf_counter()
            board.place_of(tx, stream.choice(ranked))
            rank.append(time.perf_counter() - began)
    return {"top50_ms": _milliseconds(top), "my_rank_ms": _milliseconds(rank)}


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def _awards(database: Database, people: list[str], seconds: float) -> float:
    """Awards a second, each a durable transaction of its own, one after the other."""
    stream = random.Random(2)
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < seconds:
        _award(database, stream.choice(people))
        number += 1
    return number / (time.monotonic() - began)


# -- the site ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(url: str, folder: Path) -> Iterator[int]:
    """One worker of the site; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name in ("media", "episodes"):
        (folder / name).mkdir(exist_ok=True)
    if not (folder / "crowd.key").exists():
        write_key(folder / "crowd.key")
    settings = {
        "database": url,
        "key_file": "crowd.key",
        "origin": f"http://127.0.0.1:{port}",
        "bind": f"127.0.0.1:{port}",
        "development": True,
        "media": "media",
        "episodes": "episodes",
    }
    file = folder / "crowd.yaml"
    file.write_text(json.dumps(settings))
    file.chmod(0o600)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(str(file), port, str(folder / "log")))
    process.start()
    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if not process.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the site didn't start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.join(15.0)
        if process.is_alive():
            process.kill()
        process.join()


def _serve(file: str, port: int, log: str) -> None:
    with Path(log).open("ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.environ[CONFIG_VARIABLE] = file
    uvicorn.run(
        "collect.crowd.app:from_environment",
        factory=True,
        host="127.0.0.1",
        port=port,
        backlog=4096,
        access_log=False,
        timeout_graceful_shutdown=2,
    )


def _write_steadily(url: str, people: list[str], ended: Any) -> None:
    """Awards at a steady rate until ``ended``, from a process of its own."""
    stream = random.Random(3)
    with contextlib.closing(Database(url)) as database:
        while not ended.wait(1.0 / AWARD_HZ):
            _award(database, stream.choice(people))


def _boards(
    database: Database, url: str, people: list[str], port: int, seconds: float
) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    ended = context.Event()
    writer = context.Process(target=_write_steadily, args=(url, people, ended))
    with database.read() as tx:
        before = standings.site_version(tx)[0]
    writer.start()
    try:
        deadline = time.monotonic() + START_S
        while True:
            with database.read() as tx:
                if standings.site_version(tx)[0] > before:
                    break
            if time.monotonic() > deadline:
                raise TimeoutError(f"no award was written within {START_S} s")
            time.sleep(0.05)
        asyncio.run(read_boards(port, READERS, 1.0))  # warm
        steady = asyncio.run(read_boards(port, READERS, seconds, READ_HZ))
        taken = asyncio.run(read_boards(port, READERS, seconds))
    finally:
        ended.set()
        writer.join(15.0)
        if writer.is_alive():
            writer.kill()
        writer.join()
    return {
        "leaderboard_rps": round(len(taken) / seconds, 1),
        "leaderboard_p50_ms": round(float(np.percentile(steady, 50)) * 1e3, 2),
        "leaderboard_p99_ms": round(float(np.percentile(steady, 99)) * 1e3, 2),
        "saturated_p99_ms": round(float(np.percentile(taken, 99)) * 1e3, 2),
    }


async def _streams(database: Database, port: int, number: int) -> dict[str, float | int]:
    viewers = await open_viewers(port, number)
    leaders = _leaders(database)
    stream = random.Random(4)
    try:
        commits = []
        for _ in range(ROUNDS):
            version = await asyncio.to_thread(_award, database, stream.choice(leaders))
            commits.append((time.monotonic(), version))
            await asyncio.sleep(ROUND_S + 0.5 * stream.random())
        for _ in range(BURST):
            version = await asyncio.to_thread(_award, database, stream.choice(leaders))
        began = time.monotonic()
        while any(viewer.version < version for viewer in viewers):
            if time.monotonic() - began > FINAL_S:
                break
            await asyncio.sleep(0.1)
        lost = sum(viewer.version < version for viewer in viewers)
        taken = _latencies(viewers, commits)
    finally:
        for viewer in viewers:
            viewer.close()
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50_s": round(float(p50), 3), "p99_s": round(float(p99), 3), "lost_final": lost}


def _latencies(viewers: list[Viewer], commits: list[tuple[float, int]]) -> list[float]:
    """Seconds from each commit until each viewer had it; what never came counts as for ever."""
    taken = []
    for viewer in viewers:
        for committed, version in commits:
            here = next((at for at, seen in viewer.seen if seen >= version), float("inf"))
            taken.append(here - committed)
    return taken


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    add_arguments(options)
    sys.exit(run(options.parse_args()))
