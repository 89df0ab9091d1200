"""Rings of numpy records in /dev/shm: one writer, any number of readers, no locks, no torn reads.

A ring is one file that both sides map. Each slot carries a sequence number that is odd while the
slot is being written; a reader copies the record and looks at the number again, so it sees either
a whole record or knows that it did not. The header's count moves only after a slot is complete:
a writer that is killed mid-write leaves the newest complete record readable, and a reader that is
killed leaves nothing behind. Stores are ordered by the hardware: this relies on x86-64's total
store order and on aligned 8-byte stores being single instructions.

Unlike ``multiprocessing.shared_memory`` a dying reader unlinks nothing, and pages are reserved
with ``posix_fallocate`` so that a full /dev/shm is an error at creation, not a SIGBUS later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import platform
import secrets
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_stack.errors import SharedMemoryError

__all__ = ["Flag", "Ring", "RingWriter", "runtime_dir", "runtime_root", "wait_for"]

MAGIC = 0x31474E4952535452  # "RTSRING1" read as a little-endian u64
HEADER = struct.Struct("<8Q")  # magic, generation, header size, slots, stride, schema size, pid, _
COUNT_WORD = 8  # word index of the count of complete records, on its own cache line
CLOSED_WORD = 9  # 1 when the writer ended or another took its place
SCHEMA_OFFSET = 128
RETRIES = 64


def runtime_root() -> Path:
    """The directory of all stations' directories, mode 0700, created if missing.

    ``ROBOT_STACK_RUNTIME`` moves it (tests use a directory each); the default is in /dev/shm.
    """
    root = Path(os.environ.get("ROBOT_STACK_RUNTIME") or f"/dev/shm/robot-stack-{os.getuid()}")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise SharedMemoryError(
            f"{root} belongs to another user, who could read and write this station's memory: "
            "remove it, or name another directory in ROBOT_STACK_RUNTIME"
        )
    return root


def runtime_dir(station: str) -> Path:
    """The directory of a station's rings and sockets, mode 0700, created if missing."""
    path = runtime_root() / station
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def wait_for(path: Path, timeout_s: float) -> None:
    """Block until ``path`` exists; SharedMemoryError when ``timeout_s`` has passed."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise SharedMemoryError(
                f"{path} did not appear within {timeout_s:g} s: the process that writes it is not "
                "running; see `robot-stack status`"
            )
        time.sleep(0.01)


def _require_ordering() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        raise SharedMemoryError(
            f"shared-memory rings need x86-64 store ordering, this machine is {platform.machine()}"
        )


def _schema(dtype: np.dtype[Any], meta: dict[str, Any]) -> bytes:
    return json.dumps({"dtype": dtype.descr, "meta": meta}).encode()


def _parse_dtype(descr: list[Any]) -> np.dtype[Any]:
    fields = [tuple(tuple(p) if isinstance(p, list) else p for p in row) for row in descr]
    return np.dtype(fields)


def _check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    names = dtype.names
    flat = names is not None and all(dtype[name].base.names is None for name in names)
    packed = names is not None and dtype.itemsize == sum(dtype[n].itemsize for n in names)
    if dtype.hasobject or not flat or not packed:
        raise SharedMemoryError(
            f"{path}: a ring holds packed records of plain fields (no objects, no nested records, "
            f"no alignment gaps), not {dtype}"
        )


def _lock(path: Path) -> int:
    """The writer's lock of a ring, as an open descriptor; it ends with the process."""
    lock = Path(f"{path}.lock")
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last writer may have unlinked the file between our open and our lock.
            if lock.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        except BlockingIOError:
            os.close(fd)
            raise SharedMemoryError(
                f"{path} already has a living writer; stop that process first"
            ) from None
        except FileNotFoundError:
            pass
        os.close(fd)


class _Mapping:
    """A mapped ring file: header words, sequence words and record views."""

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        if size < SCHEMA_OFFSET:
            raise SharedMemoryError(f"not a ring file: {size} bytes; remove it and start again")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.map = mmap.mmap(fd, size, access=access)
        magic, self.generation, header, self.slots, self.stride, schema, self.pid, _ = (
            HEADER.unpack_from(self.map, 0)
        )
        if magic != MAGIC:
            raise SharedMemoryError("not a ring file of this version; remove it and start again")
        parsed = json.loads(self.map[SCHEMA_OFFSET : SCHEMA_OFFSET + schema].decode())
        self.dtype = _parse_dtype(parsed["dtype"])
        self.meta: dict[str, Any] = parsed["meta"]
        self.words: NDArray[np.uint64] = np.frombuffer(self.map, np.uint64, 16)
        # Strided over the slots: opening a ring of thousands of them costs no loop.
        self.seq: NDArray[np.uint64] = np.ndarray(
            (self.slots, 1), np.uint64, self.map, header, (self.stride, 8)
        )
        self.records: NDArray[Any] = np.ndarray(
            (self.slots, 1), self.dtype, self.map, header + 64, (self.stride, self.dtype.itemsize)
        )

    def close(self) -> None:
        del self.seq, self.records, self.words
        with contextlib.suppress(BufferError):  # a caller still holds a view: freed with it
            self.map.close()


