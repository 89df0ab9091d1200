"""The recorder on live rings: rows, frames, losses, restarts, full disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect import jpeg
from collect.channels import encode_shot
from collect.recorder import prioritise
from collect.rings import FrameRef
from collect.space import free_bytes
from robot_stack.episode import Episode, check, recover_all
from robot_stack.errors import EpisodeError
from robot_stack.shared_memory import Ring
from robot_stack.spec import CameraSpec
from robot_stack.types import Difference, Source
from tests.collect.live_rings import SPEC, TICK_NS, Cell, pictured

ROW_NS = 20_000_000
HIGH = CameraSpec("cam_high", 64, 48, 50.0)
LOW = CameraSpec("cam_low", 64, 48, 50.0, depth=True)
SLOW = CameraSpec("cam_slow", 64, 48, 10.0)
FLOOR_AHEAD = 300 << 20  # more than a recorder reserves ahead of itself
SMALL_DISK = 160 << 20


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "runtime"))


@pytest.fixture
def make_cell(tmp_path: Path) -> Iterator[Callable[..., Cell]]:
    cells: list[Cell] = []

    def make(*cameras: CameraSpec, **options: Any) -> Cell:
        cells.append(Cell(tmp_path / "episodes", cameras, **options))
        return cells[-1]

    yield make
    for cell in cells:
        cell.close()


def errors(path: Path) -> list[str]:
    return [problem.message for problem in check(path) if problem.severity == "error"]


def unused(path: Path) -> int:
    """Bytes that are reserved on the disk beyond the end of a file."""
    return path.stat().st_blocks * 512 - path.stat().st_size


@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_rows_hold_states_actions_and_every_frame(
    make_cell: Callable[..., Cell], encoding: str
) -> None:
    cell = make_cell(HIGH, LOW, encoding=encoding, world=True)
    cell.recorder.start(task="stack", operator="p7")
    cell.run(0.8)
    saved = cell.stop(success=True, labeller="test")
    assert saved.path.name == "episode_0.hdf5"
    assert unused(saved.path) < 1 << 20
    assert errors(saved.path) == []
    with Episode.open(saved.path) as episode:
        t = episode.t_ns
        assert len(episode) == saved.rows > 30
        assert (np.diff(t) == ROW_NS).all()
        # The state is the last tick at or before the row, the action the first at or after it.
        assert (
            (t[:, None] - episode.state_t_ns >= 0) & (t[:, None] - episode.state_t_ns < TICK_NS)
        ).all()
        assert np.allclose(episode.action - episode.qpos, 1.25)
        assert np.allclose(episode.action_sent - episode.qpos, 1.5)
        assert (episode.qvel == 1).all()
        assert (episode.effort == 2).all()
        assert (episode.source == Source.DEMO).all()
        assert (episode.token == 7).all()
        assert (episode.takeover_id == -1).all()
        assert episode.env_state is not None
        assert np.allclose(episode.env_state[:, 0] * 1e9, episode.column("env_t_ns"))
        assert (episode.reward == 0.5).all()
        for index, camera in enumerate(("cam_high", "cam_low")):
            seqs, times = episode.frame_seq(camera), episode.frame_t_ns(camera)
            assert set(np.diff(seqs)) == {1}  # one frame a row: none dropped, none repeated
            assert (np.abs(t - times) <= ROW_NS).all()
            for row in range(len(episode)):
                image = episode.image(camera, row, jpeg.decode)
                assert pictured(image) == (index, seqs[row] % 32)
        assert (episode.depth("cam_low", 9) == episode.frame_seq("cam_low")[9] + 1000).all()
        log = episode.log("left")
        assert (np.diff(log["tick"]) == 1).all()
        assert log["t_ns"][0] - t[0] < TICK_NS
        assert log["t_ns"][-1] >= t[-1]
        meta = episode.metadata
        assert (meta.success, meta.labeller, meta.ended) == (True, "test", "stopped")
        assert (meta.task, meta.operator, meta.station) == ("stack", "p7", "cell")
        assert meta.robots["left"]["serial"] == "left"
        assert meta.cameras["cam_low"]["serial"] == "cam1"
        assert meta.action["names"][3] == "right/j0"
        assert meta.action["upper"] == [3.0] * 6
        assert meta.human_seconds == pytest.approx(len(episode) / 50)
        assert meta.frames["cam_high"]["stored"] == len(episode)
        assert meta.frames["cam_high"]["dropped"] == 0


def test_a_slower_camera_repeats_and_is_counted(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH, SLOW)
    cell.recorder.start()
    cell.run(0.8)
    saved = cell.stop()
    with Episode.open(saved.path) as episode:
        seqs = episode.frame_seq("cam_slow")
        fresh = int((np.diff(seqs[seqs >= 0]) > 0).sum()) + 1
        counts = episode.metadata.frames["cam_slow"]
        assert counts["stored"] == fresh
        assert counts["repeated"] == (seqs >= 0).sum() - fresh
        assert counts["missing"] == (seqs < 0).sum()
        assert set(np.diff(seqs[seqs >= 0])) <= {0, 1}
        assert counts["dropped"] == counts["lost"] == 0


def test_a_dying_camera_degrades_the_episode_and_says_so(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH, LOW)
    cell.recorder.start()
    cell.run(0.3)
    cell.cameras["cam_low"].alive = False
    cell.run(1.3)
    cell.cameras["cam_low"].alive = True
    cell.run(0.3)
    saved = cell.stop(success=True)
    assert errors(saved.path) == []
    with Episode.open(saved.path) as episode:
        assert len(episode) > 85
        assert set(np.diff(episode.frame_seq("cam_high"))) <= {0, 1}  # the other lost nothing
        low = episode.frame_t_ns("cam_low")
        assert (episode.t_ns - low).max() > 1e9  # stale rows are marked by their frame's time
        counts = episode.metadata.frames["cam_low"]
        assert counts["stale_rows"] > 30
        assert counts["repeated"] > 50
        kinds = [event.kind for event in episode.events]
        assert kinds.index("camera_lost") < kinds.index("camera_back")


def test_a_camera_that_is_restarted_is_followed(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH)
    cell.recorder.start()
    cell.run(0.3)
    cell.cameras["cam_high"].restart()
    cell.run(0.4)
    saved = cell.stop()
    with Episode.open(saved.path) as episode:
        seqs = episode.frame_seq("cam_high")
        assert (np.diff(seqs) < 0).sum() == 1  # its numbers start anew, once
        assert seqs[-1] > 10
        assert "camera_restarted" in [event.kind for event in episode.events]


def test_a_restarted_arm_is_followed_and_its_gap_is_unknown(
    make_cell: Callable[..., Cell],
) -> None:
    cell = make_cell(HIGH)
    cell.recorder.start()
    cell.run(0.3)
    left = cell.arms["left"]
    advance, left.advance = left.advance, lambda now: None  # type: ignore[method-assign]
    cell.run(0.4)
    left.restart()
    left.advance = advance  # type: ignore[method-assign]
    cell.run(0.4)
    saved = cell.stop()
    assert errors(saved.path) == []
    with Episode.open(saved.path) as episode:
        unknown = np.isnan(episode.action[:, 0])
        assert 3 <= unknown.sum() <= 25  # rows that waited in vain for a tick
        assert not np.isnan(episode.action[:, 3:]).any()  # the right arm went on
        assert not np.isnan(episode.action[-5:]).any()
        assert (np.diff(episode.log("left")["t_ns"]) > 0).all()
        assert "robot_restarted" in [event.kind for event in episode.events]


def test_faults_takeovers_and_torque_become_events(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH)
    arm = cell.arms["left"]
    steps: list[tuple[float, dict[str, Any]]] = [
        (
            0.0,
            {
                "source": Source.POLICY,
                "token": 3,
                "chunk_id": 11,
                "chunk_index": 4,
                "observation_t_ns": 123,
            },
        ),
        (0.2, {"source": Source.HUMAN, "token": 4, "chunk_id": -1, "chunk_index": -1}),
        (0.3, {"difference": Difference.VELOCITY}),
        (0.4, {"source": Source.HUMAN, "token": 4, "fault": b"servo 9 overloaded"}),
        (0.6, {"source": Source.POLICY, "token": 5}),
    ]

    def change(tick: Any) -> None:
        for after, values in steps:
            if tick["t_ns"] >= began + after * 1e9:
                tick["fault"], tick["difference"] = b"", 0
                for name, value in values.items():
                    tick[name] = value
        tick["torque"] = (1, 1, 0) if tick["fault"] else 1

    began = time.monotonic_ns()
    arm.change = change
    cell.recorder.start()
    began = time.monotonic_ns()
    cell.run(0.8)
    saved = cell.stop()
    with Episode.open(saved.path) as episode:
        events = [(event.kind, event.text) for event in episode.events]
        assert ("fault", "left: servo 9 overloaded") in events
        assert ("fault_cleared", "left: ") in events
        assert ("torque_off", "left: j2") in events
        assert ("torque_on", "left: j2") in events
        assert ("lease", "left: token 3 -> 4, policy -> human") in events
        takeover = episode.takeover_id
        assert set(takeover) == {-1, 0}
        assert set(episode.source[takeover == 0]) == {Source.HUMAN}
        assert set(episode.chunk_id) == {11, -1}
        assert set(episode.chunk_index[episode.chunk_id == 11]) == {4}
        assert 123 in set(episode.observation_t_ns[episode.chunk_id == 11])
        assert Difference.VELOCITY in set(episode.difference)
        assert episode.metadata.interventions == 1


def test_what_a_tracking_device_says_stands_in_every_row(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(spec=replace(SPEC, tracks=True))
    reflex = "joint_velocity_violation, recovering (1 of 3)"

    def change(tick: Any) -> None:
        tick["applied"], tick["target_age_s"], tick["success_rate"] = tick["sent"] - 1, 0.004, 0.97
        tick["notice"] = reflex.encode() if tick["tick"] % 100 >= 50 else b""

    cell.arms["right"].change = change
    cell.recorder.start()
    cell.run(0.9)
    saved = cell.stop()
    assert errors(saved.path) == []
    with Episode.open(saved.path) as episode:
        assert episode.schema.tracks
        applied, rate, age = episode.applied, episode.success_rate, episode.target_age_s
        assert applied is not None and rate is not None and age is not None
        assert np.isnan(applied[:, :3]).all(), "the left arm says nothing: unknown, not zero"
        assert applied[:, 3:] == pytest.approx(episode.action_sent[:, 3:] - 1)
        assert np.isnan(rate[:, 0]).all() and rate[:, 1] == pytest.approx(0.97)
        assert np.isnan(age[:, 0]).all() and age[:, 1] == pytest.approx(0.004)
        assert set(episode.fault or []) == {"", f"right: {reflex}"}
        assert ("notice", f"right: {reflex}") in [(e.kind, e.text) for e in episode.events]
        assert episode.log("right")["success_rate"] == pytest.approx(0.97)
        assert "notice" not in (episode.log("right").dtype.names or ())


def test_episodes_of_other_robots_have_no_tracking(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell()
    cell.recorder.start()
    cell.run(0.3)
    saved = cell.stop()
    with Episode.open(saved.path) as episode:
        assert "tracking" not in episode.file
        assert episode.applied is None and episode.fault is None


def test_a_late_poll_loses_nothing_that_the_rings_still_hold(
    make_cell: Callable[..., Cell],
) -> None:
    cell = make_cell(HIGH)
    cell.recorder.start()
    cell.run(0.2)
    pause = time.monotonic() + 0.4
    while time.monotonic() < pause:  # the recorder's process gets no processor
        cell.advance()
        time.sleep(0.005)
    cell.run(0.2)
    saved = cell.stop()
    with Episode.open(saved.path) as episode:
        assert set(np.diff(episode.frame_seq("cam_high"))) == {1}
        assert not np.isnan(episode.action).any()


def test_frames_that_a_ring_overwrote_are_counted_as_lost(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH)
    camera = cell.cameras["cam_high"]
    camera.ring.close()
    camera.slots = 8
    camera.ring = camera.open()
    cell.advance()
    cell.recorder.start()
    cell.run(0.2)
    pause = time.monotonic() + 0.6
    while time.monotonic() < pause:  # longer than the 8 frames of the ring
        cell.advance()
        time.sleep(0.005)
    cell.run(0.2)
    saved = cell.stop()
    counts = saved.frames["cam_high"]
    with Episode.open(saved.path) as episode:
        seqs = episode.frame_seq("cam_high")
        absent = set(range(int(seqs[0]), int(seqs[-1]) + 1)) - set(seqs.tolist())
        assert absent
        assert counts["lost"] + counts["dropped"] == len(absent)
    assert any("lost" in problem.message for problem in check(saved.path))


def test_a_frame_overwritten_while_it_is_encoded_is_not_stored(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = make_cell(HIGH).cameras["cam_high"]
    camera.ring.close()
    camera.slots = 2
    camera.ring = camera.open()
    camera.advance(camera.next_ns)
    with Ring(camera.path) as ring:
        ref = FrameRef(ring, 0, int(ring.view(0)["t_ns"]), 0)
        assert encode_shot(ref, 90, 9000, depth=False) is not None
        encode = jpeg.encode_within

        def slow(*args: Any) -> Any:
            found = encode(*args)
            camera.advance(camera.next_ns + 3 * camera.period_ns)  # the writer laps the reader
            return found

        monkeypatch.setattr(jpeg, "encode_within", slow)
        assert encode_shot(ref, 90, 9000, depth=False) is None


def test_discard_removes_the_take_and_its_number_is_used_again(
    make_cell: Callable[..., Cell],
) -> None:
    cell = make_cell(HIGH)
    path = cell.recorder.start()
    cell.run(0.1)
    cell.recorder.discard()
    assert list(path.parent.iterdir()) == []
    assert cell.recorder.start() == path
    cell.run(0.1)
    cell.stop()
    assert [p.name for p in path.parent.iterdir()] == ["episode_0.hdf5"]


def test_start_names_what_sends_nothing(make_cell: Callable[..., Cell], tmp_path: Path) -> None:
    cell = make_cell(HIGH)
    cell.cameras["cam_high"].ring.close(unlink=True)
    cell.arms["right"].ring.close(unlink=True)
    assert cell.recorder.silent() == ["robot right", "camera cam_high"]
    with pytest.raises(EpisodeError, match="robot right"):
        cell.recorder.start()
    with pytest.raises(EpisodeError, match="nothing is being recorded"):
        cell.recorder.stop()
    assert list((tmp_path / "episodes").iterdir()) == []
    cell.arms["right"].ring, cell.cameras["cam_high"].ring = (
        cell.arms["right"].open(),
        cell.cameras["cam_high"].open(),
    )


def test_an_arm_of_another_size_is_refused(make_cell: Callable[..., Cell]) -> None:
    from dataclasses import replace

    cell = make_cell(HIGH)
    narrow = replace(cell.config, cameras={"cam_high": CameraSpec("cam_high", 32, 48, 50.0)})
    from collect.recorder import Recorder

    with Recorder(narrow) as recorder, pytest.raises(EpisodeError, match=r"\(48, 64, 3\)"):
        recorder.start()


def test_recording_ends_cleanly_above_the_floor(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    """On any disk, without rights: what is free now, less 300 MB, is the floor that is met."""
    floor = shutil.disk_usage(tmp_path).free - FLOOR_AHEAD
    cell = make_cell(HIGH, encoding="raw", free_space_floor_bytes=floor)
    path = cell.recorder.start()
    assert cell.run(0.2) is None
    with (tmp_path / "other").open("wb") as file:  # another program takes more than is left
        os.posix_fallocate(file.fileno(), 0, 2 * FLOOR_AHEAD)
        saved = cell.run(8.0)
    (tmp_path / "other").unlink()
    assert saved is not None
    assert saved.path == path.with_name("episode_0.hdf5")
    assert saved.ended == "disk_full"
    assert errors(saved.path) == []
    assert unused(saved.path) < 1 << 20  # what was reserved ahead is given back
    with Episode.open(saved.path) as episode:
        assert len(episode) == saved.rows > 5
        (full,) = [event.text for event in episode.events if event.kind == "disk_full"]
        assert "the floor is" in full
        assert episode.metadata.success is None
    assert not cell.recorder.recording


def test_after_a_stall_the_disk_is_looked_at_before_more_than_is_reserved_is_written(
    make_cell: Callable[..., Cell],
) -> None:
    cell = make_cell(CameraSpec("cam_high", 640, 480, 50.0), encoding="raw")
    path = cell.recorder.start()
    cell.run(0.2)
    pause = time.monotonic() + 1.5  # 70 MB of rows wait to be written
    while time.monotonic() < pause:
        cell.advance()
        time.sleep(0.005)
    sizes = [(path.parent / f"{path.name}.part").stat().st_size]
    for _ in range(4):
        assert cell.recorder.poll() is None
        sizes.append((path.parent / f"{path.name}.part").stat().st_size)
    assert 0 < max(np.diff(sizes)) < 20 << 20
    saved = cell.stop()
    assert saved.rows > 80
    assert errors(saved.path) == []


def test_a_start_below_the_floor_is_refused(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH, free_space_floor_bytes=1 << 60)
    with pytest.raises(EpisodeError, match="the floor is"):
        cell.recorder.start()
    assert list(cell.recorder.directory.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory, and the bytes that must stay free in it so that little is left to use.

    A file system of 160 MB where this machine lets us mount one (then nothing needs to stay free),
    elsewhere the disk of the test's directory, which others use too.
    """
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield mount, shutil.disk_usage(mount).free - FLOOR_AHEAD
        return
    yield mount, 0
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.slow
def test_a_disk_that_another_program_fills_costs_no_row(small_disk: tuple[Path, int]) -> None:
    directory, floor = small_disk
    camera = CameraSpec("cam_high", 640, 480, 50.0)
    cell = Cell(directory, [camera], encoding="raw", free_space_floor_bytes=floor)
    try:
        cell.recorder.start()
        assert cell.run(0.3) is None
        with (directory / "other").open("wb") as file:  # everything that is not reserved
            try:
                while free_bytes(directory) > floor - FLOOR_AHEAD // 4:
                    file.write(bytes(1 << 20))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        saved = cell.run(8.0)
        assert saved is not None
        assert saved.ended == "disk_full"
        assert errors(saved.path) == []
        assert saved.rows > 15
    finally:
        cell.close()


