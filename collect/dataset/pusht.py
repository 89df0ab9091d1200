"""The human demonstrations of Push-T (Chi et al. 2023) as episodes of ours.

Two public layouts hold the same 206 episodes: the replay buffer ``pusht_cchi_v7_replay.zarr``
(``data/{action,state,keypoint,img}``, ``meta/episode_ends``) and one HDF5 file with the same names
at its root. ``state`` (N, 5) is agent x, y, block x, y, angle; ``keypoint`` (N, 9, 2) are points of
the block; ``action`` (N, 2) is where the agent shall go; all in pixels of a 512 x 512 plane, 10 Hz.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    RobotLayout,
    Row,
    next_episode,
)
from robot_stack.errors import EpisodeError
from robot_stack.types import Source

__all__ = ["CAMERA", "ENV_NAMES", "JOINTS", "PushT", "import_pusht", "open_source"]

RATE_HZ = 10.0
PLANE_PX = 512.0
JOINTS = ("x", "y")
CAMERA = "image"
ENV_NAMES = (
    "block/x",
    "block/y",
    "block/angle",
    *(f"keypoint{i}/{axis}" for i in range(9) for axis in "xy"),
)
ENV_UNITS = ("px", "px", "1", *("px",) * 18)
LICENCE = (
    "MIT, Copyright (c) 2023 Columbia Artificial Intelligence and Robotics Lab; "
    "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
)
# name -> shape of one row
LAYOUT: dict[str, tuple[int, ...]] = {"action": (2,), "state": (5,), "keypoint": (9, 2)}


@dataclass(frozen=True)
class PushT:
    """An open source: arrays that are read by slices, N rows in all."""

    where: str
    arrays: dict[str, Any]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> slice:
        """The rows of one episode."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


@contextlib.contextmanager
def open_source(source: Path) -> Iterator[PushT]:
    """Open either layout; EpisodeError says what is missing or of another shape.

    MissingDependencyError (through the command line) when zarr is not installed.
    """
    if not source.exists():
        raise EpisodeError(f"{source} does not exist; give pusht_cchi_v7_replay.zarr or the HDF5")
    if source.is_dir():
        import zarr

        try:
            group = zarr.open_group(str(source), mode="r")
        except (ValueError, OSError, KeyError) as error:
            raise EpisodeError(
                f"{source} is no zarr group ({error}); unpack pusht.zip and give the directory "
                "pusht_cchi_v7_replay.zarr"
            ) from error
        yield _checked(
            str(source), lambda n: group[f"data/{n}"], lambda: group["meta/episode_ends"]
        )
        return
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise EpisodeError(f"{source} is neither a zarr directory nor HDF5: {error}") from error
    with file:
        yield _checked(str(source), lambda n: file[n], lambda: file["episode_ends"])


def _checked(where: str, get: Callable[[str], Any], get_ends: Callable[[], Any]) -> PushT:
    try:
        ends = np.asarray(get_ends()[:], np.int64)
        arrays = {name: get(name) for name in LAYOUT}
    except KeyError as error:
        raise EpisodeError(
            f"{where} lacks {error}; Push-T has {', '.join(LAYOUT)} and episode_ends (zarr: in "
            "data/ and meta/)"
        ) from error
    with contextlib.suppress(KeyError):
        arrays["img"] = get("img")
    rows = int(ends[-1]) if len(ends) else 0
    if not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
        raise EpisodeError(f"{where}: episode_ends must rise from above 0, it is {ends[:8]}...")
    for name, shape in LAYOUT.items():
        found = tuple(arrays[name].shape)
        if found != (rows, *shape):
            raise EpisodeError(f"{where}: {name} has shape {found}, expected {(rows, *shape)}")
    if "img" in arrays and (len(arrays["img"].shape) != 4 or arrays["img"].shape[0] != rows):
        raise EpisodeError(f"{where}: img has shape {arrays['img'].shape}, expected {rows} images")
    return PushT(where, arrays, ends)


