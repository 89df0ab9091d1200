"""The camera process as it runs on a robot: a program of its own, read through shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hardware.cameras.test_pattern import PatternStamp, camera_id, decode
from robot_stack.records import frame_record, ring_path
from robot_stack.shared_memory import Ring
from robot_stack.spec import CameraSpec
from server.control.camera_process import ring_slots

HANG_S = 30.0

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a camera process for a ``cameras:`` YAML block; whatever is left is killed."""
    running: list[subprocess.Popen[str]] = []

    def launch(cameras: str, name: str = "cam") -> subprocess.Popen[str]:
        file = tmp_path / f"station{len(running)}.yaml"
        file.write_text(f"schema: 1\nstation: lab\nrobots: {{}}\ngroups: {{}}\ncameras:\n{cameras}")
        command = [sys.executable, "-m", "server.control.camera_process"]
        process = subprocess.Popen(
            [*command, "--station-file", str(file), "--camera", name],
            stderr=(tmp_path / f"log{len(running)}").open("w"),
            text=True,
        )
        running.append(process)
        return process

    yield launch
    for process in running:
        process.kill()
        process.wait()


def pattern(fps: float = 100, size: tuple[int, int] = (160, 120), options: str = "") -> str:
    return (
        f"  cam: {{driver: test_pattern, width: {size[0]}, height: {size[1]}, fps: {fps}, "
        f"options: {{{options}}}}}\n"
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)


def open_ring() -> Ring:
    return Ring(ring_path("lab", "camera", "cam"), timeout_s=HANG_S)


def collect(ring: Ring, count: int) -> list[np.void]:
    """The next ``count`` records from the first on, asserting that none was overwritten."""
    records: list[np.void] = []

    def more() -> bool:
        first, fresh = ring.since(len(records))
        assert first == len(records), "the reader was overrun"
        records.extend(fresh)
        return len(records) >= count

    until(more, f"{count} frames")
    return records[:count]


def test_every_frame_arrives_once_whole_and_stamped_as_the_record_says(start: Start) -> None:
    process = start(pattern())
    with open_ring() as ring:
        records = collect(ring, 150)
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
        assert ring.closed
        meta = ring.meta
    for i, record in enumerate(records):
        expected = PatternStamp(camera_id("cam"), i, int(record["t_ns"]))
        assert int(record["seq"]) == i
        assert decode(record["image"]) == expected
    assert {k: meta[k] for k in ("name", "width", "height", "fps", "driver")} == {
        "name": "cam",
        "width": 160,
        "height": 120,
        "fps": 100.0,
        "driver": "test_pattern",
    }
    assert "intrinsics" in meta and "serial" in meta


def test_a_limit_generates_exactly_that_many_and_the_process_stays(start: Start) -> None:
    process = start(pattern(options="limit: 25"))
    with open_ring() as ring:
        until(lambda: ring.count == 25, "25 frames")
        time.sleep(0.1)  # ten more periods: room for a 26th that must not come
        assert ring.count == 25
    assert process.poll() is None


READER = """
import sys
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring
ring = Ring(ring_path("lab", "camera", "cam"))
print("reading", flush=True)
while True:
    ring.latest()
"""


