"""`robot-stack episode`: on files that the real writer made, through the real command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from collect.dataset.labels import LABELS, history, label
from collect.dataset.trash import TRASH, listing, restore, trash
from robot_stack.cli import main
from robot_stack.episode import Episode, check, next_episode
from robot_stack.errors import EpisodeError
from tests.collect.recorded import write_episode


def tool(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Run a tool with --json: (exit status, the object that it printed)."""
    status = main(["episode", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    if status and not out:
        return status, {"error": err}
    (line,) = out.splitlines()
    return status, json.loads(line)


def codes(report: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in report["findings"]}


# -- info ------------------------------------------------------------------------------------


def test_info_tells_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episode(tmp_path / "episode_0.hdf5", rows=60, success=True, operator="p07")
    write_episode(tmp_path / "episode_2.hdf5", rows=30, success=False)
    status, report = tool(capsys, "info", tmp_path)
    assert status == 0
    first, second = report["episodes"]
    assert (first["success"], second["success"]) == ("success", "failure")
    assert (first["rows"], first["seconds"], first["operator"]) == (60, 1.2, "p07")
    assert first["sources"] == {"demo": 50 / 60, "human": 10 / 60}
    assert first["robots"]["left"] == {"embodiment": "vx300s", "joints": 7, "in_rows": True}
    assert first["cameras"]["cam_high"]["width"] == 96
    assert report["missing_numbers"] == {str(tmp_path): [1]}


def test_info_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episode(tmp_path / "episode_0.hdf5", rows=20, success=True)
    write_episode(tmp_path / "episode_10.hdf5", rows=20)
    write_episode(tmp_path / "episode_9.hdf5", rows=20)
    assert main(["episode", "info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("episode_")]
    assert names == ["episode_0.hdf5", "episode_9.hdf5", "episode_10.hdf5"]
    assert "3 episodes, 1 labelled success" in out
    assert main(["episode", "info", str(tmp_path / "episode_0.hdf5")]) == 0
    assert "servo 4 overloaded" in capsys.readouterr().out


def test_unknown_paths_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("info", "check", "view", "relabel"):
        extra = ["--success"] if name == "relabel" else []
        status, report = tool(capsys, name, tmp_path / "nothing.hdf5", *extra)
        assert status == 1 and "nothing.hdf5" in report["error"]


# -- check -----------------------------------------------------------------------------------


def test_check_passes_a_good_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for encoding, name in (("jpeg", "episode_0.hdf5"), ("raw", "episode_1.hdf5")):
        write_episode(tmp_path / name, rows=40, encoding=encoding)
    status, report = tool(capsys, "check", tmp_path)
    assert (status, report["findings"], report["episodes"]) == (0, [], 2)


def test_check_finds_changed_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=40)
    with h5py.File(path, "r+", locking=False) as file:
        file["action"][7, 3] += 0.01
    status, report = tool(capsys, "check", path)
    assert status == 1 and codes(report) == {"hash"}
    assert report["findings"][0]["advice"]
    assert tool(capsys, "check", "--quick", path)[0] == 0


@pytest.mark.parametrize(
    ("dataset", "row", "value", "code"),
    [
        ("t_ns", 11, 5_000_000, "grid"),
        ("observations/t_ns", 11, 90_000_000, "causality"),
        ("frame_t_ns", 12, -900_000_000, "frame_order"),
        ("action_sent", 9, 4.0, "limits"),
    ],
)
def test_check_finds_each_broken_invariant(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    dataset: str,
    row: int,
    value: float,
    code: str,
) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=40)
    with h5py.File(path, "r+", locking=False) as file:
        file[dataset][row] = file[dataset][row] + value
    status, report = tool(capsys, "check", "--quick", path)
    assert status == 1 and code in codes(report)


def test_check_of_logs_allows_a_repeated_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=40)
    for step, expected in ((0, set()), (-1, {"log_order"})):
        with h5py.File(path, "r+", locking=False) as file:
            log = file["log/left"][:]
            log["t_ns"][51] = log["t_ns"][50] + step
            file["log/left"][:] = log
        assert codes(tool(capsys, "check", "--quick", path)[1]) == expected


def test_check_names_nan_and_short_datasets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=40)
    with h5py.File(path, "r+", locking=False) as file:
        file["action"][5] = np.nan
    status, report = tool(capsys, "check", "--quick", path)
    assert status == 0 and codes(report) == {"unknown"}
    assert tool(capsys, "check", "--quick", "--strict", path)[0] == 1
    with h5py.File(path, "r+", locking=False) as file:
        file["observations/images/cam_low"].resize(39, 0)
    status, report = tool(capsys, "check", "--quick", path)
    assert status == 1 and "length" in codes(report)


