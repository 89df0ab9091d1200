"""The episode file: what is written comes back, and public ALOHA code finds what it expects."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Literal

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_stack.episode import (
    Episode,
    EpisodeMetadata,
    EpisodeSchema,
    ImageLayout,
    RobotLayout,
    check,
    next_episode,
    relabel,
)
from robot_stack.episode.padding import pad_chunk
from robot_stack.errors import EpisodeError
from tests.episode.made import PERIOD, START, begin, fill, make, pixels, row, schema, ticks


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_everything_written_comes_back(tmp_path: Path, encoding: Literal["jpeg", "raw"]) -> None:
    s = schema(encoding)
    path = make(tmp_path / "episode_0.hdf5", s, rows=150, operator="p3", extra={"lab": "x"})
    assert check(path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["episode_0.hdf5"]
    with Episode.open(path) as episode:
        assert episode.schema == s
        assert len(episode) == 150
        assert (episode.t_ns == START + np.arange(150) * PERIOD).all()
        assert (episode.qpos == np.arange(14) + np.arange(150)[:, None]).all()
        assert (episode.action - episode.qpos == 0.5).all()
        assert (episode.action_sent - episode.qpos == 0.25).all()
        assert (episode.qvel == 0.5).all()
        assert (episode.effort == -1.5).all()
        assert (episode.t_ns[:, None] - episode.state_t_ns == [1000, 2000]).all()
        assert (episode.frame_seq("cam_low") == np.arange(150)).all()
        assert (episode.t_ns - episode.frame_t_ns("cam_top") == 5000).all()
        assert (episode.chunk_id == -1).all()
        assert (episode.takeover_id == -1).all()
        assert episode.env_state is not None
        assert (episode.env_state == np.arange(150)[:, None] / 8).all()
        assert episode.reward[40] == 1
        assert (episode.depth("cam_top", 17) == 517).all()
        for robot in ("left", "right", "leader"):
            log = episode.log(robot)
            assert (log["tick"] == np.arange(1500)).all()
            assert (log["q"][:, 3] == np.arange(1500)).all()
        assert [tuple(event) for event in episode.events] == [
            (START + 7, "fault", "servo 9 overloaded")
        ]
        for camera in episode.cameras:
            for i, image in enumerate(episode.images(camera, _decode)):
                assert np.abs(image.astype(int) - pixels(camera, i)).mean() < 3
        meta = episode.metadata
        assert (meta.rows, meta.ended, meta.success, meta.labeller) == (
            150,
            "stopped",
            True,
            "test",
        )
        assert (meta.task, meta.operator, meta.extra) == ("stack two cups", "p3", {"lab": "x"})
        assert meta.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _decode(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def test_act_loader_reads_the_raw_layout(tmp_path: Path) -> None:
    """The accesses of tonyzhaozh/act's EpisodicDataset and get_norm_stats, with plain h5py."""
    make(tmp_path / "episode_0.hdf5", schema("raw"))
    with h5py.File(tmp_path / "episode_0.hdf5", "r") as root:
        assert root.attrs["sim"] == True  # noqa: E712 - a numpy bool, as the loader tests it
        assert not root.attrs.get("compress", False)
        original_action_shape = root["/action"].shape
        assert original_action_shape == (60, 14)
        start_ts = 31
        qpos = root["/observations/qpos"][start_ts]
        qvel = root["/observations/qvel"][start_ts]
        image = root["/observations/images/cam_top"][start_ts]
        action = root["/action"][max(0, start_ts - 1) :]
        assert (qpos.dtype, qvel.dtype, action.dtype) == (np.float32,) * 3
        assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
        assert root["/observations/images/cam_top"].chunks == (1, 48, 64, 3)
        assert (image == pixels("cam_top", start_ts)).all()
        assert action.shape == (30, 14)
        assert root["/observations/effort"][()].shape == (60, 14)


