"""Crash: the recorder is killed before each of 200 enumerated writes, and recovers every time.

The points lie inside creating the file, in consecutive writes of rows, logs and HDF5's own
metadata, in completing and renaming it, and in the recovery itself; 20 more kills come at random
times. Loss is what the cameras and arms had published before the kill (for a recording that was
being completed: before it was told to stop) and the recovered episode does not hold, counted in
their sequence numbers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._producers import ARM, ARM_HZ, Cameras, arms, camera_specs, station
from benchmarks._syscalls import run_traced
from collect import jpeg
from collect.recorder import RecordedRobot, Recorder, RecorderConfig, prioritise
from hardware.cameras.test_pattern import decode
from robot_stack.episode import Episode, check, recover_all
from robot_stack.records import ring_path
from robot_stack.shared_memory import Ring, wait_for

__all__ = ["add_arguments", "run"]

ROBOTS = ("left", "right")
FPS = 50.0
HEIGHT, WIDTH = 96, 128
WORST_LOSS_MS = 500.0
STEADY_S = 0.35  # rows are being flushed when the enumerated writes begin
RECORD_S = 0.7
READ_BACK_ROWS = 10
RANDOM_SPAN_S = 1.2


class Phase(IntEnum):
    """Where the recorder is, as it tells its killer through shared memory."""

    BEFORE = 0
    CREATE = 1
    RECORD = 2
    STEADY = 3
    FINALISE = 4
    DONE = 5
    RECOVER = 6


@dataclass(frozen=True)
class Point:
    """Die before the ``n``-th (from 1) traced system call of a phase."""

    phase: Phase
    n: int


class Board:
    """Three words that the child writes and the parent reads: phase, start and stop time."""

    def __init__(self) -> None:
        self._words = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), np.int64, 3)

    def clear(self) -> None:
        self._words[:] = 0

    def enter(self, phase: Phase) -> None:
        now = time.monotonic_ns()
        if phase == Phase.CREATE:
            self._words[1] = now
        if phase == Phase.FINALISE:
            self._words[2] = now
        self._words[0] = phase

    @property
    def phase(self) -> Phase:
        return Phase(int(self._words[0]))

    @property
    def start_ns(self) -> int:
        return int(self._words[1])

    @property
    def stop_ns(self) -> int:
        """0 when nobody has asked it to stop."""
        return int(self._words[2])


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    recovered: int = 0
    worst_loss_ms: float = 0.0
    phases: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Range:
    """Producers, a directory with one good episode, and a recorder to be shot at."""

    def __init__(self, station: str, directory: Path, cameras: dict[str, Any]) -> None:
        self.board = Board()
        self.tally = Tally()
        self.directory = directory
        self._station = station
        self._specs = cameras
        self._config = RecorderConfig(
            station=station,
            directory=directory,
            robots=tuple(RecordedRobot(name, ARM) for name in ROBOTS),
            cameras=cameras,
            free_space_floor_bytes=0,
        )
        self._rings = {name: Ring(ring_path(station, "camera", name)) for name in cameras} | {
            name: Ring(ring_path(station, "arm", name)) for name in ROBOTS
        }
        run_traced(self._recorder, lambda _: False)
        self._keeper = directory / "episode_0.hdf5"
        self._digest = self._hash()

    def _hash(self) -> str:
        return hashlib.sha256(self._keeper.read_bytes()).hexdigest()

    def _recorder(self) -> Callable[[], None]:
        recorder = Recorder(self._config)

        def act() -> None:
            self.board.enter(Phase.CREATE)
            recorder.start(task="crash")
            self.board.enter(Phase.RECORD)
            begin = time.monotonic()
            while (passed := time.monotonic() - begin) < RECORD_S:
                if passed >= STEADY_S and self.board.phase == Phase.RECORD:
                    self.board.enter(Phase.STEADY)
                recorder.poll()
                time.sleep(0.005)
            self.board.enter(Phase.FINALISE)
            recorder.stop(success=True)
            self.board.enter(Phase.DONE)

        return act

    def _recovery(self) -> Callable[[], None]:
        def act() -> None:
            self.board.enter(Phase.RECOVER)
            recover_all(self.directory)
            self.board.enter(Phase.DONE)

        return act

    def count(self) -> Counter[Phase]:
        """How many traced system calls each phase makes in an undisturbed run."""
        counts: Counter[Phase] = Counter()

        def note(_: str) -> bool:
            counts[self.board.phase] += 1
            return False

        self.board.clear()
        run_traced(self._recorder, note)
        self._remove_others()
        return counts

    def shoot(self, point: Point) -> bool:
        """Kill at ``point`` and judge; False when this run never came there."""
        killed_ns, call = 0, ""
        seen = 0

        def aim(name: str) -> bool:
            nonlocal seen, killed_ns, call
            if self.board.phase != point.phase:
                return False
            seen += 1
            if seen < point.n:
                return False
            killed_ns, call = time.monotonic_ns(), name
            return True

        self.board.clear()
        if point.phase == Phase.RECOVER:
            killed_ns = self._leave_leftover()
            start, stop = self.board.start_ns, self.board.stop_ns
            hit = run_traced(self._recovery, aim)
        else:
            hit = run_traced(self._recorder, aim)
            start, stop = self.board.start_ns, self.board.stop_ns
        if hit:
            self._judge(f"{point.phase.name.lower()} {point.n} ({call})", killed_ns, start, stop)
            self.tally.phases[point.phase.name.lower()] += 1
            self.tally.calls[call] += 1
        self._remove_others()
        return hit

    def _leave_leftover(self) -> int:
        killed_ns = 0
        polls = 0

        def aim(_: str) -> bool:
            nonlocal killed_ns, polls
            polls += self.board.phase == Phase.STEADY
            killed_ns = time.monotonic_ns()
            return polls > 40

        if not run_traced(self._recorder, aim):
            raise RuntimeError("the recorder ended before it could be killed")
        return killed_ns

    def shoot_at_random(self, rng: random.Random) -> None:
        """An ordinary SIGKILL at a random time of a recording's life."""
        self.board.clear()
        pid = os.fork()
        if pid == 0:
            try:
                self._recorder()()
            finally:
                os._exit(0)
        while self.board.phase == Phase.BEFORE:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, RANDOM_SPAN_S))
        killed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        phase = self.board.phase
        os.waitpid(pid, 0)
        self._judge(
            f"random in {phase.name.lower()}", killed_ns, self.board.start_ns, self.board.stop_ns
        )
        self.tally.phases["random"] += 1
        self._remove_others()

    def _judge(self, where: str, killed_ns: int, start_ns: int, stop_ns: int) -> None:
        self.tally.kills += 1
        until = min(killed_ns, stop_ns) if stop_ns else killed_ns
        published = {name: self._numbers(name, start_ns, until) for name in self._rings}
        problems = [
            f"{r.leftover.name}: {r.problem}" for r in recover_all(self.directory) if r.problem
        ]
        others = [path for path in self.directory.iterdir() if path != self._keeper]
        if self._hash() != self._digest:
            problems.append("the episode before it changed")
        if [path for path in others if path.suffix != ".hdf5"]:
            problems.append(f"left over: {[path.name for path in others]}")
        held: dict[str, set[int]] = {name: set() for name in self._rings}
        for path in others:
            if path.suffix == ".hdf5":
                problems += [p.message for p in check(path) if p.severity == "error"]
                problems += self._read(path, held)
        loss = 0.0
        for name, numbers in published.items():
            period_ms = 1e3 / (ARM_HZ if name in ROBOTS else FPS)
            loss = max(loss, len(numbers - held[name]) * period_ms)
        self.tally.worst_loss_ms = max(self.tally.worst_loss_ms, loss)
        if loss > WORST_LOSS_MS:
            problems.append(f"{loss:.0f} ms lost")
        if problems:
            self.tally.failures.append(f"{where}: {'; '.join(problems)}")
        else:
            self.tally.recovered += 1

    def _numbers(self, name: str, start_ns: int, until_ns: int) -> set[int]:
        """Sequence numbers that ``name`` published for times in [start, until]."""
        ring = self._rings[name]
        field_name = "tick" if name in ROBOTS else "seq"
        found = set()
        for index in range(ring.count - 1, max(ring.count - ring.slots, -1), -1):
            view = ring.view(index)
            if view is None or int(view["t_ns"]) < start_ns:
                break
            if int(view["t_ns"]) <= until_ns:
                found.add(int(view[field_name]))
        return found

    def _read(self, path: Path, held: dict[str, set[int]]) -> Iterator[str]:
        with Episode.open(path) as episode:
            for name in episode.robots:
                held[name] |= set(episode.log(name)["tick"].tolist())
            for name in episode.cameras:
                seqs = episode.frame_seq(name)
                held[name] |= set(seqs.tolist())
                for row in range(max(len(episode) - READ_BACK_ROWS, 0), len(episode)):
                    stamp = decode(episode.image(name, row, jpeg.decode))
                    if seqs[row] >= 0 and (stamp is None or stamp.seq != seqs[row]):
                        yield f"{name}: row {row} does not show frame {seqs[row]}"

    def _remove_others(self) -> None:
        for path in self.directory.iterdir():
            if path != self._keeper:
                path.unlink()


