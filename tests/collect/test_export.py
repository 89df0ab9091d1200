"""Exports: what they hold is what was recorded, read as the other projects read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import cv2
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from collect import jpeg
from collect.dataset.export import act, lerobot, robomimic
from collect.dataset.export.lerobot_stats import PixelStats
from collect.dataset.export.source import Selection, select
from robot_stack.cli import main
from robot_stack.episode import Episode
from robot_stack.errors import EpisodeError
from tests.collect.readers import read
from tests.collect.recorded import write_episode

ROWS = (40, 25, 30, 20)
GOOD = (True, True, False, None)
FPS = 50


def nothing() -> None:
    pass


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two successes, a failure and one that nobody judged, with a gap in the numbers."""
    directory = tmp_path_factory.mktemp("episodes")
    for i, (rows, success) in enumerate(zip(ROWS, GOOD, strict=True)):
        path = directory / f"episode_{i + 2 * (i > 0)}.hdf5"
        write_episode(path, rows=rows, success=success, offset=0.01 * i)
    return directory


@pytest.fixture
def chosen(episodes: Path) -> Selection:
    return select([episodes], "success")


def damaged(path: Path, **columns: tuple[int, float]) -> None:
    """Set rows of an episode's datasets, as a sensor that was missing does."""
    with h5py.File(path, "r+") as file:
        for name, (row, value) in columns.items():
            file[name.replace("__", "/")][row] = value


# -- which episodes and rows ---------------------------------------------------------------------


def test_successes_are_taken_unless_all_are_wanted(episodes: Path, chosen: Selection) -> None:
    assert [len(source) for source in chosen.sources] == [40, 25]
    assert sorted(chosen.left_out.values()) == ["a failure", "unlabelled"]
    assert len(select([episodes], "all").sources) == 4
    assert chosen.joints[0] == "left/waist"
    with pytest.raises(EpisodeError, match="--only all"):
        select([episodes / "episode_4.hdf5"], "success")


def test_unknown_rows_are_cut_at_the_ends_and_refused_between(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20, success=True)
    damaged(path, action=(0, np.nan), frame_seq=(1, -1), observations__qpos=(19, np.nan))
    (source,) = select([path], "success").sources
    assert (source.start, source.stop) == (2, 19)
    damaged(path, action=(10, np.nan))
    with pytest.raises(EpisodeError, match="row 10"):
        select([path], "success")


def test_episodes_of_two_kinds_are_not_mixed(tmp_path: Path, episodes: Path) -> None:
    other = write_episode(tmp_path / "episode_9.hdf5", rows=20, success=True)
    with h5py.File(other, "r+") as file:
        file.attrs["rate_hz"] = 25.0
    with pytest.raises(EpisodeError, match="other rate_hz"):
        select([episodes, other], "success")


