"""`robot-stack dataset`: what is imported, summed up and found amiss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numcodecs import Blosc

from collect.dataset.dataset_check import consistency
from collect.dataset.dataset_info import summary
from collect.dataset.paths import episode_files
from collect.dataset.pusht import import_pusht
from robot_stack.cli import main
from robot_stack.episode import Episode, check, relabel
from robot_stack.errors import EpisodeError
from robot_stack.types import Source
from tests.policies.training_data import arrays, episodes, source


def zarr_source(path: Path) -> Path:
    """The public layout: zarr v2, Blosc, images as float32."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for name, values in arrays().items():
        inside = "meta" if name == "episode_ends" else "data"
        group.create_array(
            f"{inside}/{name}",
            data=values.astype(np.float32) if name == "img" else values,
            chunks=(16, *values.shape[1:]),
            compressors=Blosc("zstd", clevel=5),
        )
    return path


@pytest.mark.parametrize("layout", ["hdf5", "zarr"])
def test_push_t_becomes_episodes(tmp_path: Path, layout: str) -> None:
    given = (
        source(tmp_path / "a.hdf5") if layout == "hdf5" else zarr_source(tmp_path / "replay.zarr")
    )
    paths = import_pusht(given, tmp_path / "data", images=True)
    assert paths == episode_files([tmp_path / "data"])
    expected = arrays()
    ends = [0, *expected["episode_ends"].tolist()]
    for i, path in enumerate(paths):
        assert check(path) == []
        rows = slice(ends[i], ends[i + 1])
        with Episode.open(path) as episode:
            assert episode.schema.joint_names == ("agent/x", "agent/y")
            assert episode.schema.rate_hz == 10
            np.testing.assert_array_equal(episode.qpos, expected["state"][rows, :2])
            np.testing.assert_array_equal(episode.action, expected["action"][rows])
            env = episode.env_state
            assert env is not None
            np.testing.assert_array_equal(env[:, :3], expected["state"][rows, 2:])
            keypoints = env[:, 3:].reshape(-1, 9, 2)
            np.testing.assert_array_equal(keypoints, expected["keypoint"][rows])
            pictures = np.stack(list(episode.images("image")))
            np.testing.assert_array_equal(pictures, expected["img"][rows])
            assert set(episode.source) == {Source.HUMAN}
            said = episode.metadata
            assert said.task == "pusht" and said.success is None
            assert said.extra["provenance"]["episode"] == i
            assert said.extra["provenance"]["licence"].startswith("MIT")
            assert said.extra["env"]["units"][:4] == ["px", "px", "1", "px"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoint": None}, "lacks .*keypoint.*Push-T has action, state, keypoint"),
        ({"state": np.zeros((103, 4))}, r"state has shape \(103, 4\), expected \(103, 5\)"),
        ({"episode_ends": np.array([30, 30, 103])}, "episode_ends must rise"),
        ({"action": np.full((103, 2), np.nan, np.float32)}, "action of episode 0 is not finite"),
        ({"img": None}, "holds no images"),
    ],
)
def test_a_source_that_is_not_push_t_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(EpisodeError, match=message):
        import_pusht(source(tmp_path / "a.hdf5", **changes), tmp_path / "data", images=True)
    assert not list((tmp_path / "data").glob("*"))


def test_sources_of_no_kind(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="does not exist; give pusht"):
        import_pusht(tmp_path / "nowhere", tmp_path / "data")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(EpisodeError, match="is neither a zarr directory nor HDF5"):
        import_pusht(tmp_path / "a.txt", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="is no zarr group"):
        import_pusht(tmp_path / "empty", tmp_path / "data")


def test_nothing_is_imported_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = source(tmp_path / "a.hdf5")
    command = ["dataset", "import", "pusht", str(given), "--to", str(tmp_path / "data")]
    assert main([*command, "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 2
    assert main(command) == 1
    assert "already holds episodes" in capsys.readouterr().err


def test_info_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = episodes(tmp_path / "data")
    relabel(data / "episode_2.hdf5", success=True)
    found = summary(episode_files([data]))
    assert (found["episodes"], found["rows"]) == (4, 103)
    assert found["success"] == {"unknown": 3, "success": 1}
    assert found["rate_hz"] == {"10": 4} and found["cameras"] == {"none": 4}
    assert found["sources"] == {"human": 1.0}
    assert (found["shortest_s"], found["longest_s"]) == (2.0, 3.0)
    made = arrays()
    assert found["state"]["agent/y"] == (made["state"][:, 1].min(), made["state"][:, 1].max())
    assert found["action"]["agent/x"] == (made["action"][:, 0].min(), made["action"][:, 0].max())
    assert found["env_state"]["env/20"][1] == made["keypoint"][:, 8, 1].max()
    assert main(["dataset", "info", str(data)]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["rows"] == 103
    assert any("agent/y" in line for line in shown)


def test_check_finds_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = episodes(tmp_path / "data")
    assert main(["dataset", "check", str(data)]) == 0
    other = import_pusht(source(tmp_path / "b.hdf5"), tmp_path / "other", images=True, limit=1)
    relabel(data / "episode_1.hdf5", task="stack cups")
    found = consistency([*episode_files([data]), *other])
    assert [(Path(f.file).parent.name, f.severity) for f in found] == [
        ("data", "warning"),
        ("other", "error"),
        ("other", "warning"),
    ]
    assert "cameras: {'image': '24x24'}, in most episodes {}" in found[1].message
    capsys.readouterr()
    assert main(["dataset", "check", str(data), str(other[0]), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["errors"], report["warnings"]) == (1, 2)
    with h5py.File(data / "episode_3.hdf5", "r+") as file:
        file["action"][3] = 0
    assert main(["dataset", "check", str(data), "--json"]) == 1
    codes = [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]]
    assert codes == ["hash", "mixed"]