@contextmanager
def shooting_range(directory: Path, cameras: int = 2) -> Iterator[Range]:
    """Arms and cameras that run while the block does."""
    specs = camera_specs(cameras, HEIGHT, WIDTH, FPS)
    limit = 1 << 30
    with (
        station("crash") as name,
        arms(name, ROBOTS),
        Cameras(name, list(specs.values()), limit) as running,
    ):
        start = time.monotonic_ns()
        running.start([start + round(i * 1e9 / FPS / cameras) for i in range(cameras)])
        for arm in ROBOTS:
            wait_for(ring_path(name, "arm", arm), 30)
        deadline = time.monotonic() + 30
        for camera in specs:
            with Ring(ring_path(name, "camera", camera)) as ring:
                while ring.count < 2 * FPS and time.monotonic() < deadline:
                    time.sleep(0.02)
        yield Range(name, directory, specs)


def enumerate_points(counts: Counter[Phase], total: int, recoveries: int) -> list[Point]:
    """All calls of creating and completing, ``recoveries`` in recovery, the rest while writing."""
    edges = [
        Point(phase, n)
        for phase in (Phase.CREATE, Phase.FINALISE)
        for n in range(1, counts[phase] + 1)
    ]
    edges += [Point(Phase.RECOVER, n) for n in range(1, recoveries + 1)]
    writing = range(1, max(total - len(edges), total // 2) + 1)
    return edges + [Point(Phase.STEADY, n) for n in writing]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--points", type=int, default=210, help="enumerated kills (default 210)")
    parser.add_argument("--random", type=int, default=20, help="kills at random times (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random times (default 0)")
    parser.add_argument("--json", action="store_true", help="print only the JSON line")
    parser.epilog = "example:\n  robot-stack bench crash --points 210"


def run(args: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix="robot-stack-crash-"))
    rng = random.Random(args.seed)
    prioritise()
    try:
        with shooting_range(directory) as target:
            counts = target.count()
            points = enumerate_points(counts, args.points, recoveries=12)
            for number, point in enumerate(points):
                target.shoot(point)
                if not args.json and number % 20 == 19:
                    print(f"{number + 1} of {len(points)} points", flush=True)
            for _ in range(args.random):
                target.shoot_at_random(rng)
            tally = target.tally
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    result = {
        "kills": tally.kills,
        "recovered": tally.recovered,
        "worst_loss_ms": round(tally.worst_loss_ms, 1),
        "phases": dict(tally.phases),
        "calls": dict(tally.calls),
    }
    for text in tally.failures:
        print(text, file=sys.stderr)
    if not args.json:
        for key, value in result.items():
            print(f"{key:14} {value}")
    print(json.dumps(result))
    enough = tally.kills >= args.points + args.random
    if not enough:
        print(f"only {tally.kills} kills of {args.points + args.random}", file=sys.stderr)
    return 0 if enough and not tally.failures else 1
