"""What an episode says of how somebody drove: seconds, way, smoothness, idleness, collisions, gaps.

`collect.crowd.scoring.judge` believes or doubts a participant by these. They are of the follower
arms as measured, never of what was asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from collect.crowd.savitzky_golay import derivative
from collect.session import recorded_group
from robot_stack import registry
from robot_stack.config import Station
from robot_stack.episode import Episode
from robot_stack.safety.limits import ForwardKinematics
from robot_stack.types import Difference

__all__ = ["measure", "tips"]

Array = NDArray[np.float64]

# A servo's count is 1.5 mrad, up to 1 mm at the gripper: three differences of that at 50 Hz would
# be hundreds of m/s^3. Fitted over half a second, a hand's motion stays and the counts go.
WINDOW_S = 0.5
ORDER = 4
IDLE_M_PER_S = 0.01  # of the faster gripper
APART_S = 1.0  # what the guard holds back within this is one collision that did not happen


def tips(station: Station) -> dict[str, ForwardKinematics]:
    """Forward kinematics to the fingertips of each arm whose commands are recorded."""
    return {
        name: registry.load("robot", config.driver)
        .from_config(config, station)
        .forward_kinematics()
        for name, config in station.robots.items()
        if name in recorded_group(station).robots
    }


def measure(path: Path, fingertips: Mapping[str, ForwardKinematics]) -> dict[str, float]:
    """The metrics of a finished episode, as `tables.Play` names them; what is unknown is left out.

    ``fingertips``: joints (dof,) to position (3,) in m, by the robot's name. ``path_m`` and
    ``jerk`` (m/s^3, root mean square) are of both grippers; EpisodeError when it is no episode.
    """
    with Episode.open(path) as episode:
        rate_hz = episode.schema.rate_hz
        rows = len(episode)
        ways = _ways(episode, fingertips)
        found = {
            "seconds": rows / rate_hz,
            "collisions": float(_collisions(episode, list(fingertips))),
            "dropped_frames": _dropped(episode),
        }
    window = round(WINDOW_S * rate_hz) | 1
    if len(ways) and rows >= window:
        dt = 1.0 / rate_hz
        fitted = functools.partial(derivative, window=window, order=ORDER, dt=dt)
        speed = np.stack([np.linalg.norm(fitted(way, 1), axis=1) for way in ways])
        jerk = np.stack([np.linalg.norm(fitted(way, 3), axis=1) for way in ways])
        found["path_m"] = float(speed.sum() * dt)
        found["jerk"] = float(np.sqrt(np.mean(np.square(jerk))))
        found["idle_fraction"] = float(np.mean(speed.max(axis=0) < IDLE_M_PER_S))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _ways(episode: Episode, fingertips: Mapping[str, ForwardKinematics]) -> Array:
    """Where each gripper was in each row, (arms, T, 3) in m; rows without a state keep the last."""
    joints = episode.qpos.astype(np.float64)
    ways = []
    first = 0
    for robot in episode.schema.row_robots:
        columns = slice(first, first + len(robot.joints))
        first = columns.stop
        if robot.name in fingertips:
            tip = fingertips[robot.name]
            own = joints[:, columns]
            known = np.isfinite(own).all(axis=1)
            if known.any():
                last = np.maximum.accumulate(np.where(known, np.arange(len(own)), 0))
                last[: int(known.argmax())] = int(known.argmax())
                ways.append(np.stack([tip(row) for row in own[last]]))
    return np.array(ways)


def _collisions(episode: Episode, robots: list[str]) -> int:
    """How often the collision guard had to hold an arm back."""
    times = np.sort(
        np.concatenate(
            [np.zeros(0, np.int64)]
            + [
                log["t_ns"][(log["difference"] & int(Difference.COLLISION)) > 0]
                for log in (episode.log(robot) for robot in robots)
            ]
        )
    )
    return len(times) and 1 + int((np.diff(times) > APART_S * 1e9).sum())


def _dropped(episode: Episode) -> float:
    """Frames that cameras made and the file has not; NaN when the recorder did not say."""
    counts = episode.metadata.frames
    if not counts and episode.cameras:
        return math.nan
    return float(sum(one.get("dropped", 0) + one.get("lost", 0) for one in counts.values()))