def test_max_seconds_ends_the_episode(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH, max_seconds=0.3)
    cell.recorder.start()
    saved = cell.run(2.0)
    assert saved is not None
    assert (saved.ended, saved.rows) == ("max_seconds", 15)


def test_stats_for_a_panel(make_cell: Callable[..., Cell]) -> None:
    cell = make_cell(HIGH)
    assert cell.recorder.stats().recording is False
    cell.recorder.start()
    found: list[Any] = []
    cell.run(1.3, each=lambda: found.append(cell.recorder.stats()))
    stats = found[-1]
    assert stats.recording
    assert stats.rows > 40
    assert stats.hz["robot left"] == pytest.approx(250, rel=0.3)
    assert stats.hz["camera cam_high"] == pytest.approx(50, rel=0.3)
    assert 0 <= stats.age_ms["robot left"] < 1000
    assert stats.file_bytes > 0
    assert stats.free_bytes > 0
    cell.recorder.stop()


def test_killed_recorder_is_recovered_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from robot_stack.spec import CameraSpec\n"
        "from tests.collect.live_rings import Cell\n"
        "cell = Cell(Path(sys.argv[1]), [CameraSpec('cam_high', 64, 48, 50.0)])\n"
        "cell.recorder.start(task='killed')\n"
        "cell.run(0.6)\n"
        "print('recording', flush=True)\n"
        "cell.run(60)\n"
    )
    directory = tmp_path / "episodes"
    environment = {**os.environ, "ROBOT_STACK_RUNTIME": str(tmp_path / "runtime")}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"recording\n"
        assert recover_all(directory) == []  # a living recorder's file is left alone
        killed_ns = time.monotonic_ns()
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    (recovery,) = recover_all(directory)
    assert recovery.problem is None
    assert recovery.path is not None
    assert unused(recovery.path) < 1 << 20
    assert errors(recovery.path) == []
    with Episode.open(recovery.path) as episode:
        assert episode.metadata.ended == "recovered"
        assert episode.metadata.task == "killed"
        assert killed_ns - episode.t_ns[-1] < 500_000_000


def test_a_prioritised_recorder_starts_ordinary_programs(
    make_cell: Callable[..., Cell],
) -> None:
    """One at its priority would keep bytes from the arms while it is imported."""
    ask = "import os; print(os.sched_getscheduler(0))"

    def record() -> tuple[bool, int, int]:  # scheduling is a thread's own
        permitted = prioritise()
        child = subprocess.run([sys.executable, "-c", ask], capture_output=True, check=True)
        encoder = make_cell().recorder._encoders.submit(os.sched_getscheduler, 0).result(60.0)
        return permitted, int(child.stdout), encoder & ~os.SCHED_RESET_ON_FORK

    with ThreadPoolExecutor(1) as thread:
        permitted, child, encoder = thread.submit(record).result(60.0)
    assert child == os.SCHED_OTHER
    assert encoder == (os.SCHED_RR if permitted else os.SCHED_OTHER)
