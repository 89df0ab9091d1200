"""Videos for the review desk: made once, whole or not at all, never too many, gone when erased."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import structlog

from collect import jpeg
from collect.crowd import apart
from collect.crowd.database import DatabaseBusyError
from collect.crowd.log import configure
from collect.crowd.tables import Task, new_id
from collect.crowd.video import QueueFullError, VideoMaker, folder, forget, index_of
from collect.crowd.views import BusyError, Views
from robot_stack.episode import Episode
from tests.collect.recorded import write_episode

ROWS = 60
WAIT_S = 60.0


@pytest.fixture(scope="module")
def episode(tmp_path_factory):
    return write_episode(tmp_path_factory.mktemp("video") / "a.hdf5", rows=ROWS)


def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {WAIT_S} s"
        time.sleep(0.02)


def settled(maker, play_id, episode):
    """What becomes of a play's videos."""
    until(lambda: maker.ask(play_id, episode) != "making", "an end of the making")
    return maker.ask(play_id, episode)


@pytest.fixture
def logged(capsys):
    """Gives what was logged, line by line."""
    configure()
    yield lambda: [json.loads(x) for x in capsys.readouterr().err.splitlines() if x[:1] == "{"]
    logging.getLogger().handlers.clear()
    structlog.reset_defaults()


def names(media):
    """All that lies below the videos' directory but the lock."""
    return sorted(p.name for p in (media / "review").rglob("*") if p.name != ".lock")


def frames(path):
    with av.open(str(path)) as file:
        return [
            (frame.to_ndarray(format="rgb24"), frame.key_frame) for frame in file.decode(video=0)
        ]


def test_two_workers_make_what_both_are_asked_for_once_and_frames_are_rows(episode, tmp_path):
    play_id = new_id()
    stale = tmp_path / "review" / ".part"
    stale.mkdir(parents=True)
    (stale / "0.mp4").write_bytes(b"of somebody who was killed")
    makers = [VideoMaker(tmp_path, 4, lambda _: True) for _ in range(2)]
    made = []
    with makers[0].running(), makers[1].running():
        for maker in makers * 3:
            maker.ask(play_id, episode)
        for maker in makers:
            assert settled(maker, play_id, episode) == "ready"
            made.append((folder(tmp_path, play_id) / "0.mp4").stat().st_ino)
    assert made[0] == made[1], "it was made twice"
    assert names(tmp_path) == sorted([play_id, "0.mp4", "1.mp4", "index.json"])
    index = index_of(tmp_path, play_id)
    assert (index.rate_hz, index.step, index.rows) == (25.0, 2, ROWS)
    assert index.cameras == {"cam_high": "0.mp4", "cam_low": "1.mp4"}
    with Episode.open(episode) as source:
        for camera, name in index.cameras.items():
            shown = frames(folder(tmp_path, play_id) / name)
            assert len(shown) == ROWS // 2
            rows = [source.image(camera, row, jpeg.decode).astype(int) for row in range(ROWS)]
            for i in (0, 7, 29):
                errors = [np.abs(shown[i][0] - row).mean() for row in rows]
                assert errors[i * index.step] == min(errors), f"{camera}: frame {i}"
            keys = [i for i, (_, key) in enumerate(shown) if key]
            assert max(np.diff([*keys, len(shown)])) <= 13, "nothing to scrub by"
    data = (folder(tmp_path, play_id) / "0.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), (
        "the video begins to play when it is all there"
    )


def test_the_queue_is_bounded_and_a_play_takes_one_place(episode, tmp_path):
    maker = VideoMaker(tmp_path, 2, lambda _: True)  # nobody makes anything
    first, second = new_id(), new_id()
    for _ in range(5):
        assert maker.ask(first, episode) == "making"
    assert maker.ask(second, episode) == "making"
    with pytest.raises(QueueFullError) as caught:
        maker.ask(new_id(), episode)
    assert caught.value.retry_s > 0
    assert maker.ask(first, episode) == "making", "who has a place is not sent away"


def test_a_damaged_file_fails_leaves_nothing_and_says_why(episode, tmp_path, logged):
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(episode.read_bytes()[:20_000])
    maker = VideoMaker(tmp_path / "media", 2, lambda _: True)
    play_id = new_id()
    with maker.running():
        assert settled(maker, play_id, damaged) == "failed"
    assert names(tmp_path / "media") == []
    said = [line for line in logged() if line.get("play") == play_id]
    assert len(said) == 1 and said[0]["error"].startswith("damaged.hdf5 is damaged: ")


def test_a_database_that_is_away_costs_a_play_its_video_and_not_the_next_one(
    episode, tmp_path, logged
):
    """Away before a video is made, and after: nobody knows then whether the play was erased."""
    answers = {new_id(): ["away"], new_id(): ["there", "away"], new_id(): ["there", "there"]}

    def wanted(play_id):
        if answers[play_id].pop(0) == "away":
            raise DatabaseBusyError
        return True

    plays = list(answers)
    maker = VideoMaker(tmp_path, len(plays), wanted)
    with maker.running():
        for play_id in plays:
            maker.ask(play_id, episode)
        assert [settled(maker, play_id, episode) for play_id in plays] == [
            "failed",
            "failed",
            "ready",
        ]
    assert {p.name for p in (tmp_path / "review").iterdir()} == {".lock", plays[2]}
    assert {line.get("play"): line.get("error") for line in logged()} == dict.fromkeys(
        plays[:2], "DatabaseBusyError"
    )


def test_what_is_erased_while_it_is_made_is_not_there_afterwards(episode, tmp_path):
    answers = iter((True, False))
    maker = VideoMaker(tmp_path, 2, lambda _: next(answers))
    play_id = new_id()
    with maker.running():
        maker.ask(play_id, episode)
        until(lambda: play_id not in maker._pending, "an end of the making")
    assert names(tmp_path) == []