def test_check_sees_a_stalled_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = {"cam_high": {"fps": 25.0}, "cam_low": {"fps": 50.0}}
    path = write_episode(tmp_path / "episode_0.hdf5", rows=100, stall=(40, 70), cameras=cameras)
    status, report = tool(capsys, "check", path)
    assert status == 0 and codes(report) == {"stale"}
    assert "cam_low" in report["findings"][0]["message"]


def test_check_of_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_episode(tmp_path / "episode_0.hdf5", rows=20)
    shutil.copy(first, tmp_path / "episode_2.hdf5")
    (tmp_path / "episode_3.hdf5.part").write_bytes(b"half")
    (tmp_path / "episode_4.hdf5.broken").write_bytes(b"half")
    (tmp_path / "episode_5.hdf5").write_bytes(b"no HDF5 at all")
    status, report = tool(capsys, "check", tmp_path)
    assert status == 1
    assert codes(report) == {"leftover", "broken", "gap", "twin", "unreadable"}
    gap = next(finding for finding in report["findings"] if finding["code"] == "gap")
    assert gap["message"] == "no episode has number 1, 3, 4"


# -- view ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_view_makes_a_playable_video_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=100, stall=(40, 70))
    output = tmp_path / "out"
    status, report = tool(capsys, "view", path, "--output", output)
    assert status == 0
    video, joints, timing = map(Path, report["files"])
    assert sorted(output.iterdir()) == sorted([video, joints, timing])
    for picture in (joints, timing):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 20_000
    with av.open(str(video)) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(frames) == 50
    # cam_high (left tile) shows its ball, in RGB, where row 2 * i says that it is.
    for i in (0, 20, 49):
        x = 5 + int(2 * i * 25 / 50) * 2 % 86
        assert np.abs(frames[i][32, x].astype(int) - (250, 200, 40)).max() < 60
        assert np.abs(frames[i][10, 90].astype(int) - (40, 70, 110)).max() < 40
    # moov before mdat: a browser starts to play before it has everything.
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


# -- labels ----------------------------------------------------------------------------------


def test_relabel_writes_file_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20, success=True)
    with Episode.open(path) as episode:
        before = episode.metadata
    failure = ("relabel", path, "--failure", "--tag", "dropped", "--by", "p09")
    assert tool(capsys, *failure)[0] == 0
    assert tool(capsys, "relabel", path, "--notes", "lamp was off", "--task", "stack")[0] == 0
    with Episode.open(path) as episode:
        after = episode.metadata
    assert (after.success, after.failure_tag, after.labeller) == (False, "dropped", "p09")
    assert (after.task, after.extra["notes"]) == ("stack", "lamp was off")
    assert after.content_hash == before.content_hash and after.uuid == before.uuid
    assert check(path) == []
    first, second = history(tmp_path, before.uuid)
    assert (first["labeller"], first["success"], first["before"]["success"]) == ("p09", False, True)
    assert second["before"] == {"task": "cube", "notes": None}
    # A success takes the failure's tag away.
    assert tool(capsys, "relabel", path, "--success")[0] == 0
    with Episode.open(path) as episode:
        assert (episode.metadata.success, episode.metadata.failure_tag) == (True, None)


def test_label_table_survives_a_torn_line(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20)
    label(path, by="a", success=True)
    with (tmp_path / LABELS).open("ab") as file:
        file.write(b'{"episode": "half a li')
    label(path, by="b", success=False)
    assert [record["labeller"] for record in history(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    "arguments", [(), ("--success", "--tag", "dropped"), ("--unknown", "--tag", "x")]
)
def test_relabel_refuses_nonsense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20)
    assert tool(capsys, "relabel", path, *arguments)[0] == 1
    assert not (tmp_path / LABELS).exists()