class RingWriter:
    """The one writer of a ring. A second living writer of the same path is refused.

    ``dtype`` is a structured dtype without object fields; ``meta`` is JSON that readers find in
    ``Ring.meta``. A file left by a dead writer is marked closed and replaced, and readers that
    hold it find the new one at their next ``Ring.reopen``.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], slots: int, meta: dict[str, Any] | None = None
    ) -> None:
        _require_ordering()
        _check_dtype(path, dtype)
        if slots < 2:
            raise SharedMemoryError(f"{path}: a ring needs at least 2 slots, not {slots}")
        self.path = path
        self._lock_fd = _lock(path)
        try:
            self._map = self._create(dtype, slots, meta or {})
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._count = 0

    def _create(self, dtype: np.dtype[Any], slots: int, meta: dict[str, Any]) -> _Mapping:
        """Reserve and fill a new file beside ``path``, then put it there in one rename."""
        self._retire_predecessor()
        schema = _schema(dtype, meta)
        header = -(-(SCHEMA_OFFSET + len(schema)) // 4096) * 4096
        stride = -(-(64 + dtype.itemsize) // 64) * 64
        size = header + slots * stride
        generation = secrets.randbits(63)
        values = (MAGIC, generation, header, slots, stride, len(schema), os.getpid(), 0)
        # One name for all incarnations: what a writer killed here left behind is reused.
        temporary = self.path.with_name(f".{self.path.name}.new")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.pwrite(fd, HEADER.pack(*values), 0)
            os.pwrite(fd, schema, SCHEMA_OFFSET)
            mapping = _Mapping(fd, size, writable=True)
        except OSError as error:
            temporary.unlink()
            raise SharedMemoryError(
                f"cannot reserve {size / 1e6:.1f} MB for {self.path}: {error.strerror}; free "
                f"space in {self.path.parent} or use fewer or smaller cameras"
            ) from error
        finally:
            os.close(fd)
        temporary.rename(self.path)
        return mapping

    def _retire_predecessor(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            os.pwrite(fd, struct.pack("<Q", 1), CLOSED_WORD * 8)
        finally:
            os.close(fd)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._map.dtype

    @property
    def count(self) -> int:
        """How many records were published."""
        return self._count

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """The next record to fill in place (a numpy void); published when the block ends.

        The slot holds an old record when handed out: fill every field that readers use. An
        exception inside the block publishes nothing.
        """
        slot = self._count % self._map.slots
        seq = self._map.seq[slot]
        seq[0] = 2 * self._count + 1
        yield self._map.records[slot][0]
        seq[0] = 2 * self._count + 2
        self._count += 1
        self._map.words[COUNT_WORD] = self._count

    def publish(self, record: Any) -> None:
        """Copy one record (a numpy void of the ring's dtype, or a tuple of fields) in."""
        slot = self._count % self._map.slots
        seq = self._map.seq[slot]
        seq[0] = 2 * self._count + 1
        self._map.records[slot][0] = record
        seq[0] = 2 * self._count + 2
        self._count += 1
        self._map.words[COUNT_WORD] = self._count

    def close(self, *, unlink: bool = False) -> None:
        """Mark the ring closed; the file stays for late readers unless ``unlink``."""
        self._map.words[CLOSED_WORD] = 1
        if unlink:
            self.path.unlink(missing_ok=True)
            Path(f"{self.path}.lock").unlink(missing_ok=True)
        self._map.close()
        os.close(self._lock_fd)

    def __enter__(self) -> RingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ring:
    """A reader of a ring. ``index`` counts records from 0; the last ``slots - 1`` are readable."""

    def __init__(self, path: Path, *, timeout_s: float = 0.0) -> None:
        _require_ordering()
        self.path = path
        if timeout_s:
            wait_for(path, timeout_s)
        self._map = self._open()
        self._scratch = np.zeros(1, self._map.dtype)

    def _open(self) -> _Mapping:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SharedMemoryError(
                f"{self.path} does not exist: the process that writes it is not running; "
                "see `robot-stack status`"
            ) from None
        try:
            return _Mapping(fd, os.fstat(fd).st_size, writable=False)
        finally:
            os.close(fd)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._map.dtype

    @property
    def meta(self) -> dict[str, Any]:
        return self._map.meta

    @property
    def generation(self) -> int:
        """A random id of this incarnation of the ring: a restarted writer has another."""
        return int(self._map.generation)

    @property
    def slots(self) -> int:
        return int(self._map.slots)

    @property
    def writer_pid(self) -> int:
        return int(self._map.pid)

    @property
    def closed(self) -> bool:
        """True when the writer ended properly, or a new writer has replaced the file."""
        return bool(self._map.words[CLOSED_WORD])

    @property
    def count(self) -> int:
        """How many records have been published; the newest has index ``count - 1``."""
        return int(self._map.words[COUNT_WORD])

    def reopen(self) -> bool:
        """Follow a restarted writer; True when a newer incarnation was found and attached."""
        try:
            fresh = self._open()
        except SharedMemoryError:
            return False
        if fresh.generation == self._map.generation:
            fresh.close()
            return False
        self._map.close()
        self._map = fresh
        self._scratch = np.zeros(1, fresh.dtype)
        return True

    def read(self, index: int, out: NDArray[Any] | None = None) -> Any | None:
        """A copy of record ``index`` (numpy void), or None when it was overwritten meanwhile.

        ``out`` (shape (1,) of the ring's dtype) saves the allocation for large records.
        """
        slot = index % self._map.slots
        expected = 2 * index + 2
        seq = self._map.seq[slot]
        if int(seq[0]) != expected:
            return None
        target = np.empty(1, self._map.dtype) if out is None else out
        target[0] = self._map.records[slot][0]
        if int(seq[0]) != expected:
            return None
        return target[0]

    def view(self, index: int) -> Any | None:
        """Record ``index`` in place, without a copy; check ``intact(index)`` after its use."""
        if not self.intact(index):
            return None
        return self._map.records[index % self._map.slots][0]

    def intact(self, index: int) -> bool:
        """Whether record ``index`` is complete and not overwritten."""
        return int(self._map.seq[index % self._map.slots][0]) == 2 * index + 2

    def latest(self, out: NDArray[Any] | None = None) -> tuple[int, Any] | None:
        """The newest complete record as (index, copy), or None when there is none yet."""
        for _ in range(RETRIES):
            index = self.count - 1
            if index < 0:
                return None
            record = self.read(index, out)
            if record is not None:
                return index, record
        raise SharedMemoryError(
            f"{self.path}: the writer overran the reader {RETRIES} times; use more slots"
        )

    def since(self, index: int) -> tuple[int, list[Any]]:
        """All readable records from ``index`` on, as (index of the first, copies).

        The first index is greater than ``index`` when older records were overwritten.
        """
        count = self.count
        first = max(index, count - self.slots + 1, 0)
        records: list[Any] = []
        for i in range(first, count):
            record = self.read(i)
            if record is None:  # overwritten while we copied: restart after it
                first, records = i + 1, []
                continue
            records.append(record)
        return first, records

    def close(self) -> None:
        self._map.close()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Flag:
    """A latched word plus a short reason that any local program may set: the stop flag.

    Setting is one aligned 8-byte store; no lease, no parsing, no lock. Several writers may race:
    the word is then set all the same, and the reason is one of theirs.
    """

    SIZE = 4096
    REASON = 64

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.SIZE)
            self._map = mmap.mmap(fd, self.SIZE)
            self._inode = os.fstat(fd).st_ino
        except OSError as error:
            raise SharedMemoryError(
                f"cannot reserve {self.SIZE} bytes for {path}: {error.strerror}; free space in "
                f"{path.parent}"
            ) from error
        finally:
            os.close(fd)
        self._words: NDArray[np.uint64] = np.frombuffer(self._map, np.uint64, 8)

    @property
    def value(self) -> int:
        """0 when clear."""
        return int(self._words[0])

    @property
    def t_ns(self) -> int:
        """Monotonic time of the last ``set``."""
        return int(self._words[1])

    def present(self) -> bool:
        """Whether the file that others would raise is still the one mapped here."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    @property
    def reason(self) -> str:
        raw = self._map[self.REASON : self.REASON + 512]
        return raw.split(b"\0", 1)[0].decode(errors="replace")

    @property
    def asked(self) -> bool:
        """Whether somebody has asked for it since ``clear``, first or after a fault."""
        return bool(self._words[2])

    def set(self, value: int, reason: str, *, asked: bool = False) -> None:
        """Raise the flag; the first reason stays until ``clear``.

        The smaller value is the stronger: a later, larger one does not replace it. ``asked``: by
        somebody, and so not to be cleared by a program of its own accord.
        """
        if asked:
            self._words[2] = 1
        if not self._words[0]:
            data = reason.encode()[:511] + b"\0"
            self._map[self.REASON : self.REASON + len(data)] = data
            self._words[1] = time.monotonic_ns()
        if not 0 < self._words[0] <= value:
            self._words[0] = value

    def clear(self) -> None:
        self._words[0] = 0  # first: a stop that comes between the two stays
        self._words[2] = 0

    def close(self) -> None:
        del self._words
        self._map.close()