def test_act_plus_plus_loader_reads_the_compressed_layout(tmp_path: Path) -> None:
    """The accesses of MarkFzp/act-plus-plus, whose ``imdecode`` must give the raw channel order."""
    make(tmp_path / "episode_0.hdf5", schema("jpeg"))
    with h5py.File(tmp_path / "episode_0.hdf5", "r") as root:
        assert root.attrs.get("compress", False)
        for camera in ("cam_low", "cam_top"):
            padded = root[f"/observations/images/{camera}"]
            assert padded.dtype == np.uint8
            assert padded.ndim == 2
            assert padded.chunks == (1, padded.shape[1])
            image = cv2.imdecode(padded[12], 1)
            assert np.abs(image.astype(int) - pixels(camera, 12)).mean() < 3
        lengths = root["/compress_len"][()]
        assert lengths.dtype == np.float32
        assert lengths.shape == (2, 60)
        for i, camera in enumerate(sorted(root["/observations/images"].keys())):
            length = int(lengths[i, 5])
            data = root[f"/observations/images/{camera}"][5]
            assert bytes(data[length - 2 : length]) == b"\xff\xd9"
            assert not data[length:].any()


def test_files_open_in_hdf5_1_10(tmp_path: Path) -> None:
    """Superblock 3 and no dataset layout newer than HDF5 1.10's, whatever HDF5 writes them."""
    path = make(tmp_path / "episode_0.hdf5", schema())
    with h5py.File(path, "r", libver=("v110", "v110")) as file:
        assert file["action"].shape == (60, 14)
    assert path.read_bytes()[8:12] == b"\x03\x08\x08\x00"


def test_padded_jpeg_rows_take_only_their_own_bytes(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema("jpeg", depth=False), rows=100)
    with h5py.File(path, "r") as file:
        images = file["observations/images/cam_top"]
        stored = images.id.get_storage_size()
        used = file["compress_len"][1].sum()
        assert used < stored < used + 100 * 300
        assert stored < images.size / 2


@given(data=st.binary(max_size=200_000), spare=st.integers(0, 300_000))
def test_padding_is_a_zlib_stream_of_data_and_zeros(data: bytes, spare: int) -> None:
    assert zlib.decompress(pad_chunk(data, len(data) + spare)) == data + bytes(spare)


