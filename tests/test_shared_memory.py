"""Rings and flags between processes: nothing torn, nothing wedged, whoever is killed and when."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robot_stack.errors import SharedMemoryError
from robot_stack.shared_memory import Flag, Ring, RingWriter, runtime_dir

ROOT = Path(__file__).parents[1]
DTYPE = np.dtype([("index", "<i8"), ("words", "<i8", (64,)), ("last", "<i8")])


class Worker:
    """A child process that writes and reads rings on request."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ring_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.children: list[int] = []

    def tell(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the worker process ended"
        return line.strip()

    def fork(self, **order: Any) -> int:
        self.tell(fork=True, **order)
        pid = int(self.answer())
        self.children.append(pid)
        return pid

    def close(self) -> None:
        for pid in self.children:
            kill(pid)
        self.process.kill()
        self.process.communicate()


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    until(lambda: not Path(f"/proc/{pid}").exists(), "the killed process to go")


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.0005)


def whole(record: Any, index: int) -> bool:
    return bool(
        record["index"] == index and record["last"] == index and (record["words"] == index).all()
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def rings() -> Iterator[Path]:
    """A directory in /dev/shm, where the rings of a station are: a disk would be too slow."""
    path = Path(f"/dev/shm/robot-stack-test-{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def read_some(ring: Ring, mode: str, wanted: int, *, patience_s: float) -> int:
    """Read beside a running writer until ``wanted`` records came, or 20 times as many attempts
    and ``patience_s`` have passed; every record that is handed out must be whole."""
    good = 0
    newest = -1
    out = np.zeros(1, ring.dtype)
    position = 0
    deadline = time.monotonic() + patience_s
    for attempt in itertools.count():
        if good >= wanted or (attempt >= 20 * wanted and time.monotonic() > deadline):
            break
        if mode == "latest":
            try:
                found = ring.latest(out)
            except SharedMemoryError:  # 64 retries: this writer never rests
                continue
            if found is not None:
                index, record = found
                assert index >= newest, "latest went backwards"
                newest = index
                assert whole(record, index)
                good += 1
        elif mode == "under the pen":  # the one that is overwritten now, or next
            index = ring.count - ring.slots
            record = ring.read(index, out) if index >= 0 else None
            if record is not None:
                assert whole(record, index)
                good += 1
        elif mode == "view":
            index = ring.count - 1
            view = ring.view(index) if index >= 0 else None
            if view is not None:
                ok = whole(view, index)
                if ring.intact(index):
                    assert ok
                    good += 1
        else:
            first, records = ring.since(position)
            assert first >= position
            for offset, record in enumerate(records):
                assert whole(record, first + offset)
            position = first + len(records)
            good += len(records)
    return good


def check_no_torn_read(
    worker: Worker, path: Path, mode: str, *, patience_s: float = 0.0, **order: Any
) -> int:
    worker.tell(do="write", path=str(path), **order)
    assert worker.answer() == "ready"
    try:
        with Ring(path) as ring:
            until(lambda: ring.count > 0, "the first record")
            return read_some(ring, mode, 300, patience_s=patience_s)
    finally:
        worker.tell(do="end")
        assert int(worker.answer()) > 0


CONCURRENT = {
    "words": st.sampled_from([1, 7, 64, 1000, 8192, 115_200]),
    "slots": st.integers(2, 6),
    "how": st.sampled_from(["publish", "writing"]),
    "mode": st.sampled_from(["latest", "under the pen", "view", "since"]),
}
RELAXED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=60, deadline=None, suppress_health_check=RELAXED)
@given(**CONCURRENT)  # type: ignore[arg-type]
def test_no_torn_read_beside_a_concurrent_writer(
    worker: Worker, rings: Path, words: int, slots: int, how: str, mode: str
) -> None:
    check_no_torn_read(worker, rings / "concurrent", mode, words=words, slots=slots, how=how)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@settings(max_examples=2000, deadline=None, suppress_health_check=RELAXED)
@given(**CONCURRENT)  # type: ignore[arg-type]
def test_no_torn_read_many_examples(
    worker: Worker, rings: Path, words: int, slots: int, how: str, mode: str
) -> None:
    check_no_torn_read(worker, rings / "concurrent", mode, words=words, slots=slots, how=how)


@pytest.mark.parametrize("mode", ["latest", "view", "since"])
def test_reads_succeed_beside_a_concurrent_writer(worker: Worker, rings: Path, mode: str) -> None:
    path = rings / f"succeed-{mode}"
    # A writer that shares its core may rest for longer than the attempts take, not for 30 s.
    good = check_no_torn_read(
        worker, path, mode, patience_s=30, words=1000, slots=64, how="writing"
    )
    assert good >= 300


@pytest.mark.parametrize("slots", [2, 3, 8])
def test_writer_stopped_and_killed_inside_a_slot(worker: Worker, rings: Path, slots: int) -> None:
    path = rings / f"inside-{slots}"
    stop_at = 3 * slots + 1
    pid = worker.fork(
        do="write", path=str(path), words=64, slots=slots, how="writing", stop_at=stop_at
    )
    with Ring(path, timeout_s=30) as ring:
        until(lambda: ring.count == stop_at and stopped(pid), "the writer to stop itself")
        for alive in (True, False):
            if not alive:
                kill(pid)
            found = ring.latest()
            assert found is not None
            assert found[0] == stop_at - 1
            assert whole(found[1], stop_at - 1)
            assert ring.read(stop_at) is None, "the half-written record was handed out"
            assert ring.view(stop_at - slots) is None, "the slot under the pen was handed out"
            first, records = ring.since(0)
            assert (first, len(records)) == (stop_at - slots + 1, slots - 1)
            assert all(whole(record, first + i) for i, record in enumerate(records))
        assert not ring.closed


def test_writer_killed_at_random_moments_and_replaced(worker: Worker, rings: Path) -> None:
    path = rings / "random"
    rng = random.Random(7)
    generation = 0
    ring: Ring | None = None
    for _ in range(25):
        words = rng.choice([8, 1000, 115_200])
        pid = worker.fork(do="write", path=str(path), words=words, slots=4, how="writing")
        if ring is None:
            ring = Ring(path, timeout_s=30)
        else:
            until(ring.reopen, "the restarted writer's ring")
        assert ring.writer_pid == pid == ring.meta["by"]
        assert ring.generation != generation
        generation = ring.generation
        target = rng.randrange(1, 60)
        until(lambda ring=ring, target=target: ring.count >= target, "some records")
        time.sleep(rng.random() * 2e-3)  # the random moment
        kill(pid)
        found = ring.latest()
        assert found is not None
        index, record = found
        assert index == ring.count - 1
        assert whole(record, index)
        first, records = ring.since(0)
        assert first + len(records) == ring.count
        assert all(whole(record, first + i) for i, record in enumerate(records))
    assert ring is not None
    ring.close()


@pytest.mark.parametrize("hold", [False, True])
def test_reader_killed_mid_read_disturbs_nobody(worker: Worker, rings: Path, hold: bool) -> None:
    path = rings / f"reader-{hold}"
    with RingWriter(path, DTYPE, 4) as writer, Ring(path) as other:
        readers = [worker.fork(do="read", path=str(path), hold=hold) for _ in range(2)]
        record = np.zeros(1, DTYPE)
        for index in range(400):
            record["index"] = record["words"] = record["last"] = index
            writer.publish(record[0])
            if index == 100 and hold:
                until(lambda: all(stopped(pid) for pid in readers), "readers to hold a view")
            if index == 200:
                for pid in readers:
                    kill(pid)
            found = other.latest()
            assert found is not None
            assert found[0] == index
            assert whole(found[1], index)
        assert path.exists()
        with Ring(path) as fresh:
            assert fresh.count == 400


def test_second_living_writer_is_refused_and_harms_nothing(worker: Worker, rings: Path) -> None:
    path = rings / "two"
    pid = worker.fork(do="write", path=str(path), words=64, slots=8, how="publish")
    with Ring(path, timeout_s=30) as ring:
        until(lambda: ring.count > 10, "some records")
        for _ in range(3):
            with pytest.raises(SharedMemoryError, match="already has a living writer"):
                RingWriter(path, DTYPE, 8)
        count = ring.count
        until(lambda: ring.count > count, "the first writer to go on")
        assert not ring.closed
        assert not ring.reopen()
        kill(pid)
        with RingWriter(path, DTYPE, 8):  # the lock ended with its holder
            assert ring.closed, "readers of the old file are told that it has been replaced"
            assert ring.reopen()
            assert ring.count == 0
            assert ring.latest() is None


def test_closing_with_unlink_leaves_the_name_to_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    first = RingWriter(path, DTYPE, 4)
    late = Ring(path)
    first.close(unlink=True)
    assert late.closed
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SharedMemoryError, match="does not exist"):
        Ring(path)
    with RingWriter(path, DTYPE, 4), pytest.raises(SharedMemoryError, match="living writer"):
        RingWriter(path, DTYPE, 4)
    late.close()


