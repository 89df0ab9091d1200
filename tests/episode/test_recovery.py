"""What a killed recorder leaves is saved: superblock, cut rows, garbage, damage."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_stack.episode import (
    Episode,
    EpisodeSchema,
    RobotLayout,
    Row,
    check,
    recover,
    recover_all,
    superblock,
)
from robot_stack.errors import EpisodeError
from tests.episode.made import begin, fill, make, pixels, row, schema


@pytest.mark.parametrize(
    ("data", "initial", "expected"),
    [  # from the self-test of Bob Jenkins' lookup3.c
        (b"", 0, 0xDEADBEEF),
        (b"", 0xDEADBEEF, 0xBD5B7DDE),
        (b"Four score and seven years ago", 0, 0x17770551),
        (b"Four score and seven years ago", 1, 0xCD628161),
    ],
)
def test_lookup3_gives_its_published_values(data: bytes, initial: int, expected: int) -> None:
    assert superblock.lookup3(data, initial) == expected


def test_lookup3_gives_the_checksum_that_hdf5_wrote(tmp_path: Path) -> None:
    block = make(tmp_path / "episode_0.hdf5", schema()).read_bytes()[:48]
    assert superblock.lookup3(block[:44]) == struct.unpack("<I", block[44:])[0]


def leftover(directory: Path, encoding: str = "jpeg", rows: int = 30, end: str = "kill") -> Path:
    """An episode whose writer was killed after its last flush, in a process of its own."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from tests.episode.made import *\n"
        "w = begin(Path(sys.argv[1]) / 'episode_0.hdf5', schema(sys.argv[2]))\n"
        "fill(w, int(sys.argv[3])); w.flush()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory), encoding, str(rows)], cwd=root, check=False
    )
    assert done.returncode == -signal.SIGKILL
    return directory / "episode_0.hdf5.part"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return leftover(tmp_path_factory.mktemp("killed")).read_bytes()


def test_a_killed_recording_is_refused_by_hdf5_and_recovered_by_us(
    tmp_path: Path, killed: bytes
) -> None:
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(killed)
    with pytest.raises(OSError, match=r"flag|SWMR|open for"), h5py.File(part, "r"):
        pass
    found = recover(part)
    assert (found.rows, found.dropped_rows, found.problem) == (30, 0, None)
    assert [p.name for p in tmp_path.iterdir()] == ["episode_0.hdf5"]
    with h5py.File(tmp_path / "episode_0.hdf5", "r") as file:  # plain, as anybody opens it
        assert file["action"].shape == (30, 14)
    with h5py.File(tmp_path / "episode_0.hdf5", "r+"):
        pass
    assert [(p.severity, p.code) for p in check(tmp_path / "episode_0.hdf5")] == [
        ("warning", "cut")
    ]
    with Episode.open(tmp_path / "episode_0.hdf5") as episode:
        assert episode.metadata.ended == "recovered"
        assert episode.metadata.success is None
        assert (episode.qpos[:, 0] == np.arange(30)).all()
        assert len(episode.log("leader")) == 300
        assert len(episode.events) == 1


def uneven(path: Path, shortest: str, rows: int, cut: int) -> None:
    """Shorten one dataset of a complete file, as if its last extents had not been flushed."""
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        axis = 1 if shortest == "compress_len" else 0
        file[shortest].resize(rows - cut, axis)


@pytest.mark.parametrize(
    "shortest",
    ["action", "t_ns", "compress_len", "observations/images/cam_top", "observations/depth/cam_top"],
)
def test_all_rows_are_cut_to_the_shortest(tmp_path: Path, shortest: str) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema(), rows=70)
    uneven(path, shortest, 70, 3)
    part = path.rename(tmp_path / "episode_0.hdf5.part")
    found = recover(part)
    assert (found.rows, found.dropped_rows, found.problem) == (67, 3, None)
    assert [p.code for p in check(path)] == ["cut"]
    with h5py.File(path, "r") as file:
        assert file["compress_len"].shape == (2, 67)
        assert file["observations/images/cam_low"].shape[0] == 67
    with Episode.open(path) as episode:
        assert (episode.action[:, 0] == np.arange(67) + 0.5).all()
        image = episode.jpeg("cam_top", 66)
        assert image.startswith(b"\xff\xd8")
        assert image.endswith(b"\xff\xd9")


def test_rows_that_were_counted_but_not_written_are_cut(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema(), rows=40)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        for name in ("observations/images/cam_low", "action", "t_ns"):
            file[name].resize(43, 0)
        file["compress_len"].resize(43, 1)
        file["log/left"].resize(405, 0)
        file["events"].resize(3, 0)
        for name in ("observations/images/cam_top", "observations/depth/cam_top"):
            file[name].resize(43, 0)
    found = recover(path.rename(tmp_path / "episode_0.hdf5.part"))
    assert found.problem is None
    assert found.rows == 40
    assert [p.code for p in check(path)] in (["cut"], [])
    with Episode.open(path) as episode:
        assert len(episode.log("left")) == 400
        assert len(episode.events) == 1