# -- trash -----------------------------------------------------------------------------------


def test_trash_comes_back_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20, success=True)
    content = path.read_bytes()
    assert tool(capsys, "trash", path, "--reason", "covered", "--by", "p01")[0] == 0
    assert not path.exists()
    _, report = tool(capsys, "trash", "--list", tmp_path)
    (entry,) = report["trash"]
    assert (entry["name"], entry["reason"], entry["by"]) == ("episode_0.hdf5", "covered", "p01")
    assert entry["uuid"]
    _, report = tool(capsys, "trash", "--restore", path)
    assert report["files"] == [str(path)] and path.read_bytes() == content
    assert listing(tmp_path) == [] and list((tmp_path / TRASH).iterdir()) == []


def test_restore_does_not_overwrite(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "episode_0.hdf5", rows=20)
    old = path.read_bytes()
    trash(path)
    write_episode(path, rows=30)
    new = path.read_bytes()
    assert restore(path) == tmp_path / "episode_1.hdf5"
    assert path.read_bytes() == new and (tmp_path / "episode_1.hdf5").read_bytes() == old
    assert not list(tmp_path.glob("*.new"))


def test_the_newest_of_one_name_is_restored_first(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    rows = []
    for n in (20, 30):
        trash(write_episode(path, rows=n))
    oldest = listing(tmp_path)[0].path
    for named in (path, oldest):
        with Episode.open(restore(named)) as episode:
            rows.append(len(episode))
    assert rows == [30, 20]
    with pytest.raises(EpisodeError, match="there: nothing"):
        restore(path)


def test_a_recording_is_not_trashed(tmp_path: Path) -> None:
    part = tmp_path / "episode_0.hdf5.part"
    part.write_bytes(b"")
    with pytest.raises(EpisodeError, match="recover"):
        trash(part)
    assert part.exists()


def test_empty_asks_and_keeps_the_young(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, young = (write_episode(tmp_path / f"episode_{i}.hdf5", rows=20) for i in (0, 1))
    trash(young)
    entry = trash(old)
    note = entry.path.with_name(entry.path.name + ".json")
    told = json.loads(note.read_text())
    note.write_text(json.dumps({**told, "time": time.time() - 40 * 86400}))
    assert tool(capsys, "trash", "--empty", tmp_path)[0] == 1  # nobody there to say yes
    assert len(listing(tmp_path)) == 2
    status, report = tool(capsys, "trash", "--empty", tmp_path, "--older-than", 30, "--yes")
    assert (status, report["deleted"]) == (0, 1)
    assert [one.name for one in listing(tmp_path)] == ["episode_1.hdf5"]


# -- recover ---------------------------------------------------------------------------------

CRASH = """
import os, signal, sys
from pathlib import Path
from robot_stack.episode import EpisodeWriter
import tests.collect.recorded as recorded
class Killed(EpisodeWriter):
    def finalise(self, **changes):
        self.flush()
        os.kill(os.getpid(), signal.SIGKILL)
recorded.EpisodeWriter = Killed
recorded.write_episode(Path(sys.argv[1]), rows=60)
"""


def test_recover_saves_what_a_killed_recorder_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "episode_0.hdf5"
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(path)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == -signal.SIGKILL and not path.exists()
    assert codes(tool(capsys, "check", tmp_path)[1]) == {"leftover"}
    status, report = tool(capsys, "recover", tmp_path)
    assert (status, report["recovered"]) == (0, [str(path)])
    status, report = tool(capsys, "check", path)
    assert status == 0 and codes(report) == {"cut"}
    with Episode.open(path) as episode:
        assert len(episode) == 60
    assert tool(capsys, "recover", tmp_path)[1]["recovered"] == []


def test_next_number_follows_the_highest(tmp_path: Path) -> None:
    for n in (0, 1, 2):
        write_episode(tmp_path / f"episode_{n}.hdf5", rows=20)
    trash(tmp_path / "episode_2.hdf5")
    assert next_episode(tmp_path).name == "episode_2.hdf5"