def test_an_exception_while_writing_publishes_nothing(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "ring", DTYPE, 3) as writer, Ring(tmp_path / "ring") as ring:
        for index in range(5):
            with writer.writing() as record:
                record["index"] = record["words"] = record["last"] = index
        with pytest.raises(RuntimeError, match="sensor"), writer.writing() as record:
            record["index"] = 99
            raise RuntimeError("sensor gone")
        assert ring.count == writer.count == 5
        assert ring.read(5) is None
        found = ring.latest()
        assert found is not None
        assert whole(found[1], 4)
        with writer.writing() as record:
            record["index"] = record["words"] = record["last"] = 5
        found = ring.latest()
        assert found is not None
        assert whole(found[1], 5)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from robot_stack.errors import SharedMemoryError
from robot_stack.shared_memory import Flag, RingWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
path = Path(sys.argv[1])
dtype = np.dtype([("image", "u1", (480, 640, 3))])
for make in (lambda: RingWriter(path, dtype, 8), lambda: Flag(path.with_name("flag"))):
    try:
        make()
    except SharedMemoryError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
RingWriter(path, dtype, 8).close()
print("made")
"""


@pytest.mark.parametrize("limit", [0, 100_000])
def test_a_full_dev_shm_is_an_error_at_creation(tmp_path: Path, limit: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "camera.top"), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cannot reserve 7.4 MB for ")
    assert "fewer or smaller cameras" in lines[0]
    assert lines[-1] == "made", "the refused writer kept the lock"
    assert (limit == 0) == (len(lines) == 3), "a flag needs 4096 bytes"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["camera.top", "camera.top.lock", "flag"]


def test_pages_are_reserved_when_the_ring_is_made(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "ring", np.dtype([("image", "u1", (480, 640, 3))]), 8):
        stat = (tmp_path / "ring").stat()
        assert stat.st_blocks * 512 >= stat.st_size > 8 * 480 * 640 * 3


def test_a_leftover_of_a_writer_killed_in_its_constructor_is_reused(tmp_path: Path) -> None:
    (tmp_path / ".ring.new").write_bytes(b"x" * 10_000_000)
    with RingWriter(tmp_path / "ring", DTYPE, 4) as writer, Ring(tmp_path / "ring") as ring:
        assert ring.latest() is None
        writer.publish(np.zeros(1, DTYPE)[0])
        assert ring.latest() is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ring", "ring.lock"]


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype("<f8"),
        np.dtype([("o", "O")]),
        np.dtype([("a", "i1"), ("b", "<i4")], align=True),
        np.dtype([("n", [("x", "<f8")])]),
    ],
    ids=["plain", "object", "aligned", "nested"],
)
def test_records_that_the_header_cannot_describe_are_refused(
    tmp_path: Path, dtype: np.dtype[Any]
) -> None:
    with pytest.raises(SharedMemoryError, match="plain fields"):
        RingWriter(tmp_path / "ring", dtype, 4)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50, deadline=None, suppress_health_check=RELAXED)
@given(
    fields=st.lists(
        st.tuples(
            st.sampled_from(["<i8", "<u4", "<u2", "u1", "<f4", "<f8", "S1", "S33"]),
            st.lists(st.integers(1, 5), max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
    slots=st.integers(2, 9),
)
def test_any_plain_record_comes_back_as_it_went_in(
    tmp_path: Path, fields: list[tuple[str, list[int]]], slots: int
) -> None:
    dtype = np.dtype([(f"f{i}", kind, tuple(shape)) for i, (kind, shape) in enumerate(fields)])
    raw = np.random.default_rng(len(fields)).integers(1, 120, dtype.itemsize, dtype=np.uint8)
    record = raw.view(dtype)
    with RingWriter(tmp_path / "r", dtype, slots, {"k": [1]}) as writer, Ring(tmp_path / "r") as r:
        assert r.dtype == dtype
        assert r.meta == {"k": [1]}
        writer.publish(record[0])
        found = r.latest()
        assert found is not None
        assert found[1].tobytes() == record[0].tobytes()


@pytest.mark.parametrize("content", [b"", b"short", b"\0" * 8192])
def test_a_file_that_is_no_ring_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ring").write_bytes(content)
    with pytest.raises(SharedMemoryError, match="not a ring file"):
        Ring(tmp_path / "ring")


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    with RingWriter(tmp_path / "ring", DTYPE, 4) as writer, Ring(tmp_path / "ring") as ring:
        writer.publish(np.zeros(1, DTYPE)[0])
        view = ring.view(0)
        with pytest.raises(ValueError, match="read-only"):
            view["words"][0] = 1


def test_flag_latches_its_first_reason_until_cleared(tmp_path: Path) -> None:
    flag = Flag(tmp_path / "stop")
    other = Flag(tmp_path / "stop")
    assert (flag.value, other.value) == (0, 0)
    flag.set(3, "pedal")
    at = other.t_ns
    assert (other.value, other.reason) == (3, "pedal")
    other.set(3, "button")
    assert (flag.reason, flag.t_ns) == ("pedal", at)
    other.set(2, "harder")
    assert (flag.value, flag.reason) == (2, "pedal")
    flag.set(3, "softer")
    assert flag.value == 2, "a stop was weakened"
    flag.clear()
    assert other.value == 0
    other.set(2, "ä" * 600)
    assert flag.value == 2
    assert flag.reason.startswith("ää")
    flag.close()
    other.close()


def test_flag_survives_its_setter(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from robot_stack.shared_memory import Flag;"
        "Flag(Path(sys.argv[1])).set(3, 'button'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "stop")],
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    flag = Flag(tmp_path / "stop")
    assert (flag.value, flag.reason) == (3, "button")
    flag.close()


def test_runtime_dir_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "run"))
    path = runtime_dir("lab")
    assert path == tmp_path / "run" / "lab"
    for made in (path, path.parent):
        assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_runtime_dir_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path))
    os.chown(tmp_path, 12345, 12345)
    with pytest.raises(SharedMemoryError, match="another user"):
        runtime_dir("lab")