def test_nobody_makes_what_is_erased_already(episode, tmp_path):
    maker = VideoMaker(tmp_path, 2, lambda _: False)
    with maker.running():
        play_id = new_id()
        maker.ask(play_id, episode)
        until(lambda: play_id not in maker._pending, "an end of the making")
    assert names(tmp_path) == []


def test_a_site_that_stops_does_not_wait_and_leaves_nothing(episode, tmp_path):
    maker = VideoMaker(tmp_path, 2, lambda _: True)
    with maker.running():
        maker.ask(new_id(), episode)
        until((tmp_path / "review" / ".part").exists, "the beginning of a video")
    assert names(tmp_path) == []


def test_forgetting_takes_all_of_one_play_and_nothing_else(tmp_path):
    ids = [new_id(), new_id()]
    for play_id in ids:
        where = folder(tmp_path, play_id)
        where.mkdir(parents=True)
        (where / "0.mp4").write_bytes(b"x")
        (where / "view.json").write_bytes(b"x")
        (where / "index.json").write_text(
            json.dumps({"rate_hz": 25.0, "step": 2, "rows": 4, "cameras": {"a": "0.mp4"}})
        )
    forget(tmp_path, ids[0])
    forget(tmp_path, ids[0])
    assert index_of(tmp_path, ids[0]) is None
    assert not folder(tmp_path, ids[0]).exists()
    assert index_of(tmp_path, ids[1]).cameras == {"a": "0.mp4"}
    for wrong in ("../crowd", "..", "", ids[1] + "/..", ids[1].upper()):
        with pytest.raises(ValueError):
            forget(tmp_path, wrong)


def test_old_videos_make_room_for_new_ones(episode, tmp_path):
    old = [new_id() for _ in range(3)]
    for i, play_id in enumerate(old):
        where = folder(tmp_path, play_id)
        where.mkdir(parents=True)
        os.utime(where, (1000 + i, 1000 + i))
    maker = VideoMaker(tmp_path, 2, lambda _: True, keep=2)
    play_id = new_id()
    with maker.running():
        assert settled(maker, play_id, episode) == "ready"
        until(lambda: not folder(tmp_path, old[1]).exists(), "the end of the old ones")
    assert {p.name for p in (tmp_path / "review").iterdir()} == {".lock", play_id, old[2]}


def test_a_view_is_made_once_of_a_file_and_task_and_leaves_the_videos_alone(
    episode, tmp_path, monkeypatch
):
    mine = tmp_path / "mine.hdf5"
    mine.write_bytes(episode.read_bytes())
    play_id, views = new_id(), Views(tmp_path, lambda _: True)
    with VideoMaker(tmp_path, 2, lambda _: True).running() as maker:
        first = views.of(play_id, mine, None)
        assert first["rows"] == ROWS
        assert settled(maker, play_id, mine) == "ready", "a view is in the way of the videos"
    program = apart.PROGRAM
    monkeypatch.setattr(apart, "PROGRAM", ("/nowhere",))  # who reads once more fails
    assert Views(tmp_path, lambda _: True).of(play_id, mine, None) == first
    assert index_of(tmp_path, play_id) is not None
    with pytest.raises(BusyError):
        views.of(play_id, mine, Task(par_s=30.0))  # another time is too short
    monkeypatch.setattr(apart, "PROGRAM", program)
    mine.write_bytes(episode.read_bytes()[:9000])
    with pytest.raises(apart.UnreadableError):
        views.of(play_id, mine, None)
    assert views.trouble(play_id, mine) == "damaged"
    mine.write_bytes(episode.read_bytes())
    assert views.trouble(play_id, mine) is None
    assert views.of(play_id, mine, None) == first


def test_a_view_of_what_was_erased_meanwhile_is_not_kept(episode, tmp_path):
    Views(tmp_path, lambda _: False).of(new_id(), episode, None)
    assert names(tmp_path) == []


def test_a_view_that_can_not_be_kept_is_seen_all_the_same(episode, tmp_path, logged):
    play_id = new_id()
    (folder(tmp_path, play_id) / f".view.json.{os.getpid()}").mkdir(parents=True)
    assert Views(tmp_path, lambda _: True).of(play_id, episode, None)["rows"] == ROWS
    assert [line["error"] for line in logged()] == ["IsADirectoryError"]


SITE = """
import sys, threading
from pathlib import Path
from collect.crowd.video import VideoMaker
maker = VideoMaker(Path(sys.argv[1]), 2, lambda _: True)
with maker.running():
    maker.ask(sys.argv[3], Path(sys.argv[2]))
    threading.Event().wait()
"""


def processes_about(path):
    """Video processes that have ``path`` among their arguments."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"collect.crowd.apart_process" in words and str(path).encode() in words:
                found.append(int(entry.name))
    return found


def idles(pid):
    """Whether a process has got to work: it runs when nobody else wants to."""
    with contextlib.suppress(OSError):
        return os.sched_getscheduler(pid) == os.SCHED_IDLE
    return False


def test_a_killed_site_takes_the_process_that_makes_a_video_with_it(tmp_path):
    endless = tmp_path / "endless.hdf5"
    os.mkfifo(endless)  # who opens it waits for ever
    command = [sys.executable, "-c", SITE, str(tmp_path / "media"), str(endless), new_id()]
    site = subprocess.Popen(command)
    try:
        until(lambda: any(map(idles, processes_about(endless))), "a process that makes the video")
    finally:
        site.kill()
        site.wait()
    until(lambda: not processes_about(endless), "its end")
