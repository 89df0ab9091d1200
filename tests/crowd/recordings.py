"""Plays with a real episode file behind them, as a station would have synced them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.keys import SiteKey
from collect.crowd.stations import CONTRIBUTOR
from collect.crowd.tables import Participant, Play, Station, Task, utc_now
from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    RobotLayout,
    Row,
)
from tests.crowd import factories

__all__ = ["ROWS", "make_recorded"]

ROWS = 6
SCHEMA = EpisodeSchema(
    robots=(RobotLayout("left", ("waist", "gripper")),),
    cameras={"cam_high": ImageLayout(16, 12)},
    encoding="raw",
    sim=True,
)


def make_recorded(
    database: Database,
    config: CrowdConfig,
    key: SiteKey,
    participant: Participant,
    station: Station,
    task: Task | None = None,
    *,
    events: tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
    **columns: Any,
) -> Play:
    """A synced play of `ROWS` rows, whose file names its contributor as stations do."""
    with database.begin() as tx:
        play = factories.make_play(tx, participant, station, task, **columns)
    relative = f"{station.name}/{play.id}.hdf5"
    path = config.episodes / relative
    path.parent.mkdir(exist_ok=True)
    writer = EpisodeWriter(
        path,
        SCHEMA,
        EpisodeMetadata(
            uuid=play.id,
            operator=key.mac(CONTRIBUTOR, participant.id)[:32],
            consent="1",
            station=station.id,
            session=play.id,
            task_id=play.task_id,
            task="Put it there",
            language="en",
            action={"kind": "joint_position"},
            extra={"play": play.id, "lab": "cafe", **(extra or {})},
        ),
    )
    for i in range(ROWS):
        writer.append(
            Row(
                t_ns=10**9 + i * 20_000_000,
                qpos=np.arange(2) + i,
                action=np.arange(2) + i + 0.5,
                images={"cam_high": np.full((12, 16, 3), i, np.uint8)},
                frame_t_ns={"cam_high": 10**9 + i},
                frame_seq={"cam_high": i},
            )
        )
    for text in events:
        writer.event(10**9, "note", text)
    writer.finalise()
    with database.begin() as tx:
        row = tx.get_one(Play, play.id)
        row.file = relative
        row.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        row.metrics = {"seconds": 30.0, "path_m": 4.5}
        row.state, row.synced_at = "synced", utc_now()
        row.likert_fun = 5
    return row
