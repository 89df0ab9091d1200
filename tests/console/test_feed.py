"""What the preview says of a camera, judged on rings that the test writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from hardware.cameras.test_pattern import PatternStamp, decode, stamp
from robot_stack.records import frame_record, ring_path
from robot_stack.shared_memory import RingWriter
from server.console.feed import CameraFeed, FeedState, camera_rings

WIDTH, HEIGHT = 160, 120
MS = 1_000_000


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))


@pytest.fixture
def feed() -> Iterator[CameraFeed]:
    feed = CameraFeed("lab", "cam")
    yield feed
    feed.close()


def ring(name: str = "cam", *, width: int = WIDTH, height: int = HEIGHT) -> RingWriter:
    record = frame_record(width, height)
    return RingWriter(ring_path("lab", "camera", name), record, 16, {"fps": 50.0})


def put(writer: RingWriter, seq: int, age_ms: float = 0.0) -> None:
    t_ns = time.monotonic_ns() - round(age_ms * MS)
    with writer.writing() as record:
        record["seq"], record["t_ns"] = seq, t_ns
        record["image"][:] = 90
        stamp(record["image"], PatternStamp(1, seq, 0))


def shown(feed: CameraFeed) -> int:
    assert feed.jpeg is not None
    image = cv2.imdecode(np.frombuffer(feed.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    found = decode(image)
    assert found is not None
    return found.seq


def test_before_the_first_frame_everything_is_unknown(feed: CameraFeed) -> None:
    for _ in range(2):
        status = feed.poll()
        assert status.state == FeedState.WAITING
        assert (status.seq, status.age_s, status.fps, status.dropped) == (None, None, None, 0)
        with ring():
            pass  # a ring without a frame is as good as none


def test_a_live_camera_s_rate_age_and_newest_picture(feed: CameraFeed) -> None:
    with ring() as writer:
        for seq in range(11):
            put(writer, seq, age_ms=(10 - seq) * 20)
        status = feed.poll()
        assert status.state == FeedState.LIVE
        assert (status.width, status.height, status.seq) == (WIDTH, HEIGHT, 10)
        assert status.fps == pytest.approx(50, rel=0.2)
        assert status.age_s is not None and 0 <= status.age_s < 0.5
        assert (shown(feed), feed.version) == (10, 1)
        feed.poll()
        assert feed.version == 1, "the same frame must not be encoded again"
        put(writer, 11)
        feed.poll()
        assert (shown(feed), feed.version) == (11, 2)


def test_colours_are_right_in_an_ordinary_viewer(feed: CameraFeed) -> None:
    with ring() as writer:
        with writer.writing() as record:
            record["t_ns"], record["seq"] = time.monotonic_ns(), 0
            record["image"][:] = (250, 10, 10)
        feed.poll()
    assert feed.jpeg is not None
    blue, green, red = cv2.imdecode(np.frombuffer(feed.jpeg, np.uint8), cv2.IMREAD_COLOR)[60, 80]
    assert red > 230 and green < 40 and blue < 40


def test_without_viewers_nothing_is_encoded(feed: CameraFeed) -> None:
    with ring() as writer:
        put(writer, 0)
        assert feed.poll(encode=False).state == FeedState.LIVE
        assert feed.jpeg is None


def test_an_old_frame_is_stale_and_a_closed_ring_ended(feed: CameraFeed) -> None:
    with ring() as writer:
        put(writer, 0, age_ms=5000)
        status = feed.poll()
        assert status.state == FeedState.STALE and status.fps is None
        assert status.age_s == pytest.approx(5.0, abs=1.0)
        put(writer, 1)
        assert feed.poll().state == FeedState.LIVE
    assert feed.poll().state == FeedState.ENDED


def test_lost_numbers_are_counted_from_when_the_feed_attached(feed: CameraFeed) -> None:
    with ring() as writer:
        for seq in (0, 7, 8):  # before: not ours to judge
            put(writer, seq)
        assert feed.poll().dropped == 0
        for seq in (9, 12, 13):
            put(writer, seq)
        assert feed.poll().dropped == 2


def test_a_restarted_camera_process_is_followed(feed: CameraFeed) -> None:
    with ring() as first:
        put(first, 500)
        feed.poll()
        put(first, 503)
        assert feed.poll().dropped == 2
    with ring() as second:
        put(second, 0)
        deadline = time.monotonic() + 30
        while (status := feed.poll()).state != FeedState.LIVE:
            assert time.monotonic() < deadline
            put(second, 0)
        assert status.dropped == 2
        assert shown(feed) == 0


def test_large_frames_are_scaled_down_for_the_page(feed: CameraFeed) -> None:
    with ring(width=1920, height=1080) as writer:
        put(writer, 0)
        feed.poll()
    assert feed.jpeg is not None
    assert cv2.imdecode(np.frombuffer(feed.jpeg, np.uint8), 1).shape == (720, 1280, 3)


def test_cameras_of_a_station_are_found_by_their_rings() -> None:
    with ring("cam_low"), ring("cam_high"):
        assert camera_rings("lab") == ["cam_high", "cam_low"]
    assert camera_rings("another") == []