def import_pusht(
    source: Path,
    target: Path,
    *,
    images: bool = False,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write every episode (or the first ``limit``) of ``source`` into ``target``; their paths.

    EpisodeError when ``target`` already holds episodes, or ``images`` are asked for and the source
    has none. ``progress(done, total)`` is called after each episode.
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.glob("*.hdf5*")):
        raise EpisodeError(
            f"{target} already holds episodes; import into an empty directory, so that none is "
            "there twice"
        )
    written = []
    with open_source(source) as data:
        if images and "img" not in data.arrays:
            raise EpisodeError(f"{source} holds no images (img); import without --images")
        total = min(len(data), limit or len(data))
        base_ns = time.monotonic_ns() - int(1e9 / RATE_HZ * int(data.ends[total - 1]))
        for index in range(total):
            path = next_episode(target)
            _write(data, index, path, images, base_ns)
            written.append(path)
            progress(index + 1, total)
    return written


def _write(data: PushT, index: int, path: Path, images: bool, base_ns: int) -> None:
    span = data.span(index)
    state = np.asarray(data.arrays["state"][span], np.float64)
    action = np.asarray(data.arrays["action"][span], np.float32)
    keypoint = np.asarray(data.arrays["keypoint"][span], np.float64).reshape(len(state), 18)
    for name, values in (("state", state), ("action", action), ("keypoint", keypoint)):
        if not np.isfinite(values).all():
            raise EpisodeError(f"{data.where}: {name} of episode {index} is not finite")
    pixels = None
    cameras: dict[str, ImageLayout] = {}
    if images:
        pixels = np.asarray(data.arrays["img"][span])
        if pixels.dtype != np.uint8:  # the zarr layout keeps whole numbers as float32
            pixels = pixels.round().clip(0, 255).astype(np.uint8)
        cameras[CAMERA] = ImageLayout(pixels.shape[2], pixels.shape[1])
    schema = EpisodeSchema(
        robots=(RobotLayout("agent", JOINTS),),
        cameras=cameras,
        rate_hz=RATE_HZ,
        encoding="raw",
        sim=True,
        env_dim=len(ENV_NAMES),
    )
    env = np.concatenate([state[:, 2:], keypoint], axis=1)
    period_ns = int(1e9 / RATE_HZ)
    writer = EpisodeWriter(path, schema, _metadata(data, index, cameras))
    try:
        for i in range(len(state)):
            t_ns = base_ns + (span.start + i) * period_ns
            writer.append(
                Row(
                    t_ns=t_ns,
                    qpos=state[i, :2],
                    action=action[i],
                    action_sent=action[i],
                    state_t_ns=[t_ns],
                    images={CAMERA: pixels[i]} if pixels is not None else {},
                    frame_t_ns=dict.fromkeys(cameras, t_ns),
                    frame_seq=dict.fromkeys(cameras, i),
                    source=Source.HUMAN,
                    env_state=env[i],
                    env_t_ns=t_ns,
                )
            )
        writer.finalise()
    except BaseException:
        if not path.exists():
            writer.discard()
        raise


def _metadata(data: PushT, index: int, cameras: dict[str, ImageLayout]) -> EpisodeMetadata:
    return EpisodeMetadata(
        operator="columbia",
        task="pusht",
        task_id="pusht",
        language="push the grey T onto the green one",
        robots={"agent": {"embodiment": "pusht", "joints": list(JOINTS)}},
        cameras={name: {"fps": RATE_HZ} for name in cameras},
        action={
            "kind": "absolute joint position",
            "rate_hz": RATE_HZ,
            "names": [f"agent/{joint}" for joint in JOINTS],
            "units": ["px", "px"],
            "lower": [0.0, 0.0],
            "upper": [PLANE_PX, PLANE_PX],
        },
        extra={
            "env": {"names": list(ENV_NAMES), "units": list(ENV_UNITS)},
            "provenance": {
                "source": Path(data.where).name,
                "episode": index,
                "paper": "Chi et al., Diffusion Policy, RSS 2023",
                "licence": LICENCE,
            },
        },
    )
