"""Episodes as training sees them: state and action by feature name, frames on demand.

Reads our episodes and public ALOHA files (``/observations/qpos``, ``/action`` and
``/observations/images``; tonyzhaozh/act). What one set of episodes has in common is checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
from numpy.typing import NDArray

from policies.training.config import DataConfig
from robot_stack.contract import Feature, Unit
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["Demonstration", "Frames", "demonstrations", "open_frames"]

ALOHA_JOINTS = (
    "waist",
    "shoulder",
    "elbow",
    "forearm_roll",
    "wrist_angle",
    "wrist_rotate",
    "gripper",
)
ALOHA_ROBOTS = ("follower_left", "follower_right")
UNITS: tuple[Unit, ...] = get_args(Unit)
ALOHA_EMBODIMENT = "aloha_vx300s"


@dataclass(frozen=True)
class Demonstration:
    """One episode: ``state`` (T, S) and ``action`` (T, D) float32, in the episode's units.

    Row i is row ``first_row`` + i of the file: rows at either end in which something is unknown
    are left out. ``begin`` (D,) is where the action's joints were in the first row; ``digest``
    tells the content from that of other files.
    """

    path: Path
    digest: str
    embodiment: str
    task: str
    period_ns: int
    state_features: tuple[Feature, ...]
    action_features: tuple[Feature, ...]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    begin: NDArray[np.float32]
    first_row: int

    def __len__(self) -> int:
        return len(self.action)


def demonstrations(paths: Sequence[Path], config: DataConfig) -> Iterator[Demonstration]:
    """Read the episodes one after the other, leaving out what ``config.labels`` excludes.

    EpisodeError names the file and what it lacks, or in what it differs from the first.
    """
    first: Demonstration | None = None
    for path in paths:
        found = _read(path, config)
        if found is None:
            continue
        if first is None:
            first = found
        for what in ("embodiment", "period_ns", "state_features", "action_features"):
            mine, other = getattr(found, what), getattr(first, what)
            if mine != other:
                raise EpisodeError(
                    f"{path}: its {what.replace('_', ' ')} is {_short(mine)}, that of "
                    f"{first.path.name} is {_short(other)}; train on episodes of one kind"
                )
        yield found


def _few(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return ", ".join(names[:3] if rest else names) + rest


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"{feature.name} [{feature.unit}]" for feature in value)
    return str(value)


def _read(path: Path, config: DataConfig) -> Demonstration | None:
    if is_aloha(path):
        return _read_aloha(path, config)
    with Episode.open(path) as episode:
        said = episode.metadata
        if said.ended is None:
            raise EpisodeError(
                f"{path} was never completed; `robot-stack episode recover` saves what it holds"
            )
        wanted = {"all": (True, False, None), "not_failure": (True, None), "success": (True,)}
        if said.success not in wanted[config.labels]:
            return None
        names = episode.schema.joint_names
        units = dict(zip(said.action.get("names", ()), said.action.get("units", ()), strict=False))
        joints = tuple(Feature(name, _unit(path, units.get(name, "1"))) for name in names)
        known = dict(zip(joints, np.asarray(episode.qpos).T, strict=True))
        env = episode.env_state
        if env is not None:
            described = said.extra.get("env", {}).get("units", ())
            for i in range(env.shape[1]):
                unit = _unit(path, described[i]) if i < len(described) else "1"
                known[Feature(f"env/{i}", unit)] = env[:, i].astype(np.float32)
        return _make(
            path,
            digest=said.content_hash or said.uuid,
            embodiment="+".join(
                dict.fromkeys(
                    str(said.robots.get(robot.name, {}).get("embodiment", robot.name))
                    for robot in episode.schema.row_robots
                )
            ),
            task=said.task or "",
            period_ns=round(1e9 / episode.schema.rate_hz),
            known=known,
            joints=joints,
            qpos=episode.qpos,
            action=episode.column(config.action),
            wanted=config.state,
        )


def _unit(path: Path, text: str) -> Unit:
    for unit in UNITS:
        if text == unit:
            return unit
    raise EpisodeError(f"{path}: {text!r} is no unit of a policy's features: {', '.join(UNITS)}")


def is_aloha(path: Path) -> bool:
    """Whether this is a public ALOHA file: HDF5 without our metadata, with qpos and action."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "metadata" not in file and "observations/qpos" in file and "action" in file
    except OSError:
        return False  # opening it as an episode tells why


