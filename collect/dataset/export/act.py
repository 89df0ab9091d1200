"""Export to the HDF5 files of ACT (tonyzhaozh/act) and act-plus-plus (MarkFzp/act-plus-plus).

ACT's loader counts up ``episode_0.hdf5``, ``episode_1.hdf5``, ..., takes images as raw uint8
(T, H, W, 3), and stacks whole episodes, so all have the same length. act-plus-plus takes each
episode at its own length, and JPEG images when the root attribute ``compress`` is set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from collect import jpeg
from collect.dataset.export.source import Advance, Selection, Source, appearing, images
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError

__all__ = ["export"]

JPEG_QUALITY = 90


def export(
    selection: Selection, out: Path, advance: Advance, *, compress: bool = False, length: int = 0
) -> dict[str, Any]:
    """Write ``out/episode_0.hdf5`` and so on; what was written, as plain JSON.

    Raw episodes get ``length`` rows, that of the longest by default: the last row is held, at rest,
    to fill a shorter one, and a longer one is refused. With ``compress`` images are JPEG, each
    episode keeps its own length, and ``length`` must be 0. ``advance`` is called for every row.
    """
    longest = max(len(source) for source in selection.sources)
    if compress and length:
        raise EpisodeError("act-plus-plus reads episodes of any length: leave out --length")
    if length and length < longest:
        raise EpisodeError(
            f"an episode has {longest} rows, more than --length {length}; give at least {longest}"
        )
    length = 0 if compress else length or longest
    with appearing(out, directory=True) as part:
        for i, source in enumerate(selection.sources):
            with (
                Episode.open(source.path) as episode,
                h5py.File(part / f"episode_{i}.hdf5", "w") as file,
            ):
                _write(file, episode, source, length, compress)
                for _ in range(len(source)):
                    advance()
    return {
        "length": length or None,
        "held_rows": sum(length - len(source) for source in selection.sources) if length else 0,
        "compress": compress,
    }


def _write(file: h5py.File, episode: Episode, source: Source, length: int, compress: bool) -> None:
    file.attrs["sim"] = np.bool_(episode.schema.sim)
    file.attrs["compress"] = np.bool_(compress)
    file.attrs["source_uuid"] = source.uuid
    rows = length or len(source)
    qvel = np.zeros((rows, episode.qpos.shape[1]), np.float32)
    qvel[: len(source)] = episode.qvel[source.rows]
    file["observations/qpos"] = _held(episode.qpos[source.rows], rows)
    file["observations/qvel"] = qvel
    file["observations/effort"] = _held(episode.effort[source.rows], rows)
    file["action"] = _held(episode.action[source.rows], rows)
    if compress:
        _write_jpeg(file, episode, source)
        return
    for camera in episode.cameras:
        layout = episode.schema.cameras[camera]
        shape = (layout.height, layout.width, 3)
        data = file.create_dataset(
            f"observations/images/{camera}", (rows, *shape), "u1", chunks=(1, *shape)
        )
        image = np.zeros(shape, np.uint8)
        for row, image in enumerate(images(episode, source, camera)):
            data[row] = image
        for row in range(len(source), rows):
            data[row] = image


def _held(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """``values`` (T, D) with the last row repeated up to ``rows``."""
    return np.concatenate([values, np.repeat(values[-1:], rows - len(values), axis=0)])


def _write_jpeg(file: h5py.File, episode: Episode, source: Source) -> None:
    """Padded JPEG rows, and their true lengths in ``/compress_len``, cameras in file order."""
    lengths = np.zeros((len(episode.cameras), len(source)), np.float32)
    for c, camera in enumerate(episode.cameras):
        packed = list(_jpegs(episode, source, camera))
        width = max(len(data) for data in packed)
        data = file.create_dataset(
            f"observations/images/{camera}", (len(packed), width), "u1", chunks=(1, width)
        )
        for row, coded in enumerate(packed):
            data[row, : len(coded)] = np.frombuffer(coded, np.uint8)
            lengths[c, row] = len(coded)
    if episode.cameras:
        file["compress_len"] = lengths


def _jpegs(episode: Episode, source: Source, camera: str) -> list[bytes]:
    """The recorded JPEG as they are; raw recordings are encoded."""
    if episode.schema.encoding == "jpeg":
        return [episode.jpeg(camera, row) for row in range(source.start, source.stop)]
    return [jpeg.encode(image, JPEG_QUALITY) for image in images(episode, source, camera)]