def test_rows_without_a_time_are_cut_where_no_camera_tells(tmp_path: Path) -> None:
    s = EpisodeSchema(robots=(RobotLayout("left", ("a", "b")),), cameras={})
    writer = begin(tmp_path / "episode_0.hdf5", s)
    for i in range(30):
        writer.append(Row(t_ns=1 + i * 20_000_000, qpos=[i, i], action=[i, i], state_t_ns=[1]))
    writer.finalise().rename(tmp_path / "episode_0.hdf5.part")
    with h5py.File(tmp_path / "episode_0.hdf5.part", "r+", libver=("v110", "v110")) as file:

        def stretch(name: str, node: object) -> None:
            if isinstance(node, h5py.Dataset) and node.shape[0] == 30:
                node.resize(32, 0)

        file.visititems(stretch)
    found = recover(tmp_path / "episode_0.hdf5.part")
    assert (found.rows, found.dropped_rows) == (30, 2)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tail=st.binary(max_size=10_000))
def test_bytes_after_the_last_flush_do_no_harm(tmp_path: Path, killed: bytes, tail: bytes) -> None:
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(killed + tail)
    (tmp_path / "episode_0.hdf5").unlink(missing_ok=True)
    found = recover(part)
    assert (found.rows, found.problem) == (30, None)
    assert [p.code for p in check(tmp_path / "episode_0.hdf5")] == ["cut"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_recovered_or_kept_aside(
    tmp_path: Path, killed: bytes, share: float
) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(killed[: int(len(killed) * share)])
    found = recover(part)
    names = [p.name for p in tmp_path.iterdir()]
    if found.problem is None:
        assert names == (["episode_0.hdf5"] if found.path else [])
    else:
        assert names == ["episode_0.hdf5.broken"]  # never thrown away


def test_a_recovery_that_was_killed_itself_is_finished_by_the_next(
    tmp_path: Path, killed: bytes
) -> None:
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(killed)
    with part.open("r+b") as file:
        superblock.mark_closed(file.fileno())  # and then it was killed
    assert recover(part).rows == 30


def test_an_episode_killed_after_its_last_write_keeps_its_label(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema())
    found = recover(path.rename(tmp_path / "episode_0.hdf5.part"))  # only the rename was missing
    assert found.rows == 60
    assert check(path) == []
    with Episode.open(path) as episode:
        assert episode.metadata.success is True
        assert episode.metadata.ended == "stopped"


def test_a_layout_that_was_not_complete_is_removed(tmp_path: Path) -> None:
    fresh = tmp_path / "episode_3.hdf5.new"
    fresh.write_bytes(b"\x89HDF\r\n\x1a\nhalf")
    assert [(f.path, f.problem) for f in recover_all(tmp_path)] == [(None, None)]
    assert list(tmp_path.iterdir()) == []


def test_a_recording_without_a_row_is_removed(tmp_path: Path) -> None:
    part = leftover(tmp_path, rows=0)
    assert recover(part).path is None
    assert list(tmp_path.iterdir()) == []


def test_a_living_recording_is_left_alone(tmp_path: Path) -> None:
    writer = begin(tmp_path / "episode_0.hdf5", schema())
    fill(writer, 5)
    writer.flush()
    assert recover_all(tmp_path) == []
    with pytest.raises(EpisodeError, match="living process"):
        recover(tmp_path / "episode_0.hdf5.part")
    writer.append(row(5, writer.schema))
    assert check(writer.finalise()) == []


def test_recovery_never_replaces_an_episode(tmp_path: Path, killed: bytes) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema())
    before = path.read_bytes()
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(killed)
    with pytest.raises(EpisodeError, match="exists already"):
        recover(part)
    (found,) = recover_all(tmp_path)
    assert found.path == part
    assert found.problem is not None
    assert "exists already" in found.problem
    assert path.read_bytes() == before
    assert part.exists()


def test_only_leftovers_are_recovered(tmp_path: Path) -> None:
    path = make(tmp_path / "episode_0.hdf5", schema())
    with pytest.raises(EpisodeError, match="not a leftover"):
        recover(path)
    with pytest.raises(EpisodeError, match="does not exist"):
        recover(tmp_path / "episode_9.hdf5.part")


def test_a_raw_recording_is_recovered_pixel_by_pixel(tmp_path: Path) -> None:
    found = recover(leftover(tmp_path, "raw"))
    assert found.path is not None
    with Episode.open(found.path) as episode:
        for i in range(30):
            assert (episode.image("cam_top", i) == pixels("cam_top", i)).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"garbage" + data[7:],
        lambda data: data[:8] + b"\x00" + data[9:],
        lambda data: data[:48] + bytes(len(data) - 48),
    ],
)
def test_what_cannot_be_read_is_kept_and_named(
    tmp_path: Path, killed: bytes, damage: Callable[[bytes], bytes]
) -> None:
    part = tmp_path / "episode_0.hdf5.part"
    data = damage(killed)
    part.write_bytes(data)
    (found,) = recover_all(tmp_path)
    assert found.problem is not None
    assert found.path == tmp_path / "episode_0.hdf5.broken"
    assert os.path.getsize(found.path) == len(data)  # noqa: PTH202
    assert recover_all(tmp_path) == []
