"""Which datasets an episode holds, their shapes and types, in one table.

Public ALOHA code finds what it expects: root attribute ``sim``, float32 (T, D)
``/observations/{qpos,qvel,effort}`` and ``/action``, and ``/observations/images/<camera>`` either
uint8 (T, H, W, 3) or, with the root attribute ``compress``, uint8 (T, P) JPEG padded with zeros,
whose true lengths stand in ``/compress_len`` float32 (cameras, T) in alphabetical order (see
tonyzhaozh/act and MarkFzp/act-plus-plus). Everything else lies beside it; T is the number of rows:

| dataset | shape | meaning |
|---|---|---|
| ``/t_ns`` | (T,) | time of the row, monotonic ns, on an even grid |
| ``/action_sent`` | (T, D) | what was sent; ``/action`` is what was asked; NaN when unknown |
| ``/observations/t_ns`` | (T, robots) | when each robot's state was sampled, -1 when never |
| ``/frame_t_ns``, ``/frame_seq`` | (T, cameras) | its capture time and number, -1: none yet |
| ``/source``, ``/token`` | (T,) | ``types.Source`` of the action, its lease token |
| ``/takeover_id`` | (T,) | counts a person's takeovers, -1 outside them |
| ``/policy/chunk_id``, ``/policy/chunk_index`` | (T,) | -1 when no policy |
| ``/policy/observation_t_ns`` | (T,) | when what the chunk answers was captured |
| ``/difference`` | (T,) | ``types.Difference`` bits of all robots: why sent is not asked |
| ``/tracking/applied`` | (T, D) | what the devices tracked; robots with a loop of their own only |
| ``/tracking/success_rate``, ``/tracking/target_age_s`` | (T, robots) | of that loop, NaN unknown |
| ``/tracking/fault`` | (T,) | faults, reflexes, what is recovered from; empty when none |
| ``/reward``, ``/terminated``, ``/truncated`` | (T,) | NaN reward when nobody gives one |
| ``/env_state``, ``/env_t_ns`` | (T, E), (T,) | of a virtual station |
| ``/observations/depth/<camera>`` | (T, H, W) | uint16 millimetres, lossless |
| ``/log/<robot>`` | (N,) | every turn of the robot's loop: ``records.tick_record`` less its texts |
| ``/events`` | (M,) | t_ns, kind, text: faults, camera loss, servo recovery, takeover |

Colour: pixels are RGB in both variants. A JPEG here is what ``cv2.imencode`` makes of the RGB array
as it is, so ``cv2.imdecode`` gives RGB back, as ALOHA's own scripts do and their loaders expect;
a picture viewer shows red and blue swapped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np

from robot_stack.errors import EpisodeError
from robot_stack.records import tick_record

__all__ = [
    "EVENT",
    "Column",
    "EpisodeSchema",
    "ImageLayout",
    "RobotLayout",
    "columns",
    "log_record",
]

EVENT = np.dtype([("t_ns", "<i8"), ("kind", "S32"), ("text", "S216")])
ROW_CHUNK = 64
LOG_CHUNK = 32
EVENT_CHUNK = 16


@dataclass(frozen=True, slots=True)
class RobotLayout:
    """A robot of the episode: always in ``/log``; with ``in_rows`` also in qpos and action."""

    name: str
    joints: tuple[str, ...]
    in_rows: bool = True


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """A camera: RGB uint8 (height, width, 3), and uint16 millimetres (H, W) if ``depth``."""

    width: int
    height: int
    depth: bool = False


@dataclass(frozen=True, slots=True)
class EpisodeSchema:
    """All that fixes the shape of an episode file before its first row.

    ``rate_hz`` is the rate of the rows; ``env_dim`` 0 leaves out ``/env_state``, ``tracks`` False
    ``/tracking`` (``RobotSpec.tracks`` of any robot in the rows). JPEG rows are
    ``jpeg_bits_per_pixel`` wide: a fixed width is what makes a killed recording readable.
    """

    robots: tuple[RobotLayout, ...]
    cameras: Mapping[str, ImageLayout]
    rate_hz: float = 50.0
    encoding: Literal["jpeg", "raw"] = "jpeg"
    sim: bool = False
    env_dim: int = 0
    tracks: bool = False
    jpeg_bits_per_pixel: float = 4.0

    def __post_init__(self) -> None:
        if self.encoding not in ("jpeg", "raw"):
            raise EpisodeError(f"image encoding {self.encoding!r}; it is `jpeg` or `raw`")
        for name in (*self.cameras, *(robot.name for robot in self.robots)):
            if not name or "/" in name or "." in name:
                raise EpisodeError(f"{name!r} can't name a camera or robot: no '/', '.' or nothing")

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Alphabetical: the order of ``/compress_len``, ``/frame_t_ns`` and ``/frame_seq``."""
        return tuple(sorted(self.cameras))

    @property
    def row_robots(self) -> tuple[RobotLayout, ...]:
        return tuple(robot for robot in self.robots if robot.in_rows)

    @property
    def joint_names(self) -> tuple[str, ...]:
        """``robot/joint`` for each of the D entries of qpos and action."""
        return tuple(f"{r.name}/{joint}" for r in self.row_robots for joint in r.joints)

    def jpeg_bytes(self, camera: str) -> int:
        """P, the width of the camera's JPEG rows, a multiple of 512 bytes."""
        layout = self.cameras[camera]
        bits = layout.width * layout.height * self.jpeg_bits_per_pixel
        return max(int(-(-bits // 4096)) * 512, 2048)


@dataclass(frozen=True, slots=True)
class Column:
    """A small dataset with one entry a row."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    fill: float | bytes


def log_record(dof: int) -> np.dtype[Any]:
    """A record of ``/log/<robot>``: the arm's tick without its texts, which are events."""
    full = tick_record(dof)
    descr = [row for row in full.descr if row[0] not in ("fault", "notice")]
    return np.dtype(descr)


def columns(schema: EpisodeSchema) -> tuple[Column, ...]:
    """The row datasets but images and ``/compress_len``. ``t_ns`` is last: written last.

    Columns without width (an episode without cameras) are left out.
    """
    dim = (len(schema.joint_names),)
    robots = (len(schema.row_robots),)
    cameras = (len(schema.cameras),)
    nan = float("nan")
    rows = [
        Column("observations/qpos", "<f4", dim, nan),
        Column("observations/qvel", "<f4", dim, nan),
        Column("observations/effort", "<f4", dim, nan),
        Column("observations/t_ns", "<i8", robots, -1),
        Column("action", "<f4", dim, nan),
        Column("action_sent", "<f4", dim, nan),
        Column("frame_t_ns", "<i8", cameras, -1),
        Column("frame_seq", "<i8", cameras, -1),
        Column("source", "|u1", (), 0),
        Column("token", "<i8", (), -1),
        Column("takeover_id", "<i8", (), -1),
        Column("policy/chunk_id", "<i8", (), -1),
        Column("policy/chunk_index", "<i8", (), -1),
        Column("policy/observation_t_ns", "<i8", (), -1),
        Column("difference", "<u4", (), 0),
        Column("reward", "<f4", (), nan),
        Column("terminated", "|u1", (), 0),
        Column("truncated", "|u1", (), 0),
    ]
    if schema.tracks:
        rows += [
            Column("tracking/applied", "<f4", dim, nan),
            Column("tracking/success_rate", "<f4", robots, nan),
            Column("tracking/target_age_s", "<f4", robots, nan),
            Column("tracking/fault", "S160", (), b""),
        ]
    if schema.env_dim:
        rows.append(Column("env_state", "<f8", (schema.env_dim,), nan))
        rows.append(Column("env_t_ns", "<i8", (), -1))
    rows.append(Column("t_ns", "<i8", (), -1))
    return tuple(column for column in rows if 0 not in column.shape)


def image_path(camera: str) -> str:
    return f"observations/images/{camera}"


def depth_path(camera: str) -> str:
    return f"observations/depth/{camera}"


def log_path(robot: str) -> str:
    return f"log/{robot}"


def stream_names(schema: EpisodeSchema) -> list[str]:
    """Every dataset that holds recorded content, as named in the content hash."""
    names = [column.path for column in columns(schema)]
    names += [image_path(name) for name in schema.camera_names]
    names += [depth_path(name) for name in schema.camera_names if schema.cameras[name].depth]
    names += [log_path(robot.name) for robot in schema.robots]
    if schema.encoding == "jpeg" and schema.cameras:
        names.append("compress_len")
    return [*names, "events"]


def create_datasets(file: h5py.File, schema: EpisodeSchema) -> None:
    """Lay out the whole file, empty. SWMR allows no new object or attribute afterwards."""
    file.attrs["sim"] = np.bool_(schema.sim)
    file.attrs["rate_hz"] = schema.rate_hz
    file.attrs["encoding"] = schema.encoding
    file.attrs["jpeg_bits_per_pixel"] = schema.jpeg_bits_per_pixel
    file.attrs["cameras"] = np.array(schema.camera_names, dtype="S64")
    file.attrs["joint_names"] = np.array(schema.joint_names, dtype="S96")
    for column in columns(schema):
        file.create_dataset(
            column.path,
            shape=(0, *column.shape),
            maxshape=(None, *column.shape),
            chunks=(ROW_CHUNK, *column.shape),
            dtype=column.dtype,
            fillvalue=column.fill,
        )
    for name in schema.camera_names:
        camera = schema.cameras[name]
        size = (camera.height, camera.width)
        row: tuple[int, ...] = (*size, 3)
        options: dict[str, Any] = {}
        if schema.encoding == "jpeg":
            row, options = (schema.jpeg_bytes(name),), {"compression": "gzip"}
        images = file.create_dataset(
            image_path(name), (0, *row), "u1", maxshape=(None, *row), chunks=(1, *row), **options
        )
        images.attrs["width"], images.attrs["height"] = camera.width, camera.height
        images.attrs["channels"] = "RGB"
        if camera.depth:
            file.create_dataset(
                depth_path(name),
                (0, *size),
                "<u2",
                maxshape=(None, *size),
                chunks=(1, *size),
                compression="gzip",
            ).attrs["unit"] = "mm"
    if schema.encoding == "jpeg" and schema.cameras:
        file.attrs["compress"] = np.bool_(True)
        n = len(schema.cameras)
        file.create_dataset(
            "compress_len", (n, 0), "<f4", maxshape=(n, None), chunks=(n, ROW_CHUNK)
        )
    for robot in schema.robots:
        log = file.create_dataset(
            log_path(robot.name),
            (0,),
            log_record(len(robot.joints)),
            maxshape=(None,),
            chunks=(LOG_CHUNK,),
        )
        log.attrs["joint_names"] = np.array(robot.joints, dtype="S64")
        log.attrs["in_rows"] = np.bool_(robot.in_rows)
    file.create_dataset("events", (0,), EVENT, maxshape=(None,), chunks=(EVENT_CHUNK,))


def read_schema(file: h5py.File) -> EpisodeSchema:
    """The schema that an episode file was made with."""
    try:
        robots = []
        for name, log in file["log"].items() if "log" in file else ():
            joints = tuple(joint.decode() for joint in log.attrs["joint_names"])
            robots.append(RobotLayout(name, joints, bool(log.attrs["in_rows"])))
        order = [name.decode().split("/")[0] for name in file.attrs["joint_names"]]
        robots.sort(key=lambda r: order.index(r.name) if r.name in order else len(order))
        cameras = {}
        for raw in file.attrs["cameras"]:
            images = file[image_path(raw.decode())]
            cameras[raw.decode()] = ImageLayout(
                int(images.attrs["width"]),
                int(images.attrs["height"]),
                depth_path(raw.decode()) in file,
            )
        return EpisodeSchema(
            robots=tuple(robots),
            cameras=cameras,
            rate_hz=float(file.attrs["rate_hz"]),
            encoding=file.attrs["encoding"],
            sim=bool(file.attrs["sim"]),
            env_dim=file["env_state"].shape[1] if "env_state" in file else 0,
            tracks="tracking" in file,
            jpeg_bits_per_pixel=float(file.attrs["jpeg_bits_per_pixel"]),
        )
    except KeyError as error:
        raise EpisodeError(
            f"{file.filename} is not an episode of robot-stack ({error}); public ALOHA files "
            "have no logs and frame times"
        ) from error
