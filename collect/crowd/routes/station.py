"""What stations' agents ask and tell: pairing, heartbeats, results and files.

A bearer token stands for one station; a play of another one is not there for it. Everything may be
sent twice, late and in any order: a play's id makes it count once.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, Path, Request
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from collect.crowd import files, pairing, plays, stations
from collect.crowd.agent_messages import (
    Answer,
    Heartbeat,
    PairAnswer,
    PairRequest,
    ResultAnswer,
    ResultReport,
    Sha256,
)
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database, DatabaseBusyError
from collect.crowd.deps import Config, CurrentAgent, Db, Key, Limiter, address_of
from collect.crowd.files import UploadError
from collect.crowd.log import log
from collect.crowd.site import Site
from collect.crowd.tables import Play, Station, utc_now

__all__ = ["router"]

SWEEP_S = 2.0
LATE = 3  # turns that a suspended machine, or one without time for us, has missed
PROMPT_S = 1.0
PAIR_RULE = "10 per 10 minutes"
PlayPath = Annotated[
    str,
    Path(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
]


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    site: Site = app.state.site
    await run_in_threadpool(files.clear_leftovers, site.config.episodes)
    sweeping = asyncio.create_task(_sweep(site.database))
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)


router = APIRouter(prefix="/api/station", lifespan=_lifespan, tags=["station"])


@router.post("/pair")
def pair(request: Request, db: Db, key: Key, limiter: Limiter, asked: PairRequest) -> PairAnswer:
    """The token of a station's agent, for a code that staff made. An earlier token is void."""
    limiter.hit("pair", PAIR_RULE, address_of(request))
    try:
        with db.begin() as tx:
            token, station = pairing.pair_agent(tx, key, asked.code)
    except pairing.PairingError as error:
        raise HTTPException(403, str(error)) from error
    return PairAnswer(token=token, station=station.name)


@router.post("/heartbeat")
def heartbeat(db: Db, key: Key, agent: CurrentAgent, told: Heartbeat) -> Answer:
    """What the agent says of itself; the answer is what shall be."""
    with db.begin() as tx:
        answer = stations.heartbeat(tx, agent, told.state.model_dump(), key=key, fence=told.fence)
    return Answer(**answer)


@router.post(
    "/play/{play_id}/result",
    responses={409: {"description": "Not as it is known here, or not here yet"}},
)
def result(
    db: Db, config: Config, agent: CurrentAgent, play_id: PlayPath, told: ResultReport
) -> ResultAnswer:
    """What came of a play, and whether its file is wanted."""
    with db.read() as tx:
        if tx.get(Play, play_id) is None and not plays.erased(tx, play_id):
            return ResultAnswer(file="unknown")
        play = _play(tx, agent, play_id)
        if play is None:
            return ResultAnswer(file="erased")
    # A large file is read once: the agent asks again before that is done.
    if told.file is not None and (told.file, told.sha256) != (play.file, play.sha256):
        if told.sha256 is None:
            raise HTTPException(422, "a file is told of with its sha256")
        try:
            wanted = files.episode_path(agent.name, play.id)
            files.told(config.episodes, told.file, wanted, size=told.size, sha256=told.sha256)
        except UploadError as error:
            raise HTTPException(error.status, str(error)) from error
    with db.begin() as tx:
        now = utc_now()
        play = _play(tx, agent, play_id)
        if play is None:
            return ResultAnswer(file="erased")
        _take(tx, config, play, told, now)
        if play.state == "void":
            return ResultAnswer(file="none")
        return ResultAnswer(file="wanted" if play.file is None else "here")