def test_an_unfinished_episode_has_another_name_and_is_locked(tmp_path: Path) -> None:
    writer = begin(tmp_path / "episode_0.hdf5", schema())
    fill(writer, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["episode_0.hdf5.part"]
    with pytest.raises(EpisodeError, match="being recorded"):
        Episode.open(tmp_path / "episode_0.hdf5.part")
    with pytest.raises(EpisodeError, match="exists"):
        begin(tmp_path / "episode_0.hdf5", schema())
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_episode_is_never_overwritten(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema())
    before = path.read_bytes()
    with pytest.raises(EpisodeError, match="exists"):
        begin(path, schema())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["episode_0.hdf5"]


def test_episodes_are_numbered_after_the_highest_in_any_state(tmp_path: Path) -> None:
    assert next_episode(tmp_path).name == "episode_0.hdf5"
    for name in ("episode_2.hdf5", "episode_10.hdf5.part", "episode_x.hdf5", "notes.txt"):
        (tmp_path / name).touch()
    assert next_episode(tmp_path).name == "episode_11.hdf5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "cam_low needs a JPEG"),
        (
            {"images": {"cam_top": b"\xff\xd8" + bytes(9000), "cam_low": b"\xff\xd8"}},
            "9002 bytes of",
        ),
        ({"depth": {}}, "cam_top needs a depth"),
    ],
)
def test_a_refused_row_leaves_the_episode_as_it_was(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    writer = begin(tmp_path / "episode_0.hdf5", schema())
    fill(writer, 3)
    bad = row(3, writer.schema)
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(EpisodeError, match=message):
        writer.append(bad)
    writer.append(row(3, writer.schema))
    path = writer.finalise()
    assert check(path) == []
    with Episode.open(path) as episode:
        assert len(episode) == 4


def test_a_raw_image_of_another_size_is_refused(tmp_path: Path) -> None:
    writer = begin(tmp_path / "episode_0.hdf5", schema("raw"))
    bad = row(0, writer.schema)
    bad.images = {**bad.images, "cam_top": np.zeros((48, 65, 3), np.uint8)}
    with pytest.raises(EpisodeError, match=r"\(48, 64, 3\)"):
        writer.append(bad)
    writer.discard()


def test_an_episode_without_cameras(tmp_path: Path) -> None:
    s = EpisodeSchema(robots=(RobotLayout("left", ("a", "b")),), cameras={})
    from robot_stack.episode import Row

    writer = begin(tmp_path / "episode_0.hdf5", s)
    for i in range(20):
        at = START + i * PERIOD
        writer.append(Row(t_ns=at, qpos=[i, i], action=[i, i], action_sent=[1, 1], state_t_ns=[at]))
    assert check(writer.finalise()) == []


def test_names_that_would_break_the_file_are_refused() -> None:
    with pytest.raises(EpisodeError, match="'cam/0'"):
        EpisodeSchema(robots=(), cameras={"cam/0": ImageLayout(8, 8)})
    with pytest.raises(EpisodeError, match="encoding 'png'"):
        EpisodeSchema(robots=(), cameras={}, encoding="png")  # type: ignore[arg-type]


def test_relabelling_changes_metadata_only_and_survives_a_torn_write(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema())
    with Episode.open(path) as episode:
        content_hash = episode.metadata.content_hash
        offset = episode.file["metadata"].id.get_offset()
    for success in (False, None, True, False):
        relabel(path, success=success, labeller="reviewer", failure_tag="dropped")
        with Episode.open(path) as episode:
            assert episode.metadata.success is success
            assert episode.metadata.content_hash == content_hash
    assert check(path) == []
    with Episode.open(path) as episode:
        revision = episode.metadata.revision
    before = path.read_bytes()
    relabel(path, success=True)
    after = path.read_bytes()
    torn = next(i for i in range(offset, len(after)) if before[i] != after[i]) + 40
    path.write_bytes(after[:torn] + before[torn:])  # the write ended half-way
    with Episode.open(path) as episode:
        assert episode.metadata.revision == revision
        assert episode.metadata.success is False
    with pytest.raises(EpisodeError, match="no field 'sucess'"):
        relabel(path, sucess=True)


def test_metadata_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="bytes of 65536"):
        begin(tmp_path / "episode_0.hdf5", schema(), extra={"x": "y" * 70_000})
    with pytest.raises(EpisodeError, match="must be JSON"):
        begin(tmp_path / "episode_0.hdf5", schema(), extra={"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_fields_of_a_newer_version_are_kept() -> None:
    values = {**EpisodeMetadata().to_dict(), "weather": "rain", "schema_version": 2}
    assert EpisodeMetadata.from_dict(values).extra == {"weather": "rain"}


def test_check_finds_what_is_wrong(tmp_path: Path) -> None:
    def damaged(name: str, edit: Any) -> list[str]:
        path = make(tmp_path / name, schema("raw"))
        with h5py.File(path, "r+", libver=("v110", "v110")) as file:
            edit(file)
        return [f"{p.severity} {p.code}" for p in check(path)]

    def pixel(file: h5py.File) -> None:
        file["observations/images/cam_top"][7, 0, 0, 0] ^= 1

    def action(file: h5py.File) -> None:
        file["action"][3] = np.nan

    def time(file: h5py.File) -> None:
        file["t_ns"][20:] += 1_000_000

    def short(file: h5py.File) -> None:
        file["action"].resize(50, 0)

    assert damaged("episode_0.hdf5", pixel) == ["error hash"]
    assert damaged("episode_1.hdf5", action) == ["error hash", "warning unknown"]
    assert damaged("episode_2.hdf5", time) == ["error grid", "error hash"]
    assert damaged("episode_3.hdf5", short) == ["error length"]
    (tmp_path / "episode_4.hdf5").write_bytes(b"not HDF5")
    assert [p.code for p in check(tmp_path / "episode_4.hdf5")] == ["unreadable"]
    assert [p.code for p in check(tmp_path / "absent.hdf5")] == ["unreadable"]


def test_memory_and_descriptors_do_not_grow_with_episodes(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for i in range(5):
        make(tmp_path / f"episode_{i}.hdf5", schema(), rows=3)
        check(tmp_path / f"episode_{i}.hdf5")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_logs_take_ticks_of_any_layout_with_their_fields(tmp_path: Path) -> None:
    writer = begin(tmp_path / "episode_0.hdf5", schema())
    fill(writer, 3)
    records = ticks(3)
    names = list(reversed(records.dtype.names or ()))
    writer.append_log("left", records[names])
    with Episode.open(writer.finalise()) as episode:
        assert (episode.log("left")["tick"] == np.arange(40)).all()
