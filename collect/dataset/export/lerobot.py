"""Export to a LeRobot dataset, format v3.0 (huggingface/lerobot, ``datasets/lerobot_dataset.py``).

``meta/info.json`` describes the features, ``meta/stats.json`` their statistics,
``meta/tasks.parquet`` the tasks; ``meta/episodes/chunk-000/file-000.parquet`` has a row an episode
and says in which file, and where in it, its rows and its pictures lie;
``data/chunk-000/file-000.parquet`` has a row a control step; ``videos/<feature>/chunk-000/
file-000.mp4`` the pictures, a frame a row. Files hold several episodes, up to a size.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from collect.dataset.export.lerobot_stats import PixelStats, Stats, vector_stats
from collect.dataset.export.source import Advance, Selection, Source, appearing, images
from robot_stack.episode import Episode, ImageLayout
from robot_stack.errors import EpisodeError

__all__ = ["VERSION", "export"]

VERSION = "v3.0"
FILES_A_CHUNK = 1000
DATA_MB, VIDEO_MB = 100, 200
FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{FILE}.parquet"
COUNTED_IMAGES = 64  # an episode, for the statistics of its cameras
KEYFRAME_EVERY = 2  # training reads single frames: a seek decodes two at most
INDICES = ("frame_index", "episode_index", "index", "task_index")


def export(selection: Selection, out: Path, advance: Advance) -> dict[str, Any]:
    """Write the dataset directory ``out``; what was written, as plain JSON.

    EpisodeError when the rate is no whole number: the format has none other. ``advance`` is called
    for every row.
    """
    fps = round(selection.rate_hz)
    if fps != selection.rate_hz:
        raise EpisodeError(
            f"episodes of {selection.rate_hz} Hz: a LeRobot dataset has a whole number of rows a "
            "second"
        )
    with appearing(out, directory=True) as root:
        dataset = _Dataset(root, selection, fps)
        try:
            for source in selection.sources:
                dataset.add(source, advance)
        finally:
            dataset.close()
        dataset.write_meta()
    return {
        "version": VERSION,
        "fps": fps,
        "tasks": len(dataset.tasks),
        "video_files": sum(video.files for video in dataset.videos.values()),
    }


def _video_key(camera: str) -> str:
    return f"observation.images.{camera}"


def _place(number: int) -> dict[str, int]:
    """Chunk and file index of the ``number``-th file."""
    return {"chunk_index": number // FILES_A_CHUNK, "file_index": number % FILES_A_CHUNK}


def _opened(root: Path, pattern: str, number: int, **names: str) -> Path:
    path = root / pattern.format(**_place(number), **names)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class _Videos:
    """The video files of one camera; episodes follow each other without a gap."""

    def __init__(self, root: Path, key: str, layout: ImageLayout, fps: int) -> None:
        self.key = key
        self.files = 0
        self._root, self._layout, self._fps = root, layout, fps
        self._container: Any = None
        self._stream: Any = None
        self._frames = self._bytes = 0
        # 4:2:0 halves the chroma and takes even sizes only.
        self.pixels = "yuv444p" if layout.width % 2 or layout.height % 2 else "yuv420p"

    def begin(self) -> float:
        """Make ready for an episode; the time in the file at which it begins."""
        if self._container is not None and self._bytes >= VIDEO_MB * 2**20:
            self.close()
        if self._container is None:
            path = _opened(self._root, VIDEO_PATH, self.files, video_key=self.key)
            self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
            self._stream = self._container.add_stream("libx264", rate=Fraction(self._fps))
            self._stream.width, self._stream.height = self._layout.width, self._layout.height
            self._stream.pix_fmt = self.pixels
            self._stream.options = {
                "preset": "veryfast",
                "crf": "20",
                "g": str(KEYFRAME_EVERY),
                "bf": "0",
            }
            self._frames = self._bytes = 0
            self.files += 1
        return self._frames / self._fps

    def add(self, image: NDArray[np.uint8]) -> None:
        self._mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        self._frames += 1

    def _mux(self, packets: list[Any]) -> None:
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)

    @property
    def end(self) -> float:
        return self._frames / self._fps

    def close(self) -> None:
        if self._container is not None:
            if self._frames:
                self._mux(self._stream.encode())
            self._container.close()
            self._container = None

    def feature(self) -> dict[str, Any]:
        """Its entry in ``info.json``."""
        return {
            "dtype": "video",
            "shape": [self._layout.height, self._layout.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": self._layout.height,
                "video.width": self._layout.width,
                "video.codec": "h264",
                "video.pix_fmt": self.pixels,
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }


class _Dataset:
    """A dataset being written."""

    def __init__(self, root: Path, selection: Selection, fps: int) -> None:
        self.root, self.selection, self.fps = root, selection, fps
        self.tasks: list[str] = []
        self.videos = {
            camera: _Videos(root, _video_key(camera), layout, fps)
            for camera, layout in selection.cameras.items()
        }
        joints = len(selection.joints)
        vector = pa.list_(pa.float32(), joints)
        self._schema = pa.schema(
            [
                ("observation.state", vector),
                ("action", vector),
                ("timestamp", pa.float32()),
                *((name, pa.int64()) for name in INDICES),
            ]
        )
        self._writer: pq.ParquetWriter | None = None
        self._data_files = self._data_bytes = self._rows = 0
        self._episodes: list[dict[str, Any]] = []
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._pixels: dict[str, list[PixelStats]] = {camera: [] for camera in self.videos}

    def add(self, source: Source, advance: Advance) -> None:
        """Append one episode."""
        if source.task not in self.tasks:
            self.tasks.append(source.task)
        number, rows = len(self._episodes), len(source)
        with Episode.open(source.path) as episode:
            columns: dict[str, NDArray[Any]] = {
                "observation.state": episode.qpos[source.rows],
                "action": episode.action[source.rows],
                "timestamp": (np.arange(rows) / self.fps).astype(np.float32),
                "frame_index": np.arange(rows),
                "episode_index": np.full(rows, number),
                "index": np.arange(self._rows, self._rows + rows),
                "task_index": np.full(rows, self.tasks.index(source.task)),
            }
            entry: dict[str, Any] = {
                "episode_index": number,
                "tasks": [source.task],
                "length": rows,
                "source_uuid": source.uuid,
                "dataset_from_index": self._rows,
                "dataset_to_index": self._rows + rows,
                **{f"meta/episodes/{key}": value for key, value in _place(0).items()},
            }
            stats = {name: vector_stats(values) for name, values in columns.items()}
            for camera in self.videos:
                pixels = self._add_video(episode, source, camera, entry)
                self._pixels[camera].append(pixels)
                stats[_video_key(camera)] = pixels.stats()
        data_file = self._add_rows(columns)
        entry.update({f"data/{key}": value for key, value in _place(data_file).items()})
        for feature, numbers in stats.items():
            entry.update({f"stats/{feature}/{name}": value for name, value in numbers.items()})
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)
        self._episodes.append(entry)
        self._rows += rows
        for _ in range(rows):
            advance()

    def _add_video(
        self, episode: Episode, source: Source, camera: str, entry: dict[str, Any]
    ) -> PixelStats:
        video, pixels = self.videos[camera], PixelStats()
        begin = video.begin()
        every = max(1, len(source) // COUNTED_IMAGES)
        for row, image in enumerate(images(episode, source, camera)):
            video.add(image)
            if row % every == 0:
                pixels.add(image)
        where = f"videos/{video.key}"
        entry.update({f"{where}/{key}": value for key, value in _place(video.files - 1).items()})
        entry[f"{where}/from_timestamp"], entry[f"{where}/to_timestamp"] = begin, video.end
        return pixels

    def _add_rows(self, columns: dict[str, NDArray[Any]]) -> int:
        """Append rows to the data files; the number of the file they went to."""
        if self._writer is not None and self._data_bytes >= DATA_MB * 2**20:
            self._writer.close()
            self._writer = None
        if self._writer is None:
            path = _opened(self.root, DATA_PATH, self._data_files)
            self._writer = pq.ParquetWriter(path, self._schema, compression="snappy")
            self._data_files += 1
            self._data_bytes = 0
        arrays = []
        for field in self._schema:
            values = columns[field.name]
            if values.ndim == 2:
                flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
            else:
                arrays.append(pa.array(values, field.type))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._writer.write_table(table)
        self._data_bytes += table.nbytes
        return self._data_files - 1

    def close(self) -> None:
        """Complete the data and video files."""
        if self._writer is not None:
            self._writer.close()
        for video in self.videos.values():
            video.close()

    def write_meta(self) -> None:
        """Write ``meta/``, from all that was added."""
        stats: dict[str, Stats] = {
            name: vector_stats(np.concatenate(values)) for name, values in self._columns.items()
        }
        for camera, parts in self._pixels.items():
            stats[_video_key(camera)] = PixelStats.together(parts).stats()
        pq.write_table(pa.Table.from_pylist(self._episodes), _opened(self.root, EPISODES_PATH, 0))
        pq.write_table(self._task_table(), self.root / "meta/tasks.parquet")
        for name, content in (("info", self._info()), ("stats", stats)):
            text = json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)
            (self.root / f"meta/{name}.json").write_text(text)

    def _task_table(self) -> pa.Table:
        """Tasks by text, as pandas writes a frame with an index (readers look tasks up in it)."""
        about = {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": name,
                    "field_name": name,
                    "pandas_type": kind,
                    "numpy_type": numpy_type,
                    "metadata": None,
                }
                for name, kind, numpy_type in (
                    ("task_index", "int64", "int64"),
                    ("task", "unicode", "object"),
                )
            ],
            "creator": {"library": "pyarrow", "version": pa.__version__},
            "pandas_version": "2.0.0",
        }
        table = pa.table(
            {
                "task_index": pa.array(range(len(self.tasks)), pa.int64()),
                "task": pa.array(self.tasks, pa.string()),
            }
        )
        return table.replace_schema_metadata({"pandas": json.dumps(about)})

    def _info(self) -> dict[str, Any]:
        joints = list(self.selection.joints)
        vector = {"dtype": "float32", "shape": [len(joints)], "names": joints}
        scalar = {"shape": [1], "names": None}
        features: dict[str, Any] = {"observation.state": vector, "action": dict(vector)}
        features.update({video.key: video.feature() for video in self.videos.values()})
        features["timestamp"] = {"dtype": "float32", **scalar}
        features.update({name: {"dtype": "int64", **scalar} for name in INDICES})
        return {
            "codebase_version": VERSION,
            "robot_type": self.selection.embodiment,
            "total_episodes": len(self._episodes),
            "total_frames": self._rows,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_A_CHUNK,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": features,
        }