@pytest.mark.parametrize("module", [act, robomimic, lerobot])
def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(
    module: Any, chosen: Selection, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        module.export(chosen, out, fail)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(EpisodeError, match="exists"):
        module.export(chosen, out, nothing)
    assert list(tmp_path.iterdir()) == [out]
    assert list(out.iterdir()) == []


# -- ACT -----------------------------------------------------------------------------------------


def test_acts_way_of_reading_finds_what_was_recorded(chosen: Selection, tmp_path: Path) -> None:
    """The access of act/utils.py: attributes, whole-array shapes, one row of each dataset."""
    assert act.export(chosen, tmp_path / "act", nothing)["held_rows"] == 15
    assert sorted(p.name for p in (tmp_path / "act").iterdir()) == [
        "episode_0.hdf5",
        "episode_1.hdf5",
    ]
    shapes = set()
    for i, source in enumerate(chosen.sources):
        with (
            h5py.File(tmp_path / "act" / f"episode_{i}.hdf5", "r") as root,
            Episode.open(source.path) as episode,
        ):
            assert root.attrs["sim"] == False  # noqa: E712 - a numpy bool, as ACT writes it
            assert not root.attrs.get("compress", False)
            shapes.add(root["/action"].shape)
            for row in (0, len(source) // 2, len(source) - 1):
                np.testing.assert_array_equal(root["/observations/qpos"][row], episode.qpos[row])
                np.testing.assert_array_equal(root["/observations/qvel"][row], episode.qvel[row])
                np.testing.assert_array_equal(root["/action"][row:][0], episode.action[row])
                for camera in ("cam_high", "cam_low"):
                    image = root[f"/observations/images/{camera}"][row]
                    assert image.dtype == np.uint8
                    np.testing.assert_array_equal(image, episode.image(camera, row, jpeg.decode))
            last = len(source) - 1
            for row in range(len(source), 40):
                np.testing.assert_array_equal(root["/action"][row], episode.action[last])
                np.testing.assert_array_equal(root["/observations/qpos"][row], episode.qpos[last])
                assert not root["/observations/qvel"][row].any()
                held = root["/observations/images/cam_low"][row]
                np.testing.assert_array_equal(held, episode.image("cam_low", last, jpeg.decode))
    assert shapes == {(40, 14)}  # batches and statistics stack whole episodes
    with pytest.raises(EpisodeError, match="40 rows"):
        act.export(chosen, tmp_path / "short", nothing, length=39)
    assert act.export(chosen, tmp_path / "long", nothing, length=50)["held_rows"] == 35


def test_act_plus_plus_reads_the_compressed_form(chosen: Selection, tmp_path: Path) -> None:
    act.export(chosen, tmp_path / "act", nothing, compress=True)
    for i, source in enumerate(chosen.sources):
        with (
            h5py.File(tmp_path / "act" / f"episode_{i}.hdf5", "r") as root,
            Episode.open(source.path) as episode,
        ):
            assert root.attrs["compress"]
            assert root["/action"].shape == (len(source), 14)
            lengths = root["/compress_len"][()]
            for c, camera in enumerate(root["/observations/images"]):
                rows = root[f"/observations/images/{camera}"]
                whole = cv2.imdecode(rows[7], 1)  # with its padding, as the loader does
                cut = cv2.imdecode(rows[7][: int(lengths[c, 7])], 1)
                np.testing.assert_array_equal(whole, episode.image(camera, 7, jpeg.decode))
                np.testing.assert_array_equal(cut, whole)
    with pytest.raises(EpisodeError, match="--length"):
        act.export(chosen, tmp_path / "other", nothing, compress=True, length=60)


def test_raw_recordings_are_exported_too(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=8, success=True, encoding="raw")
    chosen = select([path], "success")
    act.export(chosen, tmp_path / "raw", nothing)
    act.export(chosen, tmp_path / "jpeg", nothing, compress=True)
    with Episode.open(path) as episode:
        image = episode.image("cam_high", 5).astype(int)
    with h5py.File(tmp_path / "raw" / "episode_0.hdf5") as root:
        np.testing.assert_array_equal(root["observations/images/cam_high"][5], image)
    with h5py.File(tmp_path / "jpeg" / "episode_0.hdf5") as root:
        coded = cv2.imdecode(root["observations/images/cam_high"][5], 1).astype(int)
    assert np.abs(coded - image).mean() < 3


# -- robomimic -----------------------------------------------------------------------------------


def test_robomimic_file(chosen: Selection, tmp_path: Path) -> None:
    out = tmp_path / "cube.hdf5"
    said = robomimic.export(chosen, out, nothing, next_obs=True, scale_actions=True)
    assert said == {"train": 1, "valid": 1, "actions_within_1": True}
    with h5py.File(out) as file:
        data = file["data"]
        assert data.attrs["total"] == 65
        assert json.loads(data.attrs["env_args"])["env_kwargs"]["control_hz"] == FPS
        masks = [name.decode() for m in ("train", "valid") for name in file[f"mask/{m}"][:]]
        assert sorted(masks) == sorted(data) == ["demo_0", "demo_1"]
        low, high = data.attrs["action_min"], data.attrs["action_max"]
        scaled = np.concatenate([data[demo]["actions"][:] for demo in sorted(data)])
        np.testing.assert_allclose(scaled.min(axis=0), -1, atol=1e-6)
        np.testing.assert_allclose(scaled.max(axis=0), 1, atol=1e-6)
        for i, source in enumerate(chosen.sources):
            demo = data[f"demo_{i}"]
            rows = len(source)
            assert demo.attrs["num_samples"] == rows
            with Episode.open(source.path) as episode:
                back = (demo["actions"][:] + 1) / 2 * (high - low) + low
                np.testing.assert_allclose(back, episode.action, atol=1e-5)
                np.testing.assert_array_equal(demo["obs/qpos"][:], episode.qpos)
                np.testing.assert_array_equal(demo["next_obs/qpos"][:-1], episode.qpos[1:])
                np.testing.assert_array_equal(demo["next_obs/qpos"][-1], episode.qpos[-1])
                picture = episode.image("cam_low", 9, jpeg.decode)
            np.testing.assert_array_equal(demo["obs/cam_low_image"][9], picture)
            np.testing.assert_array_equal(demo["next_obs/cam_low_image"][8], picture)
            np.testing.assert_array_equal(
                demo["next_obs/cam_low_image"][-1], demo["obs/cam_low_image"][-1]
            )
            assert demo["dones"][:].tolist() == [0] * (rows - 1) + [1]
            assert demo["rewards"][:].tolist() == [0] * (rows - 1) + [1]


def test_robomimic_keeps_units_and_what_is_unknown(episodes: Path, tmp_path: Path) -> None:
    chosen = select([episodes], "all")
    said = robomimic.export(chosen, tmp_path / "all.hdf5", nothing, valid=0.5)
    assert (said["train"], said["valid"], said["actions_within_1"]) == (2, 2, True)
    with h5py.File(tmp_path / "all.hdf5") as file:
        with Episode.open(chosen.sources[2].path) as episode:
            np.testing.assert_array_equal(file["data/demo_2/actions"][:], episode.action)
        assert "next_obs" not in file["data/demo_2"]
        assert not file["data/demo_2/rewards"][:].any()
        assert np.isnan(file["data/demo_3/rewards"][:]).all()  # nobody judged it
    assert robomimic.export(chosen, tmp_path / "none.hdf5", nothing, valid=0)["valid"] == 0
    with pytest.raises(EpisodeError, match="share"):
        robomimic.export(chosen, tmp_path / "bad.hdf5", nothing, valid=1.0)


# -- LeRobot -------------------------------------------------------------------------------------


def pictures(path: Path, first: float, count: int) -> list[np.ndarray[Any, Any]]:
    """``count`` frames of a video from ``first`` seconds on."""
    with av.open(str(path)) as file:
        frames = {
            round(float(frame.pts * frame.time_base) * FPS): frame.to_ndarray(format="rgb24")
            for frame in file.decode(video=0)
        }
    return [frames[round(first * FPS) + i] for i in range(count)]


def test_lerobot_dataset(chosen: Selection, tmp_path: Path) -> None:
    root = tmp_path / "lr"
    said = lerobot.export(chosen, root, nothing)
    assert said == {"version": "v3.0", "fps": FPS, "tasks": 1, "video_files": 2}
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (2, 65, FPS)
    assert info["features"]["action"]["names"][13] == "right/gripper"
    rows = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=0))
    found = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert rows["index"].to_pylist() == list(range(65))
    actions, states = [], []
    for entry, source in zip(found, chosen.sources, strict=True):
        at = slice(entry["dataset_from_index"], entry["dataset_to_index"])
        with Episode.open(source.path) as episode:
            states.append(episode.qpos)
            actions.append(episode.action)
            np.testing.assert_array_equal(rows["action"].to_pylist()[at], episode.action)
            np.testing.assert_array_equal(rows["observation.state"].to_pylist()[at], episode.qpos)
            for camera in ("cam_high", "cam_low"):
                key = f"observation.images.{camera}"
                place = {k: entry[f"videos/{key}/{k}"] for k in ("chunk_index", "file_index")}
                video = root / info["video_path"].format(video_key=key, **place)
                begin, end = (entry[f"videos/{key}/{t}_timestamp"] for t in ("from", "to"))
                assert round((end - begin) * FPS) == len(source)
                shown = pictures(video, begin, len(source))
                for row, picture in enumerate(shown):
                    recorded = episode.image(camera, row, jpeg.decode).astype(int)
                    assert np.abs(picture - recorded).mean() < 6
        times = np.array(rows["timestamp"].to_pylist()[at])
        np.testing.assert_allclose(times, np.arange(len(source)) / FPS, atol=1e-6)
        assert entry["tasks"] == ["cube"]
        np.testing.assert_allclose(
            entry["stats/action/mean"], actions[-1].mean(axis=0, dtype=np.float64)
        )
    stats = json.loads((root / "meta/stats.json").read_text())
    for name, values in (("action", actions), ("observation.state", states)):
        whole = np.concatenate(values).astype(np.float64)
        for key, wanted in (
            ("min", whole.min(axis=0)),
            ("max", whole.max(axis=0)),
            ("mean", whole.mean(axis=0)),
            ("std", whole.std(axis=0)),
            ("q01", np.quantile(whole, 0.01, axis=0)),
        ):
            np.testing.assert_allclose(stats[name][key], wanted, rtol=1e-6)
        assert stats[name]["count"] == [65]
    assert np.shape(stats["observation.images.cam_low"]["mean"]) == (3, 1, 1)