@router.put(
    "/play/{play_id}/file",
    status_code=200,
    responses={
        409: {"description": "Another file was told of"},
        507: {"description": "The disk is full"},
    },
)
async def upload(
    request: Request,
    db: Db,
    config: Config,
    agent: CurrentAgent,
    play_id: PlayPath,
    x_sha256: Annotated[Sha256, Header(description="of the whole file, in hex")],
    content_length: Annotated[int, Header(ge=1)],
) -> ResultAnswer:
    """A play's episode as it is on the station's disk."""
    if (known := await run_in_threadpool(_known, db, agent, play_id, x_sha256)) is not None:
        return known
    try:
        async with files.receive(
            request.stream(), config.episodes, play_id, size=content_length, sha256=x_sha256
        ) as part:
            return await run_in_threadpool(_keep, db, config, agent, play_id, x_sha256, part)
    except UploadError as error:
        raise HTTPException(error.status, str(error)) from error


def _known(db: Database, agent: Station, play_id: str, sha256: str) -> ResultAnswer | None:
    """The answer to an upload that nothing needs to be read of."""
    with db.read() as tx:
        play = _play(tx, agent, play_id)
    if play is None:
        return ResultAnswer(file="erased")
    if play.sha256 not in (None, sha256):
        raise HTTPException(409, "another file was told of for this play")
    return None if play.file is None else ResultAnswer(file="here")


def _keep(
    db: Database, config: CrowdConfig, agent: Station, play_id: str, sha256: str, part: pathlib.Path
) -> ResultAnswer:
    with db.begin() as tx:
        play = _play(tx, agent, play_id)
        if play is None:  # erased while it came
            return ResultAnswer(file="erased")
        if play.sha256 not in (None, sha256):
            raise HTTPException(409, "another file was told of for this play")
        if play.file is None:
            where = files.episode_path(agent.name, play.id)
            files.keep(part, config.episodes, where)
            plays.arrived(tx, play, file=where, sha256=sha256, worth=config.points)
    return ResultAnswer(file="here")


def _take(
    tx: Session, config: CrowdConfig, play: Play, told: ResultReport, now: dt.datetime
) -> None:
    found = plays.Result(
        ended_by=told.ended_by,
        rows=told.rows,
        metrics=told.metrics,
        checked=told.checked,
        sha256=told.sha256,
        file=told.file,
    )
    stations.passed(tx, play, told.tutorial_done, now)
    try:
        plays.result(
            tx, play, found, worth=config.points, now=now, ended_at=_ago(now, told.ended_ago_s)
        )
    except plays.PlayError as error:
        raise HTTPException(409, str(error)) from error


def _ago(now: dt.datetime, seconds: float) -> dt.datetime:
    return now - dt.timedelta(seconds=seconds)


def _play(tx: Session, agent: Station, play_id: str) -> Play | None:
    """The agent's own play; None when it was erased, 404 when it never was one of its own."""
    if plays.erased(tx, play_id):
        return None
    play = tx.get(Play, play_id)
    if play is None or play.station_id != agent.id:
        raise HTTPException(404, "this station has no such play")
    return play


async def _sweep(database: Database) -> None:
    """End what time has ended, for as long as the site runs.

    A station is not lost because the site or its database was away: its silence counts from when
    there was somebody to listen.
    """
    before = listening = utc_now()
    while True:
        await asyncio.sleep(SWEEP_S)
        prompt = False
        try:
            if utc_now() - before < dt.timedelta(seconds=LATE * SWEEP_S):
                prompt = await run_in_threadpool(_sweep_once, database, listening)
        except DatabaseBusyError as error:
            log.warning("sweep", error=error)
        except SQLAlchemyError as error:
            log.error("sweep", error=error)
        before = utc_now()
        if not prompt:
            listening = before


def _sweep_once(database: Database, listening: dt.datetime) -> bool:
    """False when heartbeats, too, had to wait for the database; then nothing is ended."""
    asked = time.monotonic()
    with database.begin() as tx:  # as a heartbeat does: a look alone would not meet a lock
        if time.monotonic() - asked > PROMPT_S:
            return False
        now = utc_now()
        if stations.due(tx, now, listening):
            stations.sweep(tx, now, listening)
    return True
