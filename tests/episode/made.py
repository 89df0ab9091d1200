"""Small episodes for tests of the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    RobotLayout,
    Row,
)
from robot_stack.records import tick_record

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
PERIOD = 20_000_000
START = 5_000_000_000


def schema(
    encoding: Literal["jpeg", "raw"] = "jpeg", *, depth: bool = True, env_dim: int = 3
) -> EpisodeSchema:
    return EpisodeSchema(
        robots=(
            RobotLayout("left", JOINTS),
            RobotLayout("right", JOINTS),
            RobotLayout("leader", JOINTS, in_rows=False),
        ),
        cameras={"cam_top": ImageLayout(64, 48, depth), "cam_low": ImageLayout(32, 24)},
        encoding=encoding,
        sim=True,
        env_dim=env_dim,
    )


def pixels(camera: str, i: int) -> NDArray[np.uint8]:
    """Red rises with ``i``, green tells the camera, blue is low: channel order shows."""
    height, width = (48, 64) if camera == "cam_top" else (24, 32)
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = (200, 60 if camera == "cam_top" else 120, 10)
    image[: height // 2, :, 0] = 100 + i % 100
    return image


def row(i: int, s: EpisodeSchema) -> Row:
    images: dict[str, Any] = {name: pixels(name, i) for name in s.cameras}
    if s.encoding == "jpeg":
        images = {n: cv2.imencode(".jpg", image)[1].tobytes() for n, image in images.items()}
    return Row(
        t_ns=START + i * PERIOD,
        qpos=np.arange(14) + i,
        qvel=np.full(14, 0.5),
        effort=np.full(14, -1.5),
        action=np.arange(14) + i + 0.5,
        action_sent=np.arange(14) + i + 0.25,
        state_t_ns=[START + i * PERIOD - 1000, START + i * PERIOD - 2000],
        images=images,
        frame_t_ns=dict.fromkeys(s.cameras, START + i * PERIOD - 5000),
        frame_seq=dict.fromkeys(s.cameras, i),
        depth={n: np.full((48, 64), 500 + i, np.uint16) for n, c in s.cameras.items() if c.depth},
        source=1,
        token=9,
        env_state=np.full(s.env_dim, i / 8) if s.env_dim else np.nan,
        env_t_ns=START + i * PERIOD,
        reward=float(i == 40),
    )


def ticks(i: int) -> NDArray[Any]:
    """The ten ticks before row ``i``."""
    records = np.zeros(10, tick_record(7))
    records["tick"] = np.arange(10) + 10 * i
    records["t_ns"] = START + records["tick"] * PERIOD // 10
    records["q"] = records["tick"][:, None]
    return records


def begin(path: Path, s: EpisodeSchema, **metadata: Any) -> EpisodeWriter:
    return EpisodeWriter(path, s, EpisodeMetadata(task="stack two cups", **metadata))


def fill(writer: EpisodeWriter, rows: int) -> None:
    for i in range(rows):
        writer.append(row(i, writer.schema))
        for robot in writer.schema.robots:
            writer.append_log(robot.name, ticks(i))
    writer.event(START + 7, "fault", "servo 9 overloaded")


def make(path: Path, s: EpisodeSchema, rows: int = 60, **metadata: Any) -> Path:
    writer = begin(path, s, **metadata)
    fill(writer, rows)
    return writer.finalise(success=True, labeller="test")
