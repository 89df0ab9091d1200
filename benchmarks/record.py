"""Recording: no frame of four textured cameras is dropped or swapped, read back from the pixels.

Test-pattern cameras write frame number and capture time into their pixels; the real recorder
records them beside two arms at 500 Hz; then every image of the episode is decoded and read. The
camera and arm processes stand for devices and run at real-time priority where that is permitted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._producers import ARM, Cameras, arms, camera_specs, spawn, station, stop
from collect import jpeg
from collect.recorder import RecordedRobot, Recorder, RecorderConfig, prioritise
from hardware.cameras.test_pattern import PatternStamp, camera_id, decode
from robot_stack.episode import Episode, check
from robot_stack.errors import EpisodeError
from robot_stack.spec import CameraSpec

__all__ = ["add_arguments", "run"]

ARMS = ("left", "right")
LEAD_S = 0.2
START_S = 60.0
BARS = {"dropped": 0, "swapped": 0, "skew_ms_max": 20.0, "save_s": 1.0}
GROWTH_MB = 16.0  # of private memory over the second half: HDF5's caches settle in the first


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, like 480x640") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cameras", type=int, default=4, help="how many cameras (default 4)")
    parser.add_argument("--size", type=_size, default=(480, 640), help="HEIGHTxWIDTH (480x640)")
    parser.add_argument("--rate", type=float, default=50.0, help="frames and rows a second (50)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the episode (60)")
    parser.add_argument("--encoding", choices=("jpeg", "raw"), default="jpeg")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality (90)")
    parser.add_argument("--directory", type=Path, help="where to record (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.epilog = (
        "example:\n  robot-stack bench record --cameras 4 --size 480x640 --rate 50 --seconds 60"
    )


def _memory_mb() -> float:
    """Private memory of this process: without the rings and the page cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _record(config: RecorderConfig, pipe: Connection) -> None:
    """The recorder process: start, record from when the pipe says so, say what it cost."""
    prioritise()
    with Recorder(config) as recorder:
        while any(name.startswith("robot") for name in recorder.silent()):
            time.sleep(0.01)
        recorder.start(task="benchmark")
        pipe.send("recording")
        while not pipe.poll():
            recorder.poll()
            time.sleep(0.005)
        half_ns, end_ns = pipe.recv()
        began, used = time.monotonic(), time.process_time()
        half_mb = float("nan")
        while (now := time.monotonic_ns()) < end_ns:
            if now >= half_ns and np.isnan(half_mb):
                half_mb = _memory_mb()
            recorder.poll()
            time.sleep(0.01)
        cpu = (time.process_time() - used) / (time.monotonic() - began)
        end_mb = _memory_mb()
        saved = recorder.stop(success=True, labeller="benchmark")
        pipe.send(
            {
                "path": str(saved.path),
                "rows": saved.rows,
                "save_s": round(saved.save_s, 3),
                "cpu_s_per_s": round(cpu, 3),
                "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "half_mb": round(half_mb, 1),
                "end_mb": round(end_mb, 1),
                "seconds": saved.seconds,
                "frames": {name: dict(counts) for name, counts in saved.frames.items()},
            }
        )


@dataclass(frozen=True)
class Reading:
    """What the pixels of one camera say."""

    seen: int
    dropped: int
    repeated: int
    swapped: int
    skew_ms_max: float


def _stamp(episode: Episode, camera: str, row: int) -> PatternStamp | None:
    try:
        return decode(episode.image(camera, row, jpeg.decode))
    except EpisodeError:
        return None  # not an image any more