def test_lerobot_files_are_split_by_size(
    chosen: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lerobot, "DATA_MB", 0)
    monkeypatch.setattr(lerobot, "VIDEO_MB", 0)
    monkeypatch.setattr(lerobot, "FILES_A_CHUNK", 1)
    lerobot.export(chosen, tmp_path / "lr", nothing)
    (entry,) = pq.read_table(tmp_path / "lr/meta/episodes").slice(1).to_pylist()
    assert (entry["data/chunk_index"], entry["data/file_index"]) == (1, 0)
    rows = pq.read_table(tmp_path / "lr/data/chunk-001/file-000.parquet")
    assert rows["index"].to_pylist() == list(range(40, 65))
    key = "observation.images.cam_high"
    assert entry[f"videos/{key}/from_timestamp"] == 0
    assert len(pictures(tmp_path / f"lr/videos/{key}/chunk-001/file-000.mp4", 0, 25)) == 25


def test_pixel_statistics_are_those_of_the_pixels() -> None:
    stream = np.random.default_rng(0)
    images = stream.integers(0, 200, (6, 32, 48, 3), np.uint8)
    parts = [PixelStats(), PixelStats()]
    for i, image in enumerate(images):
        parts[i % 2].add(image)
    stats = PixelStats.together(parts).stats()
    pixels = images[:, ::4, ::4].reshape(-1, 3) / 255
    for name, wanted in (
        ("min", pixels.min(axis=0)),
        ("max", pixels.max(axis=0)),
        ("mean", pixels.mean(axis=0)),
        ("std", pixels.std(axis=0)),
        ("q90", np.quantile(pixels, 0.9, axis=0, method="inverted_cdf")),
    ):
        np.testing.assert_allclose(np.ravel(stats[name]), wanted, atol=1 / 255)
    assert stats["count"] == [6]


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options"),
    [("act", ["--compress"]), ("robomimic", ["--scale-actions"]), ("lerobot", [])],
)
def test_the_command_says_what_it_wrote(
    form: str,
    options: list[str],
    episodes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["dataset", "export", form, str(episodes), "--out", str(tmp_path / "out"), *options]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["episodes"], said["rows"], len(said["left_out"])) == (2, 65, 2)
    assert main(arguments) == 1
    assert "exists" in capsys.readouterr().err


