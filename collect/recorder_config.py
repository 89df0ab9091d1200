"""What a recorder is told about its station, and the episode file that follows from it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata as distribution
from pathlib import Path
from typing import Any, Literal

from robot_stack.episode import EpisodeMetadata, EpisodeSchema, ImageLayout, RobotLayout
from robot_stack.errors import EpisodeError
from robot_stack.shared_memory import Ring
from robot_stack.spec import CameraSpec, RobotSpec

__all__ = [
    "RecordedRobot",
    "RecorderConfig",
    "describe",
    "refuse_mismatch",
    "schema_of",
    "software",
]


@dataclass(frozen=True, slots=True)
class RecordedRobot:
    """A robot whose ticks are logged; ``in_rows`` puts it into qpos and action, in this order.

    ``info`` goes into the metadata as it is: serial number, gains...
    """

    name: str
    spec: RobotSpec
    in_rows: bool = True
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What to record, and how.

    ``encoding`` ``jpeg`` or ``raw``; ``world`` adds ``env_state`` and reward of a virtual station.
    Recording ends by itself at ``max_seconds``, or when less than ``free_space_floor_bytes`` are
    free. ``delay_s`` is how long a row waits for a frame or tick that is late. ``metadata`` are
    fields of ``EpisodeMetadata`` that all episodes share.
    """

    station: str
    directory: Path
    robots: tuple[RecordedRobot, ...]
    cameras: Mapping[str, CameraSpec]
    rate_hz: float = 50.0
    encoding: Literal["jpeg", "raw"] = "jpeg"
    jpeg_quality: int = 90
    world: bool = False
    max_seconds: float = 600.0
    free_space_floor_bytes: int = 2_000_000_000
    delay_s: float = 0.2
    metadata: Mapping[str, Any] = field(default_factory=dict)


def schema_of(config: RecorderConfig, env_dim: int) -> EpisodeSchema:
    """The shape of this recorder's episodes; ``env_dim`` 0 without a world."""
    return EpisodeSchema(
        robots=tuple(
            RobotLayout(robot.name, robot.spec.names, robot.in_rows) for robot in config.robots
        ),
        cameras={
            name: ImageLayout(spec.width, spec.height, spec.depth)
            for name, spec in config.cameras.items()
        },
        rate_hz=config.rate_hz,
        encoding=config.encoding,
        sim=config.world,
        env_dim=env_dim,
        tracks=any(robot.spec.tracks for robot in config.robots if robot.in_rows),
    )


def refuse_mismatch(config: RecorderConfig, rings: Mapping[str, Ring]) -> None:
    """EpisodeError when a ring (by robot or camera name) is not of the configured shape."""
    for robot in config.robots:
        ring = rings.get(robot.name)
        if ring is not None and ring.dtype["q"].shape != (robot.spec.dof,):
            raise EpisodeError(
                f"robot {robot.name} has {ring.dtype['q'].shape[0]} joints where "
                f"{robot.spec.dof} were configured; is it another station file?"
            )
    for name, spec in config.cameras.items():
        ring = rings.get(name)
        shape = (spec.height, spec.width, 3)
        if ring is not None and ring.dtype["image"].shape != shape:
            raise EpisodeError(
                f"camera {name} sends images of shape {ring.dtype['image'].shape} where {shape} "
                "was configured; is it another station file?"
            )


def describe(
    config: RecorderConfig,
    camera_info: Mapping[str, Mapping[str, Any]],
    software_info: Mapping[str, str],
    changes: Mapping[str, Any],
) -> EpisodeMetadata:
    """Metadata at the start of an episode; ``camera_info`` is what each camera's ring says."""
    rows = [robot for robot in config.robots if robot.in_rows]
    joints = [joint for robot in rows for joint in robot.spec.joints]
    described = EpisodeMetadata(
        station=config.station,
        robots={
            robot.name: {
                "embodiment": robot.spec.embodiment,
                "joints": list(robot.spec.names),
                **robot.info,
            }
            for robot in config.robots
        },
        cameras={
            name: {
                **camera_info.get(name, {}),
                "width": spec.width,
                "height": spec.height,
                "fps": spec.fps,
                "depth": spec.depth,
            }
            for name, spec in config.cameras.items()
        },
        action={
            "kind": "absolute joint position",
            "rate_hz": config.rate_hz,
            "names": [f"{robot.name}/{name}" for robot in rows for name in robot.spec.names],
            "units": [joint.unit for joint in joints],
            "lower": [joint.lower for joint in joints],
            "upper": [joint.upper for joint in joints],
        },
        software=software_info,
    )
    return described.replace(**{**config.metadata, **changes})


def software() -> dict[str, str]:
    """Version of this distribution, and the commit when it runs from a checkout."""
    found = {"version": distribution.version("robot-stack")}
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            found["commit"] = answer.stdout.strip()
    return found