def read_camera(path: Path, camera: str, limit: int) -> Reading:
    """Decode every image of ``camera`` and compare its stamp with what the file says of it."""
    with Episode.open(path) as episode:
        rows, seqs = episode.t_ns, episode.frame_seq(camera)
        times = episode.frame_t_ns(camera)
        found: set[int] = set()
        swapped = repeated = before = 0
        skew = 0.0
        before = -1
        for row in range(len(episode)):
            stamp = _stamp(episode, camera, row)
            if seqs[row] < 0:  # nothing had come yet: the row is black
                swapped += stamp is not None
                continue
            if (
                stamp is None
                or stamp.camera != camera_id(camera)
                or (stamp.seq, stamp.t_ns) != (seqs[row], times[row])
                or stamp.seq < before
            ):
                swapped += 1
                continue
            if stamp.seq == before:
                repeated += 1
            else:
                skew = max(skew, abs(int(rows[row]) - stamp.t_ns) / 1e6)
            found.add(stamp.seq)
            before = stamp.seq
    return Reading(len(found), limit - len(found), repeated, swapped, skew)


def _receive(pipe: Connection, timeout_s: float) -> Any:
    if not pipe.poll(timeout_s):
        raise RuntimeError(f"the recorder process gave no answer for {timeout_s:g} s")
    return pipe.recv()


def _episode(
    args: argparse.Namespace, directory: Path, specs: dict[str, CameraSpec], limit: int
) -> dict[str, Any]:
    """Record ``limit`` frames of each camera; what the recorder process says of it."""
    here, there = get_context("spawn").Pipe()
    with (
        station("record") as name,
        arms(name, ARMS),
        Cameras(name, list(specs.values()), limit) as running,
    ):
        config = RecorderConfig(
            station=name,
            directory=directory,
            robots=tuple(RecordedRobot(arm, ARM) for arm in ARMS),
            cameras=specs,
            rate_hz=args.rate,
            encoding=args.encoding,
            jpeg_quality=args.quality,
            max_seconds=args.seconds + 60,
        )
        recorder = spawn(_record, config, there)
        there.close()
        try:
            _receive(here, START_S)
            start = time.monotonic_ns() + round(LEAD_S * 1e9)
            phase = 1e9 / args.rate / len(specs)
            running.start([start + round(i * phase) for i in range(len(specs))])
            here.send((start + round(args.seconds * 5e8), start + round(args.seconds * 1e9)))
            outcome: dict[str, Any] = _receive(here, args.seconds + START_S)
        finally:
            stop([recorder])
    return outcome


def measure(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run the benchmark in ``directory``; returns what it prints."""
    height, width = args.size
    specs = camera_specs(args.cameras, height, width, args.rate)
    limit = round(args.rate * args.seconds)
    outcome = _episode(args, directory, specs, limit)
    path = Path(outcome.pop("path"))
    size = path.stat().st_size
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        jobs = [pool.submit(read_camera, path, name, limit) for name in specs]
        readings = [job.result() for job in jobs]
    errors = [problem.message for problem in check(path) if problem.severity == "error"]
    return {
        "generated": limit * len(specs),
        "dropped": sum(reading.dropped for reading in readings),
        "repeated": sum(reading.repeated for reading in readings),
        "swapped": sum(reading.swapped for reading in readings),
        "skew_ms_max": round(max(reading.skew_ms_max for reading in readings), 3),
        "mb_per_s": round(size / 1e6 / outcome.pop("seconds"), 2),
        **outcome,
        "grew_mb": round(outcome["end_mb"] - outcome["half_mb"], 1),
        "errors": errors,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """The bars that a result misses, in words."""
    missed = [
        f"{key} is {result[key]}, allowed is {bar}"
        for key, bar in BARS.items()
        if result[key] > bar
    ]
    if not result["grew_mb"] <= GROWTH_MB:
        missed.append(f"memory grew by {result['grew_mb']} MB in the second half")
    return missed + list(result["errors"])


def run(args: argparse.Namespace) -> int:
    directory = args.directory or Path(tempfile.mkdtemp(prefix="robot-stack-bench-"))
    try:
        result = measure(args, directory)
    finally:
        if args.directory is None:
            shutil.rmtree(directory, ignore_errors=True)
    missed = failures(result)
    if not args.json:
        for key, value in result.items():
            print(f"{key:14} {value}")
    for text in missed:
        print(text, file=sys.stderr)
    print(json.dumps(result))
    return 1 if missed else 0
