"""Episodes for the tools' tests, written by the real writer from smooth made-up motion."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from collect import jpeg
from collect.recorder_config import RecordedRobot, RecorderConfig, describe, schema_of
from robot_stack.episode import EpisodeWriter, Row
from robot_stack.records import tick_record
from robot_stack.spec import CameraSpec, JointSpec, RobotSpec
from robot_stack.types import Difference, Lifecycle, Source

ARM = RobotSpec(
    embodiment="vx300s",
    joints=(
        JointSpec("waist", "rad", -3.0, 3.0, 3.0, 20.0, 0.5),
        JointSpec("shoulder", "rad", -1.8, 1.2, 3.0, 20.0, 0.5),
        JointSpec("elbow", "rad", -1.7, 1.6, 3.0, 20.0, 0.5),
        JointSpec("forearm_roll", "rad", -3.1, 3.1, 3.0, 20.0, 0.5),
        JointSpec("wrist_angle", "rad", -1.8, 2.1, 3.0, 20.0, 0.5),
        JointSpec("wrist_rotate", "rad", -3.1, 3.1, 3.0, 20.0, 0.5),
        JointSpec("gripper", "fraction", 0.0, 1.0, 8.0, 60.0, 1.0),
    ),
    home=(0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.5),
    sleep=(0.0, -1.7, 1.55, 0.0, -1.6, 0.0, 0.5),
)
CAMERAS = {
    "cam_high": CameraSpec("cam_high", 96, 64, 25.0),
    "cam_low": CameraSpec("cam_low", 64, 64, 50.0),
}


def motion(t: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two arms (N, 14), inside the limits of ``ARM``, gripper in 0..1."""
    phase = np.arange(14) * 0.7
    amplitude = np.where(np.arange(14) % 7 == 6, 0.45, 0.6)
    middle = np.where(np.arange(14) % 7 == 6, 0.5, 0.1)
    return np.asarray(middle + amplitude * np.sin(2 * np.pi * 0.25 * t[:, None] + phase))


def _picture(spec: CameraSpec, seq: int) -> np.ndarray[Any, Any]:
    image = np.full((spec.height, spec.width, 3), (40, 70, 110), np.uint8)
    x = 5 + seq * 2 % (spec.width - 10)
    cv2.circle(image, (x, spec.height // 2), 5, (250, 200, 40), -1)
    return image


def config(directory: Path, **changes: Any) -> RecorderConfig:
    values: dict[str, Any] = {
        "station": "bench",
        "directory": directory,
        "robots": (RecordedRobot("left", ARM), RecordedRobot("right", ARM)),
        "cameras": CAMERAS,
        "encoding": "jpeg",
    }
    return RecorderConfig(**{**values, **changes})


def write_episode(
    path: Path,
    *,
    rows: int = 100,
    success: bool | None = None,
    stall: tuple[int, int] | None = None,
    encoding: str = "jpeg",
    offset: float = 0.0,
    commands: np.ndarray[Any, Any] | None = None,
    **metadata: Any,
) -> Path:
    """An episode of two arms and two cameras. ``stall``: rows in which cam_low sends nothing;
    ``offset`` is added to joint 0 of the commands; ``commands`` (rows, 14) replace them."""
    made = config(path.parent, encoding=encoding)
    writer = EpisodeWriter(
        path,
        schema_of(made, 0),
        describe(made, {}, {"version": "test"}, {"task": "cube", **metadata}),
    )
    start = time.monotonic_ns() - rows * 20_000_000
    t = np.arange(rows) * 0.02
    asked = motion(t + 0.05) if commands is None else commands
    asked[:, 0] += offset
    sent = np.clip(asked, -1.7, 1.2)
    seq = dict.fromkeys(CAMERAS, 0)
    for i in range(rows):
        t_ns = start + i * 20_000_000
        for name, spec in CAMERAS.items():
            if stall is None or name != "cam_low" or not stall[0] <= i < stall[1]:
                seq[name] = int(i * spec.fps / 50)
        shots = {name: _picture(spec, seq[name]) for name, spec in CAMERAS.items()}
        packed = {n: jpeg.encode(s, 90) for n, s in shots.items()} if encoding == "jpeg" else shots
        taken = {n: start + int(seq[n] * 1e9 / CAMERAS[n].fps) - 3_000_000 for n in CAMERAS}
        q = motion(t[i : i + 1])[0]
        writer.append(
            Row(
                t_ns=t_ns,
                qpos=q,
                qvel=(motion(t[i : i + 1] + 0.01)[0] - q) / 0.01,
                effort=np.zeros(14),
                action=asked[i],
                action_sent=sent[i],
                state_t_ns=[t_ns - 2_000_000] * 2,
                images=packed,
                frame_t_ns=taken,
                frame_seq=seq,
                source=Source.HUMAN if rows // 3 <= i < rows // 2 else Source.DEMO,
                difference=Difference.VELOCITY if 30 <= i < 45 else Difference.NONE,
            )
        )
    for a, name in enumerate(("left", "right")):
        log = np.zeros(rows * 4, tick_record(7))
        log["t_ns"] = start + np.arange(rows * 4) * 5_000_000
        log["tick"] = np.arange(rows * 4)
        log["q"] = motion(np.arange(rows * 4) * 0.005)[:, a * 7 : a * 7 + 7]
        log["lateness_ns"] = np.random.default_rng(a).gamma(2.0, 20_000, rows * 4)
        log["distance"] = 0.1 + 0.08 * np.cos(np.arange(rows * 4) * 0.02)
        log["lifecycle"] = Lifecycle.ARMED
        writer.append_log(name, log)
    writer.event(start + rows // 2 * 20_000_000, "fault", "left: servo 4 overloaded, restarted")
    frames = {name: {"dropped": 0, "lost": 0, "repeated": 0, "stale_rows": 0} for name in CAMERAS}
    return writer.finalise(success=success, frames=frames)