# -- the projects' own readers -------------------------------------------------------------------

LEROBOT = """
from lerobot.datasets.lerobot_dataset import LeRobotDataset
dataset = LeRobotDataset(
    "local/export", root=sys.argv[1], video_backend="pyav",
    delta_timestamps={"action": [0.0, 0.02, 0.04]},
)
recorded = np.load(sys.argv[2])
worst = 0.0
for row in range(len(dataset)):
    item = dataset[row]
    assert np.array_equal(item["observation.state"].numpy(), recorded["qpos"][row]), row
    assert np.array_equal(item["action"][0].numpy(), recorded["action"][row]), row
    for camera in ("cam_high", "cam_low"):
        shown = item["observation.images." + camera].permute(1, 2, 0).numpy() * 255
        worst = max(worst, float(np.abs(shown - recorded[camera][row]).mean()))
last = dataset[39]
print(json.dumps({
    "frames": len(dataset), "episodes": dataset.num_episodes, "task": last["task"],
    "padded": last["action_is_pad"].tolist(), "worst": worst,
    "mean": dataset.meta.stats["action"]["mean"].tolist(),
    "task_index": dataset.meta.get_task_index("cube"),
}))
"""

ROBOMIMIC = """
import robomimic.utils.file_utils as files
import robomimic.utils.obs_utils as observations
from robomimic.utils.dataset import SequenceDataset
keys = ["qpos", "qvel", "cam_high_image"]
observations.initialize_obs_utils_with_obs_specs(
    {"obs": {"low_dim": keys[:2], "rgb": keys[2:]}}
)
recorded = np.load(sys.argv[2])
counts = {}
for split in ("train", "valid", None):
    dataset = SequenceDataset(
        sys.argv[1], keys, ["actions", "rewards", "dones"], seq_length=4, frame_stack=2,
        filter_by_attribute=split, load_next_obs=True,
    )
    counts[str(split)] = len(dataset)
for row in range(1, 40):
    item = dataset[row]
    assert np.array_equal(item["obs"]["qpos"][1], recorded["qpos"][row]), row
    assert np.array_equal(item["actions"][1], recorded["action"][row]), row
    assert np.array_equal(item["obs"]["cam_high_image"][1], recorded["cam_high"][row]), row
environment = files.get_env_metadata_from_dataset(sys.argv[1])
print(json.dumps({"counts": counts, "env": environment["env_name"],
    "shape": files.get_shape_metadata_from_dataset(sys.argv[1], keys)["all_shapes"]["qpos"]}))
"""