def _read_aloha(path: Path, config: DataConfig) -> Demonstration:
    with h5py.File(path, "r", locking=False) as file:
        qpos, action = file["observations/qpos"][:], file["action"][:]
    dim = len(ALOHA_ROBOTS) * len(ALOHA_JOINTS)
    if qpos.ndim != 2 or qpos.shape[1] != dim or action.shape != qpos.shape:
        raise EpisodeError(
            f"{path}: ALOHA files have qpos and action (T, {dim}), here are {qpos.shape} and "
            f"{action.shape}"
        )
    if config.action == "action_sent":
        raise EpisodeError(
            f"{path}: public ALOHA files hold no action_sent; use data.action: action"
        )
    joints = tuple(
        Feature(f"{robot}/{joint}", "fraction" if joint == "gripper" else "rad")
        for robot in ALOHA_ROBOTS
        for joint in ALOHA_JOINTS
    )
    return _make(
        path,
        digest=hashlib.sha256(qpos.tobytes() + action.tobytes()).hexdigest(),
        embodiment=ALOHA_EMBODIMENT,
        task="",
        period_ns=round(1e9 / config.rate_hz),
        known=dict(zip(joints, qpos.T, strict=True)),
        joints=joints,
        qpos=qpos,
        action=action,
        wanted=config.state,
    )


def _make(
    path: Path,
    *,
    digest: str,
    embodiment: str,
    task: str,
    period_ns: int,
    known: dict[Feature, NDArray[Any]],
    joints: tuple[Feature, ...],
    qpos: NDArray[Any],
    action: NDArray[Any],
    wanted: tuple[str, ...],
) -> Demonstration:
    by_name = {feature.name: feature for feature in known}
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise EpisodeError(
            f"{path} has no {_few(missing)}; data.state may name {', '.join(by_name)}"
        )
    features = tuple(by_name[name] for name in wanted) if wanted else joints
    state = np.stack([known[feature] for feature in features], axis=1).astype(np.float32)
    whole = np.isfinite(state).all(axis=1) & np.isfinite(action).all(axis=1)
    rows = np.flatnonzero(whole)
    if not len(rows):
        raise EpisodeError(f"{path}: in no row are all of state and action known")
    start, end = int(rows[0]), int(rows[-1]) + 1
    if not whole[start:end].all():
        gap = start + int(np.flatnonzero(~whole[start:end])[0])
        raise EpisodeError(
            f"{path}: state or action is unknown (NaN) in row {gap}, in the midst of the episode; "
            "leave this episode out or name other features"
        )
    return Demonstration(
        path=path,
        digest=digest,
        embodiment=embodiment,
        task=task,
        period_ns=period_ns,
        state_features=features,
        action_features=joints,
        state=state[start:end],
        action=np.ascontiguousarray(action[start:end], np.float32),
        begin=np.asarray(qpos[start], np.float32),
        first_row=start,
    )


@dataclass(frozen=True)
class Frames:
    """The frames of one camera in an open file: row -> JPEG bytes or RGB uint8 (H, W, 3).

    ``same`` (T,) numbers the frames: rows of one number hold the same frame.
    """

    file: h5py.File
    camera: str
    lengths: NDArray[Any] | None
    same: NDArray[np.int64]

    def __getitem__(self, row: int) -> bytes | NDArray[np.uint8]:
        data = self.file[f"observations/images/{self.camera}"]
        if self.lengths is None:
            pixels: NDArray[np.uint8] = data[row]
            return pixels
        return bytes(data[row, : int(self.lengths[row])])


@contextmanager
def open_frames(path: Path, camera: str) -> Iterator[Frames]:
    """The frames of ``camera``; EpisodeError when the file has none, or not in every row."""
    with h5py.File(path, "r", locking=False) as file:
        images = file.get("observations/images", {})
        if camera not in images:
            raise EpisodeError(
                f"{path} has no camera {camera!r}; it has {', '.join(images) or 'none'}"
            )
        rows = images[camera].shape[0]
        lengths = None
        if images[camera].ndim == 2:
            order = sorted(images)  # as /compress_len is ordered
            lengths = file["compress_len"][order.index(camera)]
        same = np.arange(rows)
        if "frame_seq" in file:
            same = file["frame_seq"][:, sorted(images).index(camera)]
            if (same < 0).any():
                raise EpisodeError(
                    f"{path}: camera {camera} has no frame yet in row "
                    f"{int(np.flatnonzero(same < 0)[-1])}; leave this episode out"
                )
        yield Frames(file, camera, lengths, same)