def test_killing_a_reader_disturbs_nobody(start: Start) -> None:
    process = start(pattern())
    with open_ring() as ring:
        reader = subprocess.Popen(
            [sys.executable, "-c", READER], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
        reader.kill()
        reader.wait()
        reader.stdout.close()
        seen = ring.count
        until(lambda: ring.count > seen + 20, "frames after the reader's death")
        late = Ring(ring.path)
        newest = late.latest()
        assert newest is not None and decode(newest[1]["image"]) is not None
        late.close()
    assert process.poll() is None


def test_a_killed_camera_process_comes_back_in_a_ring_that_readers_find(start: Start) -> None:
    first = start(pattern())
    with open_ring() as ring:
        until(lambda: ring.count > 5, "frames")
        first.send_signal(signal.SIGKILL)
        first.wait()
        newest = ring.latest()
        assert newest is not None and decode(newest[1]["image"]) is not None
        assert not ring.closed
        start(pattern())
        until(ring.reopen, "a new ring")
        until(lambda: ring.count > 5, "frames in the new ring")


def test_a_second_process_for_the_same_camera_is_refused(start: Start, tmp_path: Path) -> None:
    start(pattern())
    with open_ring() as ring:
        until(lambda: ring.count > 0, "frames")
        second = start(pattern())
        assert second.wait(HANG_S) == 1
        assert "already has a living writer" in (tmp_path / "log1").read_text()
        seen = ring.count
        until(lambda: ring.count > seen + 5, "frames of the first")


@pytest.mark.parametrize(
    ("cameras", "words"),
    [
        ("  other: {driver: test_pattern}\n", "has no camera 'cam' .it has: other."),
        ("  cam: {driver: test_patern}\n", "did you mean 'test_pattern'"),
        ("  cam: {driver: test_pattern, options: {limitt: 3}}\n", "did you mean 'limit'"),
        ("  cam: {driver: test_pattern, width: 64, height: 64}\n", "smallest is 80x64"),
    ],
    ids=["no such camera", "no such driver", "no such option", "impossible size"],
)
def test_a_wrong_station_file_ends_it_with_the_reason(
    start: Start, tmp_path: Path, cameras: str, words: str
) -> None:
    import re

    assert start(cameras).wait(HANG_S) == 1
    assert re.search(words, (tmp_path / "log0").read_text())


def write_video(path: Path, numbers: range) -> None:
    """An MJPG file whose frames carry test-pattern stamps numbered so."""
    from hardware.cameras.test_pattern import stamp

    fourcc = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), fourcc, 100.0, (160, 120))
    for n in numbers:
        image = np.full((120, 160, 3), 90, np.uint8)
        stamp(image, PatternStamp(7, n, n))
        writer.write(image)
    writer.release()


def test_a_camera_that_drops_out_is_opened_again_and_the_ring_goes_on(
    start: Start, tmp_path: Path
) -> None:
    """The source ends, is away for a while, and comes back with other pictures."""
    video, away = tmp_path / "camera.avi", tmp_path / "away.avi"
    write_video(video, range(30))
    write_video(away, range(100, 130))
    process = start(
        "  cam: {driver: opencv, width: 160, height: 120, fps: 100, "
        f"options: {{source: {video}}}}}\n"
    )
    with open_ring() as ring:
        generation = ring.generation
        until(lambda: ring.count > 0, "the first frame")
        video.unlink()
        records = collect(ring, 30)
        until(lambda: (tmp_path / "log0").read_text().count("trying again") >= 2, "two attempts")
        away.rename(video)
        until(lambda: ring.count >= 60, "frames after the outage")
        records += ring.since(30)[1]
        assert ring.generation == generation and not ring.closed
    numbers = [found.seq if (found := decode(r["image"])) else None for r in records[:60]]
    assert numbers == [*range(30), *range(100, 130)]
    assert [int(r["seq"]) for r in records] == list(range(len(records)))
    times = [int(r["t_ns"]) for r in records]
    assert times == sorted(set(times))
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 0


def test_sigterm_ends_it_while_it_waits_for_a_missing_camera(start: Start, tmp_path: Path) -> None:
    process = start(f"  cam: {{driver: opencv, options: {{source: {tmp_path}/none.avi}}}}\n")
    until(lambda: "trying again" in (tmp_path / "log0").read_text(), "the first attempt")
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 0


def test_a_ring_holds_a_second_bounded_by_memory(tmp_path: Path) -> None:
    frame = frame_record(640, 480).itemsize
    assert ring_slots(CameraSpec("a", 640, 480, 50.0), tmp_path) in range(8, 52)
    assert ring_slots(CameraSpec("a", 64, 48, 30.0), tmp_path) == 31
    assert ring_slots(CameraSpec("a", 64, 48, 2.0), tmp_path) == 8
    for size in ((640, 480), (1920, 1080)):
        slots = ring_slots(CameraSpec("a", *size, 200.0), tmp_path)
        assert slots == 8 or slots * frame_record(*size).itemsize <= 64 * 2**20
    space = os.statvfs(tmp_path)
    assert ring_slots(CameraSpec("a", 640, 480, 50.0), tmp_path) * frame <= max(
        8 * frame, space.f_bavail * space.f_frsize // 8
    )
