"""The fast part of `bench record` and `bench crash`, and proof that they notice what is wrong."""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks import crash, record
from benchmarks._syscalls import run_traced
from benchmarks.crash import Phase, Point


@pytest.fixture(autouse=True)
def _runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "runtime"))


def test_a_child_is_killed_before_the_call_that_is_aimed_at(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def prepare() -> Callable[[], None]:
        def act() -> None:
            fd = os.open(target, os.O_CREAT | os.O_WRONLY)
            for i in range(10):
                os.pwrite(fd, b"%d" % i, i)
            target.rename(tmp_path / "renamed")

        return act

    for n in range(1, 11):
        seen = 0

        def aim(name: str, n: int = n) -> bool:
            nonlocal seen
            seen += name == "pwrite64"
            return seen == n

        assert run_traced(prepare, aim)
        assert target.read_bytes() == b"0123456789"[: n - 1]
        target.unlink()
    assert run_traced(prepare, lambda name: name == "rename")
    assert target.exists()
    names: list[str] = []
    assert not run_traced(prepare, lambda name: bool(names.append(name)))
    assert names.count("pwrite64") == 10
    assert names[-1] == "rename"
    assert (tmp_path / "renamed").read_bytes() == b"0123456789"


@pytest.mark.slow
def test_killed_at_a_dozen_points_everything_is_recovered(tmp_path: Path) -> None:
    points = [
        *(Point(Phase.CREATE, n) for n in (1, 12, 30)),
        *(Point(Phase.STEADY, n) for n in (1, 7, 20, 33, 46)),
        *(Point(Phase.FINALISE, n) for n in (1, 15, 40)),
        *(Point(Phase.RECOVER, n) for n in (2, 5)),
    ]
    with crash.shooting_range(tmp_path / "episodes") as target:
        hit = [target.shoot(point) for point in points]
        target.shoot_at_random(random.Random(1))
    assert sum(hit) >= 11  # the length of phases varies by a call or two
    assert target.tally.kills == sum(hit) + 1
    # How much is lost depends on the load of this machine: `bench crash` holds it to 500 ms.
    assert [text for text in target.tally.failures if "ms lost" not in text] == []


def options(**changes: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    args = parser.parse_args([])
    for name, value in changes.items():
        setattr(args, name, value)
    return args


@pytest.mark.slow
def test_frames_are_counted_in_the_pixels(tmp_path: Path) -> None:
    args = options(cameras=2, size=(96, 128), seconds=2.0)
    result = record.measure(args, tmp_path / "episodes")
    assert result["generated"] == 200
    assert result["swapped"] == 0
    assert result["errors"] == []
    assert result["rows"] >= 95
    # A starved machine may drop frames; what it drops must be what the recorder says it did.
    lost = sum(c["lost"] + c["dropped"] for c in result["frames"].values())
    assert result["dropped"] == lost
    (path,) = (tmp_path / "episodes").glob("*.hdf5")
    seen = record.read_camera(path, "cam_high", 100)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        images, lengths = file["observations/images/cam_high"], file["compress_len"]
        images[50], images[52] = images[52], images[50]
        lengths[0, 50], lengths[0, 52] = lengths[0, 52], lengths[0, 50]
        images[60] = file["observations/images/cam_low"][60]
        lengths[0, 60] = lengths[1, 60]
        images[70] = np.zeros(images.shape[1], np.uint8)
    damaged = record.read_camera(path, "cam_high", 100)
    assert damaged.swapped >= seen.swapped + 4
    assert damaged.dropped > seen.dropped


def test_a_missed_bar_fails_the_benchmark() -> None:
    good = {"dropped": 0, "swapped": 0, "skew_ms_max": 19.9, "save_s": 0.3, "grew_mb": 1.0}
    assert record.failures({**good, "errors": []}) == []
    for name, value in (("dropped", 1), ("swapped", 1), ("skew_ms_max", 20.1), ("save_s", 1.1)):
        assert name in record.failures({**good, name: value, "errors": []})[0]
    assert record.failures({**good, "grew_mb": 99.0, "errors": []}) != []
    assert record.failures({**good, "errors": ["hash"]}) == ["hash"]


def test_random_kills_wait_for_the_recorder() -> None:
    board = crash.Board()
    pid = os.fork()
    if pid == 0:
        board.enter(Phase.CREATE)
        board.enter(Phase.FINALISE)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert board.phase == Phase.FINALISE
    assert 0 < board.start_ns <= board.stop_ns <= time.monotonic_ns()