def _recorded(chosen: Selection, path: Path) -> Path:
    columns: dict[str, list[Any]] = {"qpos": [], "action": [], "cam_high": [], "cam_low": []}
    for source in chosen.sources:
        with Episode.open(source.path) as episode:
            columns["qpos"].append(episode.qpos)
            columns["action"].append(episode.action)
            for camera in ("cam_high", "cam_low"):
                columns[camera].append(list(episode.images(camera, jpeg.decode)))
    np.savez(path, **{name: np.concatenate(values) for name, values in columns.items()})
    return path


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_lerobots_own_reader_opens_it(chosen: Selection, tmp_path: Path) -> None:
    lerobot.export(chosen, tmp_path / "lr", nothing)
    recorded = _recorded(chosen, tmp_path / "recorded.npz")
    said = read(LEROBOT, tmp_path / "lr", recorded, home=tmp_path)
    assert (said["frames"], said["episodes"], said["task"]) == (65, 2, "cube")
    assert said["padded"] == [False, True, True]
    assert said["task_index"] == 0
    assert said["worst"] < 6
    np.testing.assert_allclose(said["mean"], np.load(recorded)["action"].mean(axis=0), rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_robomimics_own_reader_opens_it(chosen: Selection, tmp_path: Path) -> None:
    robomimic.export(chosen, tmp_path / "cube.hdf5", nothing, next_obs=True)
    recorded = _recorded(chosen, tmp_path / "recorded.npz")
    said = read(ROBOMIMIC, tmp_path / "cube.hdf5", recorded, home=tmp_path)
    assert said["counts"]["None"] == 65
    assert said["counts"]["train"] + said["counts"]["valid"] == 65
    assert said["env"] == "bench"
    assert said["shape"] == [14]
